"""What a plan costs: time, energy and memory of every stage and every hop.

The model, one sample at a time, in the number format that the bundle holds:

* a stage takes its MACs over the device's rate, those of its codec halves included;
* a link takes latency + bytes / rate for each frame (`Link.transfer_s`);
* latency is the sum of all; the interval of a full pipeline is the slowest stage or link;
* energy is that of MACs, of bytes written to memory, of the links, and the static power of every
  device on the way for the whole latency;
* a stage holds its weights, each once, and at most the tensors alive at one moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from isthmus.graph import Graph, live_bytes
from isthmus.plan.choices import Choice
from isthmus.plan.plan import Prediction, Violation
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
        written_bytes: Tensors and codec buffers written.
        runs: 1 where the device runs a program, 0 where it only passes bytes on.
    """

    macs: Amount
    weight_bytes: Amount
    peak_bytes: Amount
    written_bytes: Amount
    runs: Amount


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
    if before is not None and before == after:
        payload = before.spec.max_payload_bytes
        return Load(macs=0, weight_bytes=0, peak_bytes=payload, written_bytes=payload, runs=0)
    start = before.cut.index if before else 0
    stop = after.cut.index if after else len(graph.nodes)
    nodes = graph.nodes[start:stop]
    macs = sum(node.macs or 0 for node in nodes)
    weights = {weight.name: weight.num_bytes for node in nodes for weight in node.weights}
    weight_bytes = sum(weights.values())
    peaks = [*live[start:stop]]
    written = sum(node.output_bytes for node in nodes)
    if before:
        macs += before.spec.decoder_macs
        weight_bytes += before.spec.decoder_weight_bytes
        peaks.append(before.cut.num_bytes + before.spec.decoder_buffer_bytes)
        written += before.cut.num_bytes + before.spec.decoder_buffer_bytes
    if after:
        macs += after.spec.encoder_macs
        weight_bytes += after.spec.encoder_weight_bytes
        peaks.append(after.cut.num_bytes + after.spec.encoder_buffer_bytes)
        written += after.spec.encoder_buffer_bytes
    return Load(
        macs=macs,
        weight_bytes=weight_bytes,
        peak_bytes=max(peaks, default=0),
        written_bytes=written,
        runs=1,
    )


def compute_s(device: Device, load: Load) -> Amount:
    """Return a stage's time; infinite where the device lacks the format."""
    rate = device.macs_per_s.get(FORMAT)
    if rate is None:
        return np.where(np.asarray(load.runs) > 0, inf, 0.0)
    return load.macs / rate


def stage_j(device: Device, load: Load) -> Amount:
    """Return a stage's energy without static power."""
    return load.macs * device.j_per_mac.get(FORMAT, 0.0) + (
        load.written_bytes * device.sram_j_per_byte
    )


def excess_bytes(device: Device, load: Load) -> Amount:
    """Return by how much a stage overflows its device's memories."""
    memory = device.memory
    pairs = (
        (load.weight_bytes, memory.weights_bytes),
        (load.peak_bytes, memory.activations_bytes),
        (load.weight_bytes + load.peak_bytes, memory.shared_bytes),
    )
    over: Amount = load.weight_bytes * 0.0
    for need, room in pairs:
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


def violations(devices: Sequence[Device], loads: Sequence[Load]) -> tuple[Violation, ...]:
    """Return every limit that the stages break."""
    return tuple(
        violation
        for device, load in zip(devices, loads, strict=True)
        for violation in _stage_violations(device, load)
    )


def _stage_violations(device: Device, load: Load) -> list[Violation]:
    memory = device.memory
    both = float(load.weight_bytes) + float(load.peak_bytes)
    narrower = "a narrower codec such as bottleneck:ratio=16"
    limits = [
        ("weights", float(load.weight_bytes), memory.weights_bytes, "one more device on the way"),
        ("activations", float(load.peak_bytes), memory.activations_bytes, narrower),
        ("memory", both, memory.shared_bytes, "one more device on the way"),
    ]
    broken = [
        Violation(
            where=device.name,
            what=what,
            need=need,
            limit=limit,
            unit="byte",
            remedy=f"use a device with >= {ceil(need / 1024)} KiB for it, or {other}",
        )
        for what, need, limit, other in limits
        if limit is not None and need > limit
    ]
    if load.runs and FORMAT not in device.macs_per_s:
        lacking = Violation(
            where=device.name,
            what=f"{FORMAT} arithmetic",
            need=float(load.macs),
            limit=0.0,
            unit="MAC",
            remedy=f"give its {FORMAT} rate under compute, or use a device that has one",
        )
        broken.append(lacking)
    return broken
