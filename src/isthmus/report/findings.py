"""A study's records, gathered: one row for each network, placement and ratio, over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np

from isthmus.errors import InputError
from isthmus.models.resnet import BLOCKS, RATIOS
from isthmus.study import Balanced, Point, front, hypervolume, knee, least_bytes
from isthmus.study.grid import PLACEMENTS, Cell
from isthmus.study.records import StudyRecord

SEEDS_WANTED = 3
ALL = "All networks"
WITH_SEARCH = "The grid and the search"
_SETTINGS = ("width", "data", "recipe", "epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network, placement and ratio, over its seeds.

    Attributes:
        depth: Of the ResNet.
        setting: What else tells it from the study's other networks; mostly empty.
        placement: ``block`` or ``cut``.
        ratio: Channels before / channels of the narrow layer.
        accuracies: Top-1 on the test set, 0..1, one for each seed.
        num_bytes: int8 bytes that cross for one sample at the compared cut.
        cuts: What the records say of every cut between stages.
        pooled: Standard deviation over the seeds, from all rows that have several; None if none.
    """

    depth: int
    setting: str
    placement: str
    ratio: int
    accuracies: tuple[float, ...]
    num_bytes: float
    cuts: tuple[Mapping[str, Any], ...]
    pooled: float | None = None

    @property
    def network(self) -> str:
        """The network's name."""
        return f"ResNet-{self.depth}{self.setting}"

    @property
    def mean(self) -> float:
        """Mean accuracy, 0..1."""
        return fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (of a sample: n - 1); None for one seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean, by the pooled spread; None where that is unknown."""
        return None if self.pooled is None else self.pooled / sqrt(len(self.accuracies))


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A network that a search tried.

    Attributes:
        held_out: Its record on the held-out part of the training set.
        tested: Its record on the test set; None unless it was among the best on the former.
    """

    held_out: StudyRecord
    tested: StudyRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFront:
    """What is worth having of one network, accuracy against bytes at the compared cut.

    Attributes:
        network: Its name.
        points: Every placement and ratio.
        front: Those that no other beats.
        reference: Where the hypervolume is seen from: no accuracy, twice the most bytes.
        hypervolume: Accuracy times halvings of the reference's bytes.
        balanced: The least bytes within a drop, and the knee.
    """

    network: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    reference: Point
    hypervolume: float
    balanced: tuple[Balanced, Balanced]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How accuracy changes with the ratio.

    Attributes:
        points: Of accuracy (0..100) for each doubling, by least squares.
        error: Its standard error from the spread of the seeds; None where that is unknown.
    """

    points: float
    error: float | None


def divided(
    records: Sequence[StudyRecord],
) -> tuple[tuple[StudyRecord, ...], tuple[Searched, ...]]:
    """Tell the records of the grid from those of the search."""
    by_key = {record.key: record for record in records}
    searched = tuple(
        Searched(held_out=record, tested=by_key.get(replace(record.cell, judged="test").key))
        for record in records
        if record.cell.judged == "held-out"
    )
    others = {each.key for pair in searched for each in (pair.held_out, pair.tested) if each}
    return tuple(record for record in records if record.key not in others), searched


def rows_of(records: Sequence[StudyRecord], *, named: Sequence[str] = ()) -> tuple[Row, ...]:
    """Gather the seeds; sorted by network, placement and ratio.

    Args:
        records: All judged on the same images.
        named: Settings that a network's name has in any case; it has those that differ.

    Raises:
        InputError: A record lacks the accuracy or the bytes.
    """
    varied = [
        name
        for name in _SETTINGS
        if name in named or len({getattr(record.cell, name) for record in records}) > 1
    ]
    gathered: dict[tuple[Any, ...], list[StudyRecord]] = {}
    for record in records:
        for figure in ("accuracy", "bytes"):
            if not isinstance(record.figures.get(figure), int | float):
                raise InputError(f"{record.key}: found no figure {figure!r}, expected a number")
        cell = record.cell
        settings = tuple(getattr(cell, name) for name in varied)
        group = (cell.depth, settings, PLACEMENTS.index(cell.placement), cell.ratio)
        gathered.setdefault(group, []).append(record)
    rows = [_row(gathered[group], varied) for group in sorted(gathered)]
    several = [row for row in rows if row.spread is not None]
    freedom = sum(len(row.accuracies) - 1 for row in several)
    squares = sum((len(row.accuracies) - 1) * (row.spread or 0.0) ** 2 for row in several)
    pooled = sqrt(squares / freedom) if several else None
    return tuple(replace(row, pooled=pooled) for row in rows)


def lines_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each network and placement, by growing ratio.

    Both placements begin with the plain network, r = 1, which they share.
    """
    plain = {row.network: row for row in rows if row.ratio == 1}
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        shared = [plain[row.network]] if row.ratio > 1 and row.network in plain else []
        lines.setdefault((row.network, row.placement), shared).append(row)
    return lines


def slope_of(rows: Sequence[Row]) -> Slope:
    """Fit a straight line to accuracy against the logarithm of the ratio; two rows at least."""
    x_R = np.log2([row.ratio for row in rows])
    weight_R = (x_R - x_R.mean()) / ((x_R - x_R.mean()) ** 2).sum()
    errors = [row.error for row in rows if row.error is not None]
    known = len(errors) == len(rows)
    return Slope(
        points=round(100 * float(weight_R @ [row.mean for row in rows]), 9) + 0.0,  # no -0
        error=100 * float(np.linalg.norm(weight_R * errors)) if known else None,
    )


def beyond_spread(change: float, *errors: float | None) -> bool | None:
    """Tell whether a change is more than twice its standard error; None where that is unknown."""
    known = [error for error in errors if error is not None]
    return abs(change) > 2 * sqrt(sum(e * e for e in known)) if len(known) == len(errors) else None


def fronts_of(rows: Sequence[Row]) -> tuple[NetworkFront, ...]:
    """Return each network's front, and that of all together where there are several."""
    points: dict[str, list[Point]] = {}
    for row in rows:
        points.setdefault(row.network, []).append(point_of(row))
    if len(points) > 1:
        points[ALL] = [point for group in points.values() for point in group]
    return tuple(_front(network, group) for network, group in points.items())


def front_with(rows: Sequence[Row], searched: Sequence[Searched]) -> NetworkFront:
    """Return the front of the grid's rows and of what the search found and tested."""
    tested = [each.tested for each in searched if each.tested is not None]
    found = rows_of(tested, named=("width",))
    return _front(WITH_SEARCH, [point_of(row) for row in (*rows, *found)])


def point_of(row: Row) -> Point:
    """Return a row as a point of accuracy against bytes."""
    name = f"{row.network} {row.placement} r={row.ratio}"
    return Point(name=name, accuracy=row.mean, num_bytes=row.num_bytes)


def missing(records: Sequence[StudyRecord]) -> tuple[str, ...]:
    """Say in words what a study of the paper's size has and these records lack."""
    cells = [record.cell for record in records]
    depths, ratios = ({getattr(cell, name) for cell in cells} for name in ("depth", "ratio"))
    placements, seeds = ({getattr(cell, name) for cell in cells} for name in ("placement", "seed"))
    found = [
        f"{what} {', '.join(str(value) for value in absent)}"
        for what, absent in (
            ("networks: ResNet", [depth for depth in BLOCKS if depth not in depths]),
            ("placements:", [place for place in PLACEMENTS if place not in placements]),
            ("ratios:", [ratio for ratio in RATIOS if ratio not in ratios]),
        )
        if absent
    ]
    if len(seeds) < SEEDS_WANTED:
        found.append(f"seeds: {len(seeds)} of {SEEDS_WANTED}")
    places = {
        (place if ratio > 1 else "both", ratio) for place, ratio in product(placements, ratios)
    }
    grid = set(product(depths, places, seeds))
    there = {
        (cell.depth, (cell.placement if cell.ratio > 1 else "both", cell.ratio), cell.seed)
        for cell in cells
    }
    if lacking := len(grid - there):
        found.append(f"{lacking} of {len(grid)} trainings of the grid that was begun")
    return tuple(found)


def _row(records: Sequence[StudyRecord], varied: Sequence[str]) -> Row:
    cell: Cell = records[0].cell
    figures = records[0].figures
    return Row(
        depth=cell.depth,
        setting="".join(f", {name} {getattr(cell, name)}" for name in varied),
        placement=cell.placement,
        ratio=cell.ratio,
        accuracies=tuple(
            record.figures["accuracy"] for record in sorted(records, key=lambda r: r.cell.seed)
        ),
        num_bytes=figures["bytes"],
        cuts=tuple(figures.get("cuts", ())),
    )


def _front(network: str, points: Sequence[Point]) -> NetworkFront:
    most = max(point.num_bytes for point in points)
    reference = Point(name="no accuracy, twice the bytes", accuracy=0.0, num_bytes=2 * most)
    return NetworkFront(
        network=network,
        points=tuple(points),
        front=front(points),
        reference=reference,
        hypervolume=hypervolume(points, reference),
        balanced=(least_bytes(points), knee(points)),
    )
