"""What a plan costs: time, energy and memory of every stage and every hop.

The model, one sample at a time, in the number format that the bundle holds:

* a stage takes its MACs over the device's rate, those of its codec halves included; where it has
  no nodes, any number format will do;
* a link takes latency + bytes / rate for each frame (`Link.transfer_s`);
* latency is the sum of all; the interval of a full pipeline is the slowest stage or link;
* energy is that of MACs, of bytes written to memory, of the links, and the static power of every
  device on the way for the whole latency;
* a stage holds its weights, each once, and at most the tensors alive at one moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
import numpy.typing as npt

from isthmus.graph import Graph, live_bytes
from isthmus.plan.choices import Choice
from isthmus.plan.plan import Prediction
from isthmus.platform import Device, Link

FORMAT = "fp32"
OBJECTIVES = {"latency": "latency_s", "throughput": "interval_s", "energy": "energy_j"}

Amount = float | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a stage asks of its device: numbers for one stage, arrays for many at once.

    Attributes:
        macs: Of nodes and codec halves.
        weight_bytes: Of nodes, each weight once, and codec halves.
        peak_bytes: Largest sum of tensors alive at once, codec buffers included.
        node_peak_bytes: The same while nodes are computed, 0 without any.
        written_bytes: Tensors and codec buffers written.
        computes: 1 where the stage has nodes, 0 where the device only passes on what it gets, or
            encodes the input, or decodes the answer.
    """

    macs: Amount
    weight_bytes: Amount
    peak_bytes: Amount
    node_peak_bytes: Amount
    written_bytes: Amount
    computes: Amount


def stage_loads(graph: Graph, route: Sequence[Choice]) -> tuple[Load, ...]:
    """Return the load of each stage, given what each link carries."""
    live = live_bytes(graph)
    ends = (None, *route, None)
    return tuple(_stage_load(graph, live, before, after) for before, after in pairwise(ends))


def stage_nodes(num_nodes: int, route: Sequence[Choice]) -> tuple[range, ...]:
    """Return the indices of each stage's nodes, given what each link carries."""
    ends = (0, *(choice.cut.index for choice in route), num_nodes)
    return tuple(range(start, stop) for start, stop in pairwise(ends))


def _stage_load(
    graph: Graph, live: Sequence[int], before: Choice | None, after: Choice | None
) -> Load:
    start = before.cut.index if before else 0
    stop = after.cut.index if after else len(graph.nodes)
    nodes = graph.nodes[start:stop]
    macs = sum(node.macs or 0 for node in nodes)
    weights = {weight.name: weight.num_bytes for node in nodes for weight in node.weights}
    node_peak = max(live[start:stop], default=0)
    halves = halves_load(before, after)
    return Load(
        macs=macs + halves.macs,
        weight_bytes=sum(weights.values()) + halves.weight_bytes,
        peak_bytes=max(node_peak, float(halves.peak_bytes)),
        node_peak_bytes=node_peak,
        written_bytes=sum(node.output_bytes for node in nodes) + halves.written_bytes,
        computes=int(bool(nodes)),
    )


def halves_load(before: Choice | None, after: Choice | None) -> Load:
    """Return what the codec halves of a stage ask, given what arrives and what leaves.

    Where both are the same, the device passes the payload on as it is.
    """
    macs = weight_bytes = peak_bytes = written_bytes = 0
    if before is not None and before == after:
        peak_bytes = written_bytes = before.spec.max_payload_bytes
        before = after = None
    if before:
        macs += before.spec.decoder_macs
        weight_bytes += before.spec.decoder_weight_bytes
        peak_bytes = before.cut.num_bytes + before.spec.decoder_buffer_bytes
        written_bytes += peak_bytes
    if after:
        macs += after.spec.encoder_macs
        weight_bytes += after.spec.encoder_weight_bytes
        peak_bytes = max(peak_bytes, after.cut.num_bytes + after.spec.encoder_buffer_bytes)
        written_bytes += after.spec.encoder_buffer_bytes
    return Load(
        macs=macs,
        weight_bytes=weight_bytes,
        peak_bytes=peak_bytes,
        node_peak_bytes=0,
        written_bytes=written_bytes,
        computes=0,
    )


def coding_format(device: Device) -> str | None:
    """Return in which format the device codes where it computes nothing: ours, or its fastest."""
    if FORMAT in device.macs_per_s:
        return FORMAT
    return max(device.macs_per_s, key=lambda name: device.macs_per_s[name], default=None)


def compute_s(device: Device, load: Load) -> Amount:
    """Return a stage's time; infinite where it has nodes and the device lacks the format."""
    used = coding_format(device)
    time_s = load.macs / device.macs_per_s[used] if used else load.macs * 0.0
    if used == FORMAT:
        return time_s
    return np.where(np.asarray(load.computes) > 0, inf, time_s)


def stage_j(device: Device, load: Load) -> Amount:
    """Return a stage's energy without static power."""
    j_per_mac = device.j_per_mac.get(coding_format(device) or FORMAT, 0.0)
    return load.macs * j_per_mac + load.written_bytes * device.sram_j_per_byte


def needs(device: Device, load: Load) -> tuple[tuple[str, Amount, float | None], ...]:
    """Return of each of a device's memories the name, what a stage needs of it, and the room."""
    memory = device.memory
    return (
        ("weights", load.weight_bytes, memory.weights_bytes),
        ("activations", load.peak_bytes, memory.activations_bytes),
        ("memory", load.weight_bytes + load.peak_bytes, memory.shared_bytes),
    )


def excess_bytes(device: Device, load: Load) -> Amount:
    """Return by how much a stage overflows its device's memories."""
    over: Amount = load.weight_bytes * 0.0
    for _, need, room in needs(device, load):
        if room is not None:
            over = over + np.maximum(need - room, 0.0)
    return over


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan costs, part by part.

    Attributes:
        loads: Of each stage.
        compute_s: Time of each stage.
        stage_j: Energy of each stage, without static power.
        transfer_s: Time of each hop.
        occupied_s: How long each hop keeps its link busy.
        link_j: Energy of each hop.
        static_w: Static power of all devices on the way.
    """

    loads: tuple[Load, ...]
    compute_s: tuple[float, ...]
    stage_j: tuple[float, ...]
    transfer_s: tuple[float, ...]
    occupied_s: tuple[float, ...]
    link_j: tuple[float, ...]
    static_w: float

    @property
    def prediction(self) -> Prediction:
        """The sums."""
        latency_s = sum(self.compute_s) + sum(self.transfer_s)
        return Prediction(
            latency_s=latency_s,
            interval_s=max((*self.compute_s, *self.occupied_s)),
            energy_j=sum(self.stage_j) + sum(self.link_j) + self.static_w * latency_s,
        )

    def cost(self, objective: str) -> float:
        """The figure that an objective makes small."""
        return float(getattr(self.prediction, OBJECTIVES[objective]))


def estimate(
    loads: Sequence[Load],
    route: Sequence[Choice],
    devices: Sequence[Device],
    links: Sequence[Link],
) -> Estimate:
    """Work out what a plan costs.

    Args:
        loads: Of each stage, by `stage_loads`.
        route: What each link carries.
        devices: One for each stage, in order.
        links: One fewer.

    Returns:
        The cost of every part.
    """
    stages = list(zip(devices, loads, strict=True))
    hops = [(link, choice.frame_bytes) for link, choice in zip(links, route, strict=True)]
    return Estimate(
        loads=tuple(loads),
        compute_s=tuple(float(compute_s(device, load)) for device, load in stages),
        stage_j=tuple(float(stage_j(device, load)) for device, load in stages),
        transfer_s=tuple(link.transfer_s(frame) for link, frame in hops),
        occupied_s=tuple(link.occupied_s(frame) for link, frame in hops),
        link_j=tuple(link.transfer_j(frame) for link, frame in hops),
        static_w=sum(device.static_w for device in devices),
    )
