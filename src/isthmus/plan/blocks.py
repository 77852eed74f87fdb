"""Tables of what all stages of a device cost, of which only the finite part is held.

Where choices are in the order of their cuts, half of a table stands for stages that would begin
after their end, and much of the rest for those that overflow a memory or take too long.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import numpy.typing as npt

from isthmus.plan.estimate import Array, Cells, Indices

ROWS = 64

Block = tuple[int, int, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Costs of what arrives and what leaves, (K + 1, K + 1): infinite but for blocks and ends.

    Attributes:
        blocks: The first row and column of each, and its costs: small enough for a processor's
            cache, in the order of their rows, of which two share none.
        first: The last row, where nothing arrives, (K + 1,).
        last: The last column, where nothing leaves, (K + 1,).
    """

    blocks: tuple[Block, ...]
    first: Array
    last: Array

    def at(self, row: int, column: int) -> float:
        """Return one cost; -1 stands for K."""
        size = len(self.first)
        row, column = row % size, column % size
        if row == size - 1:
            return float(self.first[column])
        if column == size - 1:
            return float(self.last[row])
        for top, left, costs in self.blocks:
            if 0 <= row - top < costs.shape[0] and 0 <= column - left < costs.shape[1]:
                return float(costs[row - top, column - left])
        return inf

    def rows(self, which: Indices) -> Array:
        """Return some rows, (L, K + 1)."""
        found = np.full((len(which), len(self.first)), inf)
        found[:, -1] = self.last[which]
        for top, left, costs in self.blocks:
            (mine,) = np.nonzero((which >= top) & (which < top + costs.shape[0]))
            found[mine, left : left + costs.shape[1]] = costs[which[mine] - top]
        found[which == len(self.first) - 1] = self.first
        return found

    def column(self, which: int) -> Array:
        """Return one column, (K + 1,)."""
        if which == len(self.first) - 1:
            return self.last
        found = np.full(len(self.first), inf)
        found[-1] = self.first[which]
        for top, left, costs in self.blocks:
            if left <= which < left + costs.shape[1]:
                found[top : top + costs.shape[0]] = costs[:, which - left]
        return found

    def each(self, function: Callable[[Array], Array]) -> "Table":
        """Return what a function makes of all costs, those that are infinite included."""
        return replace(
            self,
            blocks=tuple((top, left, function(costs)) for top, left, costs in self.blocks),
            first=function(self.first),
            last=function(self.last),
        )

    def within(self, other: "Table", most: float) -> "Table":
        """Return what costs no more than something in a table of the same places."""
        blocks: list[Block] = []
        for (top, left, costs), (*_, others) in zip(self.blocks, other.blocks, strict=True):
            fits = others <= most
            rows, columns = _span(fits, 1), _span(fits, 0)
            if rows.start < rows.stop:
                costs_in = np.where(fits[rows, columns], costs[rows, columns], inf)
                blocks.append((top + rows.start, left + columns.start, costs_in))
        return Table(
            blocks=tuple(blocks),
            first=np.where(other.first <= most, self.first, inf),
            last=np.where(other.last <= most, self.last, inf),
        )

    def plus(self, other: "Table", share: float) -> "Table":
        """Add a share of a table of the same places."""
        blocks = zip(self.blocks, other.blocks, strict=True)
        return replace(
            self,
            blocks=tuple((top, left, a + share * b) for (top, left, a), (*_, b) in blocks),
            first=self.first + share * other.first,
            last=self.last + share * other.last,
        )


def make_table(mask: npt.NDArray[np.bool_], weigh: Callable[[Cells], Array]) -> Table:
    """Make a table of what a function returns for blocks of it.

    Args:
        mask: Outside this all is infinite, (K + 1, K + 1).
        weigh: Returns costs, infinite where they are outside, too.
    """
    *inner, first, last = cells_of(mask)
    blocks: list[Block] = []
    for rows, columns in inner:
        costs = weigh((rows, columns))
        used = _span(costs < inf, 0)
        if used.start < used.stop:
            costs = np.ascontiguousarray(costs[:, used])
            blocks.append((rows.start, columns.start + used.start, costs))
    return Table(blocks=tuple(blocks), first=weigh(first)[0], last=weigh(last)[:, 0])


def cells_of(mask: npt.NDArray[np.bool_]) -> tuple[Cells, ...]:
    """Return blocks that hold all of a table that is, and at last its last row and column."""
    size = len(mask)
    edge, whole = slice(size - 1, size), slice(0, size)
    return (*_blocks(mask[:-1, :-1]), (edge, whole), (whole, edge))


def _blocks(mask: npt.NDArray[np.bool_]) -> Iterator[Cells]:
    for start in range(0, len(mask), ROWS):
        rows = slice(start, min(start + ROWS, len(mask)))
        columns = _span(mask[rows], 0)
        if columns.start < columns.stop:
            yield rows, columns


def _span(mask: npt.NDArray[np.bool_], axis: int) -> slice:
    """Return the smallest slice of columns (0) or rows (1) that holds all that is true."""
    (found,) = np.nonzero(mask.any(axis=axis))
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
