"""In which order devices may compute.

The device where samples arise computes first or not at all, and that where the answer is wanted
last or not at all; if both are one, it does one of the two. Between them up to eight devices that
differ may compute in any order, and any of them not at all. Devices that are *alike* count as one:
where two of them can change places, and the platform with all its ways stays as it was, a plan
costs the same whichever of them it takes first. Where there are more, they compute in the order of
the platform's file, any of them skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

from isthmus.plan.routes import Ends, Route, Steps, any_order, in_order
from isthmus.plan.table import Leg, Problem
from isthmus.plan.weigh import Scope, busy_stops
from isthmus.platform import Platform

States = Callable[[Scope], Steps]

_MOST_STATES = 1024  # of eight devices that differ: 8 * 2**7


def states_of(problem: Problem) -> tuple[States, bool]:
    """Return the states that a search goes through, and whether they are of any order."""
    between = _between(problem)
    classes = classes_of(problem.platform, problem.legs, between)
    sets = prod(len(members) + 1 for members in classes)
    if sum(sets * len(c) // (len(c) + 1) for c in classes) > _MOST_STATES:
        return ordered(problem, between), False

    def states(scope: Scope) -> Steps:
        parts = (
            [index for index in members if (index in scope.paid) is paid]
            for members in classes
            for paid in (True, False)
        )
        inside = ([index for index in part if index not in scope.out] for part in parts)
        return any_order([part for part in inside if part], _ends(problem))

    return states, True


def ordered(problem: Problem, order: Sequence[int]) -> States:
    """Return the states in which devices between the ends compute in an order."""
    return lambda scope: in_order(
        [index for index in order if index not in scope.out], _ends(problem)
    )


def around(problem: Problem, route: Route) -> States:
    """Return the states in which devices compute in an order that a plan is in.

    That of the platform's file, if it is; else the plan's own, the other devices after it.
    """
    between = _between(problem)
    inner = [index for index in busy_stops(problem, route) if index in between]
    if inner == sorted(inner):
        return ordered(problem, between)
    return ordered(problem, [*inner, *(index for index in between if index not in inner)])


def alone(problem: Problem, index: int) -> Steps:
    """Return the states in which one device computes all."""
    ends = _ends(problem)
    own = {index} & {ends.source, ends.target}
    ends = replace(ends, first=index == ends.source, last=index == ends.target)
    return in_order([] if own else [index], ends)


def everyone(problem: Problem) -> Steps:
    """Return the states in which all devices compute in the file's order, able to or not."""
    ends = replace(_ends(problem), first=True, last=True)
    inner = [i for i in range(len(problem.stages)) if i not in (ends.source, ends.target)]
    return in_order(inner, ends)


def _ends(problem: Problem) -> Ends:
    source, target = problem.platform.source, problem.platform.target
    return Ends(
        source=source,
        target=target,
        first=_useful(problem, source),
        last=_useful(problem, target),
    )


def _between(problem: Problem) -> list[int]:
    """Return the devices, but those at the ends, that can compute and that frames can pass."""
    source, target = problem.platform.source, problem.platform.target
    return [
        index
        for index in range(len(problem.stages))
        if {(source, index), (index, target)} <= problem.legs.keys() and _useful(problem, index)
    ]


def _useful(problem: Problem, index: int) -> bool:
    """Return whether a device can compute anything."""
    possible, stops = problem.stages[index].possible, problem.load.stops
    rows = zip(possible, problem.load.starts.tolist(), strict=True)
    return any(bool((row & (start < stops)).any()) for row, start in rows)


def classes_of(
    platform: Platform, legs: Mapping[tuple[int, int], Leg], devices: Sequence[int]
) -> list[list[int]]:
    """Sort devices, given by their indices, into classes of those that are alike."""
    classes: list[list[int]] = []
    for device in devices:
        alike = next((c for c in classes if _alike(platform, legs, c[0], device)), None)
        if alike is None:
            classes.append([device])
        else:
            alike.append(device)
    return classes


def _alike(platform: Platform, legs: Mapping[tuple[int, int], Leg], one: int, other: int) -> bool:
    """Return whether two devices can change places, and all ways with them."""
    devices = platform.devices
    if replace(devices[one], name=devices[other].name) != devices[other]:
        return False
    swapped = {one: other, other: one}

    def same(ends: tuple[int, int], leg: Leg) -> bool:
        twin = legs.get((swapped.get(ends[0], ends[0]), swapped.get(ends[1], ends[1])))
        if twin is None or twin.devices != tuple(swapped.get(d, d) for d in leg.devices):
            return False
        links = zip(leg.links, twin.links, strict=True)
        return all(a is b or replace(a, between=b.between) == b for a, b in links)

    return all(same(ends, leg) for ends, leg in legs.items())
