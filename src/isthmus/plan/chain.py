"""The best plan of a graph on the chain of devices from input to output."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, isinf

from isthmus.errors import InputError
from isthmus.graph import Graph
from isthmus.plan.accuracy import AccuracyTable
from isthmus.plan.choices import Choices, find_choices
from isthmus.plan.estimate import FORMAT, stage_nodes
from isthmus.plan.explain import Outcome, find_runner_ups, make_notes, make_outcome
from isthmus.plan.plan import Crossing, InputSpec, Limits, Plan, Stage
from isthmus.plan.routes import Costs, Route, bound, cheapest_and_fastest, make_costs, overflow
from isthmus.plan.sensitivity import find_sensitivity
from isthmus.plan.table import Problem, make_problem
from isthmus.platform import Platform, path


def plan_chain(
    graph: Graph,
    platform: Platform,
    *,
    objective: str,
    codec: str | None,
    cut: int | Sequence[int] | None,
    png_bytes: float | None,
    accuracy: AccuracyTable | None,
    limits: Limits,
    time_limit_s: float,
) -> Plan:
    """Return the best plan that fits; where none does, the one that overflows by least.

    Arguments and errors are those of `isthmus.plan.partition`; the method is in `routes`.
    """
    devices, links = path(platform)
    choices = find_choices(graph, codec=codec, png_bytes=png_bytes)
    if links and not choices.all:
        raise InputError(f"nothing of this model can cross a link: {choices.notes[0]}")
    problem = make_problem(graph, choices.all, devices=devices, links=links, objective=objective)
    must = None if cut is None else _asked(cut, choices, problem)
    route = _best(problem, make_costs(problem), must)
    fits = not isinf(route.cost)
    if not fits:
        route = _best(replace(problem, objective="latency"), overflow(problem), must)
    best = make_outcome(problem, route.picks)
    runner_ups = find_runner_ups(problem, best) if fits else ()
    notes = make_notes(problem, graph, best, runner_ups) if fits else ()
    stages = _stages(graph, problem, best)
    return Plan(
        objective=objective,
        split=sum(bool(stage.nodes) for stage in stages) > 1,
        stages=stages,
        crossings=_crossings(problem, best),
        predicted=best.estimate.prediction,
        violations=best.violations,
        runner_ups=runner_ups,
        sensitivity=find_sensitivity(problem, best) if fits and must is None else (),
        inputs=tuple(
            InputSpec(name=tensor.name, shape=tensor.shape, dtype=tensor.dtype)
            for tensor in graph.inputs
        ),
        platform=platform,
        unused=tuple(d.name for d in platform.devices if d not in devices),
        notes=(*notes, *choices.notes),
    )


def _picks_at(cut: int, choices: Choices, problem: Problem) -> list[int]:
    """Return the indices of the choices at a cut that the user asks for."""
    if not problem.links:
        raise InputError(f"cut {cut}: found one device on the way, expected two or more")
    if not 0 <= cut <= problem.num_nodes:
        raise InputError(f"cut {cut}: found no such cut, expected 0 to {problem.num_nodes}")
    if cut in choices.skipped:
        raise InputError(f"cut {cut} cannot be used: {choices.skipped[cut]}; choose another")
    return [k for k, choice in enumerate(problem.choices) if choice.cut.index == cut]


def _asked(
    cut: int | Sequence[int], choices: Choices, problem: Problem
) -> tuple[dict[int, list[int]], ...]:
    """Return the ways to do what the user asks for: for each, what some links have to carry."""
    if isinstance(cut, int):
        picks = _picks_at(cut, choices, problem)
        return tuple({link: picks} for link in range(len(problem.links)))
    if len(cut) != len(problem.links):
        raise InputError(
            f"found {len(cut)} cuts, expected one for each of {len(problem.links)} links"
        )
    return ({link: _picks_at(index, choices, problem) for link, index in enumerate(cut)},)


def _best(
    problem: Problem, costs: Costs, must: Sequence[Mapping[int, Sequence[int]]] | None
) -> Route:
    """Return the best route; with ``must`` the best in which links carry what they must."""
    routes = []
    for picks_of in must or ({},):
        limited = costs
        for link, picks in picks_of.items():
            limited = bound(limited, link, picks)
        routes.append(cheapest_and_fastest(problem, limited))
    return min(routes, key=lambda route: route.cost)


def _stages(graph: Graph, problem: Problem, best: Outcome) -> tuple[Stage, ...]:
    parts = zip(
        problem.devices,
        stage_nodes(problem.num_nodes, best.route),
        best.estimate.loads,
        best.estimate.compute_s,
        strict=True,
    )
    return tuple(
        Stage(
            device=device.name,
            nodes=tuple(graph.nodes[index].name for index in indices),
            macs=sum(graph.nodes[index].macs or 0 for index in indices),
            weight_bytes=ceil(load.weight_bytes),
            peak_memory_bytes=ceil(load.peak_bytes),
            format=FORMAT,
            compute_s=compute_s,
        )
        for device, indices, load, compute_s in parts
    )


def _crossings(problem: Problem, best: Outcome) -> tuple[Crossing, ...]:
    parts = zip(problem.links, best.route, best.estimate.transfer_s, strict=True)
    return tuple(
        Crossing(
            link=link.name,
            cut=choice.cut.index,
            after=choice.cut.after,
            tensors=tuple(tensor.name for tensor in choice.cut.tensors),
            shapes=choice.spec.shapes,
            dtypes=choice.spec.dtypes,
            codec=choice.codec,
            payload_bytes=choice.spec.payload_bytes,
            fixed_rate=choice.spec.fixed_rate,
            transfer_s=transfer_s,
        )
        for link, choice, transfer_s in parts
    )
