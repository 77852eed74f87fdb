r"""The best walk within bounds on what else adds up along it, exactly, by Pareto labels.

A *label* is one way to reach a state with a choice: its cost and, for each bound, how much of that
it has used. It is dropped if another one at the same place is no worse in any of these; if the
least that any completion adds would break a bound; or if it cannot lead to a better plan than the
best one known. The last test also uses a multiplier :math:`\lambda` for each bound R on r: as

.. math:: z \ge \min_{completions} (z + \lambda r) - \lambda R

holds for every plan within the bound, few labels are left where the multiplier is well chosen.

References:
    Desrochers, Soumis, "A generalized permanent labelling algorithm for the shortest path problem
    with time windows", INFOR 26(3), 1988.
    Handler, Zang, "A dual algorithm for the constrained shortest path problem", Networks 10, 1980.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import NamedTuple

import numpy as np

from isthmus.plan.estimate import Array, Indices
from isthmus.plan.routes import (
    TOLERANCE,
    Costs,
    Route,
    Steps,
    backward,
    cheapest,
    cost_of,
    ends_of,
)
from isthmus.plan.table import Mask

_MOST_MULTIPLIERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What must not exceed a limit.

    Attributes:
        costs: What adds up.
        limit: The most that it may come to.
    """

    costs: Costs
    limit: float

    def breaks(self, value: float) -> bool:
        """Return whether a sum is over the limit by more than rounding."""
        return value > self.limit + TOLERANCE * abs(self.limit)


def within(steps: Steps, costs: Costs, bounds: Sequence[Bound]) -> Route | None:
    """Return the route of least cost that keeps all bounds; None where there is none.

    Args:
        steps: The states.
        costs: What is to be made small; costs that add up.
        bounds: At least one, on costs that add up.
    """
    best = Route(cost=inf, stops=(), picks=())
    unit = np.eye(len(bounds) + 1)
    tests = [_Test(weights=unit[0], after=_after(steps, costs), share=1.0, slack=0.0)]
    loose = cheapest(steps, costs)
    for index, bound in enumerate(bounds, start=1):
        tight = cheapest(steps, bound.costs)
        if bound.breaks(tight.cost):
            return None
        after = _after(steps, bound.costs)
        tests.append(_Test(weights=unit[index], after=after, share=0.0, slack=bound.limit))
        if bound.breaks(cost_of(bound.costs, loose)):
            multiplier, tight = _multiplier(steps, costs, bound, loose, tight)
            if multiplier > 0:
                after = _after(steps, _mix(costs, bound.costs, multiplier))
                slack = multiplier * bound.limit
                weights = unit[0] + multiplier * unit[index]
                tests.append(_Test(weights=weights, after=after, share=1.0, slack=slack))
        cost = cost_of(costs, tight)
        if cost < best.cost and not any(b.breaks(cost_of(b.costs, tight)) for b in bounds):
            best = replace(tight, cost=cost)
    best = _search(steps, costs, bounds, tests, best)
    return None if isinf(best.cost) else best


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    """A sum that no label may exceed together with the least that any completion adds.

    Attributes:
        weights: Of a label's values in the sum.
        after: What a completion adds, by state and what leaves it, (T, K + 1).
        share: The limit: how often the cost of the best plan known counts in it,
        slack: and what else.
    """

    weights: Array
    after: Array
    share: float
    slack: float

    def passes(self, totals: Sequence[Array], state: int, best_cost: float) -> Mask:
        """Return which labels may lead to something."""
        used = sum(w * total for w, total in zip(self.weights, totals, strict=True) if w)
        limit = self.slack + (self.share * best_cost if self.share else 0.0)
        return used + self.after[state] <= limit + TOLERANCE * abs(limit)


class _Labels(NamedTuple):
    """Labels at one place: a choice, or K for nothing; cost and uses; and the label before each.

    Attributes:
        picks: (L,).
        values: (L, 1 + number of bounds).
        states: Of the labels before, (L,); -1 for none.
        parents: Indices among those of their states, (L,).
    """

    picks: Indices
    values: Array
    states: Indices
    parents: Indices

    def take(self, which: Indices) -> "_Labels":
        """Return some of them."""
        columns = (self.picks[which], self.values[which], self.states[which], self.parents[which])
        return _Labels(*columns)


def _search(
    steps: Steps, costs: Costs, bounds: Sequence[Bound], tests: Sequence[_Test], best: Route
) -> Route:
    every = (costs, *(bound.costs for bound in bounds))
    ends = np.stack([ends_of(steps, one) for one in every], axis=-1)
    firsts = np.stack([one.first for one in every], axis=-1)
    num_choices = len(firsts)
    (picks,) = np.nonzero(np.isfinite(firsts[:, 0]))
    nowhere = np.full(len(picks), -1)
    known = [_Labels(picks=picks, values=firsts[picks], states=nowhere, parents=nowhere)]
    for state in range(1, len(steps.devices)):
        device = steps.devices[state]
        arrived = _arrivals(steps, every, known, state)
        totals = [
            arrived.values[:, c, None] + one.stages[device].rows(arrived.picks)
            for c, one in enumerate(every)
        ]
        passes = np.isfinite(totals[0])
        for test in tests:
            passes &= test.passes(totals, state, best.cost)
        rows, leaves = np.nonzero(passes)
        values = np.stack([total[rows, leaves] for total in totals], axis=-1)
        done = values + ends[device, leaves]
        fits = np.isfinite(done[:, 0])
        for column, bound in enumerate(bounds, start=1):
            fits &= done[:, column] <= bound.limit + TOLERANCE * abs(bound.limit)
        (whole,) = np.nonzero(fits & (done[:, 0] < best.cost))
        if whole.size:
            which = whole[np.argmin(done[whole, 0])]
            route = _trace(steps, known, arrived.take(rows[[which]]), state)
            if leaves[which] < num_choices:
                route = replace(
                    route,
                    stops=(*route.stops, steps.target),
                    picks=(*route.picks, int(leaves[which])),
                )
            best = replace(route, cost=float(done[which, 0]))
        made = _Labels(
            picks=leaves,
            values=values,
            states=arrived.states[rows],
            parents=arrived.parents[rows],
        )
        going_on = made.take(np.flatnonzero(leaves < num_choices))
        known.append(going_on.take(_front(going_on.picks, going_on.values)))
    return best


def _arrivals(
    steps: Steps, every: Sequence[Costs], known: Sequence[_Labels], state: int
) -> _Labels:
    """Return the labels that a frame brings to a state's device, or that begin there."""
    device = steps.devices[state]
    num_begin = int(steps.first[state])
    nothing, nowhere = np.full(num_begin, len(every[0].first)), np.full(num_begin, -1)
    found = [_Labels(nothing, np.zeros((num_begin, len(every))), nowhere, nowhere)]
    for other in steps.before[state].tolist():
        labels = known[other]
        hops = [one.hops[steps.devices[other], device, labels.picks] for one in every]
        sums = labels.values + np.stack(hops, axis=-1)
        (which,) = np.nonzero(np.isfinite(sums[:, 0]))
        come_from = np.full(len(which), other)
        found.append(_Labels(labels.picks[which], sums[which], come_from, which))
    return _Labels(*map(np.concatenate, zip(*found, strict=True)))


def _trace(steps: Steps, known: Sequence[_Labels], last: _Labels, state: int) -> Route:
    """Return the route on which the one label has come to a state; its cost is left out."""
    stops, picks = [steps.devices[state]], []
    labels, index = last, 0
    while labels.states[index] >= 0:
        state, index = int(labels.states[index]), int(labels.parents[index])
        labels = known[state]
        stops.append(steps.devices[state])
        picks.append(int(labels.picks[index]))
    return Route(cost=inf, stops=tuple(reversed(stops)), picks=tuple(reversed(picks)))


def _front(picks: Indices, values: Array) -> Indices:
    """Return which labels no other one with the same choice is as good as in everything."""
    waiting = np.lexsort((*values.T[::-1], picks))
    kept = []
    while waiting.size:
        heads = np.append(True, picks[waiting[1:]] != picks[waiting[:-1]])
        kept.append(waiting[heads])
        beaten = values[kept[-1]][np.cumsum(heads) - 1] <= values[waiting]
        waiting = waiting[~beaten.all(axis=1)]
    return np.concatenate(kept) if kept else waiting


def _multiplier(
    steps: Steps, costs: Costs, bound: Bound, loose: Route, tight: Route
) -> tuple[float, Route]:
    """Return the best multiplier of a bound, and the best route met that keeps it.

    Args:
        steps: The states.
        costs: What is to be made small.
        bound: What is not to be exceeded.
        loose: The best route without the bound; it breaks it.
        tight: The route that uses least of what is bounded.
    """
    multiplier = 0.0
    for _ in range(_MOST_MULTIPLIERS):
        cost, used = cost_of(costs, loose), cost_of(bound.costs, loose)
        multiplier = (cost_of(costs, tight) - cost) / (used - cost_of(bound.costs, tight))
        if multiplier <= 0:
            break
        route = cheapest(steps, _mix(costs, bound.costs, multiplier))
        if route.cost >= (cost + multiplier * used) * (1 - TOLERANCE):
            break
        if bound.breaks(cost_of(bound.costs, route)):
            loose = route
        else:
            tight = route
    return multiplier, tight


def _mix(costs: Costs, other: Costs, share: float) -> Costs:
    """Add a share of other costs."""
    return replace(
        costs,
        stages=[a.plus(b, share) for a, b in zip(costs.stages, other.stages, strict=True)],
        hops=costs.hops + share * other.hops,
        first=costs.first + share * other.first,
        last=costs.last + share * other.last,
    )


def _after(steps: Steps, costs: Costs) -> Array:
    """Return the least that follows each state, given what leaves it or that nothing does."""
    after, _ = backward(steps, costs)
    ends = ends_of(steps, costs)[list(steps.devices), -1]
    return np.concatenate((after, ends[:, None]), axis=1)
