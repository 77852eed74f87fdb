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
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire import reference
from isthmus.wire.tables import TOTAL, Bytes, Ints, Tables, neighbour_sums, passes

try:
    import constriction
except ImportError:  # no wheel for this machine
    constriction = None
library: Any = constriction and constriction.stream

_WORD = np.dtype("<u4")
Shape = tuple[int, int, int]
_ESCAPE = 256  # no symbol
_SHORT = 512  # symbols; in longer runs the search from the middle is the faster one
_SOON = 8  # places
_Run = tuple[int, int, int]  # row, start, stop
_Part = tuple["_Models", "_Turn", npt.NDArray[np.int32], Bytes | None]


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
    for models, turn, ranks, escaped in reversed(written):
        if escaped is not None:
            write(escaped.astype(np.int32), models.plain)
        for row, start, stop in reversed(turn.runs):
            write(ranks[start:stop], models.rows[row])
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
        symbols: int16 (R times A + 1): the symbol at each place of a row, or `_ESCAPE`.
        escapes: int32 (R,): the place of the escape; -1 where there is none.
        plain: The model of what was escaped.
        levels: uint8 (2, 1021): 1 + the level of a sum, for corners and for sides.
    """

    rows: tuple[Any, ...]
    short: tuple[Any, ...]
    ranks: npt.NDArray[np.int32]
    symbols: npt.NDArray[np.int16]
    escapes: npt.NDArray[np.int32]
    plain: Any
    levels: Bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """The symbols of one pass over one map, in the order of the stream.

    Attributes:
        order: The order of the channels, where the pass is the whole map; else None.
        places: Flat indices into the map.
        channels: The channel of each.
        runs: Each row's symbols.
        sent: Where the ranks of each one's row begin.
        arrived: Where the symbols of each one's row begin.
        escapes: Which rank is the escape of each one's row; None where there is none.
    """

    order: Ints | None
    places: Ints
    channels: Ints
    runs: tuple[_Run, ...]
    sent: Ints
    arrived: Ints
    escapes: npt.NDArray[np.int32] | None


def _check(tables: Tables, shape: Sequence[int]) -> None:
    if len(shape) != 3 or not 0 < shape[0] <= tables.num_channels:
        raise InputError(
            f"stream: found a map {tuple(shape)}, expected (C, H, W) of 1 to "
            f"{tables.num_channels} channels"
        )


def _ranked(tables: Tables, symbols: Bytes) -> Iterator[_Part]:
    """Yield each pass over a map: its symbols as places in their rows, and what is escaped."""
    models = _models(tables)
    flat = symbols.reshape(-1)
    for number, first in enumerate(_layout(tables, symbols.shape)):
        turn = _by_context(tables, first, number, symbols) if number else first
        if turn.order is None:
            values = flat.take(turn.places)
        else:
            values = symbols.reshape(len(symbols), -1)[turn.order].reshape(-1)
        ranks = models.ranks.take(turn.sent + values)
        escaped = None
        if turn.escapes is not None:
            is_escaped = ranks == turn.escapes
            escaped = values[is_escaped] if is_escaped.any() else None
        yield models, turn, ranks, escaped


def _read_map(coder: Any, tables: Tables, shape: Shape) -> Bytes:
    models = _models(tables)
    read = coder.decode
    symbols = np.empty(shape, np.uint8)
    if tables.num_levels > 1:
        symbols[:] = tables.centre[: shape[0], None, None]
    flat = symbols.reshape(-1)
    for number, first in enumerate(_layout(tables, shape)):
        turn = _by_context(tables, first, number, symbols) if number else first
        if not turn.runs:
            continue
        ranks = np.concatenate(
            [
                read((models.short if stop - start < _SHORT else models.rows)[row], stop - start)
                for row, start, stop in turn.runs
            ]
        )
        values = models.symbols.take(turn.arrived + ranks)
        if turn.escapes is not None and values.max() == _ESCAPE:
            escaped = values == _ESCAPE
            values[escaped] = read(models.plain, np.count_nonzero(escaped))
        if turn.order is None:
            flat[turn.places] = values
        else:
            symbols.reshape(shape[0], -1)[turn.order] = values.reshape(shape[0], -1)
    return symbols


def _by_context(tables: Tables, turn: _Turn, number: int, symbols: Bytes) -> _Turn:
    """Put a later pass in the order that the symbols before it give."""
    sums = neighbour_sums(symbols, tables.centre[: len(symbols)])[number - 1]
    level = _models(tables).levels[number - 1].take(sums.reshape(-1).take(turn.places))
    return _in_order(tables, turn.places, turn.channels, tables.row_of[turn.channels, level])


def _in_order(tables: Tables, places: Ints, channels: Ints, rows: Bytes) -> _Turn:
    order = rows.argsort(kind="stable")
    rows = rows.take(order)
    counts = np.bincount(rows, minlength=len(tables.frequencies))
    stops = counts.cumsum().tolist()
    runs = zip(range(len(counts)), (0, *stops), stops, strict=False)
    rows_P = rows.astype(np.int64)
    models = _models(tables)
    return _Turn(
        order=None,
        places=places.take(order),
        channels=channels.take(order),
        runs=tuple(run for run in runs if run[1] < run[2]),
        sent=rows_P << tables.bits,
        arrived=rows_P * ((1 << tables.bits) + 1),
        escapes=models.escapes.take(rows) if (models.escapes >= 0).any() else None,
    )


@lru_cache(maxsize=64)
def _models(tables: Tables) -> _Models:
    num_symbols = 1 << tables.bits
    num_rows = len(tables.frequencies)
    models, short = [], []
    ranks = np.empty((num_rows, num_symbols), np.int32)
    symbols = np.full((num_rows, num_symbols + 1), _ESCAPE, np.int16)
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
    return _Models(
        rows=tuple(models),
        short=tuple(short),
        ranks=ranks.reshape(-1),
        symbols=symbols.reshape(-1),
        escapes=escapes,
        plain=_model(np.full(num_symbols, TOTAL >> tables.bits)),
        levels=np.stack(levels).astype(np.uint8),
    )


def _model(frequency: Ints, *, lazy: bool = False) -> Any:
    weights = (256 * frequency - 1).astype(np.float32)
    return library.model.Categorical(weights, perfect=False, lazy=lazy)


@lru_cache(maxsize=64)
def _layout(tables: Tables, shape: Shape) -> tuple[_Turn, ...]:
    """Return the passes over a map, the first in the order of the stream."""
    channels, height, width = shape
    pass_HW = passes((height, width)).reshape(-1)
    if tables.num_levels == 1:
        pass_HW = np.zeros_like(pass_HW)
    layout = []
    for number in range(1 if tables.num_levels == 1 else 3):
        place_P = np.flatnonzero(pass_HW == number)
        places = (np.arange(channels)[:, None] * (height * width) + place_P).reshape(-1)
        channel = np.repeat(np.arange(channels), len(place_P))
        rows = tables.row_of[channel, 0] if number == 0 else np.zeros(len(channel), np.uint8)
        turn = _in_order(tables, places, channel, rows)
        if tables.num_levels == 1:
            turn = replace(turn, order=tables.row_of[:channels, 0].argsort(kind="stable"))
        layout.append(turn)
    return tuple(layout)
