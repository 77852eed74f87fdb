"""Every plan there is, costed one by one."""

from itertools import pairwise, permutations
from math import isinf

from isthmus.plan.choices import Choice, can_code
from isthmus.plan.estimate import compute_s, estimate, excess_bytes, make_site, stage_loads
from isthmus.platform import Link, routes, stops


def every_plan(graph, platform, choices):
    """Yield the devices where frames begin or end and what passes between them.

    The input computes first or not at all, the output last or not at all, one that is both
    either; any others between, in any order, each once at most.
    """
    end = len(graph.nodes)
    ways = {device.name: routes(platform, device.name) for device in platform.devices}
    for order in _orders(platform):
        sends = order[0] != platform.input
        takes = order[-1] != platform.output
        names = [*[platform.input] * sends, *order, *[platform.output] * takes]
        if any(target not in ways[source] for source, target in pairwise(names)):
            continue
        for picks in _picks(choices, len(names) - 1, end, sends=sends, takes=takes):
            yield tuple(names), picks


def _orders(platform):
    names = [device.name for device in platform.devices]
    source, target = platform.input, platform.output
    for size in range(1, len(names) + 1):
        for order in permutations(names, size):
            if source == target:
                fits = source not in order[1:-1]
            else:
                fits = source not in order[1:] and target not in order[:-1]
            if fits:
                yield order


def _picks(choices, count, end, *, sends, takes, made=()):
    if len(made) == count:
        yield made
        return
    before = made[-1].cut.index if made else 0
    for choice in choices:
        cut = choice.cut.index
        if sends and not made:
            fits = cut == 0
        elif takes and len(made) == count - 1:
            fits = before < cut == end
        else:
            fits = before < cut < end
        if fits:
            yield from _picks(choices, count, end, sends=sends, takes=takes, made=(*made, choice))


def expand(ways, names, picks):
    """Return all devices, links and what each carries, relays included."""
    devices = [names[0]]
    links: list[Link] = []
    route: list[Choice] = []
    for (source, target), choice in zip(pairwise(names), picks, strict=True):
        way = ways[source][target]
        devices += stops(source, way)[1:]
        links += way
        route += [choice] * len(way)
    return devices, links, route


def make_cost(graph, platform):
    """Return a function that says what a plan costs in all; None where a device cannot do it.

    What a stage asks of a device depends on what arrives and what leaves, not on the rest of the
    plan: it is worked out once for each such pair.
    """
    sites = {device.name: make_site(graph, device) for device in platform.devices}
    ways = {device.name: routes(platform, device.name) for device in platform.devices}
    known = {}

    def load(arrives, leaves):
        key = id(arrives), id(leaves)
        if key not in known:
            ends = [choice for choice in (arrives, leaves) if choice is not None]
            asked = stage_loads(graph, ends)[0 if arrives is None else 1]
            # With the pair, so that no other choice can come to have the same identity.
            known[key] = asked, arrives, leaves
        return known[key][0]

    def cost(names, picks):
        devices, links, route = expand(ways, names, picks)
        sides = list(pairwise((None, *route, None)))
        loads = [load(*ends) for ends in sides]
        stages = zip(devices, loads, sides, strict=True)
        if not all(_can(sites[name], asked, *ends) for name, asked, ends in stages):
            return None
        return estimate(loads, route, [sites[name] for name in devices], links).prediction

    return cost


def _can(site, load, arrives, leaves):
    """Return whether a device can do what a stage asks of it."""
    if isinf(compute_s(site, load)) or excess_bytes(site.device, load) > 0:
        return False
    codes = [choice for choice in (arrives, leaves) if choice and arrives != leaves]
    return all(can_code(site.device, choice) for choice in codes)


def every_cost(cost, graph, platform, choices):
    """Return all plans that can be, each with what it costs by ``make_cost``."""
    plans = (
        (cost(names, picks), names, picks) for names, picks in every_plan(graph, platform, choices)
    )
    return [plan for plan in plans if plan[0] is not None]
