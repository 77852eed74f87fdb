"""The best plan of any shape: a walk where one is as good as any, else one that branches."""

from dataclasses import replace
from itertools import groupby, pairwise
from time import monotonic

from isthmus.errors import InputError
from isthmus.graph import Graph
from isthmus.plan.answer import make_plan
from isthmus.plan.branched import make_branched
from isthmus.plan.chain import list_choices, plan_chain
from isthmus.plan.choices import Choice, undominated, within
from isthmus.plan.cpsat import search
from isthmus.plan.estimate import OBJECTIVES
from isthmus.plan.placement import Placement, Setting, make_setting
from isthmus.plan.plan import Asked, Plan
from isthmus.plan.routes import Route
from isthmus.plan.table import make_problem
from isthmus.platform import Platform

_SAME = 1e-9


def plan_cpsat(graph: Graph, platform: Platform, asked: Asked) -> Plan:
    """Return the best plan over every assignment of nodes to devices.

    That is a walk, which can be split and exported, unless one that branches is better. Where the
    time is up first, it is the best one so far, with its gap; where nothing fits, the walk that is
    nearest to fitting. Errors are those of `isthmus.plan.partition`; the method is in `cpsat`.
    """
    objective, limits, time_limit_s = asked.objective, asked.limits, asked.time_limit_s
    if asked.cut is not None:
        raise InputError(
            "cut: method cpsat places every node by itself and takes no cuts; use method chain"
        )
    stop_s = monotonic() + time_limit_s
    walk = plan_chain(graph, platform, asked)
    setting = make_setting(graph, platform, asked)
    found = search(
        setting,
        objective=objective,
        limits=limits,
        time_limit_s=max(0.0, stop_s - monotonic()),
    )
    if found.placement is None:
        if not found.proven and walk.violations:
            raise InputError(
                f"method cpsat: found no plan that fits within {time_limit_s:g} s, and no proof "
                "that there is none; allow more time"
            )
        if found.proven:
            return walk
        note = f"stopped after {time_limit_s:g} s, too soon to say whether a better one exists"
        return replace(walk, gap=None, notes=(note, *walk.notes))
    choices = list_choices(graph, platform, asked).all
    choices = within(undominated(choices, platform.devices), limits)
    route = _as_route(setting, found.placement, choices)
    if route is not None:
        problem = make_problem(graph, platform, choices, objective=objective, limits=limits)
        plan = make_plan(problem, route, gap=found.gap)
    else:
        plan = make_branched(
            setting, found.placement, objective=objective, limits=limits, gap=found.gap
        )
    cost, other = (getattr(one.predicted, OBJECTIVES[objective]) for one in (plan, walk))
    as_fast = walk.predicted.latency_s <= plan.predicted.latency_s * (1 + _SAME)
    no_worse = other < cost * (1 - _SAME) or (other <= cost * (1 + _SAME) and as_fast)
    if not walk.violations and no_worse:
        least = cost * (1 - found.gap)
        plan = replace(walk, gap=max(0.0, 1 - least / other) if other else 0.0)
    if found.proven:
        note = "proven: no assignment of nodes to devices does better"
    else:
        note = f"stopped after {time_limit_s:g} s: one that is {plan.gap:.2%} better may exist"
    return replace(plan, notes=(note, *plan.notes))


def _as_route(setting: Setting, placement: Placement, choices: tuple[Choice, ...]) -> Route | None:
    """Return the walk that a placement is; None if it is none, or passes a device again."""
    computing = [device for device, _ in groupby(placement.places)]
    stops = list(computing)
    if stops[:1] != [setting.platform.source]:
        stops.insert(0, setting.platform.source)
    if stops[-1] != setting.platform.target:
        stops.append(setting.platform.target)
    ends = [(message.source, message.target) for message in placement.messages]
    carried = [setting.choices[message.pick] for message in placement.messages]
    once = all(len(ones) == len(set(ones)) for ones in (computing, stops[1:], stops[:-1]))
    if not once or ends != list(pairwise(stops)) or not set(carried) <= set(choices):
        return None
    return Route(cost=0.0, stops=tuple(stops), picks=tuple(choices.index(one) for one in carried))
