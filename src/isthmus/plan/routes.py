r"""The best walk over devices and what it carries, exactly, by a dynamic programme.

A *state* is a set of devices that have computed and the one of them that did last. With
:math:`V_S(k)` the least cost of all up to and including that device's stage, which leaves choice
k behind,

.. math::

    V_{S, d}(k) = \min_{c, j} \; V_{S \setminus d,\, c}(j) \oplus h_{c, d}(j) \oplus s_d(j, k)

where h is the cost of the way between two devices, s that of the stage between two choices
(infinite where it cannot be), and :math:`\oplus` is + for all that adds up, max for the interval.
The device where samples arise computes before all others or not at all, that where the answer is
wanted after all others or not at all. The same backwards gives the best plan through each choice
at each state. Each step costs K * K additions; between the ends there are n * 2^(n - 1) states for
n devices that differ, fewer where some are alike, and n if devices compute in one given order and
any of them may be skipped.

References:
    Bellman, "Dynamic Programming", 1957. For chains of processors: Bokhari, "Partitioning problems
    in parallel, pipelined, and distributed computing", IEEE Transactions on Computers 37(1), 1988.
    For sets as states: Held, Karp, "A dynamic programming approach to sequencing problems",
    Journal of SIAM 10(1), 1962.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf

import numpy as np

from isthmus.plan.blocks import ROWS, Table
from isthmus.plan.estimate import Array, Indices

# Ties within rounding go to the choice of least rank.
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The states, in an order in which each comes after those that lead to it.

    Attributes:
        devices: Which device computes last in each; that of state 0, in which none has computed
            yet, is the one where samples arise.
        before: The states from which a frame is sent to that device.
        after: The states that are reached by a frame from there.
        first: Whether that device may compute first without a frame, as samples arise there.
        target: Where the answer is wanted.
    """

    devices: tuple[int, ...]
    before: tuple[Indices, ...]
    after: tuple[Indices, ...]
    first: tuple[bool, ...]
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where every walk begins and ends.

    Attributes:
        source: The device where samples arise.
        target: The device where the answer is wanted; maybe the same.
        first: Whether the source can compute; if so, before all others.
        last: Whether the target can; if so, after all others. One device does one of both.
    """

    source: int
    target: int
    first: bool
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What is to be made small, of D devices and K choices.

    Attributes:
        stages: Of each device, (K + 1, K + 1): index K stands for nothing that arrives or leaves.
        rank: Of choices that cost the same the one of least rank is taken, (K + 1,).
        hops: From device to device, (D, D, K).
        first: Of a first device that only sends the input on, (K,).
        last: Of a last device that only takes the answer, (K,).
        most: Of two costs, whether the larger one counts and not the sum.
    """

    stages: Sequence[Table]
    rank: Indices
    hops: Array
    first: Array
    last: Array
    most: bool = False

    @property
    def join(self) -> np.ufunc:
        """How costs add up."""
        return np.maximum if self.most else np.add

    @property
    def room(self) -> Array:
        """Room to work in; to get it anew for each block would take longer than the work."""
        return np.empty(ROWS * len(self.rank))

    def leaving(self, device: int, arriving: Array, room: Array) -> Array:
        """Return the least cost up to each choice that leaves a stage, (K + 1,)."""
        table = self.stages[device]
        least = np.asarray(self.join(arriving[-1], table.first))
        least[-1] = self.join(arriving, table.last).min()
        start, stop = _finite(arriving[:-1])
        for top, left, costs in table.blocks:
            block = costs[max(start - top, 0) : max(stop - top, 0)]
            if len(block):
                part = arriving[max(start, top) :][: len(block), None]
                columns = least[left : left + block.shape[1]]
                sums = room[: block.size].reshape(block.shape)
                self.join(part, block, out=sums)
                np.minimum(columns, sums.min(axis=0), out=columns)
        return least

    def following(self, device: int, leaving: Array, room: Array) -> Array:
        """Return the least cost from each choice that arrives at a stage, (K,)."""
        table = self.stages[device]
        least = np.asarray(self.join(table.last[:-1], leaving[-1]))
        start, stop = _finite(leaving[:-1])
        for top, left, costs in table.blocks:
            block = costs[:, max(start - left, 0) : max(stop - left, 0)]
            if block.size:
                part = leaving[max(start, left) :][: block.shape[1]]
                rows = least[top : top + len(block)]
                sums = room[: block.size].reshape(block.shape)
                self.join(block, part, out=sums)
                np.minimum(rows, sums.min(axis=1), out=rows)
        return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A plan in short.

    Attributes:
        cost: What it costs.
        stops: Indices of the devices that compute, in order; and of the first and the last one of
            the walk, even if they only send the input on or take the answer.
        picks: The index of the choice that passes from each to the next.
    """

    cost: float
    stops: tuple[int, ...]
    picks: tuple[int, ...]


def in_order(order: Sequence[int], ends: Ends) -> Steps:
    """Return the states in which devices compute in an order, any of them skipped.

    Args:
        order: Devices but those at the ends of the walk.
        ends: Those.
    """

    def between(entries: list[int], add: _Add) -> list[int]:
        earlier = list(entries)
        for device in order:
            earlier.append(add(device, earlier))
        return earlier[len(entries) :]

    return _steps(between, ends)


def any_order(classes: Sequence[Sequence[int]], ends: Ends) -> Steps:
    """Return the states in which devices compute in any order, any of them skipped.

    Args:
        classes: Devices but those at the ends of the walk, those together that are alike; of each
            class the first ones come first.
        ends: Those at the ends.
    """
    sets = sorted(product(*(range(len(members) + 1) for members in classes)), key=sum)

    def between(entries: list[int], add: _Add) -> list[int]:
        known = {sets[0]: entries}
        for counts in sets[1:]:
            known[counts] = []
            for which, members in enumerate(classes):
                if counts[which]:
                    fewer = (*counts[:which], counts[which] - 1, *counts[which + 1 :])
                    known[counts].append(add(members[counts[which] - 1], known[fewer]))
        return [state for counts in sets[1:] for state in known[counts]]

    return _steps(between, ends)


_Add = Callable[[int, list[int]], int]


def _steps(between: Callable[[list[int], _Add], list[int]], ends: Ends) -> Steps:
    devices, before = [ends.source], [list[int]()]

    def add(device: int, earlier: list[int]) -> int:
        devices.append(device)
        before.append(list(earlier))
        return len(devices) - 1

    first = [add(ends.source, [])] if ends.first else []
    if ends.source == ends.target and first:  # it computes first, or last, or not at all
        between(first, add)
        entries = [0]
    else:
        entries = [0, *first]
    made = between(entries, add)
    if ends.last:
        add(ends.target, made if ends.source == ends.target else [*entries, *made])
    after: list[list[int]] = [[] for _ in devices]
    for state, earlier in enumerate(before):
        for other in earlier:
            after[other].append(state)
    return Steps(
        devices=tuple(devices),
        before=tuple(np.array(states, np.intp) for states in before),
        after=tuple(np.array(states, np.intp) for states in after),
        first=tuple(state in first for state in range(len(devices))),
        target=ends.target,
    )


Known = tuple[Costs, Array, Array]


def forward(steps: Steps, costs: Costs, known: Known | None = None) -> tuple[Array, Array]:
    """Return the least cost of all up to each state and choice, and of ending in each state.

    Args:
        steps: T states.
        costs: Of what there is to choose from.
        known: Other costs, and what this returned for them; up to the first state where costs
            differ nothing is worked out again.

    Returns:
        The cost until a state's device has sent each choice, (T, K); and that of the best plan in
        which no other device computes after it, (T,).
    """
    num_choices = len(costs.first)
    before = np.full((len(steps.devices), num_choices), inf)
    before[0] = costs.first
    done = np.full(len(steps.devices), inf)
    ends, room = ends_of(steps, costs), costs.room
    fresh = _first_other(steps, costs, known[0]) if known else 1
    if known:
        before[1:fresh], done[:fresh] = known[1][1:fresh], known[2][:fresh]
        for state, device in enumerate(steps.devices[1:fresh], start=1):
            if device != steps.target:  # what follows may have changed
                done[state] = costs.join(before[state], ends[device, :-1]).min()
    for state, device in enumerate(steps.devices[fresh:], start=fresh):
        arriving = _arriving(steps, costs, before, state)
        leaving = costs.leaving(device, arriving, room)
        before[state] = leaving[:num_choices]
        done[state] = costs.join(leaving, ends[device]).min()
    return before, done


def _first_other(steps: Steps, costs: Costs, other: Costs) -> int:
    """Return the first state up to which costs are not the same, or that there is none."""
    if not np.array_equal(costs.first, other.first):
        return 1
    hops = (costs.hops != other.hops).any(axis=2)
    for state, device in enumerate(steps.devices[1:], start=1):
        senders = [steps.devices[earlier] for earlier in steps.before[state]]
        if costs.stages[device] is not other.stages[device] or hops[senders, device].any():
            return state
    return len(steps.devices)


def backward(steps: Steps, costs: Costs, before: Array | None = None) -> tuple[Array, Array]:
    """Return the least cost of all that follows each state, and of all that follows its arrival.

    Args:
        steps: T states.
        costs: Of what there is to choose from.
        before: What `forward` returns; what follows a choice that no plan gets to is left out.

    Returns:
        The cost from the moment when a state's device sends each choice, (T, K), and from the
        moment when that choice has arrived at it, (T, K).
    """
    num_choices = len(costs.first)
    after = np.full((len(steps.devices), num_choices), inf)
    tails = np.full((len(steps.devices), num_choices), inf)
    ends, room = ends_of(steps, costs), costs.room
    for state in reversed(range(len(steps.devices))):
        device, later = steps.devices[state], steps.after[state]
        hops = costs.hops[device, [steps.devices[other] for other in later]]
        following = costs.join(hops, tails[later])
        after[state] = np.vstack((following, ends[device, :num_choices])).min(axis=0)
        if before is not None:
            after[state, before[state] == inf] = inf
        if state:
            leaving = np.append(after[state], ends[device, num_choices])
            tails[state] = costs.following(device, leaving, room)
    return after, tails


def cheapest(steps: Steps, costs: Costs) -> Route:
    """Return the route of least cost; its cost is infinite where there is none."""
    before, done = forward(steps, costs)
    return ending_in(steps, costs, before, first_least(done))


def ending_in(steps: Steps, costs: Costs, before: Array, state: int) -> Route:
    """Return the best route in which no other device computes after a state's.

    Args:
        steps: The states.
        costs: Of what there is to choose from.
        before: What `forward` returns.
        state: Which it ends in.
    """
    num_choices, device = len(costs.first), steps.devices[state]
    arriving, ends = _arriving(steps, costs, before, state), ends_of(steps, costs)[device]
    last = np.flatnonzero(ends < inf)
    columns = (costs.stages[device].column(pick) for pick in last.tolist())
    leaving = np.array([costs.join(arriving, column).min() for column in columns])
    totals = costs.join(leaving, ends[last])
    if not totals.min(initial=inf) < inf:
        return Route(cost=inf, stops=(), picks=())
    best = first_least(totals, costs.rank[last])
    pick = int(last[best])
    stops, picks = _trace_back(steps, costs, before, state, pick)
    if pick < num_choices:
        stops, picks = (*stops, steps.target), (*picks, pick)
    return Route(cost=float(totals[best]), stops=stops, picks=picks)


def through(
    steps: Steps, costs: Costs, before: Array, rest: tuple[Array, Array], state: int, pick: int
) -> Route:
    """Return the best route on which a state's device sends a choice.

    Arguments are those of `ending_in`; ``rest`` is what `backward` returns, and ``pick`` the
    index of the choice.
    """
    after, tails = rest
    cost = float(costs.join(before[state, pick], after[state, pick]))
    stops, picks = _trace_back(steps, costs, before, state, pick)
    num_choices, ends = len(costs.first), ends_of(steps, costs)
    while pick < num_choices:
        device, later = steps.devices[state], steps.after[state]
        hops = costs.hops[device, [steps.devices[other] for other in later], pick]
        totals = np.append(costs.join(hops, tails[later, pick]), ends[device, pick])
        which = first_least(totals)
        picks = (*picks, pick)
        if which == len(later):
            stops = (*stops, steps.target)
            break
        state = int(later[which])
        device = steps.devices[state]
        stops = (*stops, device)
        leaving = np.append(after[state], ends[device, num_choices])
        table = costs.stages[device].rows(np.array([pick]))[0]
        pick = first_least(costs.join(table, leaving), costs.rank)
    return Route(cost=cost, stops=stops, picks=picks)


def cost_of(costs: Costs, route: Route) -> float:
    """Return what a route costs."""
    total = 0.0
    for device, arrives, leaves in zip(
        route.stops, (-1, *route.picks), (*route.picks, -1), strict=True
    ):
        total = costs.join(total, costs.stages[device].at(arrives, leaves))
    for device, other, pick in zip(route.stops, route.stops[1:], route.picks, strict=False):
        total = costs.join(total, costs.hops[device, other, pick])
    return float(total)


def first_least(totals: Array, rank: Indices | None = None) -> int:
    """Return the index of the first one, or that of least rank, of those least up to rounding."""
    (least,) = np.nonzero(totals <= totals.min() * (1 + TOLERANCE))
    return int(least[0] if rank is None else least[np.argmin(rank[least])])


def _trace_back(
    steps: Steps, costs: Costs, before: Array, state: int, pick: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the best stops up to a state whose device sends a choice, and what passes before."""
    num_choices = len(costs.first)
    stops: tuple[int, ...] = (steps.devices[state],)
    picks: tuple[int, ...] = ()
    while state:
        device, earlier = steps.devices[state], steps.before[state]
        arriving = _arriving(steps, costs, before, state)
        column = costs.stages[device].column(pick)
        pick = first_least(costs.join(arriving, column), costs.rank)
        if pick == num_choices:
            break
        hops = costs.hops[[steps.devices[other] for other in earlier], device, pick]
        state = int(earlier[first_least(costs.join(before[earlier, pick], hops))])
        stops, picks = (steps.devices[state], *stops), (pick, *picks)
    return stops, picks


def _arriving(steps: Steps, costs: Costs, before: Array, state: int) -> Array:
    """Return the least cost of having each choice on a state's device, or nothing; (K + 1,)."""
    device, earlier = steps.devices[state], steps.before[state]
    hops = costs.hops[[steps.devices[other] for other in earlier], device]
    nothing = 0.0 if steps.first[state] else inf
    return np.append(costs.join(before[earlier], hops).min(axis=0, initial=inf), nothing)


def _finite(values: Array) -> tuple[int, int]:
    """Return the first index of all that is finite, and the one after the last."""
    (found,) = np.nonzero(values < inf)
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


def ends_of(steps: Steps, costs: Costs) -> Array:
    """Return what it costs if no other device computes after each sent a choice; (D, K + 1)."""
    ends = np.full((len(costs.hops), len(costs.first) + 1), inf)
    ends[:, :-1] = costs.join(costs.hops[:, steps.target], costs.last)
    ends[steps.target] = inf
    ends[steps.target, -1] = 0.0
    return ends
