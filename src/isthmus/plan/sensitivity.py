"""Which single figure of the platform would change the answer, and at what value.

A rate r enters every plan's cost as a + b / r (or as the larger of the two), so the plan that wins
at one value wins on an interval of 1 / r. Its ends are found exactly: take the best plan far away,
find where it draws level, see who is best there, and repeat until nobody is better. A memory only
decides which plans are possible, so its ends are sizes that plans need.

A link's latency is no such figure: every plan crosses every link once for each sample, so it
shifts all of them alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isinf, log, sqrt

from isthmus.plan.estimate import FORMAT, Load, estimate
from isthmus.plan.explain import Outcome, make_outcome
from isthmus.plan.plan import Sensitivity
from isthmus.plan.routes import Costs, Route, cheapest, hop_cost, make_costs, stage_cost
from isthmus.plan.table import Problem, pick_loads
from isthmus.platform import Device, Link

# Values are looked for up to this factor away; costs that differ by a smaller share are equal.
_REACH = 1000.0
_SAME = 1e-9

_Picks = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One figure of the platform.

    Attributes:
        name: In words.
        unit: Its unit.
        now: Its value.
        problem: The problem as it stands.
        costs: Its costs.
        index: Of the device or the link.
        change: Returns the device or the link with another value.
    """

    name: str
    unit: str
    now: float
    problem: Problem
    costs: Costs
    index: int
    change: Callable[[float], Device | Link]

    def problem_at(self, value: float) -> Problem:
        """Return the problem with another value."""
        changed = self.change(value)
        if isinstance(changed, Link):
            links = list(self.problem.links)
            links[self.index] = changed
            return replace(self.problem, links=tuple(links))
        devices = list(self.problem.devices)
        devices[self.index] = changed
        return replace(self.problem, devices=tuple(devices))

    def best_at(self, value: float) -> Route:
        """Return the best route with another value."""
        changed = self.change(value)
        if isinstance(changed, Link):
            hops = list(self.costs.hops)
            hops[self.index] = hop_cost(self.problem, changed)
            return cheapest(replace(self.costs, hops=tuple(hops)))
        stages = list(self.costs.stages)
        stages[self.index] = stage_cost(self.problem, self.index, changed)
        return cheapest(replace(self.costs, stages=tuple(stages)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room(_Figure):
    """A memory, and how much of it a stage needs."""

    need: Callable[[Load], float]


def find_sensitivity(problem: Problem, best: Outcome) -> tuple[Sensitivity, ...]:
    """Find the nearest value of each figure, upwards and downwards, at which another plan wins.

    Args:
        problem: What was chosen from.
        best: What was chosen: a plan of least cost.

    Returns:
        At most two entries for each device's rate and memories and each link's rate, nearest
        first. Another plan wins beyond the value; where a memory grows, from the value on.
    """
    if not problem.links:
        return ()
    costs = make_costs(problem)
    picks = tuple(problem.choices.index(choice) for choice in best.route)
    found = []
    for figure in _rates(problem, costs):
        changes = [_next_winner(figure, picks, figure.now * by) for by in (_REACH, 1 / _REACH)]
        found += [_entry(figure, best, *change) for change in changes if change]
    for room in _rooms(problem, costs):
        changes = [_larger(room, best), _smaller(room, best)]
        found += [_entry(room, best, *change) for change in changes if change]
    return tuple(sorted(found, key=_distance))


def _distance(entry: Sensitivity) -> float:
    return abs(log(entry.changes_at / entry.now)) if entry.now else inf


def _rates(problem: Problem, costs: Costs) -> Iterator[_Figure]:
    for index, device in enumerate(problem.devices):
        if FORMAT in device.macs_per_s:
            yield _Figure(
                name=f"{device.name} rate ({FORMAT})",
                unit="MAC/s",
                now=device.macs_per_s[FORMAT],
                problem=problem,
                costs=costs,
                index=index,
                change=partial(_with_rate, device),
            )
    for index, link in enumerate(problem.links):
        yield _Figure(
            name=f"link {link.name} rate",
            unit="byte/s",
            now=link.bytes_per_s,
            problem=problem,
            costs=costs,
            index=index,
            change=partial(_with_link_rate, link),
        )


def _with_rate(device: Device, value: float) -> Device:
    return replace(device, macs_per_s={**device.macs_per_s, FORMAT: value})


def _with_link_rate(link: Link, value: float) -> Link:
    return replace(link, bytes_per_s=value, pins=None, clock_hz=None)


def _next_winner(figure: _Figure, picks: _Picks, far: float) -> tuple[float, Route] | None:
    """Return the value nearest to now, on the way to ``far``, where another plan wins."""
    value, rival = far, figure.best_at(far)
    if not _better(figure, far, rival.picks, picks):
        return None
    while True:
        value = _level(figure, value, rival.picks, picks)
        nearer = figure.best_at(value)
        if not _better(figure, value, nearer.picks, rival.picks):
            return value, rival
        rival = nearer


def _level(figure: _Figure, far: float, rival: _Picks, picks: _Picks) -> float:
    """Return where, between now and ``far``, a rival begins to be better: costs cross once."""
    near = figure.now
    for _ in range(50):
        middle = sqrt(near) * sqrt(far)
        if _better(figure, middle, rival, picks):
            far = middle
        else:
            near = middle
    return far


def _better(figure: _Figure, value: float, one: _Picks, other: _Picks) -> bool:
    problem = figure.problem_at(value)
    return _cost(problem, one) < _cost(problem, other) * (1 - _SAME)


def _cost(problem: Problem, picks: _Picks) -> float:
    route = [problem.choices[pick] for pick in picks]
    loads = pick_loads(problem, picks)
    return estimate(loads, route, problem.devices, problem.links).cost(problem.objective)


def _rooms(problem: Problem, costs: Costs) -> Iterator[_Room]:
    for index, device in enumerate(problem.devices):
        for name, field, need in _MEMORIES:
            now = getattr(device.memory, field)
            if now is not None:
                yield _Room(
                    name=f"{device.name} memory{name}",
                    unit="byte",
                    now=now,
                    problem=problem,
                    costs=costs,
                    index=index,
                    change=partial(_with_room, device, field),
                    need=need,
                )


def _weights(load: Load) -> float:
    return float(load.weight_bytes)


def _activations(load: Load) -> float:
    return float(load.peak_bytes)


def _both(load: Load) -> float:
    return float(load.weight_bytes) + float(load.peak_bytes)


_MEMORIES = (
    (" (weights)", "weights_bytes", _weights),
    (" (activations)", "activations_bytes", _activations),
    ("", "shared_bytes", _both),
)


def _with_room(device: Device, field: str, value: float) -> Device:
    return replace(device, memory=replace(device.memory, **{field: value}))


def _larger(room: _Room, best: Outcome) -> tuple[float, Route] | None:
    """Return the least size with which a better plan fits."""

    def need(route: Route) -> float:
        return room.need(pick_loads(room.problem, route.picks)[room.index])

    enough = best.cost * (1 - _SAME)
    winner = room.best_at(room.now * _REACH)
    if winner.cost >= enough:
        return None
    too_small, size = room.now, need(winner)
    while size - too_small > 1:
        middle = (too_small + size) / 2
        route = room.best_at(middle)
        if route.cost < enough:
            winner, size = route, need(route)
        else:
            too_small = middle
    return size, winner


def _smaller(room: _Room, best: Outcome) -> tuple[float, Route] | None:
    """Return the least size with which the plan itself fits, and the best plan below it."""
    size = room.need(best.estimate.loads[room.index])
    return (size, room.best_at(size - 1)) if size > room.now / _REACH else None


def _entry(figure: _Figure, best: Outcome, value: float, winner: Route) -> Sensitivity:
    then = "no plan fits"
    if not isinf(winner.cost):
        rival = make_outcome(figure.problem, winner.picks)
        codecs = " and ".join(dict.fromkeys(choice.codec for choice in rival.route))
        then = rival.what + (f" with {codecs}" if rival.cuts == best.cuts else "")
    return Sensitivity(
        figure=figure.name, now=figure.now, changes_at=value, unit=figure.unit, then=then
    )
