"""What a search makes small or keeps within bounds, as costs of stages and hops.

Static power and price are paid once for each device on the walk, however often it is passed, and
power for the whole latency: no sum over stages and hops. A scope makes them one. Devices that are
*paid* count from the start, whether or not the walk passes them; any other that computes is
charged its price, and its power for the least latency that any plan has; a relay that is not paid
is free. So a scope weighs a plan at no more than it costs, and at just that where all devices on
the walk are paid; `isthmus.plan.search` pays for devices and keeps others out until that is so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import inf
from operator import attrgetter

import numpy as np

from isthmus.plan.blocks import Table, make_table
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import (
    Array,
    Cells,
    Clock,
    Load,
    Site,
    compute_s,
    excess_bytes,
    halves_load,
)
from isthmus.plan.limits import Walk
from isthmus.plan.plan import Prediction
from isthmus.plan.routes import Costs, Route
from isthmus.plan.table import Leg, Problem, Stages
from isthmus.platform import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which plans a search looks at, and whom they pay.

    Attributes:
        problem: What there is to choose from.
        paid: Indices of devices whose power and price count from the start.
        out: Indices of devices that are kept off the walk.
        least_s: A latency that no plan falls below.
        most_s: A time that no stage and no hop exceeds.
        limited: Whether memories are.
    """

    problem: Problem
    paid: frozenset[int] = frozenset()
    out: frozenset[int] = frozenset()
    least_s: float = 0.0
    most_s: float = inf
    limited: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is weighed, and how.

    Attributes:
        stages: The costs of the stages of a device: of those that fit, if memories are limited.
        leg: The costs of a way, (K,).
        charges: What each device is charged that computes and is not paid; none if empty.
        most: Of two costs, whether the larger one counts and not the sum.
        lax: Whether what a device cannot run counts, too.
    """

    stages: Callable[[Stages, bool], Table]
    leg: Callable[[Leg], Array]
    charges: Sequence[float] = ()
    most: bool = False
    lax: bool = False


def latency(scope: Scope) -> Measure:
    """Weigh seconds."""
    return Measure(stages=Stages.seconds, leg=attrgetter("seconds"))


def interval(scope: Scope) -> Measure:
    """Weigh the longest time of a stage or medium, as if each device and medium served once."""
    return Measure(stages=Stages.seconds, leg=_busiest, most=True)


def busy(clock: Clock) -> Measure:
    """Weigh how long one device, by its name, or one medium, by its clock, is busy."""

    def times(one: Stages, limited: bool) -> Table:
        mine = one.site.device.name == clock
        return one.seconds(limited) if mine else _nothing(one, limited)

    return Measure(stages=times, leg=lambda leg: leg.busy_s.get(clock, 0.0 * leg.seconds))


def energy(scope: Scope) -> Measure:
    """Weigh joules."""
    devices = scope.problem.platform.devices
    watts = sum(devices[index].static_w for index in scope.paid)

    def joules(one: Stages, limited: bool) -> Table:
        table = one.joules(limited)
        return table.plus(one.seconds(limited), watts) if watts else table

    return Measure(
        stages=joules,
        leg=lambda leg: leg.joules + watts * leg.seconds,
        charges=[device.static_w * scope.least_s for device in devices],
    )


def price(scope: Scope) -> Measure:
    """Weigh money, without that of the paid devices."""
    return Measure(
        stages=_nothing,
        leg=lambda leg: 0.0 * leg.seconds,
        charges=[device.price for device in scope.problem.platform.devices],
    )


def drop(scope: Scope) -> Measure:
    """Weigh accuracy lost; what is unknown is as much as none."""
    lost = np.array([choice.drop or 0.0 for choice in scope.problem.choices])
    return Measure(stages=_nothing, leg=lambda leg: lost)


def overflow(scope: Scope) -> Measure:
    """Weigh the bytes by which memories overflow; of equal ones the faster costs less.

    A microbyte for each second: one byte outweighs any latency under eleven days. What a device
    cannot run weighs a terabyte.
    """

    def lacking(one: Stages, limited: bool) -> Table:
        del limited

        def weigh(cells: Cells) -> Array:
            possible, load = one.possible[cells], one.load.computed(cells, written=False)
            time_s = np.where(possible, compute_s(one.site, load), 0.0)
            excess = np.asarray(excess_bytes(one.site.device, one.load.held(cells)))
            costs = excess + 1e-6 * time_s + 1e12 * ~possible
            return np.where(one.allowed[cells], costs, inf)

        return make_table(one.allowed, weigh)

    return Measure(stages=lacking, leg=lambda leg: leg.excess + 1e-6 * leg.seconds, lax=True)


def make_costs(
    scope: Scope, measure: Measure, *, known: tuple[Problem, Costs] | None = None
) -> Costs:
    """Weigh all stages and ways; those that cannot be are infinite.

    Args:
        scope: Which plans, and whom they pay.
        measure: What is weighed.
        known: A problem and its costs by the same measure; devices that are the same there are
            not weighed again.
    """
    problem = scope.problem
    cuts = np.array([choice.cut.index for choice in problem.choices], int)
    tables = dict(zip(map(id, known[0].stages), known[1].stages, strict=True)) if known else {}
    stages = [
        tables.get(id(one)) or stage_costs(scope, measure, index)
        for index, one in enumerate(problem.stages)
    ]
    return Costs(
        stages=stages,
        rank=problem.rank,
        hops=hop_costs(scope, measure),
        first=np.where(cuts == 0, stages[problem.platform.source].first[:-1], inf),
        last=np.where(
            cuts == len(problem.graph.nodes), stages[problem.platform.target].last[:-1], inf
        ),
        most=measure.most,
    )


def stage_costs(scope: Scope, measure: Measure, index: int) -> Table:
    """Weigh the stages of one device."""
    one = scope.problem.stages[index]
    charge = measure.charges[index] if measure.charges and index not in scope.paid else 0.0
    table = measure.stages(one, scope.limited)
    if charge:
        table = table.each(lambda costs: costs + charge)
    if scope.most_s < inf:
        table = table.within(one.seconds(scope.limited), scope.most_s)
    return table


def hop_costs(scope: Scope, measure: Measure) -> Array:
    """Weigh the ways between all devices, (D, D, K)."""
    most_bytes = 0.0 if scope.limited and not measure.lax else inf
    hops, busiest = (
        scope.problem.hops(figure, most_bytes=most_bytes, out=scope.out)
        for figure in (measure.leg, _busiest)
    )
    return np.where(busiest <= scope.most_s, hops, inf) if scope.most_s < inf else hops


def passed(problem: Problem, route: Route) -> frozenset[int]:
    """Return the indices of all devices on the walk of a route, relays included."""
    legs = (problem.legs[ends].devices for ends in pairwise(route.stops))
    return frozenset(route.stops).union(*legs)


def make_walk(problem: Problem, route: Route) -> Walk:
    """Return all stages and hops of a plan, those of relays included."""
    sites: list[Site] = []
    links: list[Link] = []
    carried: list[Choice] = []
    loads: list[Load] = []
    arrives = -1
    for device, other, pick in zip(route.stops, route.stops[1:], route.picks, strict=False):
        leg, choice = problem.legs[device, other], problem.choices[pick]
        sites += [problem.stages[index].site for index in leg.devices[:-1]]
        loads.append(problem.load.at(arrives, pick))
        passes_on = halves_load(choice, choice)
        relay = replace(passes_on, start=choice.cut.index, stop=choice.cut.index)
        loads += [relay] * (len(leg.links) - 1)
        links += leg.links
        carried += [choice] * len(leg.links)
        arrives = pick
    sites.append(problem.stages[route.stops[-1]].site)
    loads.append(problem.load.at(arrives, -1))
    return Walk(sites=tuple(sites), links=tuple(links), route=tuple(carried), loads=tuple(loads))


def busy_stops(problem: Problem, route: Route) -> tuple[int, ...]:
    """Return the indices of the devices that compute, in order."""
    walk = make_walk(problem, route)
    stages = zip(walk.sites, walk.loads, strict=True)
    busy = (site.device.name for site, load in stages if load.start < load.stop)
    return tuple(map(problem.platform.index, busy))


def busy_s(problem: Problem, route: Route) -> dict[Clock, float]:
    """Return how long each device, by its name, and each medium, by its clock, is busy."""
    return make_walk(problem, route).estimate().busy_s


def predict(problem: Problem, route: Route) -> Prediction:
    """Return what a route costs in all."""
    return make_walk(problem, route).estimate().prediction


def _nothing(one: Stages, limited: bool) -> Table:
    return one.seconds(limited).each(lambda costs: np.where(costs < inf, 0.0, inf))


def _busiest(leg: Leg) -> Array:
    return reduce(np.maximum, leg.busy_s.values())
