"""The entropy stage in plain Python: the same streams as `isthmus.wire.stream`, byte for byte.

It serves where constriction has no wheel, and it is what to port to a microcontroller: integers
and loops, numpy for arrays only. A symbol takes it some microseconds.
"""

from collections.abc import Sequence

import numpy as np

from isthmus.errors import InputError
from isthmus.wire.tables import TOTAL, Bytes, Tables

_PRECISION = 24  # of which a table's 16 bits are the upper ones
_SHIFTS = (  # to the neighbours that the second and the third pass look at
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
)
_Slot = tuple[int, int, int]  # symbol, where it begins among 2**24, how wide it is
_Place = tuple[int, int, int, int]  # row, channel, line, column


def slots(frequency: Sequence[int]) -> list[_Slot]:
    """Lay out a row: the most frequent symbol first, of two alike the lower, the escape last."""
    *of_symbols, of_escape = (256 * int(count) for count in frequency)
    order = sorted(range(len(of_symbols)), key=lambda symbol: -of_symbols[symbol])
    widths = [(symbol, of_symbols[symbol]) for symbol in order] + [(len(of_symbols), of_escape)]
    laid, start = [], 0
    for symbol, width in widths:
        if width:
            laid.append((symbol, start, width))
            start += width
    return laid


def decode(
    maps: Sequence[tuple[Tables, tuple[int, int, int]]], data: bytes | memoryview
) -> tuple[Bytes, ...]:
    """Do what `isthmus.wire.stream.decode` does."""
    words = [int.from_bytes(data[k : k + 4], "little") for k in range(0, len(data), 4)]
    state = words.pop() if words else 0
    state = state << 32 | words.pop() if words else state

    def read(laid: Sequence[_Slot]) -> int:
        nonlocal state
        at = state & (1 << _PRECISION) - 1
        symbol, start, width = next(slot for slot in laid if at < slot[1] + slot[2])
        state = (state >> _PRECISION) * width + at - start
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        return symbol

    decoded = []
    for tables, shape in maps:
        laid = [slots(row) for row in tables.frequencies.tolist()]
        symbols = np.empty(shape, np.uint8)
        symbols[:] = tables.centre[: shape[0], None, None]
        for places in (_places(tables, symbols, number) for number in range(3)):
            found = [read(laid[row]) for row, *_ in places]
            for (_, *place), symbol in zip(places, found, strict=True):
                escaped = symbol == 1 << tables.bits
                symbols[tuple(place)] = read(_alike(tables.bits)) if escaped else symbol
        decoded.append(symbols)
    if state:
        raise InputError("stream: goes on after its last symbol; it is damaged or of other tables")
    return tuple(decoded)


def encode(maps: Sequence[tuple[Tables, Bytes]]) -> bytes:
    """Do what `isthmus.wire.stream.encode` does."""
    chosen: list[_Slot] = []
    for tables, symbols in maps:
        laid = [slots(row) for row in tables.frequencies.tolist()]
        for number in range(3):
            escaped = []
            for row, *place in _places(tables, symbols, number):
                symbol = int(symbols[tuple(place)])
                slot = next((slot for slot in laid[row] if slot[0] == symbol), laid[row][-1])
                chosen.append(slot)
                if slot[0] != symbol:
                    escaped.append(_alike(tables.bits)[symbol])
            chosen += escaped
    state, words = 0, []
    for _, start, width in reversed(chosen):
        if state >> 64 - _PRECISION >= width:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = state // width << _PRECISION | start + state % width
    words += [state & 0xFFFFFFFF, state >> 32]
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


def _alike(bits: int) -> list[_Slot]:
    return slots([TOTAL >> bits] * (1 << bits) + [0])


def _places(tables: Tables, symbols: Bytes, number: int) -> list[_Place]:
    """Return what a pass codes, in its order; the symbols of the passes before it are known."""
    channels, height, width = symbols.shape
    places = []
    for c, y, x in np.ndindex(channels, height, width):
        turn = 0 if tables.num_levels == 1 else (0, 2, 2, 1)[2 * (y % 2) + x % 2]
        if turn == number:
            level = _level(tables, symbols, (c, y, x), number) if number else 0
            places.append((int(tables.row_of[c, level]), c, y, x))
    return sorted(places, key=lambda place: place[0])


def _level(tables: Tables, symbols: Bytes, place: tuple[int, int, int], number: int) -> int:
    c, y, x = place
    total = 0
    for down, right in _SHIFTS[number - 1]:
        at_y, at_x = y + down, x + right
        if 0 <= at_y < symbols.shape[1] and 0 <= at_x < symbols.shape[2]:
            total += abs(int(symbols[c, at_y, at_x]) - int(tables.centre[c]))
    above = sum(total > edge for edge in tables.edges[number - 1].tolist())
    return 1 + (number - 1) * tables.num_levels + above
