"""Whether a plan fits, worked out anew from what it says."""

from dataclasses import replace

from isthmus.errors import InputError
from isthmus.graph import Graph, cuts
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import stage_loads, stage_nodes
from isthmus.plan.limits import violations
from isthmus.plan.plan import Plan, Violation
from isthmus.platform import Platform, path
from isthmus.wire.spec import parse_codec


def check(plan: Plan, graph: Graph, platform: Platform) -> tuple[Violation, ...]:
    """Return every limit that a plan breaks; nothing means that it fits.

    Args:
        plan: Its devices, cuts and codecs are taken, its figures are not.
        graph: What it divides.
        platform: What it was made for.

    Returns:
        The broken limits.

    Raises:
        InputError: The plan is not one of this graph on this platform.
    """
    devices, links = path(platform)
    names = [stage.device for stage in plan.stages]
    hops = [crossing.link for crossing in plan.crossings]
    if (names, hops) != ([d.name for d in devices], [link.name for link in links]):
        raise InputError(
            f"plan: found the devices {', '.join(names)}, expected those of platform "
            f"{platform.name}: {', '.join(device.name for device in devices)}; plan again"
        )
    route = _route(plan, graph)
    for stage, nodes in zip(plan.stages, stage_nodes(len(graph.nodes), route), strict=True):
        if stage.nodes != tuple(graph.nodes[index].name for index in nodes):
            raise _other_model(f"other operations on {stage.device}")
    return violations(devices, stage_loads(graph, route), route)


def _route(plan: Plan, graph: Graph) -> list[Choice]:
    places = cuts(graph)
    route = []
    for crossing in plan.crossings:
        if not 0 <= crossing.cut < len(places):
            raise _other_model(f"cut {crossing.cut} of {len(places)}")
        cut = places[crossing.cut]
        if crossing.tensors != tuple(tensor.name for tensor in cut.tensors):
            raise _other_model(f"other tensors after {crossing.after}")
        shapes = [tensor.shape for tensor in cut.tensors]
        spec = parse_codec(
            crossing.codec, shapes=shapes, dtypes=[tensor.dtype for tensor in cut.tensors]
        )
        if not spec.fixed_rate:
            spec = replace(spec, measured_bytes=crossing.payload_bytes)
        route.append(Choice(cut=cut, spec=spec))
    return route


def _other_model(found: str) -> InputError:
    return InputError(f"plan: found {found}, expected a plan of this model; plan again")
