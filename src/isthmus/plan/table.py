"""What every possible stage and every possible hop costs, as tables over what they carry.

Of K choices any may arrive at a stage and any may leave it; index K stands for nothing: the
model's own input arrives, its own output leaves. So the stages of one device make a table
(K + 1, K + 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.graph import Graph, live_bytes
from isthmus.plan.blocks import cells_of
from isthmus.plan.choices import Choice, can_code, preference
from isthmus.plan.estimate import (
    Array,
    Cells,
    Clock,
    Indices,
    Load,
    Site,
    compute_s,
    excess_bytes,
    halves_load,
    make_site,
    needs,
    stage_j,
)
from isthmus.plan.plan import NO_LIMITS, Limits
from isthmus.platform import Device, Link, Platform, routes, stops

Mask = npt.NDArray[np.bool_]
Sizes = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Every stage of one device, (K + 1, K + 1).

    Attributes:
        site: The device, and what its nodes cost.
        load: Of all stages.
        allowed: Whether there is such a stage: it has nodes, and no cut inside that a link has to
            carry; or it only sends the input or takes the output.
        possible: Whether the device also has the operations, the number format and the codecs.
        fits: Whether its memories suffice, too.
    """

    site: Site
    load: Load
    allowed: Mask
    possible: Mask
    fits: Mask

    def seconds(self, cells: Cells) -> Array:
        """Return the time of a block of stages; 0 where the device cannot compute one."""
        time_s = np.asarray(compute_s(self.site, self.load.part(cells)))
        return np.where(np.isfinite(time_s), time_s, 0.0) if self.site.barred[-1] else time_s

    def joules(self, cells: Cells) -> Array:
        """Return their energy without static power."""
        return np.asarray(stage_j(self.site, self.load.part(cells)))

    def at(self, row: int, column: int) -> tuple[float, float]:
        """Return time and energy of one stage that the device can compute."""
        load = self.load.at(row, column)
        return float(compute_s(self.site, load)), float(stage_j(self.site, load))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """The way of a frame from one device that codes to another; arrays are over what it carries.

    Attributes:
        devices: Indices of all devices on it, both ends included.
        links: One fewer.
        seconds: Time, (K,).
        joules: Energy of links and relays, (K,).
        busy_s: How long each medium is busy, by its clock, (K,) each.
        excess: Bytes by which memories of relays overflow, (K,).
    """

    devices: tuple[int, ...]
    links: tuple[Link, ...]
    seconds: Array
    joules: Array
    busy_s: Mapping[Clock, Array]
    excess: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A graph, a platform, and all that a plan is made of.

    Attributes:
        graph: What is computed.
        platform: On what.
        choices: What a link may carry, K of them.
        rank: Of all that cost the same the one of least rank is chosen; nothing last, (K + 1,).
        objective: latency, throughput, energy or price.
        limits: What a plan must not exceed.
        load: Of every stage, (K + 1, K + 1); ``start`` and ``stop`` are a column and a row.
        stages: Of every device of the platform.
        sizes: Bytes of the frame and the largest payload of each choice.
        legs: By the indices of two devices, where there is a way from one to the other.
    """

    graph: Graph
    platform: Platform
    choices: tuple[Choice, ...]
    rank: Indices
    objective: str
    limits: Limits = NO_LIMITS
    load: Load
    stages: tuple[Stages, ...]
    sizes: Sizes
    legs: Mapping[tuple[int, int], Leg] = field(repr=False)

    @property
    def source(self) -> int:
        """Index of the device where samples arise."""
        return self.index(self.platform.input)

    @property
    def target(self) -> int:
        """Index of the device where the answer is wanted."""
        return self.index(self.platform.output)

    def index(self, name: str) -> int:
        """Return the index of a device."""
        return [device.name for device in self.platform.devices].index(name)


def make_problem(
    graph: Graph,
    platform: Platform,
    choices: tuple[Choice, ...],
    *,
    objective: str,
    limits: Limits = NO_LIMITS,
) -> Problem:
    """Work out the costs of every possible stage and hop.

    Args:
        graph: What is computed.
        platform: On what.
        choices: What a link may carry; it is fastest in the order of cuts.
        objective: What is to be made small.
        limits: What a plan must not exceed.
    """
    load = _load(graph, choices)
    start, stop = np.asarray(load.start)[:, 0], np.asarray(load.stop)[0]
    allowed = np.less(load.start, load.stop)
    allowed[-1] |= stop == 0
    allowed[:, -1] |= start == len(graph.nodes)
    stages: list[Stages] = []
    for device in platform.devices:
        known = (s for s in stages if replace(s.site.device, name=device.name) == device)
        twin = next(known, None)
        if twin is None:
            stages.append(make_stages(make_site(graph, device), choices, load, allowed))
        else:  # devices that differ in name alone share their tables
            stages.append(replace(twin, site=replace(twin.site, device=device)))
    preferred = sorted(
        range(len(choices)), key=lambda pick: (preference(choices[pick].cut, graph), pick)
    )
    return Problem(
        graph=graph,
        platform=platform,
        choices=choices,
        rank=np.argsort([*preferred, len(choices)]),
        objective=objective,
        limits=limits,
        load=load,
        stages=tuple(stages),
        sizes=_sizes(choices),
        legs=make_legs(platform, choices),
    )


def restricted(problem: Problem, must: Sequence[int]) -> Problem:
    """Return the problem in which some link has to carry each of some cuts."""
    start, stop = np.asarray(problem.load.start), np.asarray(problem.load.stop)
    passes = np.full(problem.load.shape, True)
    for cut in must:  # no stage with nodes may have it inside, or do without it at either end
        passes &= (cut <= start) | (stop <= cut)
        passes[-1] &= (cut > 0) | (stop[0] == 0)
        passes[:, -1] &= (cut < len(problem.graph.nodes)) | (start[:, 0] == cut)
    stages = (
        replace(
            one,
            allowed=one.allowed & passes,
            possible=one.possible & passes,
            fits=one.fits & passes,
        )
        for one in problem.stages
    )
    return replace(problem, stages=tuple(stages))


def narrowed(problem: Problem, picks: Sequence[int] | Indices) -> Problem:
    """Return the problem with no other choices than those of some indices, in this order."""
    chosen = [problem.choices[pick] for pick in picks]
    which = np.append(np.asarray(picks, int), len(problem.choices))
    known: dict[int, npt.NDArray[Any]] = {}

    def cut(table: npt.ArrayLike) -> npt.NDArray[Any]:
        """Take rows and columns, of what is shared once."""
        table = np.asarray(table)
        if id(table) not in known:
            rows = table.take(which, axis=0) if len(table) > 1 else table
            known[id(table)] = rows.take(which, axis=1) if table.shape[1] > 1 else rows
        return known[id(table)]

    load = Load(**{name: cut(getattr(problem.load, name)) for name in Load.__slots__})
    return replace(
        problem,
        choices=tuple(chosen),
        rank=problem.rank[which],
        load=load,
        stages=tuple(
            Stages(
                site=one.site,
                load=load,
                allowed=cut(one.allowed),
                possible=cut(one.possible),
                fits=cut(one.fits),
            )
            for one in problem.stages
        ),
        sizes=tuple(problem.sizes[pick] for pick in picks),
        legs={
            ends: replace(
                leg,
                seconds=leg.seconds[which[:-1]],
                joules=leg.joules[which[:-1]],
                busy_s={clock: busy[which[:-1]] for clock, busy in leg.busy_s.items()},
                excess=leg.excess[which[:-1]],
            )
            for ends, leg in problem.legs.items()
        },
    )


def make_stages(site: Site, choices: Sequence[Choice], load: Load, allowed: Mask) -> Stages:
    """Work out which stages one device has."""
    coded = np.array([*(can_code(site.device, choice) for choice in choices), True])
    possible = allowed
    if site.barred[-1] or not coded.all():
        able = site.barred[load.stop] <= site.barred[load.start]
        possible = allowed & able & coded[:, None] & coded
    stages = Stages(site=site, load=load, allowed=allowed, possible=possible, fits=possible)
    return _with_memory(stages, site.device)


def _with_memory(stages: Stages, device: Device) -> Stages:
    stages = replace(stages, site=replace(stages.site, device=device), fits=stages.possible)
    if all(room is None for *_, room in needs(device, stages.load.part(_NONE))):
        return stages
    fits = np.full(stages.possible.shape, False)
    for cells in cells_of(stages.possible):
        enough = stages.possible[cells]
        for _, need, room in needs(device, stages.load.part(cells)):
            if room is not None:
                enough = enough & (need <= room)
        fits[cells] = enough
    return replace(stages, fits=fits)


_NONE = (slice(0, 0), slice(0, 0))


def changed(problem: Problem, owner: Device | Link) -> Problem:
    """Return the problem with another rate or memory of one device or link.

    Args:
        problem: As it stands.
        owner: The device or the link; frames keep their ways.
    """
    platform, stages = problem.platform, list(problem.stages)
    ways = {ends: leg.links for ends, leg in problem.legs.items()}
    if isinstance(owner, Link):
        swap = {link: owner for link in platform.links if link.between == owner.between}
        links = tuple(swap.get(link, link) for link in platform.links)
        platform = replace(platform, links=links)
        ways = {
            ends: tuple(swap.get(link, link) for link in links)
            for ends, links in ways.items()
            if swap.keys() & set(links)
        }
    else:
        index = problem.index(owner.name)
        old = stages[index]
        devices = tuple(owner if d.name == owner.name else d for d in platform.devices)
        platform = replace(platform, devices=devices)
        if replace(owner, memory=old.site.device.memory) == old.site.device:
            stages[index] = _with_memory(old, owner)
            relays = (ends for ends, leg in problem.legs.items() if index in leg.devices[1:-1])
            ways = {ends: ways[ends] for ends in relays}
        else:
            stages[index] = replace(old, site=old.site.at_rate(owner))
            ways = {}
    legs = {**problem.legs, **_legs(platform, problem.sizes, ways)}
    return replace(problem, platform=platform, stages=tuple(stages), legs=legs)


def make_legs(platform: Platform, choices: Sequence[Choice]) -> dict[tuple[int, int], Leg]:
    """Work out the costs of every way from one device to another, by their indices."""
    names = [device.name for device in platform.devices]
    ways = {
        (names.index(source), names.index(target)): links
        for source in names
        for target, links in routes(platform, source).items()
        if links
    }
    return _legs(platform, _sizes(choices), ways)


def _sizes(choices: Sequence[Choice]) -> tuple[tuple[float, float], ...]:
    """Return the bytes of the frame and the largest payload of each choice."""
    specs = {choice.spec: choice for choice in choices}
    sizes = {spec: (one.frame_bytes, spec.max_payload_bytes) for spec, one in specs.items()}
    return tuple(sizes[choice.spec] for choice in choices)


def _legs(
    platform: Platform, sizes: Sizes, ways: Mapping[tuple[int, int], tuple[Link, ...]]
) -> dict[tuple[int, int], Leg]:
    names = [device.name for device in platform.devices]
    frames = tuple(frame for frame, _ in sizes)
    payloads = np.array([payload for _, payload in sizes], float)
    legs = {}
    for ends, links in ways.items():
        devices = tuple(names.index(name) for name in stops(names[ends[0]], links))
        hops = [_hop(link, frames) for link in links]
        busy_s: dict[Clock, Array] = {}
        for sender, link, hop in zip(devices, links, hops, strict=False):
            clock = link.clock(names[sender])
            busy_s[clock] = busy_s.get(clock, 0.0) + hop[1]
        passing = [_relay(platform.devices[index], payloads) for index in devices[1:-1]]
        legs[ends] = Leg(
            devices=devices,
            links=links,
            seconds=np.sum([hop[0] for hop in hops], axis=0),
            joules=np.sum([*(hop[2] for hop in hops), *(relay[1] for relay in passing)], axis=0),
            busy_s=busy_s,
            excess=np.sum([0.0 * hops[0][0], *(relay[0] for relay in passing)], axis=0),
        )
    return legs


@lru_cache(maxsize=4096)
def _hop(link: Link, frames: tuple[float, ...]) -> Array:
    """Return time, occupation and energy of one link for each frame, (3, K)."""
    figures = {
        frame: (link.transfer_s(frame), link.occupied_s(frame), link.transfer_j(frame))
        for frame in set(frames)
    }
    return np.array([figures[frame] for frame in frames], float).reshape(-1, 3).T


def _relay(device: Device, payloads: Array) -> tuple[Array, Array]:
    """Return by how many bytes each payload overflows a device that passes it on, and energy."""
    none = 0.0 * payloads
    load = Load(
        start=0,
        stop=0,
        codec_macs=none,
        codec_bytes=payloads,
        weight_bytes=none,
        peak_bytes=payloads,
        node_peak_bytes=none,
    )
    return np.asarray(excess_bytes(device, load)), payloads * device.sram_j_per_byte


def _load(graph: Graph, choices: Sequence[Choice]) -> Load:
    ends = (*choices, None)
    starts = np.array([choice.cut.index if choice else 0 for choice in ends])[:, None]
    stops = np.array([choice.cut.index if choice else len(graph.nodes) for choice in ends])
    keys = [(choice.spec, choice.cut.num_bytes) if choice else () for choice in ends]
    halves = {  # of choices that are alike once
        key: (_halves(halves_load(choice, None)), _halves(halves_load(None, choice)))
        for key, choice in dict(zip(keys, ends, strict=True)).items()
    }
    decoders = np.array([halves[key][0] for key in keys]).T[:, :, None]
    encoders = np.array([halves[key][1] for key in keys]).T[:, None, :]
    peaks = _maxima(live_bytes(graph), starts, stops)
    return Load(
        start=starts,
        stop=stops[None],
        codec_macs=decoders[0] + encoders[0],
        codec_bytes=decoders[1] + encoders[1],
        weight_bytes=_weights(graph, starts, stops) + decoders[2] + encoders[2],
        peak_bytes=np.maximum(peaks, np.maximum(decoders[3], encoders[3])),
        node_peak_bytes=peaks,
    )


def _halves(load: Load) -> tuple[float, float, float, float]:
    figures = (load.codec_macs, load.codec_bytes, load.weight_bytes, load.peak_bytes)
    macs, written, weights, peak = (float(figure) for figure in figures)
    return macs, written, weights, peak


def _sums(values: Sequence[float], starts: Indices, stops: Indices) -> Array:
    """Return the sum of values[start:stop] for each pair; nothing of use where stop is less."""
    total = np.concatenate(([0.0], np.cumsum(values, dtype=float)))
    return total[stops] - total[starts]


def _weights(graph: Graph, starts: Indices, stops: Indices) -> Array:
    """Return the bytes of all weights of each segment, each counted once."""
    used: dict[str, int] = {}
    repeats = []
    for index, node in enumerate(graph.nodes):
        for weight in {weight.name: weight for weight in node.weights}.values():
            if weight.name in used:
                repeats.append((used[weight.name], index, weight.num_bytes))
            used[weight.name] = index
    unique = [
        sum({weight.name: weight.num_bytes for weight in node.weights}.values())
        for node in graph.nodes
    ]
    total = _sums(unique, starts, stops)
    for earlier, later, num_bytes in repeats:
        total -= num_bytes * ((starts <= earlier) & (stops > later))
    return total


def _maxima(values: Sequence[float], starts: Indices, stops: Indices) -> Array:
    """Return the largest of values[start:stop] for each pair; 0 for none."""
    rows = {}
    for start in np.unique(starts):
        tail = np.maximum.accumulate(np.array(values[start:], float))
        rows[start] = np.concatenate(([0.0], tail))[np.maximum(stops - start, 0)]
    return np.array([rows[start] for start in starts[:, 0]])
