"""Which of many candidates are worth having: the front of accuracy against bytes.

More accuracy is better, fewer bytes are better. Bytes count by their logarithm wherever a distance
or an area is taken, because narrowing halves them step by step and figures draw them so.

References:
    Zitzler, Thiele, "Multiobjective Optimization Using Evolutionary Algorithms: A Comparative Case
    Study", PPSN V, 1998, https://doi.org/10.1007/BFb0056872 (the hypervolume).
    Das, "On Characterizing the 'Knee' of the Pareto Curve Based on Normal-Boundary Intersection",
    Structural Optimization 18, 1999, https://doi.org/10.1007/BF01195985 (the knee: the point of
    the front farthest from the chord between its ends).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log2

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError

_ROUNDING = 1e-9  # far below one test image


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate.

    Attributes:
        name: What people call it, e.g. ``"resnet18 cut r=8"``.
        accuracy: 0..1.
        num_bytes: What crosses for one sample; a mean for a codec of variable rate.

    Raises:
        InputError: The accuracy is not in 0..1, or the bytes are not positive and finite.
    """

    name: str
    accuracy: float
    num_bytes: float

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise InputError(f"{self.name}: accuracy {self.accuracy}, expected 0 to 1")
        if not (self.num_bytes > 0 and isfinite(self.num_bytes)):
            raise InputError(f"{self.name}: {self.num_bytes} bytes, expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """A point that trades accuracy against bytes well.

    Attributes:
        point: The point.
        rule: ``"least bytes"``, ``"knee"``, or ``"most accurate"`` where there is no knee.
        why: One sentence that says why it was chosen.
    """

    point: Point
    rule: str
    why: str


def dominated(points: Sequence[Point]) -> NDArray[np.bool_]:
    """Tell which points another one beats: at least as accurate, no more bytes, and not its equal.

    Args:
        points: The candidates.

    Returns:
        One truth value for each. Points that are equal do not beat each other.
    """
    accuracy_P = np.array([point.accuracy for point in points], dtype=np.float64)
    bytes_P = np.array([point.num_bytes for point in points], dtype=np.float64)
    levels_L, level_P = np.unique(bytes_P, return_inverse=True)
    best_L = np.full(len(levels_L), -np.inf)
    np.maximum.at(best_L, level_P, accuracy_P)
    with_fewer_L = np.maximum.accumulate(np.concatenate([[-np.inf], best_L]))[:-1]
    return (with_fewer_L[level_P] >= accuracy_P) | (best_L[level_P] > accuracy_P)


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats.

    Args:
        points: The candidates, at least one.

    Returns:
        The Pareto front by growing bytes, hence growing accuracy; equal points stand side by side
        in the order given.

    Raises:
        InputError: There is no point.
    """
    if not points:
        raise InputError("no front: found no point, expected at least one finished record")
    kept = [point for point, beaten in zip(points, dominated(points), strict=True) if not beaten]
    return tuple(sorted(kept, key=lambda point: point.num_bytes))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    r"""Return the area that the points cover, seen from a reference.

    .. math:: \int \max(0, a(b) - a_{ref}) \, d \log_2 b, \quad b \le b_{ref}

    where a(b) is the best accuracy that b bytes buy.

    Args:
        points: The candidates, at least one.
        reference: Worse than all that shall count: less accurate, more bytes.

    Returns:
        Accuracy (0..1) times halvings of the reference's bytes.

    Raises:
        InputError: There is no point.

    Example:
        >>> points = [Point(name="r=8", accuracy=0.6, num_bytes=64)]
        >>> hypervolume(points, Point(name="chance", accuracy=0.1, num_bytes=256))
        1.0
    """
    area, limit = 0.0, log2(reference.num_bytes)
    for point in reversed(front(points)):
        start = log2(point.num_bytes)
        height = point.accuracy - reference.accuracy
        if start < limit and height > 0:
            area += (limit - start) * height
            limit = start
    return area


def least_bytes(points: Sequence[Point], *, drop: float = 0.01) -> Balanced:
    """Choose the fewest bytes whose accuracy is within a given drop of the best.

    Args:
        points: The candidates, at least one.
        drop: Accuracy (0..1) that may be lost; a loss of exactly that much may be.

    Returns:
        The point, the most accurate where several take as few bytes.

    Raises:
        InputError: There is no point, or the drop is not in 0..1.
    """
    if not 0 <= drop <= 1:
        raise InputError(f"drop {drop}: expected an accuracy between 0 and 1")
    candidates = front(points)
    best = candidates[-1]
    enough = best.accuracy - drop - _ROUNDING
    point = next(point for point in candidates if point.accuracy >= enough)
    why = (
        f"Of all within {_points(drop)} of the best accuracy ({_percent(best)} at "
        f"{_bytes(best)}), {point.name} sends the fewest bytes: {_bytes(point)} at "
        f"{_percent(point)}."
    )
    return Balanced(point=point, rule="least bytes", why=why)


def knee(points: Sequence[Point]) -> Balanced:
    """Choose the point of the front farthest above the chord between its ends.

    Whether accuracy is in percent and bytes in bits makes no difference: the distances from one
    line keep their order when an axis is stretched.

    Args:
        points: The candidates, at least one.

    Returns:
        The knee, the one of fewest bytes where several are as far; the most accurate point where
        none lies above the chord.

    Raises:
        InputError: There is no point.
    """
    candidates = front(points)
    first, last = candidates[0], candidates[-1]
    heights = [_above_chord(point, first, last) for point in candidates]
    highest = max(heights)
    if highest <= _ROUNDING:
        why = (
            f"The front has no knee, since none of its points lies above the chord between its "
            f"ends; {last.name} is its most accurate: {_percent(last)} at {_bytes(last)}."
        )
        return Balanced(point=last, rule="most accurate", why=why)
    point = next(
        point
        for point, height in zip(candidates, heights, strict=True)
        if height > highest - _ROUNDING
    )
    why = (
        f"{point.name} ({_percent(point)} at {_bytes(point)}) is the knee: of all points of the "
        f"front it lies farthest above the chord from {_bytes(first)} to {_bytes(last)}, by "
        f"{_points(highest)}, with bytes by their logarithm."
    )
    return Balanced(point=point, rule="knee", why=why)


def _above_chord(point: Point, first: Point, last: Point) -> float:
    """Return by how much the point is more accurate than the chord at its bytes.

    This height is in a fixed proportion to the distance at a right angle.
    """
    span = log2(last.num_bytes / first.num_bytes)
    if span == 0:
        return 0.0
    share = log2(point.num_bytes / first.num_bytes) / span
    return point.accuracy - first.accuracy - share * (last.accuracy - first.accuracy)


def _percent(point: Point) -> str:
    return f"{100 * point.accuracy:.2f} %"


def _points(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} points"


def _bytes(point: Point) -> str:
    return f"{point.num_bytes:,.1f}".removesuffix(".0") + " B"
