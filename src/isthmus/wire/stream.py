"""Maps of symbols to a stream of as many bits as they are worth, and back.

The code is constriction's rANS: a state of 64 bits, words of 32, precision 24. A table's 16 bits
are the upper ones of the 24, which the library is told as weights ``256 f - 1``: it adds 1 to each
weight, and all are whole numbers that float32 holds. Within a row the most frequent symbol comes
first, of two alike the lower one, the escape after all.

.. code-block:: none

    stream     map 1, map 2 ... ; the words of the last state end it; zero bytes at its end are cut
    map        pass 1, pass 2, pass 3
    pass       the symbols of row 0, of row 1 ... ; then what was escaped, 2**bits values alike
    a row's    channel by channel, line by line

The decoder reads in this order, the encoder writes from the end. An empty stream is a state of 0.
Where the library has no wheel, `isthmus.wire.reference` makes and reads the same bytes.

References:
    Duda, "Asymmetric numeral systems", 2013, https://arxiv.org/abs/1311.2540.
    Bamler, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS)", 2022,
    https://arxiv.org/abs/2201.01741 (the library).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire import reference
from isthmus.wire.tables import (
    TOTAL,
    Bytes,
    Distances,
    Ints,
    Tables,
    distances,
    neighbour_sums,
    passes,
)

try:
    import constriction
except ImportError:  # no wheel for this machine
    constriction = None
library: Any = constriction and constriction.stream

_WORD = np.dtype("<u4")
Shape = tuple[int, int, int]
_SHORT = 512  # symbols; in longer runs the search from the middle is the faster one
_SOON = 8  # places
_Part = tuple["_Turn", npt.NDArray[np.int32], Bytes | None]


def encode(maps: Sequence[tuple[Tables, Bytes]]) -> bytes:
    """Code maps of symbols.

    Args:
        maps: For each its tables and its symbols, uint8 (C, H, W), each below ``2**bits``.

    Returns:
        The stream.

    Raises:
        InputError: A map has more channels than its tables, or a symbol needs more bits.
    """
    for tables, symbols in maps:
        _check(tables, symbols.shape)
        if tables.bits < 8 and symbols.size and symbols.max() >> tables.bits:
            raise InputError(f"stream: found symbol {symbols.max()}: over {tables.bits} bits")
    if library is None:
        return reference.encode(maps)
    coder = library.stack.AnsCoder()
    write = coder.encode_reverse
    written = [part for tables, symbols in maps for part in _ranked(tables, symbols)]
    for turn, ranks, escaped in reversed(written):
        if escaped is not None:
            write(escaped.astype(np.int32), turn.models.plain)
        for model, run in turn.sent_runs:
            write(ranks[run], model)
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return words.astype(_WORD, copy=False).tobytes().rstrip(b"\0")


def decode(maps: Sequence[tuple[Tables, Shape]], data: bytes | memoryview) -> tuple[Bytes, ...]:
    """Restore what `encode` coded, from any bytes at all.

    Args:
        maps: For each its tables and its shape (C, H, W).
        data: What arrived.

    Returns:
        The symbols, each below ``2**bits``.

    Raises:
        InputError: The stream cannot have come from these maps.
    """
    for tables, shape in maps:
        _check(tables, shape)
    if len(data) and data[-1] == 0:
        raise InputError("stream: ends in a zero byte, which no encoder leaves")
    if library is None:
        return reference.decode(maps, data)
    words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), _WORD).astype(np.uint32)
    coder = library.stack.AnsCoder(words)
    symbols = tuple(_read_map(coder, tables, shape) for tables, shape in maps)
    if not coder.is_empty():
        raise InputError("stream: goes on after its last symbol; it is damaged or of other tables")
    return symbols


@dataclass(frozen=True, slots=True, eq=False)
class _Models:
    """Tables as the library takes them.

    Attributes:
        rows: For each row one of the library's models.
        short: The same to decode short runs with: searched from the most frequent symbol on, where
            that is soon found.
        ranks: int32 (R times A): the place in its row of each symbol, or of the escape.
        symbols: uint8 (R times A + 1): the symbol at each place of a row.
        sent: int64 (R,): where a row of ``ranks`` begins.
        arrived: int64 (R,): where a row of ``symbols`` begins.
        escapes: int32 (R,): the place of the escape; -1 where there is none.
        plain: The model of what was escaped.
        levels: int64 (2, 1021): 1 + the level of a sum, for corners and for sides.
        classes: int64 (C, 1): where a channel of ``row_of`` begins.
        row_of: uint8 (C times 2 K + 1): the row of each channel and level.
    """

    rows: tuple[Any, ...]
    short: tuple[Any, ...]
    ranks: npt.NDArray[np.int32]
    symbols: Bytes
    sent: Ints
    arrived: Ints
    escapes: npt.NDArray[np.int32]
    plain: Any
    levels: Ints
    classes: Ints
    row_of: Bytes


@dataclass(frozen=True, eq=False)
class _Turn:
    """What one pass over a map codes, in the order of the stream.

    Attributes:
        models: Of the map's tables.
        places: Flat indices into the map; channels, where the map is coded in one pass.
        order: In which these are coded; None: as they are.
        counts: How many symbols each row codes, (R,).
    """

    models: _Models
    places: Ints
    order: Ints | None
    counts: Ints

    @cached_property
    def _runs(self) -> list[tuple[int, int, int]]:
        stops = self.counts.cumsum().tolist()
        runs = zip(range(len(stops)), (0, *stops), stops, strict=False)
        return [run for run in runs if run[1] < run[2]]

    @cached_property
    def sent_runs(self) -> list[tuple[Any, slice]]:
        """A model and its symbols, the last ones first."""
        rows = self.models.rows
        return [(rows[row], slice(start, stop)) for row, start, stop in reversed(self._runs)]

    @cached_property
    def arrived_runs(self) -> list[tuple[Any, int]]:
        """A model and how many symbols are its."""
        rows, short = self.models.rows, self.models.short
        return [
            ((short if stop - start < _SHORT else rows)[row], stop - start)
            for row, start, stop in self._runs
        ]

    @cached_property
    def sent(self) -> Ints:
        """Where the ranks of each symbol's row begin."""
        return self.models.sent.repeat(self.counts)

    @cached_property
    def arrived(self) -> Ints:
        """Where the symbols of each one's row begin."""
        return self.models.arrived.repeat(self.counts)

    @cached_property
    def escapes(self) -> npt.NDArray[np.int32] | None:
        """Which rank is the escape of each symbol's row; None where none of these has one."""
        escapes = self.models.escapes.repeat(self.counts)
        return escapes if (escapes >= 0).any() else None


def _check(tables: Tables, shape: Sequence[int]) -> None:
    if len(shape) != 3 or not 0 < shape[0] <= tables.num_channels:
        raise InputError(
            f"stream: found a map {tuple(shape)}, expected (C, H, W) of 1 to "
            f"{tables.num_channels} channels"
        )


def _ranked(tables: Tables, symbols: Bytes) -> Iterator[_Part]:
    """Yield each pass over a map: its symbols as places in their rows, and what is escaped."""
    cells = _cells(tables, symbols)
    layout = _layout(tables, symbols.shape)
    if len(layout) > 1:
        far = distances(symbols, tables.centre[: len(symbols)], tables.bits)
    for number, fixed in enumerate(layout):
        turn = _by_context(fixed, number, far) if number else fixed
        values = cells.take(turn.places, axis=0).reshape(-1)
        if turn.order is not None:
            values = values.take(turn.order)
        ranks = turn.models.ranks.take(turn.sent + values)
        escaped = None
        if turn.escapes is not None:
            is_escaped = ranks == turn.escapes
            escaped = values[is_escaped] if np.count_nonzero(is_escaped) else None
        yield turn, ranks, escaped


def _read_map(coder: Any, tables: Tables, shape: Shape) -> Bytes:
    read = coder.decode
    symbols = np.empty(shape, np.uint8)
    cells = _cells(tables, symbols)
    centre_C = tables.centre[: shape[0]]
    if cells.ndim == 1:
        symbols[:] = centre_C[:, None, None]
    for number, fixed in enumerate(_layout(tables, shape)):
        turn = fixed
        if number:
            turn = _by_context(fixed, number, distances(symbols, centre_C, tables.bits))
        if not turn.arrived_runs:
            continue
        ranks = np.concatenate([read(model, count) for model, count in turn.arrived_runs])
        values = turn.models.symbols.take(turn.arrived + ranks)
        if turn.escapes is not None:
            is_escaped = ranks == turn.escapes
            if num_escaped := np.count_nonzero(is_escaped):
                values[is_escaped] = read(turn.models.plain, num_escaped)
        if turn.order is not None:
            ordered, values = values, np.empty_like(values)
            values[turn.order] = ordered
        cells[turn.places] = values.reshape(-1, *cells.shape[1:])
    return symbols


def _cells(tables: Tables, symbols: Bytes) -> Bytes:
    """Return a map as what the places of its passes are places of: symbols, or channels."""
    return symbols.reshape(-1) if tables.num_levels > 1 else symbols.reshape(len(symbols), -1)


def _by_context(turn: _Turn, number: int, far: Distances) -> _Turn:
    """Put a later pass in the order that the symbols before it give."""
    models = turn.models
    sums = neighbour_sums(far, number).reshape(-1).take(turn.places)
    classes_CP = models.levels[number - 1].take(sums).reshape(len(far), -1)
    classes_CP += models.classes[: len(far)]
    rows = models.row_of.take(classes_CP.reshape(-1))
    order = rows.argsort(kind="stable")
    cuts = rows.take(order).searchsorted(np.arange(len(models.rows) + 1, dtype=np.uint8))
    return _Turn(models, turn.places, order, cuts[1:] - cuts[:-1])


@lru_cache(maxsize=64)
def _models(tables: Tables) -> _Models:
    num_symbols = 1 << tables.bits
    num_rows = len(tables.frequencies)
    models, short = [], []
    ranks = np.empty((num_rows, num_symbols), np.int32)
    symbols = np.zeros((num_rows, num_symbols + 1), np.uint8)
    escapes = np.full(num_rows, -1, np.int32)
    for row, frequency in enumerate(tables.frequencies.tolist()):
        order = np.array([symbol for symbol, _, _ in reference.slots(frequency)])
        sorted_A = np.array(frequency)[order]
        models.append(_model(sorted_A))
        soon = sorted_A @ np.arange(len(order)) < _SOON * TOTAL
        short.append(_model(sorted_A, lazy=True) if soon else models[-1])
        known = order[order < num_symbols]
        symbols[row, : len(known)] = known
        if len(known) < len(order):
            escapes[row] = len(known)
        ranks[row] = escapes[row]
        ranks[row, known] = np.arange(len(known))
    sums = np.arange(4 * 255 + 1)
    levels = [
        1 + number * tables.num_levels + np.searchsorted(edges, sums)
        for number, edges in enumerate(tables.edges)
    ]
    rows_R = np.arange(num_rows)
    return _Models(
        rows=tuple(models),
        short=tuple(short),
        ranks=ranks.reshape(-1),
        symbols=symbols.reshape(-1),
        sent=rows_R * num_symbols,
        arrived=rows_R * (num_symbols + 1),
        escapes=escapes,
        plain=_model(np.full(num_symbols, TOTAL >> tables.bits)),
        levels=np.stack(levels),
        classes=np.arange(tables.num_channels)[:, None] * tables.row_of.shape[1],
        row_of=tables.row_of.reshape(-1),
    )


def _model(frequency: Ints, *, lazy: bool = False) -> Any:
    weights = (256 * frequency - 1).astype(np.float32)
    return library.model.Categorical(weights, perfect=False, lazy=lazy)


@lru_cache(maxsize=64)
def _layout(tables: Tables, shape: Shape) -> tuple[_Turn, ...]:
    """Return the passes over a map: the first in the order of the stream, the others' to come."""
    channels, height, width = shape
    row_C = tables.row_of[:channels, 0]
    order = row_C.argsort(kind="stable")
    size_C = np.bincount(row_C, minlength=len(tables.frequencies))
    if tables.num_levels == 1:
        return (_Turn(_models(tables), order, None, size_C * (height * width)),)
    pass_HW = passes((height, width)).reshape(-1)
    turns = []
    for number in range(3):
        place_P = np.flatnonzero(pass_HW == number)
        channel = np.arange(channels) if number else order
        places = (channel[:, None] * (height * width) + place_P).reshape(-1)
        turns.append(_Turn(_models(tables), places, None, size_C * len(place_P)))
    return tuple(turns)
