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

from collections.abc import Sequence
from dataclasses import dataclass
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
_Run = tuple[int, int, int]  # row, start, stop


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
        if symbols.max(initial=0) >> tables.bits:
            raise InputError(f"stream: found symbol {symbols.max()}: over {tables.bits} bits")
    if library is None:
        return reference.encode(maps)
    chunks: list[tuple[Any, npt.NDArray[np.int32]]] = []
    for tables, symbols in maps:
        _add_chunks(chunks, tables, symbols)
    coder = library.stack.AnsCoder()
    write = coder.encode_reverse
    for model, ranks in reversed(chunks):
        write(ranks, model)
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


@dataclass(frozen=True, eq=False)
class _Models:
    """Tables as the library takes them.

    Attributes:
        models: For each row one of the library's.
        ranks: int32 (R times A): the place in its row of each symbol, or of the escape.
        symbols: For each row uint8: the symbol at each place; 0 for the escape.
        escapes: int32 (R,): the place of the escape; -1 where there is none.
        plain: The model of what was escaped.
        levels: uint8 (2, 1021): 1 + the level of a sum, for corners and for sides.
    """

    models: tuple[Any, ...]
    ranks: npt.NDArray[np.int32]
    symbols: tuple[Bytes, ...]
    escapes: npt.NDArray[np.int32]
    plain: Any
    levels: Bytes

    @property
    def has_escapes(self) -> bool:
        return bool((self.escapes >= 0).any())


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over a map of one shape.

    Attributes:
        places: Flat indices of its symbols; in the first pass in the order of the stream.
        channels: The channel of each.
        rows: The row of each, for the first pass.
        runs: (row, start, stop) of each row's symbols, for the first pass.
    """

    places: Ints
    channels: Ints
    rows: Ints
    runs: tuple[_Run, ...]


def _check(tables: Tables, shape: Sequence[int]) -> None:
    if len(shape) != 3 or not 0 < shape[0] <= tables.num_channels:
        raise InputError(
            f"stream: found a map {tuple(shape)}, expected (C, H, W) of 1 to "
            f"{tables.num_channels} channels"
        )


def _add_chunks(
    chunks: list[tuple[Any, npt.NDArray[np.int32]]], tables: Tables, symbols: Bytes
) -> None:
    """Append each row's places in the order of the stream, and what is escaped."""
    own = _models(tables)
    flat = symbols.reshape(-1)
    for number, one in enumerate(_layout(tables, symbols.shape)):
        places, rows, runs = one.places, one.rows, one.runs
        if number:
            order, rows, runs = _by_context(tables, own, one, number, symbols)
            places = places.take(order)
        values = flat.take(places)
        ranks = own.ranks.take((rows << tables.bits) + values)
        for row, start, stop in runs:
            chunks.append((own.models[row], ranks[start:stop]))
        if own.has_escapes:
            escaped = values[ranks == own.escapes.take(rows)]
            if escaped.size:
                chunks.append((own.plain, escaped.astype(np.int32)))


def _read_map(coder: Any, tables: Tables, shape: Shape) -> Bytes:
    own = _models(tables)
    read = coder.decode
    symbols = np.empty(shape, np.uint8)
    symbols[:] = tables.centre[: shape[0], None, None]
    flat = symbols.reshape(-1)
    for number, one in enumerate(_layout(tables, shape)):
        places, rows, runs = one.places, one.rows, one.runs
        if number:
            order, rows, runs = _by_context(tables, own, one, number, symbols)
            places = places.take(order)
        if not runs:
            continue
        ranks = [read(own.models[row], stop - start) for row, start, stop in runs]
        found = [
            own.symbols[row].take(rank) for (row, _, _), rank in zip(runs, ranks, strict=True)
        ]
        values = np.concatenate(found)
        if own.has_escapes:
            escaped = np.concatenate(ranks) == own.escapes.take(rows)
            num_escaped = np.count_nonzero(escaped)
            if num_escaped:
                values[escaped] = read(own.plain, num_escaped)
        flat[places] = values
    return symbols


def _by_context(
    tables: Tables, own: _Models, one: _Pass, number: int, symbols: Bytes
) -> tuple[Ints, Ints, tuple[_Run, ...]]:
    """Return the order of a later pass's symbols, their rows in it, and each row's run."""
    sums = neighbour_sums(symbols, tables.centre[: len(symbols)])[number - 1]
    level = own.levels[number - 1].take(sums.reshape(-1).take(one.places))
    row = tables.row_of[one.channels, level]
    order = row.argsort(kind="stable")
    stops = np.bincount(row, minlength=len(own.models)).cumsum().tolist()
    starts = (0, *stops)
    runs = tuple(
        (k, start, stop)
        for k, (start, stop) in enumerate(zip(starts, stops, strict=False))
        if start < stop
    )
    return order, row.take(order).astype(np.int64), runs


@lru_cache(maxsize=64)
def _models(tables: Tables) -> _Models:
    assert library is not None
    num_symbols = 1 << tables.bits
    models, symbols = [], []
    ranks = np.empty((len(tables.frequencies), num_symbols), np.int32)
    escapes = np.full(len(tables.frequencies), -1, np.int32)
    for row, frequency in enumerate(tables.frequencies.astype(np.int64)):
        order = np.array([symbol for symbol, _, _ in reference.slots(frequency.tolist())])
        models.append(_model(frequency[order]))
        symbols.append(np.where(order < num_symbols, order, 0).astype(np.uint8))
        if frequency[-1]:
            escapes[row] = len(order) - 1
        ranks[row] = escapes[row]
        known = order[order < num_symbols]
        ranks[row, known] = np.flatnonzero(order < num_symbols)
    sums = np.arange(4 * 255 + 1)
    levels = [
        1 + number * tables.num_levels + np.searchsorted(edges, sums)
        for number, edges in enumerate(tables.edges)
    ]
    return _Models(
        models=tuple(models),
        ranks=ranks.reshape(-1),
        symbols=tuple(symbols),
        escapes=escapes,
        plain=_model(np.full(num_symbols, TOTAL >> tables.bits)),
        levels=np.stack(levels).astype(np.uint8),
    )


def _model(frequency: Ints) -> Any:
    assert library is not None
    return library.model.Categorical((256 * frequency - 1).astype(np.float32), perfect=False)


@lru_cache(maxsize=64)
def _layout(tables: Tables, shape: Shape) -> tuple[_Pass, ...]:
    """Return the passes over a map, the first in the order of the stream."""
    channels, height, width = shape
    pass_HW = passes((height, width)).reshape(-1)
    numbers = (0,) if tables.num_levels == 1 else (0, 1, 2)
    layout = []
    for number in numbers:
        place_P = (
            np.arange(height * width) if len(numbers) == 1 else np.flatnonzero(pass_HW == number)
        )
        places = (np.arange(channels)[:, None] * (height * width) + place_P).reshape(-1)
        channel = np.repeat(np.arange(channels), len(place_P))
        rows = tables.row_of[channel, 0].astype(np.int64)
        runs: tuple[_Run, ...] = ()
        if number == 0:
            order = rows.argsort(kind="stable")
            places, channel, rows = places[order], channel[order], rows[order]
            kinds, starts = np.unique(rows, return_index=True)
            stops = [*starts[1:].tolist(), len(rows)]
            runs = tuple(zip(kinds.tolist(), starts.tolist(), stops, strict=True))
        layout.append(_Pass(places=places, channels=channel, rows=rows, runs=runs))
    return tuple(layout)
