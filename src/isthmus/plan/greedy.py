"""A plan by steepest descent: the baseline that exact methods are measured by.

Begins with each device computing all. As long as something gets better, the best of all small
changes is made: another cut or codec on one way, one more device on the walk, one device fewer.
Better is, in this order: memories overflow by less, limits are broken by less, the objective is
less, the latency is less. Where no small change helps it stops, though a larger one might.

References:
    Kernighan, Lin, "An efficient heuristic procedure for partitioning graphs", Bell System
    Technical Journal 49(2), 1970 (improving a division by small changes).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isinf

import numpy as np

from isthmus.errors import InputError
from isthmus.graph import Graph
from isthmus.plan.answer import make_plan
from isthmus.plan.chain import asked_cuts, list_choices
from isthmus.plan.choices import undominated, within
from isthmus.plan.estimate import OBJECTIVES
from isthmus.plan.limits import WHOLE
from isthmus.plan.orders import alone, everyone
from isthmus.plan.plan import Asked, Plan
from isthmus.plan.routes import TOLERANCE, Costs, Route, cheapest, cost_of
from isthmus.plan.table import Problem, make_problem, restricted
from isthmus.plan.weigh import Scope, make_costs, overflow, predict
from isthmus.platform import Platform

Merit = tuple[float, float, float, float]


def plan_greedy(graph: Graph, platform: Platform, asked: Asked) -> Plan:
    """Return the plan at which the descent stops; it need not fit, even where another one does.

    Errors are those of `isthmus.plan.partition`; of cuts it takes one at most.
    """
    limits, cut = asked.limits, asked.cut
    if isinstance(cut, Sequence):
        raise InputError("method greedy: found a cut for each link, expected one; use chain")
    choices = list_choices(graph, platform, asked)
    usable = within(undominated(choices.all, platform.devices), limits)
    whole = make_problem(graph, platform, usable, objective=asked.objective, limits=limits)
    must = () if cut is None else asked_cuts(cut, choices, whole)
    problem = restricted(whole, must)
    scope = Scope(problem=problem)
    costs = make_costs(scope, overflow(scope))
    starts = [cheapest(alone(problem, index), costs) for index in range(len(problem.stages))]
    if all(isinf(route.cost) for route in starts):  # a cut that has to be crossed takes two
        starts = [cheapest(everyone(problem), costs)]
    ends = [_descend(problem, costs, route) for route in starts if not isinf(route.cost)]
    if not ends:
        raise InputError(f"cuts {must}: found no way through the platform with them; remove one")
    best = min(ends, key=lambda route: _merit(problem, costs, route))
    plan = make_plan(whole, best, gap=None, beatable=True)
    note = "found by steepest descent: method chain may find a better plan"
    return replace(plan, notes=(*plan.notes, note, *choices.notes))


def _descend(problem: Problem, costs: Costs, route: Route) -> Route:
    merit = _merit(problem, costs, route)
    while True:
        changed = [
            (_merit(problem, costs, other), number, other)
            for number, other in enumerate(_changes(problem, route))
            if not isinf(cost_of(costs, other))
        ]
        best = min(changed, default=None)
        if best is None or not _better(best[0], merit):
            return route
        merit, _, route = best


def _changes(problem: Problem, route: Route) -> Iterator[Route]:
    """Yield each walk that differs in one pick or one device; ways that there are, no more."""
    stops, picks = route.stops, route.picks
    every = np.argsort(problem.rank)[:-1].tolist()
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for i, pick in enumerate(picks):
        found += [(stops, (*picks[:i], k, *picks[i + 1 :])) for k in every if k != pick]
        more = [d for d in range(len(problem.stages)) if d not in stops]
        for d in more:
            walk = (*stops[: i + 1], d, *stops[i + 1 :])
            for k in every:
                found.append((walk, (*picks[:i], k, pick, *picks[i + 1 :])))
                found.append((walk, (*picks[: i + 1], k, *picks[i + 1 :])))
    for i in range(1, len(stops) - 1):
        walk = (*stops[:i], *stops[i + 1 :])
        found += [(walk, (*picks[:j], *picks[j + 1 :])) for j in (i - 1, i)]
    for walk, carried in found:
        if all(ends in problem.legs for ends in pairwise(walk)):
            yield Route(cost=0.0, stops=walk, picks=carried)


def _merit(problem: Problem, costs: Costs, route: Route) -> Merit:
    """Return what is to be made small, the most important first."""
    predicted = predict(problem, route)
    over = 0.0
    for name in WHOLE:
        most, need = getattr(problem.limits, name), getattr(predicted, name)
        if most is not None:
            over += 1.0 if need is None else max(0.0, need / (most or 1e-300) - 1 - 1e-9)
    objective = float(getattr(predicted, OBJECTIVES[problem.objective]))
    excess = max(0.0, cost_of(costs, route) - 1e-6 * predicted.latency_s)
    return (round(excess, 3), over, objective, predicted.latency_s)


def _better(merit: Merit, other: Merit) -> bool:
    """Return whether the first difference beyond rounding is for the better."""
    for new, old in zip(merit, other, strict=True):
        if abs(new - old) > 1e3 * TOLERANCE * max(abs(new), abs(old)):
            return new < old
    return False
