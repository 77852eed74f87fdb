"""What every possible stage and every possible hop costs, as tables over what they carry.

Of K choices any may arrive at a stage and any may leave it; index K stands for nothing: the
model's own input arrives, its own output leaves. So the stages of one device make a table
(K + 1, K + 1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import chain
from math import inf

import numpy as np
import numpy.typing as npt

from isthmus.graph import Graph
from isthmus.plan.blocks import Table, cells_of, make_table
from isthmus.plan.choices import Choice, can_code, preference
from isthmus.plan.estimate import (
    Amount,
    Array,
    Cells,
    Clock,
    Indices,
    Load,
    Site,
    compute_s,
    excess_bytes,
    make_site,
    needs,
    stage_j,
)
from isthmus.plan.loads import Loads, make_loads
from isthmus.plan.plan import NO_LIMITS, Limits
from isthmus.platform import Device, Link, Memory, Platform, routes, stops

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
    load: Loads
    allowed: Mask
    possible: Mask
    fits: Mask
    _known: dict[tuple[Callable[[Site, Load], Amount], bool], Table] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def masked(self, change: Callable[[Mask], Mask]) -> "Stages":
        """Return the same with what a function makes of each mask."""
        return replace(
            self,
            allowed=change(self.allowed),
            possible=change(self.possible),
            fits=change(self.fits),
        )

    def seconds(self, limited: bool) -> Table:
        """Return the time of all that fit; of all that are possible, if memories are no limit."""
        return self._table(compute_s, limited=limited)

    def joules(self, limited: bool) -> Table:
        """Return the energy without static power."""
        return self._table(stage_j, limited=limited)

    def _table(self, figure: Callable[[Site, Load], Amount], *, limited: bool) -> Table:
        mask = self.fits if limited else self.possible

        def weigh(cells: Cells) -> Array:
            load = self.load.computed(cells, written=figure is stage_j)
            return np.where(mask[cells], figure(self.site, load), inf)

        if (figure, limited) not in self._known:
            self._known[figure, limited] = make_table(mask, weigh)
        return self._known[figure, limited]


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


_Asked = tuple[Callable[[Leg], Array], float, frozenset[int]]


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
        load: Of every stage.
        stages: Of every device of the platform.
        sizes: Bytes of the frame and the largest payload of each choice.
        legs: By the indices of two devices, where there is a way from one to the other.
        known: What `hops` has worked out.
    """

    graph: Graph
    platform: Platform
    choices: tuple[Choice, ...]
    rank: Indices
    objective: str
    limits: Limits = NO_LIMITS
    load: Loads
    stages: tuple[Stages, ...]
    sizes: Sizes
    legs: Mapping[tuple[int, int], Leg] = field(repr=False)
    known: dict[_Asked, Array] = field(init=False, repr=False, compare=False, default_factory=dict)

    def hops(
        self, figure: Callable[[Leg], Array], *, most_bytes: float, out: frozenset[int]
    ) -> Array:
        """Return a figure of the ways between all devices, (D, D, K), worked out once.

        Args:
            figure: What is asked of a way.
            most_bytes: It is infinite where a relay's memory overflows by more;
            out: and where the way passes one of these devices.
        """
        asked = (figure, most_bytes, out)
        if asked not in self.known:
            hops = np.full((len(self.stages), len(self.stages), len(self.choices)), inf)
            self.known[asked] = _fill(hops, self.legs, asked)
        return self.known[asked]


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
    load = make_loads(graph, choices)
    start, stop = load.starts, load.stops
    allowed = np.less(start[:, None], stop)
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
    start, stop = problem.load.starts[:, None], problem.load.stops
    passes = np.full((len(stop), len(stop)), True)
    for cut in must:  # no stage with nodes may have it inside, or do without it at either end
        passes &= (cut <= start) | (stop <= cut)
        passes[-1] &= (cut > 0) | (stop == 0)
        passes[:, -1] &= (cut < len(problem.graph.nodes)) | (start[:, 0] == cut)
    stages = tuple(one.masked(lambda mask: mask & passes) for one in problem.stages)
    return replace(problem, stages=stages)


def narrowed(problem: Problem, picks: Sequence[int] | Indices) -> Problem:
    """Return the problem with no other choices than those of some indices, in this order."""
    chosen = [problem.choices[pick] for pick in picks]
    which = np.append(np.asarray(picks, int), len(problem.choices))
    known: dict[int, Mask] = {}

    def cut(mask: Mask) -> Mask:
        """Take rows and columns, of what is shared once."""
        if id(mask) not in known:
            known[id(mask)] = mask.take(which, axis=0).take(which, axis=1)
        return known[id(mask)]

    load = problem.load.take(which)
    return replace(
        problem,
        choices=tuple(chosen),
        rank=problem.rank[which],
        load=load,
        stages=tuple(replace(one.masked(cut), load=load) for one in problem.stages),
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


def make_stages(site: Site, choices: Sequence[Choice], load: Loads, allowed: Mask) -> Stages:
    """Work out which stages one device has."""
    coded = np.array([*(can_code(site.device, choice) for choice in choices), True])
    possible = allowed
    if site.barred[-1] or not coded.all():
        able = site.barred[load.stops] <= site.barred[load.starts, None]
        possible = allowed & able & coded[:, None] & coded
    stages = Stages(site=site, load=load, allowed=allowed, possible=possible, fits=possible)
    return _with_memory(stages, site.device)


def _with_memory(stages: Stages, device: Device) -> Stages:
    stages = replace(stages, site=replace(stages.site, device=device), fits=stages.possible)
    if device.memory == Memory():
        return stages
    fits = np.full(stages.possible.shape, False)
    for cells in cells_of(stages.possible):
        enough = stages.possible[cells]
        for _, need, room in needs(device, stages.load.held(cells)):
            if room is not None:
                enough = enough & (need <= room)
        fits[cells] = enough
    return replace(stages, fits=fits)


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
        index = problem.platform.index(owner.name)
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
    fresh = _legs(platform, problem.sizes, ways)
    legs = {**problem.legs, **fresh}
    made = replace(problem, platform=platform, stages=tuple(stages), legs=legs)
    for asked, hops in problem.known.items():
        made.known[asked] = _fill(hops.copy(), fresh, asked) if fresh else hops
    return made


def _fill(hops: Array, legs: Mapping[tuple[int, int], Leg], asked: _Asked) -> Array:
    """Work a figure of some ways out, and write it down among those of all."""
    figure, most_bytes, out = asked
    for ends, leg in legs.items():
        if out.isdisjoint(leg.devices):
            hops[ends] = np.where(leg.excess <= most_bytes, figure(leg), inf)
    return hops


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
    passed = {name for ends, links in ways.items() for name in stops(names[ends[0]], links)[1:-1]}
    relays = {names.index(name): _relay(platform.device(name), payloads) for name in passed}
    taken = {link: _hop(link, frames) for link in dict.fromkeys(chain(*ways.values()))}
    legs = {}
    for ends, links in ways.items():
        devices = tuple(names.index(name) for name in stops(names[ends[0]], links))
        hops = [taken[link] for link in links]
        busy_s: dict[Clock, Array] = {}
        for sender, link, hop in zip(devices, links, hops, strict=False):
            clock = link.clock(names[sender])
            busy_s[clock] = busy_s.get(clock, 0.0) + hop[1]
        passing = [relays[index] for index in devices[1:-1]]
        legs[ends] = Leg(
            devices=devices,
            links=links,
            seconds=reduce(np.add, [hop[0] for hop in hops]),
            joules=reduce(np.add, [*(hop[2] for hop in hops), *(relay[1] for relay in passing)]),
            busy_s=busy_s,
            excess=reduce(np.add, [0.0 * payloads, *(relay[0] for relay in passing)]),
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
    excess = excess_bytes(device, Load(codec_bytes=payloads, peak_bytes=payloads))
    return np.asarray(excess), payloads * device.sram_j_per_byte
