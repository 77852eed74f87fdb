"""Where the items of a layered drawing stand: rows, order within a row, places from left to right.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system
structures", IEEE Transactions on Systems, Man and Cybernetics 11(2), 1981: a row for each depth,
a link over several rows has a cell in each, rows are ordered by barycentres. The places are
simpler than theirs: the longest way is a straight spine, what is beside it is packed towards it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from statistics import fmean

_LANE, _GAP = 6, 14  # widths of a link that passes a row, and of what is free beside a cell
_SWEEPS = 6

Links = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows and places of items and of the links between them.

    Attributes:
        rows: Of each item.
        starts: The first row of each group, and the end of the last.
        places: The middle of each item, from the left edge.
        ways: For each link its places, one for each row from its source to its target.
        item_width: Of every item.
        width: From the left edge to the right one.
    """

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    places: tuple[float, ...]
    ways: Mapping[tuple[int, int], tuple[float, ...]]
    item_width: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Cells in rows, each linked to some in the rows above and below; the items are the first."""

    num_items: int
    rows: list[list[int]]
    above: dict[int, list[int]]
    below: dict[int, list[int]]
    ways: dict[tuple[int, int], list[int]]


def lay_out(
    groups: Sequence[Sequence[int]], links: Iterable[tuple[int, int]], *, item_width: float
) -> Layout:
    """Lay a graph out from top to bottom.

    Args:
        groups: The items 0, 1, ..., in an order in which every link goes forward. No row holds
            items of two groups.
        links: Pairs of source and target.
        item_width: Of every item.
    """
    links = list(dict.fromkeys(links))
    rows, starts = _rows(groups, links)
    grid = _make_grid(rows, links)
    _order(grid)
    spine = _spine(grid)
    half = {
        cell: (item_width if cell < grid.num_items else _LANE) / 2
        for row in grid.rows
        for cell in row
    }
    x = _places(grid, spine, _columns(grid, spine), half)
    left = min((x[cell] - half[cell] for cell in x), default=0.0)
    return Layout(
        rows=tuple(rows),
        starts=tuple(starts),
        places=tuple(x[item] - left for item in range(grid.num_items)),
        ways={link: tuple(x[cell] - left for cell in way) for link, way in grid.ways.items()},
        item_width=item_width,
        width=max((x[cell] + half[cell] for cell in x), default=0.0) - left,
    )


def _neighbours(links: Links) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return what each item reads from, and what reads from it."""
    before: dict[int, list[int]] = defaultdict(list)
    after: dict[int, list[int]] = defaultdict(list)
    for source, target in links:
        before[target].append(source)
        after[source].append(target)
    return before, after


def _rows(groups: Sequence[Sequence[int]], links: Links) -> tuple[list[int], list[int]]:
    """Return the depth of each item, and where groups begin; what reads nothing sinks."""
    before, after = _neighbours(links)
    rows = [0] * sum(map(len, groups))
    starts = [0]
    for group in groups:
        for item in group:
            rows[item] = max([starts[-1], *(rows[source] + 1 for source in before[item])])
        starts.append(max([starts[-1], *(rows[item] + 1 for item in group)]))
    for group, end in zip(groups, starts[1:], strict=True):
        for item in group:
            if not before[item]:
                rows[item] = min([end, *(rows[target] for target in after[item])]) - 1
    return rows, starts


def _make_grid(rows: Sequence[int], links: Links) -> _Grid:
    """Give every link a cell in each row that it passes; links of one source share them."""
    cells: list[list[int]] = [[] for _ in range(max(rows, default=-1) + 1)]
    for item, row in enumerate(rows):
        cells[row].append(item)
    new = count(len(rows))
    lanes: dict[int, list[int]] = {}
    steps: list[tuple[int, int]] = []
    ways = {}
    for source, target in sorted(links, key=lambda link: rows[link[1]]):
        lane = lanes.setdefault(source, [source])
        for row in range(rows[source] + len(lane), rows[target]):
            cells[row].append(next(new))
            steps.append((lane[-1], cells[row][-1]))
            lane.append(cells[row][-1])
        ways[source, target] = [*lane[: rows[target] - rows[source]], target]
        steps.append((ways[source, target][-2], target))
    above, below = _neighbours(steps)
    return _Grid(num_items=len(rows), rows=cells, above=above, below=below, ways=ways)


def _order(grid: _Grid) -> None:
    """Order each row by the mean place of its neighbours, downwards and upwards in turn."""
    place = {cell: k for row in grid.rows for k, cell in enumerate(row)}
    for sweep in range(_SWEEPS):
        near = grid.below if sweep % 2 else grid.above
        for row in reversed(grid.rows) if sweep % 2 else grid.rows:
            mean = {c: fmean(place[n] for n in near[c]) if near[c] else place[c] for c in row}
            row.sort(key=mean.__getitem__)
            place.update((cell, k) for k, cell in enumerate(row))


def _spine(grid: _Grid) -> list[int]:
    """Return a cell of each row: the way with most items, from the first row down."""
    reach: dict[int, int] = {}
    for row in reversed(grid.rows):
        for cell in row:
            reach[cell] = max((reach[c] for c in grid.below[cell]), default=0)
            reach[cell] += cell < grid.num_items
    spine: list[int] = []
    for row in grid.rows:
        ahead = [cell for cell in row if spine and cell in grid.below[spine[-1]]]
        spine.append(max(ahead or row, key=reach.__getitem__))
    return spine


def _columns(grid: _Grid, spine: Sequence[int]) -> dict[int, int]:
    """Return the column of each cell: cells of one column stand straight below each other.

    The spine is one; then links that pass are kept straight, then items. No two columns cross.
    """
    column = dict.fromkeys(spine, 0)
    new = count(1)
    for k, lower in enumerate(grid.rows):
        upper = grid.rows[k - 1] if k else []
        pairs = [(a, b) for a in upper for b in lower if b in grid.below[a]]
        pairs.sort(key=lambda pair: min(pair) < grid.num_items)
        taken = [(upper.index(spine[k - 1]), lower.index(spine[k]))] if k else []
        for pair in pairs:
            a, b = upper.index(pair[0]), lower.index(pair[1])
            if all((a - c) * (b - d) > 0 for c, d in taken):
                taken.append((a, b))
                column[pair[1]] = column[pair[0]]
        for cell in lower:
            column.setdefault(cell, next(new))
    return column


def _places(
    grid: _Grid, spine: Sequence[int], column: Mapping[int, int], half: Mapping[int, float]
) -> dict[int, float]:
    """Return the place of each cell: the spine at 0, every column as near to it as can be."""
    x = dict.fromkeys(column.values(), 0.0)
    sides = []
    for row, middle in zip(grid.rows, spine, strict=True):
        at = row.index(middle)
        sides += [(1, row[at:]), (-1, row[at::-1])]
    moved = True
    while moved:
        moved = False
        for side, cells in sides:
            for near, far in pairwise(cells):
                least = side * x[column[near]] + half[near] + _GAP + half[far]
                if side * x[column[far]] < least:
                    x[column[far]] = side * least
                    moved = True
    return {cell: x[column[cell]] for cell in column}
