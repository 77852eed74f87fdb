"""The best plan of a problem within its limits, exactly.

Three things do not add up along a walk, or not at once, and each is left out until it matters:

* a limit, or a device or medium that is busy more than once within a limited interval: a plan that
  is best without it and keeps it is best with it; one that breaks it calls for labels
  (`isthmus.plan.labels`);
* the interval of a pipeline, where something serves more than once: the least interval as if
  nothing did is a lower bound; where no plan attains it, bisection finds the least that one does,
  among the choices whose bound is no higher;
* static power and price, which the walk pays once for each device: branch and bound over the
  devices that are paid for and those that are kept out (`isthmus.plan.weigh`).
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from math import inf, isinf

import numpy as np

from isthmus.plan.estimate import OBJECTIVES, Array
from isthmus.plan.labels import Bound, within
from isthmus.plan.orders import States
from isthmus.plan.plan import Limits, exceeds
from isthmus.plan.routes import TOLERANCE, Route, Steps, backward, cheapest, cost_of, forward
from isthmus.plan.table import Problem, narrowed
from isthmus.plan.weigh import (
    Measure,
    Scope,
    busy,
    busy_s,
    drop,
    energy,
    interval,
    latency,
    make_costs,
    passed,
    predict,
    price,
)

_MOST_BRANCHES = 1024
_SAME = 1e-10

# A first plan is looked for among those with every so many cuts.
_EACH = 8

# The least interval is looked for up to these multiples of the bound on it, one after the other.
_MARGINS = (1.0, 1.001, 1.01, 1.1, 2.0, inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best route, and what no other one can fall below."""

    route: Route
    least: float


def find(
    problem: Problem, states: States, *, objective: str, limits: Limits, limited: bool = True
) -> Found | None:
    """Return the best route within limits; None where there is none.

    Args:
        problem: What there is to choose from.
        states: In which order devices may compute.
        objective: latency, throughput, energy, price, or ``"drop"`` for the accuracy lost. Of
            plans with the same interval, price or drop it is the fastest.
        limits: What the plan must not exceed.
        limited: Whether memories are.
    """
    scope = Scope(problem=problem, paid=problem.platform.ends, limited=limited)
    found = _branch(scope, states, objective, limits)
    if found is None or objective not in ("price", "drop"):
        return found
    limits = replace(limits, **{objective: found.route.cost})
    fastest = _branch(scope, states, "latency", limits) or found
    return replace(found, route=replace(fastest.route, cost=found.route.cost))


def _branch(scope: Scope, states: States, objective: str, limits: Limits) -> Found | None:
    """Decide which devices are paid for and which are kept out, as far as that matters."""
    problem = scope.problem
    devices = problem.platform.devices
    power = objective == "energy" or limits.energy_j is not None
    money = objective == "price" or limits.price is not None
    weights = [power * device.static_w + money * device.price for device in devices]
    if power and any(weights):
        scope = replace(
            scope, least_s=cheapest(states(scope), make_costs(scope, latency(scope))).cost
        )
        if isinf(scope.least_s):
            return None
    best = Route(cost=inf, stops=(), picks=())
    number = count()
    waiting = [(0.0, next(number), scope)]
    for _ in range(_MOST_BRANCHES):
        if not waiting or waiting[0][0] >= best.cost * (1 - TOLERANCE):
            break
        *_, scope = heappop(waiting)
        route = _relaxed(scope, states(scope), objective, limits)
        if route is None:
            continue
        least = route.cost + (_price(scope) if objective == "price" else 0.0)
        true = predict(problem, route)
        cost = route.cost if objective == "drop" else getattr(true, OBJECTIVES[objective])
        kept = not (exceeds(true.energy_j, limits.energy_j) or exceeds(true.price, limits.price))
        if kept and cost < best.cost:
            best = replace(route, cost=cost)
        unpaid = [i for i in passed(problem, route) - scope.paid if weights[i]]
        if unpaid:
            which = frozenset([max(unpaid, key=lambda index: (weights[index], -index))])
            for child in (
                replace(scope, paid=scope.paid | which),
                replace(scope, out=scope.out | which),
            ):
                heappush(waiting, (least, next(number), child))
    if isinf(best.cost):
        return None
    return Found(route=best, least=min((best.cost, *(least for least, *_ in waiting))))


def _price(scope: Scope) -> float:
    return sum(scope.problem.platform.devices[index].price for index in scope.paid)


def _relaxed(scope: Scope, steps: Steps, objective: str, limits: Limits) -> Route | None:
    """Return the best route as a scope weighs it."""
    most_s = inf if limits.interval_s is None else limits.interval_s * (1 + TOLERANCE)
    scope = replace(scope, most_s=most_s)
    if objective == "throughput":
        return _least_interval(scope, steps, limits)
    measure = {"latency": latency, "energy": energy, "price": price, "drop": drop}[objective]
    return _constrained(scope, steps, measure, limits)


def _least_interval(scope: Scope, steps: Steps, limits: Limits) -> Route | None:
    """Return the fastest route of least interval."""
    known_s = min(scope.most_s, _some_interval(scope, steps) * (1 + TOLERANCE))
    lower, least = _intervals(replace(scope, most_s=known_s), steps)
    if isinf(lower):
        return None
    for most_s in sorted({min(lower * by, scope.most_s) for by in _MARGINS}):
        if most_s > known_s:
            known_s = scope.most_s
            _, least = _intervals(scope, steps)
        picks = np.flatnonzero(least <= most_s * (1 + TOLERANCE))
        few = replace(scope, problem=narrowed(scope.problem, picks))
        best = _fastest(few, steps, limits, most_s)
        if best is not None:
            break
        lower = most_s
    else:
        return None
    upper, close = max(busy_s(few.problem, best).values()), True
    while upper - lower > _SAME * upper:
        middle = upper * (1 - _SAME / 2) if close else (lower + upper) / 2
        route = _fastest(few, steps, limits, middle)
        if route is None:
            lower, close = middle, False
        else:
            best, upper, close = route, max(busy_s(few.problem, route).values()), not close
    return replace(best, cost=upper, picks=tuple(int(picks[pick]) for pick in best.picks))


def _intervals(scope: Scope, steps: Steps) -> tuple[float, Array]:
    """Return the least interval, as if all served once, and that with each choice, (K,)."""
    costs = make_costs(scope, interval(scope))
    before, done = forward(steps, costs)
    after, _ = backward(steps, costs, before)
    return float(done.min()), costs.join(before, after).min(axis=0)


def _some_interval(scope: Scope, steps: Steps) -> float:
    """Return the least interval among plans with few choices; what takes longer is of no use."""
    ends = (0, len(scope.problem.graph.nodes))
    indices = [choice.cut.index for choice in scope.problem.choices]
    few = {*sorted(set(indices))[::_EACH], *ends}
    picks = [pick for pick, index in enumerate(indices) if index in few]
    scope = replace(scope, problem=narrowed(scope.problem, picks))
    return float(forward(steps, make_costs(scope, interval(scope)))[1].min())


def _fastest(scope: Scope, steps: Steps, limits: Limits, most_s: float) -> Route | None:
    """Return the fastest route of an interval that is no longer than a time."""
    return _constrained(replace(scope, most_s=most_s * (1 + TOLERANCE)), steps, latency, limits)


def _constrained(
    scope: Scope, steps: Steps, measure: Callable[[Scope], Measure], limits: Limits
) -> Route | None:
    """Return the best route within limits, each of which is left out until a route breaks it."""
    costs = make_costs(scope, measure(scope))
    free: dict[Hashable, Bound] = dict(_bounds(scope, limits))
    route = cheapest(steps, costs)
    bounds: dict[Hashable, Bound] = {}
    while not isinf(route.cost):
        broken = {key: b for key, b in free.items() if b.breaks(cost_of(b.costs, route))}
        for clock, seconds in busy_s(scope.problem, route).items():
            if seconds > scope.most_s * (1 + 10 * TOLERANCE):
                broken[clock] = Bound(costs=make_costs(scope, busy(clock)), limit=scope.most_s)
        if broken.keys() <= bounds.keys():
            return route
        bounds |= broken
        better = within(steps, costs, tuple(bounds.values()))
        if better is None:
            return None
        route = better
    return None


def _bounds(scope: Scope, limits: Limits) -> Iterator[tuple[Hashable, Bound]]:
    paid = _price(scope)
    for measure, limit in (
        (latency, limits.latency_s),
        (energy, limits.energy_j),
        (price, None if limits.price is None else limits.price - paid),
        (drop, limits.drop),
    ):
        if limit is not None:
            yield measure, Bound(costs=make_costs(scope, measure(scope)), limit=limit)
