"""Where to write the names of points so that none covers another."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

_LINE = 17  # pixels that a line of text takes
_RADIUS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A point and the room that its name takes, in pixels; ``half_width`` is of the name."""

    x: float
    y: float
    half_width: float


def heights(spots: Sequence[Spot]) -> list[float]:
    """Return for each point how far above it (below it, where negative) its name fits.

    A greedy choice from left to right of the nearest height at which a name meets no point and no
    name that is already placed.
    """
    taken = [Spot(x=spot.x, y=spot.y, half_width=_RADIUS) for spot in spots]
    chosen = [0.0] * len(spots)
    for index in sorted(range(len(spots)), key=lambda index: spots[index].x):
        spot = spots[index]
        offsets = [side * (22.0 + 18.0 * level) for level in range(8) for side in (1, -1)]
        places = [
            Spot(x=spot.x, y=spot.y + offset, half_width=spot.half_width) for offset in offsets
        ]
        free = [k for k, place in enumerate(places) if not any(_meet(place, t) for t in taken)]
        best = free[0] if free else 0
        chosen[index] = offsets[best]
        taken.append(places[best])
    return chosen


def apart(values: Sequence[float], *, gap: float) -> list[float]:
    """Move values as little as it takes for neighbours to be a gap apart; they keep their order.

    The least squares of the moves, by pooling neighbours that would meet.

    Example:
        >>> apart([10.0, 3.0, 3.0], gap=2.0)
        [10.0, 2.0, 4.0]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    pools: list[list[float]] = []  # what each value of a pool would like its first one to be
    for rank, index in enumerate(order):
        pools.append([values[index] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = [fmean(pool) for pool in pools for _ in pool]
    places = {index: moved[rank] + rank * gap for rank, index in enumerate(order)}
    return [places[index] for index in range(len(values))]


def _meet(one: Spot, other: Spot) -> bool:
    wide = one.half_width + other.half_width
    return abs(one.x - other.x) < wide and abs(one.y - other.y) < _LINE
