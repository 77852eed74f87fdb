"""What a plan costs: time, energy and memory of every stage and every hop.

The model, one sample at a time, in the number format that the bundle holds. An operation on
integers takes the device's rate for these; where it has none, that of the next wider format that
it has. Tensors and weights take the room of the integers that they are.


* a node takes the time that its arithmetic needs or its bytes need, whichever is longer (the
  roofline): (MACs + other operations) / (rate * share of the rate that a node of this size
  reaches), and bytes read and written / bandwidth of the memory. A table measured on the device
  takes the place of both;
* a stage takes the time of its nodes, the start-up of the device if it has any, and its codec
  halves' MACs over the rate; where it has no nodes, any number format will do;
* a link takes latency + set-up + bytes / rate for each frame (`Link.transfer_s`);
* latency is the sum of all. The interval of a full pipeline is that of the busiest device or
  medium: a device serves all its stages by turns, a medium all hops over it;
* energy is that of MACs and other operations alike, of bytes written to memory, of the links, and
  the static power of every device on the way for the whole latency;
* a stage holds its weights, each once, and at most the tensors alive at one moment. Where the way
  passes a device more than once, it holds what is needed for one passage at a time.

References:
    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
    architectures", Communications of the ACM 52(4), 2009.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from isthmus.backends import TensorSpec
from isthmus.errors import InputError
from isthmus.graph import Graph, Node, fingerprint, live_bytes
from isthmus.plan.choices import Choice
from isthmus.plan.plan import Prediction, Stage
from isthmus.platform import Device, Link
from isthmus.platform.platform import FORMATS

FORMAT = "fp32"
OBJECTIVES = {
    "latency": "latency_s",
    "throughput": "interval_s",
    "energy": "energy_j",
    "price": "price",
}

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Amount = float | Array
Index = int | Indices
Clock = str | tuple[str, ...]
Cells = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the nodes of a graph cost on one device: sums over all nodes before each cut.

    Attributes:
        device: The device.
        formats: In which it computes each node, (N,); that of the node where it cannot.
        kinds: The formats that occur.
        kind: Which of these is a node's, (N,).
        work: Operations of each node over the share of the rate that it reaches, (N,).
        moved_s: Time to move its bytes, or that which was measured, (N,).
        seconds: Time, (N + 1,).
        joules: Energy without static power, (N + 1,).
        barred: How many nodes it cannot run, (N + 1,).
    """

    device: Device
    formats: tuple[str, ...]
    kinds: tuple[str, ...]
    kind: Indices
    work: Array
    moved_s: Array
    seconds: Array
    joules: Array
    barred: Indices

    def at_rate(self, device: Device) -> "Site":
        """Return the same with the device at other rates."""
        rates = np.array([device.macs_per_s.get(name, inf) for name in self.kinds])
        seconds = np.maximum(self.work / rates.take(self.kind), self.moved_s)
        return replace(self, device=device, seconds=_sums(seconds))


def make_site(graph: Graph, device: Device) -> Site:
    """Work out what every node costs on a device.

    Args:
        graph: The nodes.
        device: Whose measured times are those of this graph, if it has any.

    Raises:
        InputError: The device's times were measured for another model.
    """
    table = device.node_s
    if table is not None and table.graph != fingerprint(graph):
        raise InputError(
            f"device {device.name}: found measured times of graph {table.graph}, expected "
            f"{fingerprint(graph)}; measure this model (isthmus profile MODEL --measure) or leave "
            "them out"
        )
    used = {name: computing_format(device, name) for name in {n.format for n in graph.nodes}}
    formats = tuple(used[node.format] or node.format for node in graph.nodes)
    barred = [not used[n.format] or n.op in device.unsupported for n in graph.nodes]
    arithmetic = np.array([(node.macs or 0) + (node.ops or 0) for node in graph.nodes], float)
    written = np.array([node.written_bytes for node in graph.nodes], float)
    if table is not None:
        work = 0.0 * arithmetic
        moved_s = np.array([table.seconds.get(node.name, 0.0) for node in graph.nodes])
    else:
        work = arithmetic / np.array([device.share(count) for count in arithmetic])
        moved = written + np.array([node.read_bytes for node in graph.nodes], float)
        moved_s = moved / (device.memory_bytes_per_s or inf)
    j_per_mac = np.array([device.j_per_mac.get(name, 0.0) for name in formats])
    joules = arithmetic * j_per_mac + written * device.sram_j_per_byte
    kinds = tuple(dict.fromkeys(formats))
    site = Site(
        device=device,
        formats=formats,
        kinds=kinds,
        kind=np.array([kinds.index(name) for name in formats], np.intp),
        work=work,
        moved_s=moved_s,
        seconds=np.zeros(len(formats) + 1),
        joules=_sums(joules),
        barred=_sums(barred).astype(np.intp),
    )
    return site.at_rate(device)


def computing_format(device: Device, name: str) -> str | None:
    """Return in which format a device computes what can be computed in another, or None.

    Example:
        >>> device = Device(name="a", macs_per_s={"int8": 1e9, "fp32": 1e8}, formats=("fp32",))
        >>> computing_format(device, "int8")
        'fp32'
    """
    wider = reversed(FORMATS[: FORMATS.index(name) + 1])
    return next((f for f in wider if f in device.macs_per_s and f in device.formats), None)


def stage_format(nodes: Sequence[Node], formats: Sequence[str]) -> str:
    """Return in which formats the MACs of some nodes are computed, most first: ``int8+fp32``."""
    macs: dict[str, int] = {}
    for node, name in zip(nodes, formats, strict=True):
        macs[name] = macs.get(name, 0) + (node.macs or 0)
    used = [name for name in macs if macs[name]] or list(macs)[:1] or [FORMAT]
    return "+".join(sorted(used, key=lambda name: -macs.get(name, 0)))


def _sums(values: npt.ArrayLike) -> Array:
    return np.concatenate(([0.0], np.cumsum(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a stage asks of its device: numbers for one stage, arrays for many at once, else 0.

    Attributes:
        start: Index of its first node.
        stop: Index after its last node; where that is ``start``, the device only passes on what
            it gets, or encodes the input, or decodes the answer; where it is less, there is no
            such stage.
        codec_macs: Of the codec halves.
        codec_bytes: Tensors and buffers that the codec halves write.
        weight_bytes: Of nodes, each weight once, and codec halves.
        peak_bytes: Largest sum of tensors alive at once, codec buffers included.
        node_peak_bytes: The same while nodes are computed, 0 without any.
    """

    start: Index = 0
    stop: Index = 0
    codec_macs: Amount = 0
    codec_bytes: Amount = 0
    weight_bytes: Amount = 0
    peak_bytes: Amount = 0
    node_peak_bytes: Amount = 0


def stage_loads(graph: Graph, route: Sequence[Choice]) -> tuple[Load, ...]:
    """Return the load of each stage, given what each link carries."""
    live, loads = live_bytes(graph), []
    ends = pairwise((None, *route, None))
    for mine, (before, after) in zip(stage_nodes(len(graph.nodes), route), ends, strict=True):
        nodes = graph.nodes[mine.start : mine.stop]
        weights = {weight.name: weight.num_bytes for node in nodes for weight in node.weights}
        node_peak = max(live[mine.start : mine.stop], default=0)
        halves = halves_load(before, after)
        load = replace(
            halves,
            start=mine.start,
            stop=mine.stop,
            weight_bytes=sum(weights.values()) + halves.weight_bytes,
            peak_bytes=max(node_peak, float(halves.peak_bytes)),
            node_peak_bytes=node_peak,
        )
        loads.append(load)
    return tuple(loads)


def stage_nodes(num_nodes: int, route: Sequence[Choice]) -> tuple[range, ...]:
    """Return the indices of each stage's nodes, given what each link carries."""
    ends = (0, *(choice.cut.index for choice in route), num_nodes)
    return tuple(range(start, stop) for start, stop in pairwise(ends))


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
        codec_macs=macs,
        codec_bytes=written_bytes,
        weight_bytes=weight_bytes,
        peak_bytes=peak_bytes,
    )


def coding_format(device: Device) -> str | None:
    """Return in which format the device codes where it computes nothing: ours, or its fastest."""
    if FORMAT in device.macs_per_s:
        return FORMAT
    return max(device.macs_per_s, key=lambda name: device.macs_per_s[name], default=None)


def codec_s(device: Device, load: Load) -> Amount:
    """Return the time of a stage's codec halves."""
    used = coding_format(device)
    return load.codec_macs / device.macs_per_s[used] if used else load.codec_macs * 0.0


def compute_s(site: Site, load: Load) -> Amount:
    """Return a stage's time; infinite where it has nodes that the device cannot run."""
    time_s = site.seconds[load.stop] - site.seconds[load.start] + codec_s(site.device, load)
    if site.device.start_s:
        time_s = time_s + site.device.start_s * np.greater(load.stop, load.start)
    if site.barred[-1]:
        time_s = np.where(site.barred[load.stop] > site.barred[load.start], inf, time_s)
    return time_s


def stage_j(site: Site, load: Load) -> Amount:
    """Return a stage's energy without static power."""
    device = site.device
    nodes_j: Amount = site.joules[load.stop] - site.joules[load.start]
    j_per_mac = device.j_per_mac.get(coding_format(device) or FORMAT, 0.0)
    written_j = load.codec_bytes * device.sram_j_per_byte
    return nodes_j + load.codec_macs * j_per_mac + written_j


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
        compute_s: Time of each stage, its codec halves included.
        stage_j: Energy of each stage, without static power.
        transfer_s: Time of each hop.
        occupied_s: How long each hop keeps its link busy.
        link_j: Energy of each hop.
        busy_s: How long each device, by its name, and each medium, by its clock (`Link.clock`), is
            busy with one sample.
        static_w: Static power of all devices on the way.
        prediction: All in all.
    """

    compute_s: tuple[float, ...]
    stage_j: tuple[float, ...]
    transfer_s: tuple[float, ...]
    occupied_s: tuple[float, ...]
    link_j: tuple[float, ...]
    busy_s: dict[Clock, float]
    static_w: float
    prediction: Prediction

    def cost(self, objective: str) -> float:
        """The figure that an objective makes small."""
        return float(getattr(self.prediction, OBJECTIVES[objective]))


def estimate(
    loads: Sequence[Load],
    route: Sequence[Choice],
    sites: Sequence[Site],
    links: Sequence[Link],
) -> Estimate:
    """Work out what a plan costs.

    Args:
        loads: Of each stage, by `stage_loads`.
        route: What each link carries.
        sites: One for each stage, in order; a device may come more than once.
        links: One fewer.

    Returns:
        The cost of every part.
    """
    stages = list(zip(sites, loads, strict=True))
    hops = [(link, choice.frame_bytes) for link, choice in zip(links, route, strict=True)]
    times_s = [float(compute_s(site, load)) for site, load in stages]
    occupied_s = [link.occupied_s(frame) for link, frame in hops]
    busy_s: dict[Clock, float] = {}
    for site, time_s in zip(sites, times_s, strict=True):
        busy_s[site.device.name] = busy_s.get(site.device.name, 0.0) + time_s
    for sender, link, time_s in zip(sites[:-1], links, occupied_s, strict=True):
        clock = link.clock(sender.device.name)
        busy_s[clock] = busy_s.get(clock, 0.0) + time_s
    devices = {site.device.name: site.device for site in sites}.values()
    transfer_s = tuple(link.transfer_s(frame) for link, frame in hops)
    stages_j = tuple(float(stage_j(site, load)) for site, load in stages)
    link_j = tuple(link.transfer_j(frame) for link, frame in hops)
    once = [now for before, now in zip((None, *route), route, strict=False) if now != before]
    return Estimate(
        compute_s=tuple(times_s),
        stage_j=stages_j,
        transfer_s=transfer_s,
        occupied_s=tuple(occupied_s),
        link_j=link_j,
        busy_s=busy_s,
        static_w=sum(device.static_w for device in devices),
        prediction=in_all(
            devices,
            latency_s=sum(times_s) + sum(transfer_s),
            joules=sum(stages_j) + sum(link_j),
            busy_s=busy_s,
            drops=[choice.drop for choice in once],
        ),
    )


def make_inputs(graph: Graph) -> tuple[TensorSpec, ...]:
    """Write down what a model takes."""
    return tuple(TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype) for t in graph.inputs)


def make_stage(
    site: Site, mine: Sequence[int], graph: Graph, load: Load, *, time_s: float, joules: float
) -> Stage:
    """Write down a device's part: the nodes of some indices, with what they take."""
    nodes = [graph.nodes[k] for k in mine]
    return Stage(
        device=site.device.name,
        nodes=tuple(node.name for node in nodes),
        macs=sum(node.macs or 0 for node in nodes),
        weight_bytes=ceil(load.weight_bytes),
        peak_memory_bytes=ceil(load.peak_bytes),
        format=stage_format(nodes, [site.formats[k] for k in mine]),
        compute_s=time_s,
        codec_s=float(codec_s(site.device, load)),
        energy_j=joules,
    )


def in_all(
    devices: Collection[Device],
    *,
    latency_s: float,
    joules: float,
    busy_s: Mapping[Clock, float],
    drops: Sequence[float | None],
) -> Prediction:
    """Add up what a plan costs: the devices on the way add static power and their prices."""
    return Prediction(
        latency_s=latency_s,
        interval_s=max(busy_s.values()),
        energy_j=joules + sum(device.static_w for device in devices) * latency_s,
        price=sum(device.price for device in devices),
        drop=None if None in drops else sum(drop or 0.0 for drop in drops),
    )
