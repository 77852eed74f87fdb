"""Which single figure of the platform would change the answer, and at what value.

A rate r enters every plan's cost as a + b / r (or as the larger of the two), so the plan that wins
at one value wins on an interval of 1 / r. Its ends are found exactly: take the best plan far away,
find where it draws level, see who is best there, and repeat until nobody is better. Where the
bandwidth of a memory bounds some nodes, the value that is found is one at which the answer
changes, not always the nearest. A memory only decides which plans are possible, so its ends are
sizes that plans need.

Plans are those on which devices compute in the order of the best one, any others after them. A
link's latency is no such figure: as a rule it shifts all of them alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isinf, log, sqrt

from isthmus.plan.estimate import FORMAT, OBJECTIVES, Load, make_site
from isthmus.plan.explain import Outcome, make_outcome, make_walk, measure_of
from isthmus.plan.limits import Walk
from isthmus.plan.orders import States, around
from isthmus.plan.plan import NO_LIMITS, Sensitivity
from isthmus.plan.routes import Costs, Route, cheapest
from isthmus.plan.search import find
from isthmus.plan.table import Problem, changed
from isthmus.plan.weigh import Scope, busy_stops, make_costs, predict
from isthmus.platform import Device, Link

# Values are looked for up to this factor away; costs that differ by a smaller share are equal.
_REACH = 1000.0
_SAME = 1e-9
_CLOSE = 1e-9
_MOST_DEVICES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One figure of the platform.

    Attributes:
        name: In words.
        unit: Its unit.
        now: Its value.
        scope: The problem as it stands.
        states: The order of devices.
        costs: Of the problem as it stands.
        change: Returns the device or the link with another value.
        need: How much of it a plan needs, where it is a memory.
    """

    name: str
    unit: str
    now: float
    scope: Scope
    states: States
    costs: Costs
    change: Callable[[float], Device | Link]
    need: Callable[[Walk], float] = lambda walk: 0.0

    @property
    def problem(self) -> Problem:
        """What there is to choose from, with the value of now."""
        return self.scope.problem

    def best_at(self, value: float) -> Route:
        """Return the best route with another value."""
        problem = changed(self.problem, self.change(value))
        scope = replace(self.scope, problem=problem)
        costs = make_costs(scope, measure_of(scope), known=(self.problem, self.costs))
        route = cheapest(self.states(scope), costs)
        if not route.stops:
            return route
        true = getattr(predict(problem, route), OBJECTIVES[problem.objective])
        if true <= route.cost * (1 + _SAME):
            return route
        # What does not add up along the walk was left out, and matters.
        found = find(problem, self.states, objective=problem.objective, limits=NO_LIMITS)
        return route if found is None else found.route

    def cost_at(self, value: float, walk: Walk) -> float:
        """Return what a plan costs with another value."""
        owner = self.change(value)
        if isinstance(owner, Link):
            links = (owner if link.between == owner.between else link for link in walk.links)
            walk = replace(walk, links=tuple(links))
        else:
            site = make_site(self.problem.graph, owner)
            sites = (site if one.device.name == owner.name else one for one in walk.sites)
            walk = replace(walk, sites=tuple(sites))
        return walk.estimate().cost(self.problem.objective)

    def lead(self, value: float, one: Walk, other: Walk) -> float:
        """Return by how much one plan beats another by more than rounding, if over 0."""
        return self.cost_at(value, other) * (1 - _SAME) - self.cost_at(value, one)


def find_sensitivity(problem: Problem, best: Outcome) -> tuple[Sensitivity, ...]:
    """Find the nearest value of each figure, upwards and downwards, at which another plan wins.

    Args:
        problem: What was chosen from; its limits are none but those on a single crossing.
        best: What was chosen: a plan of least cost.

    Returns:
        At most two entries for each rate and memory of a device, and each link's rate, on the
        walk, nearest first. Another plan wins beyond the value; where a memory grows, from the
        value on. Nothing for a platform of more than ten devices: it would take too long.
    """
    if len(problem.stages) > _MOST_DEVICES:
        return ()
    scope = Scope(problem=problem, paid=frozenset((problem.source, problem.target)))
    states = around(problem, busy_stops(problem, best.route))
    costs = make_costs(scope, measure_of(scope))
    make = partial(_Figure, scope=scope, states=states, costs=costs)
    found = []
    for figure in _rates(best, make):
        changes = [_next_winner(figure, best, figure.now * by) for by in (_REACH, 1 / _REACH)]
        found += [_entry(figure, best, *change) for change in changes if change]
    for room in _rooms(best, make):
        changes = [_larger(room, best), _smaller(room, best)]
        found += [_entry(room, best, *change) for change in changes if change]
    return tuple(sorted(found, key=_distance))


def _distance(entry: Sensitivity) -> float:
    return abs(log(entry.changes_at / entry.now)) if entry.now else inf


def _devices(best: Outcome) -> list[Device]:
    return list({site.device.name: site.device for site in best.walk.sites}.values())


def _rates(best: Outcome, make: Callable[..., _Figure]) -> Iterator[_Figure]:
    for device in _devices(best):
        if FORMAT in device.macs_per_s and device.node_s is None:
            yield make(
                name=f"{device.name} rate ({FORMAT})",
                unit="MAC/s",
                now=device.macs_per_s[FORMAT],
                change=partial(_with_rate, device),
            )
    for link in dict.fromkeys(best.walk.links):
        yield make(
            name=f"link {link.name} rate",
            unit="byte/s",
            now=link.bytes_per_s,
            change=partial(_with_link_rate, link),
        )


def _with_rate(device: Device, value: float) -> Device:
    return replace(device, macs_per_s={**device.macs_per_s, FORMAT: value})


def _with_link_rate(link: Link, value: float) -> Link:
    return replace(link, bytes_per_s=value, pins=None, clock_hz=None)


def _next_winner(figure: _Figure, best: Outcome, far: float) -> tuple[float, Route] | None:
    """Return the value nearest to now, on the way to ``far``, where another plan wins."""
    value, rival = far, figure.best_at(far)
    walk = make_walk(figure.problem, rival)
    if figure.lead(far, walk, best.walk) <= 0 or figure.lead(figure.now, walk, best.walk) > 0:
        return None
    while True:
        walk = make_walk(figure.problem, rival)
        value = _level(figure, value, walk, best.walk)
        nearer = figure.best_at(value)
        if figure.lead(value, make_walk(figure.problem, nearer), walk) <= 0:
            return value, rival
        rival = nearer


def _level(figure: _Figure, far: float, rival: Walk, walk: Walk) -> float:
    """Return where, between now and ``far``, a rival begins to be better: costs cross once."""
    near = figure.now
    behind, ahead = (figure.lead(value, rival, walk) for value in (near, far))
    while abs(far / near - 1) > _CLOSE:
        # Costs are straight lines in 1 / value, or bent ones: see where they meet, and halfway.
        level = 1 / (1 / near + (1 / far - 1 / near) * behind / (behind - ahead))
        for probe in (level * (1 - _CLOSE / 3), level * (1 + _CLOSE / 3), sqrt(near * far)):
            if min(near, far) < probe < max(near, far):
                lead = figure.lead(probe, rival, walk)
                if lead > 0:
                    far, ahead = probe, lead
                else:
                    near, behind = probe, lead
    return far


def _rooms(best: Outcome, make: Callable[..., _Figure]) -> Iterator[_Figure]:
    for device in _devices(best):
        for name, field, need in _MEMORIES:
            now = getattr(device.memory, field)
            if now is not None:
                yield make(
                    name=f"{device.name} memory{name}",
                    unit="byte",
                    now=now,
                    change=partial(_with_room, device, field),
                    need=partial(_need, device.name, need),
                )


def _need(name: str, need: Callable[[Load], float], walk: Walk) -> float:
    """Return how much of a memory a plan needs on one device."""
    stages = zip(walk.sites, walk.loads, strict=True)
    return max((need(load) for site, load in stages if site.device.name == name), default=0.0)


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


def _larger(room: _Figure, best: Outcome) -> tuple[float, Route] | None:
    """Return the least size with which a better plan fits."""
    enough = best.cost * (1 - _SAME)
    winner = room.best_at(room.now * _REACH)
    if winner.cost >= enough:
        return None
    too_small, size = room.now, room.need(make_walk(room.problem, winner))
    while size - too_small > 1:
        middle = (too_small + size) / 2
        route = room.best_at(middle)
        if route.cost < enough:
            winner, size = route, room.need(make_walk(room.problem, route))
        else:
            too_small = middle
    return (size, winner) if size > room.now else None


def _smaller(room: _Figure, best: Outcome) -> tuple[float, Route] | None:
    """Return the least size with which the plan itself fits, and the best plan below it."""
    size = room.need(best.walk)
    return (size, room.best_at(size - 1)) if size > room.now / _REACH else None


def _entry(figure: _Figure, best: Outcome, value: float, winner: Route) -> Sensitivity:
    then = "no plan fits"
    if not isinf(winner.cost):
        rival = make_outcome(figure.problem, winner)
        codecs = " and ".join(dict.fromkeys(choice.codec for choice in rival.walk.route))
        then = rival.what + (f" with {codecs}" if rival.places == best.places else "")
    return Sensitivity(
        figure=figure.name, now=figure.now, changes_at=value, unit=figure.unit, then=then
    )
