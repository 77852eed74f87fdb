"""The best plan of a graph on a platform, each device with one stage of it at most."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from math import inf, isinf

from isthmus.errors import InputError, naming
from isthmus.graph import Graph, fingerprint
from isthmus.plan.answer import make_plan
from isthmus.plan.choices import Choice, Choices, find_choices, undominated, within
from isthmus.plan.estimate import OBJECTIVES
from isthmus.plan.explain import make_outcome
from isthmus.plan.limits import MOST_RATE, Walk, least_rate, with_rate
from isthmus.plan.orders import States, everyone, ordered, states_of
from isthmus.plan.plan import NO_LIMITS, Asked, Limits, Plan, exceeds
from isthmus.plan.routes import Route, cheapest
from isthmus.plan.search import find
from isthmus.plan.table import Problem, make_problem, restricted
from isthmus.plan.weigh import Scope, make_costs, overflow
from isthmus.platform import Link, Platform, path
from isthmus.units import format_quantity
from isthmus.wire.options import option_names

# Where there are more choices and devices, one more plan for each rate would take too long.
_MANY = 4096

_OBJECTIVE_OF = {figure: objective for objective, figure in OBJECTIVES.items()} | {"drop": "drop"}


def plan_chain(graph: Graph, platform: Platform, asked: Asked) -> Plan:
    """Return the best plan that fits; where none does, the one nearest to fitting.

    Errors are those of `isthmus.plan.partition`; the method is in `search`.
    """
    choices = list_choices(graph, platform, asked)
    usable = undominated(choices.all, platform.devices)
    limits, cut = asked.limits, asked.cut
    whole = make_problem(
        graph, platform, within(usable, limits), objective=asked.objective, limits=limits
    )
    must = () if cut is None else asked_cuts(cut, choices, whole)
    problem = restricted(whole, must)
    states, any_order = states_of(problem)
    if isinstance(cut, Sequence):
        states, any_order = ordered(problem, _computing(cut, whole)), True
    found = find(problem, states, objective=asked.objective, limits=limits)
    if found is None:
        return _nearest(problem, states, usable, must)
    gap = (found.route.cost - found.least) / found.route.cost if found.route.cost else 0.0
    plan = make_plan(whole, found.route, gap=gap if any_order else None, beatable=cut is not None)
    order = () if any_order else ("devices compute in the order of the file: there are many",)
    return replace(plan, notes=(*plan.notes, *order, *choices.notes))


def list_choices(graph: Graph, platform: Platform, asked: Asked) -> Choices:
    """List what links may carry, dominated choices and those over a limit included.

    Raises:
        InputError: The accuracies are of another model, a device names a codec that there is
            not, or nothing can cross a link at all.
    """
    for device in platform.devices:
        for name in device.codecs or ():
            with naming(f"device {device.name}: codecs"):
                option_names(name)
    if asked.accuracy is not None:
        asked.accuracy.check(fingerprint(graph))
    choices = find_choices(graph, asked)
    if platform.links and not choices.all:
        raise InputError(f"nothing of this model can cross a link: {choices.notes[0]}")
    return choices


def asked_cuts(cut: int | Sequence[int], choices: Choices, problem: Problem) -> tuple[int, ...]:
    """Return the cuts that links have to carry, checked.

    Raises:
        InputError: A cut that there is not, that cannot be used, or out of order.
    """
    cuts = (cut,) if isinstance(cut, int) else tuple(cut)
    num_nodes, links = len(problem.graph.nodes), path(problem.platform)[1]
    if not isinstance(cut, int) and len(cuts) != len(links):
        raise InputError(f"found {len(cuts)} cuts, expected one for each of {len(links)} links")
    for index in cuts:
        if not problem.platform.links:
            raise InputError(f"cut {index}: found one device, expected two or more")
        if not 0 <= index <= num_nodes:
            raise InputError(f"cut {index}: found no such cut, expected 0 to {num_nodes}")
        if index in choices.skipped:
            reason = choices.skipped[index]
            raise InputError(f"cut {index} cannot be used: {reason}; choose another")
    if any(before > after for before, after in pairwise(cuts)):
        raise InputError(f"found the cuts {cuts}, expected none before the one on the link before")
    return cuts


def _computing(cuts: Sequence[int], problem: Problem) -> list[int]:
    """Return the devices on the way from input to output that hold nodes between the cuts."""
    devices = path(problem.platform)[0]
    ends = pairwise((0, *cuts, len(problem.graph.nodes)))
    return [
        problem.platform.index(device.name)
        for device, (start, stop) in zip(devices, ends, strict=True)
        if start < stop
    ]


def _nearest(
    problem: Problem, states: States, choices: tuple[Choice, ...], must: Sequence[int]
) -> Plan:
    """Return the plan that is nearest to fitting, with what it lacks.

    That is the one that breaks a single limit by the least factor; where none breaks but one, the
    best without limits; and where memories do not suffice, the one that overflows by least.
    """
    asked = problem.limits

    def without(limits: Limits) -> Problem:
        usable = within(choices, limits)
        made = make_problem(problem.graph, problem.platform, usable, objective=problem.objective)
        return replace(restricted(made, must), limits=asked)

    tries: list[tuple[float, Problem, Route]] = []
    for figure in (
        field.name for field in fields(asked) if getattr(asked, field.name) is not None
    ):
        # Without a limit on the drop, what is known still has to be.
        limits = replace(asked, **{figure: 1.0 if figure == "drop" else None})
        other = without(limits)
        objective = _OBJECTIVE_OF.get(figure, problem.objective)
        found = find(other, states, objective=objective, limits=limits)
        if found is not None:
            need = found.route.cost
            if figure not in _OBJECTIVE_OF:
                need = max(other.choices[pick].spec.payload_bytes for pick in found.route.picks)
            tries.append((need / (getattr(asked, figure) or 1e-300), other, found.route))
    if not tries and asked != NO_LIMITS:
        other = without(NO_LIMITS)
        found = find(other, states, objective=problem.objective, limits=NO_LIMITS)
        tries += [(inf, other, found.route)] if found is not None else []
    if tries:
        _, other, route = min(tries, key=lambda one: one[0])
        plan = _with_room(make_plan(other, route, gap=None), problem, states)
        timed = (asked.latency_s, asked.interval_s) != (None, None) and len(must) < 2
        small = len(choices) * len(problem.stages) < _MANY
        return _add_rate(plan, problem, within(choices, asked), must) if timed and small else plan
    scope = Scope(problem=without(NO_LIMITS))
    costs = make_costs(scope, overflow(scope))
    route = cheapest(states(scope), costs)
    if not route.stops:
        route = cheapest(everyone(problem), costs)
    if not route.stops:
        raise InputError(
            f"cuts {tuple(must)}: found no way through the platform with them; remove one"
        )
    return make_plan(scope.problem, route, gap=None)


def _with_room(plan: Plan, problem: Problem, states: States) -> Plan:
    """Add to the remedies the memories with which all limits could be kept."""
    found = find(
        problem, states, objective=problem.objective, limits=problem.limits, limited=False
    )
    if found is None:
        return plan
    lacking = make_outcome(problem, found.route).violations
    room = " and ".join(
        f"{v.where} with {format_quantity(v.need, v.unit)} of {v.what}" for v in lacking
    )
    first, *rest = plan.violations
    first = replace(first, remedy=f"{first.remedy}, or {room}")
    return replace(plan, violations=(first, *rest))


def _add_rate(
    plan: Plan, problem: Problem, choices: tuple[Choice, ...], must: Sequence[int]
) -> Plan:
    """Add to the remedies the rate of one link with which some plan keeps all limits."""
    on_the_way = {crossing.link for crossing in plan.crossings}
    found = []
    for link in problem.platform.links:
        if link.name in on_the_way:
            rate, what = _least_rate(problem, choices, must, link)
            found.append((rate / link.bytes_per_s, link.name, rate, what))
    factor, name, rate, what = min(found, default=(inf, "", inf, ""))
    first, *rest = plan.violations
    words = f"a rate of {format_quantity(rate, 'byte/s')} on link {name}"
    if isinf(factor) or words in first.remedy:
        return plan
    first = replace(first, remedy=f"{first.remedy}, or {words} and then {what}")
    return replace(plan, violations=(first, *rest))


def _least_rate(
    problem: Problem, choices: tuple[Choice, ...], must: Sequence[int], link: Link
) -> tuple[float, str]:
    """Return the least rate of a link at which a plan keeps all limits, and the plan in words.

    The plan that is best at a rate keeps the limits down to some lower one, where another may be
    best, and so on. Infinity where none keeps them at any rate.
    """
    limits = problem.limits
    objective = "throughput" if limits.latency_s is None else "latency"
    rate, best, what = MOST_RATE, inf, ""
    while rate < best * 0.999:
        links = tuple(
            with_rate(one, rate) if one == link else one for one in problem.platform.links
        )
        platform = replace(problem.platform, links=links)
        made = restricted(
            make_problem(problem.graph, platform, choices, objective=objective, limits=limits),
            must,
        )
        found = find(made, states_of(made)[0], objective=objective, limits=limits)
        if found is None:
            break
        outcome = make_outcome(made, found.route)
        best, what = rate, outcome.what
        rate = least_rate(link, partial(_keeps, outcome.walk, limits))
    return best, what


def _keeps(walk: Walk, limits: Limits, link: Link) -> bool:
    """Return whether a plan keeps the limits that hang on a rate with a link in its place."""
    links = tuple(link if one.between == link.between else one for one in walk.links)
    costs = replace(walk, links=links).estimate().prediction
    figures = ("latency_s", "interval_s", "energy_j")
    return not any(exceeds(getattr(costs, name), getattr(limits, name)) for name in figures)
