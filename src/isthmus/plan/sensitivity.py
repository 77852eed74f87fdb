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
from math import inf, log, sqrt
from typing import Any, cast

import numpy as np

from isthmus.plan.estimate import (
    FORMAT,
    OBJECTIVES,
    Array,
    Clock,
    Estimate,
    Load,
    Site,
    compute_s,
    needs,
)
from isthmus.plan.explain import Outcome, describe, measure_of
from isthmus.plan.limits import Walk, with_rate
from isthmus.plan.orders import States, around
from isthmus.plan.plan import NO_LIMITS, Sensitivity
from isthmus.plan.routes import Costs, Route, Steps, backward, ending_in, first_least, forward
from isthmus.plan.search import find
from isthmus.plan.table import Mask, Problem, changed, narrowed
from isthmus.plan.weigh import Scope, make_costs, make_walk, predict
from isthmus.platform import Device, Link

# Values are looked for up to this factor away; costs that differ by a smaller share are equal.
_REACH = 1000.0
_SAME = 1e-9
_CLOSE = 1e-9

# A plan that wins at a value as near as this, in shares of it, costs the same today.
_TIED = 1e-6
_MOST_TIES = 8
_MOST_DEVICES = 10

_Change = tuple[float, Walk | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """The problem as it stands, and what is known of it.

    Attributes:
        scope: With the problem.
        states: The order of devices.
        steps: The same.
        costs: Of the problem.
        before: What `forward` returns for them,
        done: and the rest of it.
        least: The least cost of all plans with each choice, (K,).
    """

    scope: Scope
    states: States
    steps: Steps
    costs: Costs
    before: Array
    done: Array
    least: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The best plan at some value of a figure; its cost is infinite where there is none.

    Attributes:
        cost: As it was searched for.
        walk: The plan.
        costs: All that its search knew.
        before: The same.
    """

    cost: float
    walk: Walk | None
    costs: Costs
    before: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One figure of the platform.

    Attributes:
        name: In words.
        unit: Its unit.
        now: Its value.
        stand: The problem with that.
        change: Returns the device or the link with another value.
        need: How much of it a plan needs, where it is a memory.
    """

    name: str
    unit: str
    now: float
    stand: _Stand
    change: Callable[[float], Device | Link]
    need: Callable[[Walk], float] = lambda walk: 0.0

    def best_at(self, value: float) -> _Best:
        """Return the best plan with another value."""
        stand = self.stand
        problem = changed(stand.scope.problem, self.change(value))
        scope = replace(stand.scope, problem=problem)
        costs = make_costs(scope, measure_of(scope), known=(stand.scope.problem, stand.costs))
        before, done = forward(stand.steps, costs, (stand.costs, stand.before, stand.done))
        route = ending_in(stand.steps, costs, before, first_least(done))
        if route.stops:
            true = getattr(predict(problem, route), OBJECTIVES[problem.objective])
            if true > route.cost * (1 + _SAME):
                # What does not add up along the walk was left out, and matters.
                most_s = stand.scope.most_s
                limits = replace(NO_LIMITS, interval_s=most_s if most_s < inf else None)
                found = find(problem, stand.states, objective=problem.objective, limits=limits)
                route = found.route if found else Route(cost=inf, stops=(), picks=())
        walk = make_walk(stand.scope.problem, route) if route.stops else None
        return _Best(cost=route.cost, walk=walk, costs=costs, before=before)

    def among(self, least: Array, most: float) -> "_Figure":
        """Return the figure for plans of those choices whose ``least`` cost, (K,), is not over."""
        return self.with_choices(least <= most * (1 + _SAME), most)

    def with_choices(self, mask: Mask, most: float = inf) -> "_Figure":
        """Return the figure for plans with some choices, (K,), no dearer than something."""
        scope = self.stand.scope
        if 3 * mask.sum() <= 2 * mask.size:
            scope = replace(scope, problem=narrowed(scope.problem, np.flatnonzero(mask)))
        if self.stand.costs.most and most < scope.most_s / 2:
            scope = replace(scope, most_s=most * (1 + _SAME))
        if scope is self.stand.scope:  # not worth it
            return self
        return replace(self, stand=_stand(scope, self.stand.states))

    def towards(self, value: float, end: _Best, own: Callable[[float], float]) -> "_Figure":
        """Return the figure for all plans that may beat one on the way to a value.

        Args:
            value: To there from now.
            end: The best plan there.
            own: What the one costs.
        """
        now, then = self.stand.least, _least(self.stand.steps, end.costs, end.before)
        if self.straight:  # and each least cost is concave: what is better on the way is so here
            return self.with_choices(
                (then <= own(value) * (1 + _SAME)) | (now <= own(self.now) * (1 + _SAME))
            )
        if value > self.now:
            return self.among(then, own(self.now))
        return self.among(now, self.cost_of(cast("Walk", end.walk))(value))

    @property
    def straight(self) -> bool:
        """Whether the costs of all plans are straight lines in 1 / value."""
        owner = self.change(self.now)
        bent = isinstance(owner, Device) and owner.memory_bytes_per_s is not None
        return not bent and not self.stand.costs.most

    def cost_of(self, walk: Walk) -> Callable[[float], float]:
        """Return what a plan costs at any value of a rate."""
        now, objective = walk.estimate(), self.stand.scope.problem.objective
        uses = list(_uses(walk, now, self.change(self.now)))

        def cost(value: float) -> float:
            owner, busy_s, more_s = self.change(value), dict(now.busy_s), 0.0
            for clock, old_s, time_s in uses:
                change_s = time_s(owner) - old_s
                busy_s[clock] += change_s
                more_s += change_s
            if objective == "throughput":
                return max(busy_s.values())
            more = more_s * now.static_w if objective == "energy" else more_s
            return now.cost(objective) + more

        return cost


def _uses(
    walk: Walk, now: Estimate, owner: Device | Link
) -> Iterator[tuple[Clock, float, Callable[[Any], float]]]:
    """Yield each use of a link or device: whom it keeps busy, how long now, and how long then."""
    if isinstance(owner, Link):
        hops = zip(walk.sites[:-1], walk.links, walk.route, now.occupied_s, strict=True)
        for sender, link, choice, occupied_s in hops:
            if link.between == owner.between:
                frame_bytes = choice.frame_bytes
                clock = link.clock(sender.device.name)
                yield clock, occupied_s, partial(Link.occupied_s, frame_bytes=frame_bytes)
    else:
        for site, load, time_s in zip(walk.sites, walk.loads, now.compute_s, strict=True):
            if site.device.name == owner.name:
                yield owner.name, time_s, partial(_stage_s, site, load)


def _stage_s(site: Site, load: Load, device: Device) -> float:
    return float(compute_s(site.at_rate(device), load))


def _stand(scope: Scope, states: States) -> _Stand:
    steps, costs = states(scope), make_costs(scope, measure_of(scope))
    before, done = forward(steps, costs)
    return _Stand(
        scope=scope,
        states=states,
        steps=steps,
        costs=costs,
        before=before,
        done=done,
        least=_least(steps, costs, before),
    )


def _least(steps: Steps, costs: Costs, before: Array) -> Array:
    """Return the least cost of all plans with each choice, as it was searched for, (K,)."""
    return np.asarray(costs.join(before, backward(steps, costs)[0]).min(axis=0))


def find_sensitivity(problem: Problem, best: Outcome) -> tuple[Sensitivity, ...]:
    """Find the nearest value of each figure, upwards and downwards, at which another plan wins.

    Args:
        problem: What was chosen from; its limits are none but those on a single crossing.
        best: What was chosen: a plan of least cost.

    Returns:
        At most two entries for each rate and memory of a device, and each link's rate where no
        two ways lead to one place, on the walk, nearest first. Another plan wins beyond the value;
        where a memory grows, from the value on. Nothing for more than ten devices: too long.
    """
    if len(problem.stages) > _MOST_DEVICES:
        return ()
    scope = Scope(problem=problem, paid=problem.platform.ends)
    stand = _stand(scope, around(problem, best.route))
    make = partial(_Figure, stand=stand)
    found = []
    above = stand  # where a rate grows, nothing that takes longer than today can win
    if stand.costs.most:
        above = _stand(replace(scope, most_s=best.cost * (1 + _SAME)), stand.states)
    tree = len(problem.platform.links) < len(problem.platform.devices)
    for figure in _rates(best, make, tree=tree):
        changes = [
            _next_winner(replace(figure, stand=above), best.walk, figure.now * _REACH),
            _next_winner(figure, best.walk, figure.now / _REACH),
        ]
        found += [_entry(figure, best, *change) for change in changes if change]
    for room in _rooms(best, make):
        changes = [_larger(room, best), _smaller(room, best)]
        found += [_entry(room, best, *change) for change in changes if change]
    return tuple(sorted(found, key=lambda x: abs(log(x.changes_at / x.now)) if x.now else inf))


def _devices(best: Outcome) -> list[Device]:
    return list({site.device.name: site.device for site in best.walk.sites}.values())


def _rates(best: Outcome, make: Callable[..., _Figure], *, tree: bool) -> Iterator[_Figure]:
    for device in _devices(best):
        for name in _formats(best, device) if device.node_s is None else ():
            yield make(
                name=f"{device.name} rate ({name})",
                unit="MAC/s",
                now=device.macs_per_s[name],
                change=partial(_at_rate, device, name),
            )
    for link in dict.fromkeys(best.walk.links if tree else ()):  # else frames go around one
        yield make(
            name=f"link {link.name} rate",
            unit="byte/s",
            now=link.bytes_per_s,
            change=partial(with_rate, link),
        )


def _formats(best: Outcome, device: Device) -> list[str]:
    """Return the formats whose rates matter on a device: of codecs, and of its nodes."""
    used = {FORMAT: None}
    for site, load in zip(best.walk.sites, best.walk.loads, strict=True):
        if site.device.name == device.name:
            used |= dict.fromkeys(site.formats[load.start : load.stop])
    return [name for name in used if name in device.macs_per_s]


def _at_rate(device: Device, name: str, value: float) -> Device:
    return replace(device, macs_per_s={**device.macs_per_s, name: value})


def _next_winner(figure: _Figure, best: Walk, far: float) -> _Change | None:
    """Return the value nearest to now, on the way to ``far``, where another plan wins.

    One that costs the same today is as good an answer: where it wins at once, it is followed.
    """
    change = _beaten(figure, best, far)
    for _ in range(_MOST_TIES):
        if change is None or abs(change[0] / figure.now - 1) > _TIED:
            break
        change = _beaten(figure, change[1], far)
    return change


def _beaten(figure: _Figure, best: Walk, far: float) -> tuple[float, Walk] | None:
    """Return the value nearest to now, on the way to ``far``, where a plan loses, and to which."""
    own, end = figure.cost_of(best), figure.best_at(far)
    walk = end.walk
    if walk is None:  # what was chosen is none of those plans: a model of no operation
        return None
    costs = figure.cost_of(walk)
    if _lead(far, costs, own) <= 0 or _lead(figure.now, costs, own) > 0:
        return None
    value = far
    if not figure.straight:
        figure, value, walk = _nearer(figure, far, end, own)
    while True:
        costs = figure.cost_of(walk)
        value = _level(figure.now, value, costs, own)
        end = figure.best_at(value)
        walk, last = cast("Walk", end.walk), walk
        if _lead(value, figure.cost_of(walk), costs) <= 0:
            return value, last
        figure = figure.towards(value, end, own)


def _nearer(
    figure: _Figure, far: float, end: _Best, own: Callable[[float], float]
) -> tuple[_Figure, float, Walk]:
    """Return a value as near as may be where another plan is better, and which one is best there.

    Args:
        figure: For all plans.
        far: A value where another one is better.
        end: The best one there.
        own: What the plan costs.
    """
    value, walk = far, end.walk
    figure, rivals = figure.towards(far, end, own), [figure.cost_of(cast("Walk", walk))]
    while abs(value / figure.now - 1) > _CLOSE:
        probe = sqrt(figure.now * value)
        if any(_lead(probe, rival, own) > 0 for rival in rivals):
            value, walk = probe, None
            continue
        end = figure.best_at(probe)
        rival = figure.cost_of(cast("Walk", end.walk))
        if _lead(probe, rival, own) <= 0:
            break
        value, walk = probe, end.walk
        figure, rivals = figure.towards(value, end, own), [*rivals, rival]
    return figure, value, walk or cast("Walk", figure.best_at(value).walk)


def _lead(value: float, one: Callable[[float], float], other: Callable[[float], float]) -> float:
    """Return by how much one plan beats another by more than rounding, if over 0."""
    return other(value) * (1 - _SAME) - one(value)


def _level(
    near: float, far: float, rival: Callable[[float], float], own: Callable[[float], float]
) -> float:
    """Return where, between now and ``far``, a rival begins to be better: costs cross once."""
    behind, ahead = (_lead(value, rival, own) for value in (near, far))
    while abs(far / near - 1) > _CLOSE:
        # Costs are straight lines in 1 / value, or bent ones: see where they meet, and halfway.
        level = 1 / (1 / near + (1 / far - 1 / near) * behind / (behind - ahead))
        for probe in (level * (1 - _CLOSE / 3), level * (1 + _CLOSE / 3), sqrt(near * far)):
            if min(near, far) < probe < max(near, far):
                lead = _lead(probe, rival, own)
                if lead > 0:
                    far, ahead = probe, lead
                else:
                    near, behind = probe, lead
    return far


def _rooms(best: Outcome, make: Callable[..., _Figure]) -> Iterator[_Figure]:
    for device in _devices(best):
        for which, (name, field) in enumerate(_MEMORIES):
            now = getattr(device.memory, field)
            if now is not None:
                yield make(
                    name=f"{device.name} memory{name}",
                    unit="byte",
                    now=now,
                    change=partial(_with_room, device, field),
                    need=partial(_need, device, which),
                )


def _need(device: Device, which: int, walk: Walk) -> float:
    """Return how much of one of its memories a plan needs on a device."""
    stages = zip(walk.sites, walk.loads, strict=True)
    loads = (load for site, load in stages if site.device.name == device.name)
    return max((float(needs(device, load)[which][1]) for load in loads), default=0.0)


# In the order of `needs`.
_MEMORIES = (
    (" (weights)", "weights_bytes"),
    (" (activations)", "activations_bytes"),
    ("", "shared_bytes"),
)


def _with_room(device: Device, field: str, value: float) -> Device:
    return replace(device, memory=replace(device.memory, **{field: value}))


def _larger(room: _Figure, best: Outcome) -> _Change | None:
    """Return the least size with which a better plan fits."""
    enough = best.cost * (1 - _SAME)
    winner = room.best_at(room.now * _REACH)
    if winner.walk is None or winner.cost >= enough:
        return None
    few = room.among(_least(room.stand.steps, winner.costs, winner.before), enough)
    too_small, size, walk = room.now, room.need(winner.walk), winner.walk
    while size - too_small > 1:
        middle = (too_small + size) / 2
        other = few.best_at(middle)
        if other.walk is not None and other.cost < enough:
            walk, size = other.walk, room.need(other.walk)
        else:
            too_small = middle
    return (size, walk) if size > room.now else None


def _smaller(room: _Figure, best: Outcome) -> _Change | None:
    """Return the least size with which the plan itself fits, and the best plan below it."""
    size = room.need(best.walk)
    return (size, room.best_at(size - 1).walk) if size > room.now / _REACH else None


def _entry(figure: _Figure, best: Outcome, value: float, walk: Walk | None) -> Sensitivity:
    then = "no plan fits"
    if walk is not None:
        then = describe(figure.stand.scope.problem, walk)
        if walk.places == best.walk.places:
            codecs = dict.fromkeys(choice.codec for choice in walk.route)
            then += f" with {' and '.join(codecs)}"
    return Sensitivity(
        figure=figure.name, now=figure.now, changes_at=value, unit=figure.unit, then=then
    )
