"""Whether a plan fits, worked out anew from what it says."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from isthmus.errors import InputError
from isthmus.graph import Graph, cuts
from isthmus.plan.accuracy import AccuracyTable
from isthmus.plan.branched import check_branched
from isthmus.plan.choices import Choice, carried, known, other_model
from isthmus.plan.estimate import make_site, stage_loads, stage_nodes
from isthmus.plan.limits import Walk, violations
from isthmus.plan.plan import Limits, Plan, Violation
from isthmus.platform import Link, Platform, path


def check(
    plan: Plan,
    graph: Graph,
    platform: Platform,
    *,
    limits: Limits | None = None,
    accuracy: AccuracyTable | None = None,
) -> tuple[Violation, ...]:
    """Return every limit that a plan breaks; nothing means that it fits.

    Args:
        plan: Its devices, cuts and codecs are taken, its figures are not.
        graph: What it divides.
        platform: What it was made for.
        limits: What it must not exceed; None for what it says itself.
        accuracy: What codecs cost in accuracy, where the drop is limited.

    Returns:
        The broken limits.

    Raises:
        InputError: The plan is not one of this graph on this platform.
    """
    limits = plan.limits if limits is None else limits
    if plan.branched:
        return check_branched(plan, graph, platform, limits=limits, accuracy=accuracy)
    return violations(_walk(plan, graph, platform, accuracy), limits)


def with_payloads(plan: Plan, graph: Graph, payload_bytes: Sequence[float]) -> Plan:
    """Return a plan with the sizes that entropy-coded crossings were measured to have.

    Args:
        plan: Stages that follow each other.
        graph: What it divides.
        payload_bytes: Mean payload of each crossing; where the rate is fixed it says nothing new.

    Returns:
        The plan with new figures of these crossings and of the whole; its other plans and what
        would change it stand as they were planned.
    """
    sized = [
        crossing if crossing.fixed_rate else replace(crossing, payload_bytes=size)
        for crossing, size in zip(plan.crossings, payload_bytes, strict=True)
    ]
    if tuple(sized) == plan.crossings:
        return plan
    plan = replace(plan, crossings=tuple(sized))
    found = _walk(plan, graph, plan.platform, None).estimate()
    figures = zip(plan.crossings, found.transfer_s, found.link_j, strict=True)
    return replace(
        plan,
        crossings=tuple(
            replace(crossing, transfer_s=transfer_s, energy_j=energy_j)
            for crossing, transfer_s, energy_j in figures
        ),
        predicted=replace(found.prediction, drop=plan.predicted.drop),
        notes=(
            *plan.notes,
            "what crosses is the mean measured after fitting; other plans stand at their bounds",
        ),
    )


def _walk(plan: Plan, graph: Graph, platform: Platform, accuracy: AccuracyTable | None) -> Walk:
    """Return all stages and hops of a plan, checked."""
    links = _links(plan, platform)
    route = _route(plan, graph, accuracy)
    _check_stages(plan, graph, route)
    return Walk(
        sites=tuple(make_site(graph, platform.device(stage.device)) for stage in plan.stages),
        links=links,
        route=tuple(route),
        loads=stage_loads(graph, route),
    )


def _links(plan: Plan, platform: Platform) -> tuple[Link, ...]:
    """Return the links of the walk, each of which joins two stages' devices."""
    names = [stage.device for stage in plan.stages]
    links = [
        next((k for k in platform.links if k.name == crossing.link and hop in k.directions), None)
        for crossing, hop in zip(plan.crossings, pairwise(names), strict=False)
    ]
    joined = tuple(link for link in links if link is not None)
    ends = (names[0], names[-1]) if names else ()
    if ends != (platform.input, platform.output) or not (
        len(joined) == len(plan.crossings) == len(names) - 1
    ):
        expected = ", ".join(device.name for device in path(platform)[0])
        raise InputError(
            f"plan: found the devices {', '.join(names)}, expected those of a way through "
            f"platform {platform.name} such as {expected}; plan again"
        )
    return joined


def _check_stages(plan: Plan, graph: Graph, route: Sequence[Choice]) -> None:
    """Raise unless stages hold the nodes between their cuts, each device those of one at most."""
    computing = [stage.device for stage in plan.stages if stage.nodes]
    twice = next((name for name in computing if computing.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"plan: found two stages with nodes on {twice}, expected one; plan again")
    middle = zip(plan.stages[1:-1], route, route[1:], strict=False)
    for stage, arrives, leaves in middle:
        if not stage.nodes and arrives != leaves:
            raise InputError(
                f"plan: found other bytes to and from {stage.device}, which computes nothing, "
                "expected the same; plan again"
            )
    for stage, nodes in zip(plan.stages, stage_nodes(len(graph.nodes), route), strict=True):
        if stage.nodes != tuple(graph.nodes[index].name for index in nodes):
            raise other_model(f"other operations on {stage.device}")


def _route(plan: Plan, graph: Graph, accuracy: AccuracyTable | None) -> list[Choice]:
    places = cuts(graph)
    route = []
    for crossing in plan.crossings:
        if not 0 <= crossing.cut < len(places):
            raise other_model(f"cut {crossing.cut} of {len(places)}")
        cut = places[crossing.cut]
        if crossing.tensors != tuple(tensor.name for tensor in cut.tensors):
            raise other_model(f"other tensors after {crossing.after}")
        route.append(known(carried(crossing, cut), accuracy))
    return route
