r"""The best cuts and codecs for a chain of devices, exactly, by a dynamic programme over choices.

What link d carries is one of K choices. With F[d][j] the cost of all before link d, given that it
carries choice j,

.. math:: F_d(j) = \min_i \; F_{d-1}(i) \oplus h_{d-1}(i) \oplus s_d(i, j)

where h is the cost of a hop, s that of the stage between two choices (infinite where its memory
does not suffice), and :math:`\oplus` is + for latency and energy, max for throughput. The same
backwards gives the best plan through each choice on each link. K * K numbers for each device
between the first and the last; no other state is needed, as every limit concerns one device.

References:
    Bellman, "Dynamic Programming", 1957. For chains of processors: Bokhari, "Partitioning problems
    in parallel, pipelined, and distributed computing", IEEE Transactions on Computers 37(1), 1988.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf

import numpy as np
import numpy.typing as npt

from isthmus.plan.estimate import compute_s, excess_bytes, stage_j
from isthmus.plan.table import Array, Problem
from isthmus.platform import Device, Link

# Ties within rounding go to the choice that is listed first.
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What is to be made small.

    Attributes:
        stages: Shaped as the loads.
        hops: (K,) for each link.
        join: How costs add up.
    """

    stages: tuple[Array, ...]
    hops: tuple[Array, ...]
    join: Callable[[Array, Array], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What each link carries, as indices of choices, and its cost; infinite if nothing fits."""

    cost: float
    picks: tuple[int, ...]


def make_costs(problem: Problem, *, limited: bool = True) -> Costs:
    """Return what the objective makes small, infinite where a memory does not suffice.

    Args:
        problem: What to choose from.
        limited: False lets memories overflow; a device without the number format stays out.
    """
    return Costs(
        stages=tuple(
            stage_cost(problem, index, device, limited=limited)
            for index, device in enumerate(problem.devices)
        ),
        hops=tuple(hop_cost(problem, link) for link in problem.links),
        join=np.maximum if problem.objective == "throughput" else np.add,
    )


def stage_cost(problem: Problem, index: int, device: Device, *, limited: bool = True) -> Array:
    """Return the cost of every possible stage of one device."""
    load, allowed = problem.loads[index], problem.allowed[index]
    time_s = np.asarray(compute_s(device, load))
    possible = allowed & np.isfinite(time_s)
    if limited:
        possible = possible & (np.asarray(excess_bytes(device, load)) <= 0)
    cost = np.where(possible, time_s, 0.0)
    if problem.objective == "energy":
        cost = stage_j(device, load) + _static_w(problem) * cost
    return np.where(possible, cost, inf)


def hop_cost(problem: Problem, link: Link) -> Array:
    """Return the cost of every choice on one link."""
    frames = [choice.frame_bytes for choice in problem.choices]
    if problem.objective == "throughput":
        return np.array([link.occupied_s(frame) for frame in frames])
    seconds = np.array([link.transfer_s(frame) for frame in frames])
    if problem.objective == "latency":
        return seconds
    return np.array([link.transfer_j(frame) for frame in frames]) + _static_w(problem) * seconds


def overflow(problem: Problem) -> Costs:
    """Return by how many bytes stages overflow; of equal ones the faster costs less.

    A microbyte for each second: one byte outweighs any latency under eleven days. To lack the
    number format weighs a terabyte.
    """
    stages = []
    for device, load, allowed in zip(problem.devices, problem.loads, problem.allowed, strict=True):
        time_s = np.asarray(compute_s(device, load))
        lacking = np.isinf(time_s)
        cost = excess_bytes(device, load) + np.where(lacking, 1e12, 0.0)
        stages.append(np.where(allowed, cost + 1e-6 * np.where(lacking, 0.0, time_s), inf))
    timed = replace(problem, objective="latency")
    hops = tuple(1e-6 * hop_cost(timed, link) for link in problem.links)
    return Costs(stages=tuple(stages), hops=hops, join=np.add)


def cheapest(costs: Costs) -> Route:
    """Return the route of least cost."""
    if not costs.hops:
        return Route(cost=float(costs.stages[0][0, 0]), picks=())
    before, origins = _forward(costs)
    total = costs.join(costs.join(before[-1], costs.hops[-1]), costs.stages[-1][:, 0])
    picks = [int(_first_least(total))]
    for origin in reversed(origins):
        picks.append(int(origin[picks[-1]]))
    return Route(cost=float(total[picks[0]]), picks=tuple(reversed(picks)))


def cheapest_and_fastest(problem: Problem, costs: Costs) -> Route:
    """Return the route of least cost; of several with the same interval the fastest."""
    route = cheapest(costs)
    if problem.objective != "throughput" or isinf(route.cost):
        return route
    most = route.cost * (1 + TOLERANCE)
    timed = replace(problem, objective="latency")
    stages = [
        np.where(cost <= most, stage_cost(timed, index, device, limited=False), inf)
        for index, (device, cost) in enumerate(zip(problem.devices, costs.stages, strict=True))
    ]
    hops = [
        np.where(cost <= most, hop_cost(timed, link), inf)
        for link, cost in zip(problem.links, costs.hops, strict=True)
    ]
    fastest = cheapest(Costs(stages=tuple(stages), hops=tuple(hops), join=np.add))
    return replace(route, picks=fastest.picks)


def through(costs: Costs) -> tuple[Array, ...]:
    """Return for each link the least cost of a route on which it carries each choice, (K,)."""
    mirrored = Costs(
        stages=tuple(stage.T for stage in reversed(costs.stages)),
        hops=tuple(reversed(costs.hops)),
        join=costs.join,
    )
    before, _ = _forward(costs)
    after, _ = _forward(mirrored)
    sides = zip(before, costs.hops, reversed(after), strict=True)
    return tuple(costs.join(costs.join(left, hop), right) for left, hop, right in sides)


def bound(costs: Costs, link: int, picks: Sequence[int]) -> Costs:
    """Return the costs of only those routes on which a link carries one of some choices."""
    hop = np.full_like(costs.hops[link], inf)
    hop[list(picks)] = costs.hops[link][list(picks)]
    return replace(costs, hops=(*costs.hops[:link], hop, *costs.hops[link + 1 :]))


def _forward(costs: Costs) -> tuple[list[Array], list[npt.NDArray[np.intp]]]:
    """Return the least cost of all that comes before each link, and the choice it comes from."""
    before = [costs.stages[0][0]]
    origins = []
    for stage, hop in zip(costs.stages[1:-1], costs.hops[:-1], strict=True):
        total = costs.join(costs.join(before[-1], hop)[:, None], stage)
        origins.append(_first_least(total))
        before.append(np.take_along_axis(total, origins[-1][None], axis=0)[0])
    return before, origins


def _first_least(total: Array) -> npt.NDArray[np.intp]:
    return np.argmax(total <= total.min(axis=0) * (1 + TOLERANCE), axis=0)


def _static_w(problem: Problem) -> float:
    return sum(device.static_w for device in problem.devices)
