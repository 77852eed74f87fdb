"""How often each symbol comes: what both ends of an entropy-coded link must hold alike.

A map of symbols (C, H, W) is coded in up to three passes, so that every symbol but the first
quarter has four neighbours on each of which both ends already agree:

.. code-block:: none

    1 3 1 3      pass 1: no neighbours known            level 0
    3 2 3 2      pass 2: the four at the corners        levels 1 to K
    1 3 1 3      pass 3: the four at the sides          levels K + 1 to 2 K
    3 2 3 2      outside of the map lies the channel's centre

How far the four are from the channel's most frequent symbol, summed, says which of K levels a
symbol has; channel and level say which row of frequencies codes it. With K = 1 there is one pass.

Shapes: C channels, H height, W width, R rows, A symbols, K levels, N samples.

References:
    Duda, "Asymmetric numeral systems", 2013, https://arxiv.org/abs/1311.2540 (the code).
    He et al., "Checkerboard Context Model for Efficient Learned Image Compression", CVPR 2021,
    https://arxiv.org/abs/2103.15306 (contexts whose symbols can be decoded together).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError

TOTAL = 1 << 16
MAX_ROWS = 32  # that `fit_tables` makes: a library call for each in every pass
_VERSION = 1
_HEAD = struct.Struct("<BBHBB")  # version, bits, channels, levels, rows
_LENGTH = struct.Struct("<I")
_MAX_LEVELS = 8
MAX_CHANNELS = (1 << 16) - 1
_LEVELS = 4
_WORTH = 0.98  # contexts must save this much, for they cost two more passes
_ROUNDS = 12
_FEATURES = 2  # kinds of neighbours: corners, sides

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Distances = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """Integer frequencies, and which of them codes which symbol.

    Attributes:
        bits: Symbols are 0 to ``2**bits - 1``: A of them.
        frequencies: uint32 (R, A + 1); a row sums to 2**16. The last column is the escape, after
            which a symbol of frequency 0 goes as it is; only a row that lacks no symbol may lack
            the escape.
        row_of: uint8 (C, 1) or (C, 2 K + 1): the row for each channel and level.
        centre: uint8 (C,): each channel's most frequent symbol.
        edges: uint16 (2, K - 1), rising: a sum of distances over k of them has level k; for
            corners, for sides.

    Raises:
        InputError: Something does not fit together.
    """

    bits: int
    frequencies: npt.NDArray[np.uint32]
    row_of: Bytes
    centre: Bytes
    edges: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise InputError(f"tables: {problem}; fit the codec anew")

    @property
    def num_levels(self) -> int:
        """K; 1 where no symbol's neighbours matter."""
        return self.edges.shape[1] + 1

    @property
    def num_channels(self) -> int:
        """C: a map of fewer channels is coded as the first of them."""
        return len(self.centre)

    def to_bytes(self) -> bytes:
        """Write the tables."""
        rows = len(self.frequencies)
        return b"".join(
            (
                _HEAD.pack(_VERSION, self.bits, self.num_channels, self.num_levels, rows),
                self.centre.tobytes(),
                self.row_of.tobytes(),
                self.edges.astype("<u2").tobytes(),
                self.frequencies.astype("<u2").tobytes(),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            InputError: Other bytes.
        """
        if len(data) < _HEAD.size:
            raise InputError(f"tables: found {len(data)} bytes, expected {_HEAD.size} or more")
        version, bits, channels, levels, rows = _HEAD.unpack(data[: _HEAD.size])
        if version != _VERSION or not 1 <= bits <= 8 or not 1 <= levels <= _MAX_LEVELS:
            raise InputError(
                f"tables: found version {version}, {bits} bits, {levels} levels, expected version "
                f"{_VERSION}, 1 to 8 bits, 1 to {_MAX_LEVELS} levels; fit the codec anew"
            )
        shapes = (
            ((channels,), "u1"),
            ((channels, _num_classes(levels)), "u1"),
            ((_FEATURES, levels - 1), "<u2"),
            ((rows, (1 << bits) + 1), "<u2"),
        )
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes]
        if len(data) != _HEAD.size + sum(sizes):
            raise InputError(
                f"tables: found {len(data)} bytes, expected {_HEAD.size + sum(sizes)} for "
                f"{channels} channels and {rows} rows; fit the codec anew"
            )
        stops = np.cumsum([_HEAD.size, *sizes])
        centre, row_of, edges, frequencies = (
            np.frombuffer(data[start : start + size], kind).reshape(shape)
            for (shape, kind), start, size in zip(shapes, stops[:-1], sizes, strict=True)
        )
        return cls(
            bits=bits,
            frequencies=frequencies.astype(np.uint32),
            row_of=row_of,
            centre=centre,
            edges=edges.astype(np.uint16),
        )


def join_tables(tables: Sequence[Tables]) -> bytes:
    """Write the tables of all tensors of a crossing, each after its length."""
    parts = [one.to_bytes() for one in tables]
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split_tables(data: bytes | memoryview) -> tuple[Tables, ...]:
    """Read what `join_tables` wrote.

    Raises:
        InputError: Other bytes.
    """
    tables = []
    start = 0
    while start < len(data):
        if len(data) < start + _LENGTH.size:
            raise InputError(f"tables: cut short at byte {start}; fit the codec anew")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if len(data) < start + length:
            raise InputError(f"tables: cut short at byte {start}; fit the codec anew")
        tables.append(Tables.from_bytes(data[start : start + length]))
        start += length
    return tuple(tables)


def as_map(symbols: Bytes) -> Bytes:
    """Return the symbols of one sample as a map (C, H, W), the channels as the codecs see them."""
    shape = map_shape(symbols.shape)
    if symbols.ndim == 2:  # (T, C)
        symbols = symbols.T
    return np.ascontiguousarray(symbols).reshape(shape)


def from_map(symbols_CHW: Bytes, shape: tuple[int, ...]) -> Bytes:
    """Return what `as_map` made a map of."""
    if len(shape) == 2:
        return np.ascontiguousarray(symbols_CHW[:, 0].T)
    return symbols_CHW.reshape(shape)


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape that `as_map` gives a sample."""
    if len(shape) == 2:
        return shape[1], 1, shape[0]
    channels, *rest = shape or (1,)
    width = rest[-1] if rest else 1
    return channels, prod(rest[:-1]), width


def fit_tables(symbols_NCHW: Bytes, bits: int, *, max_rows: int = MAX_ROWS) -> Tables:
    """Count symbols and make tables of them.

    Neighbours are looked at where that saves 2 % or more. Channels and levels that are alike
    share a row: they are clustered by the bits that sharing costs.

    Args:
        symbols_NCHW: uint8, each below ``2**bits``: real ones, of training data.
        bits: 1 to 8.
        max_rows: Most rows to make, up to 255.

    Returns:
        The tables.

    Raises:
        InputError: No symbols, or one that needs more bits.
    """
    num_symbols = 1 << bits
    if not symbols_NCHW.size or symbols_NCHW.max() >= num_symbols:
        raise InputError(f"tables: expected symbols of 0 to {num_symbols - 1}, at least one")
    channels = symbols_NCHW.shape[1]
    plain_CA = _count(symbols_NCHW, np.zeros((1, 1, 1, 1), np.int64), 1, num_symbols)
    centre_C = plain_CA.argmax(axis=1).astype(np.uint8)
    no_edges = np.zeros((_FEATURES, 0), np.uint16)
    plain = _clustered(plain_CA, bits, centre_C, no_edges, max_rows)
    if symbols_NCHW.shape[2] * symbols_NCHW.shape[3] == 1:
        return plain[0]
    far = distances(symbols_NCHW, centre_C, bits)
    corners, sides = (neighbour_sums(far, number) for number in (1, 2))
    pass_HW = passes(symbols_NCHW.shape[2:])
    edges = np.stack([_edges(corners[..., pass_HW == 1]), _edges(sides[..., pass_HW == 2])])
    level = np.zeros(symbols_NCHW.shape, np.int64)
    for number, sums in ((1, corners), (2, sides)):
        levels = np.searchsorted(edges[number - 1], sums[..., pass_HW == number])
        level[..., pass_HW == number] = 1 + (number - 1) * _LEVELS + levels
    counts = _count(symbols_NCHW, level, _num_classes(_LEVELS), num_symbols)
    assert len(counts) == channels * _num_classes(_LEVELS)
    rich = _clustered(counts, bits, centre_C, edges, max_rows)
    return rich[0] if rich[1] < _WORTH * plain[1] else plain[0]


def passes(size_HW: tuple[int, ...]) -> Bytes:
    """Return in which pass, 0 to 2, each place (H, W) of a map is coded."""
    y_H, x_W = (np.arange(size) % 2 for size in size_HW)
    both = y_H[:, None] & x_W
    return (2 * (y_H[:, None] ^ x_W) + both).astype(np.uint8)


def distances(symbols_CHW: Bytes, centre_C: Bytes, bits: int) -> Distances:
    """Return how far symbols (..., C, H, W) are from their channel's centre, zeros around them.

    Args:
        symbols_CHW: Each below ``2**bits``.
        centre_C: Of each channel.
        bits: Up to 6, four distances add up to what uint8 holds.
    """
    *rest, height, width = symbols_CHW.shape
    centre = centre_C[:, None, None]
    far = np.zeros((*rest, height + 2, width + 2), np.uint8 if bits <= 6 else np.uint16)
    far[..., 1:-1, 1:-1] = np.maximum(symbols_CHW, centre) - np.minimum(symbols_CHW, centre)
    return far


def neighbour_sums(far: Distances, number: int) -> Distances:
    """Return the `distances` of four neighbours of each place, summed: (..., C, H, W).

    Args:
        far: Distances.
        number: 1 for the neighbours at the corners, 2 for those at the sides.
    """
    if number == 1:
        across = far[..., :-2] + far[..., 2:]
        return across[..., :-2, :] + across[..., 2:, :]
    sums = far[..., 1:-1, :-2] + far[..., 1:-1, 2:]
    sums += far[..., :-2, 1:-1]
    sums += far[..., 2:, 1:-1]
    return sums


def _num_classes(levels: int) -> int:
    return 1 if levels == 1 else 2 * levels + 1


def _count(symbols_NCHW: Bytes, level: Ints, num_levels: int, num_symbols: int) -> Ints:
    """Return how often each channel, at each level, has each symbol: (C times levels, A)."""
    channels = symbols_NCHW.shape[1]
    index = np.arange(channels)[:, None, None] * num_levels + level
    index = index * num_symbols + symbols_NCHW
    size = channels * num_levels * num_symbols
    return np.bincount(index.ravel(), minlength=size).reshape(-1, num_symbols)


def _edges(sums: Distances) -> npt.NDArray[np.uint16]:
    """Cut what was seen into levels of about as many symbols each."""
    if not sums.size:
        return np.zeros(_LEVELS - 1, np.uint16)
    cuts = np.quantile(sums, np.arange(1, _LEVELS) / _LEVELS, method="lower").astype(np.uint16)
    for k in range(1, len(cuts)):  # where one sum fills several levels, look at the next ones
        if cuts[k] <= cuts[k - 1]:
            above = sums[sums > cuts[k - 1]]
            cuts[k] = np.quantile(above, 0.5, method="lower") if above.size else cuts[k - 1]
    return cuts


def _clustered(
    counts_MA: Ints, bits: int, centre_C: Bytes, edges: npt.NDArray[np.uint16], max_rows: int
) -> tuple[Tables, float]:
    """Let rows be shared until there are few; return the tables and the bits of all symbols."""
    share_MA = (counts_MA + 1 / counts_MA.shape[1]) / (counts_MA.sum(axis=1, keepdims=True) + 1)
    entropy_M = -(share_MA * np.log2(share_MA)).sum(axis=1)
    row_M = np.empty(len(counts_MA), np.int64)
    row_M[entropy_M.argsort(kind="stable")] = np.arange(len(row_M)) * max_rows // len(row_M)
    for _ in range(_ROUNDS):
        _, row_M = np.unique(row_M, return_inverse=True)
        frequencies = _frequencies(counts_MA, row_M)
        cost_MR = counts_MA @ -np.log2(np.maximum(frequencies[:, :-1], 2.0**-8) / TOTAL).T
        nearest_M = cost_MR.argmin(axis=1)
        if np.array_equal(nearest_M, row_M):
            break
        row_M = nearest_M
    _, row_M = np.unique(row_M, return_inverse=True)
    tables = Tables(
        bits=bits,
        frequencies=_frequencies(counts_MA, row_M),
        row_of=row_M.reshape(len(centre_C), -1).astype(np.uint8),
        centre=centre_C,
        edges=edges,
    )
    used_MA = np.maximum(tables.frequencies[row_M, :-1], 2.0**-8)
    return tables, float(-(counts_MA * np.log2(used_MA / TOTAL)).sum())


def _frequencies(counts_MA: Ints, row_M: Ints) -> npt.NDArray[np.uint32]:
    """Return (R, A + 1): smoothed counts of each row, scaled to 2**16 by largest remainder."""
    num_symbols = counts_MA.shape[1]
    rows = np.zeros((row_M.max() + 1, num_symbols + 1), np.uint32)
    for row, found in enumerate(rows):
        count_A = counts_MA[row_M == row].sum(axis=0)
        seen = count_A.nonzero()[0]
        low, high = (seen[0], seen[-1] + 1) if seen.size else (0, num_symbols)
        weight = 2 * count_A[low:high] + 1
        weight = np.append(weight, 1) if high - low < num_symbols else weight
        free = TOTAL - len(weight)
        share, rest = np.divmod(weight * free, weight.sum())
        share[np.argsort(-rest, kind="stable")[: free - share.sum()]] += 1
        found[low:high] = share[: high - low] + 1
        if high - low < num_symbols:
            found[-1] = share[-1] + 1
    return rows


def _problem(tables: Tables) -> str:
    """Return what does not fit together; empty where all does."""
    levels = tables.num_levels
    channels, num_symbols = len(tables.centre), 1 << tables.bits
    arrays = (tables.frequencies, tables.row_of, tables.centre, tables.edges)
    found = [array.shape for array in arrays]
    rows = len(tables.frequencies)
    expected = [
        (rows, num_symbols + 1),
        (channels, _num_classes(levels)),
        (channels,),
        (_FEATURES, levels - 1),
    ]
    if found != expected or not 0 < rows < 256:
        return f"found shapes {found}, expected {expected} and at most 255 rows"
    if not 0 < channels <= MAX_CHANNELS or levels > _MAX_LEVELS:
        return f"found {channels} channels and {levels} levels"
    if (tables.frequencies.astype(np.int64).sum(axis=1) != TOTAL).any():
        return f"a row does not sum to {TOTAL}"
    if tables.frequencies.max() == TOTAL:
        return "a row has one symbol and no escape"
    lacking = (tables.frequencies[:, :-1] == 0).any(axis=1)
    if (lacking & (tables.frequencies[:, -1] == 0)).any():
        return "a row lacks a symbol and has no escape"
    if tables.row_of.max() >= rows or tables.centre.max() >= num_symbols:
        return f"found row {tables.row_of.max()} of {rows}, centre {tables.centre.max()}"
    if (np.diff(tables.edges.astype(np.int64), axis=1) < 0).any():
        return "edges do not rise"
    return ""
