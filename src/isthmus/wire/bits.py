"""Symbols of 1 to 8 bits, packed without gaps.

Symbol i takes bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream, lowest bit first. Eight
symbols, one byte each, lie in a 64-bit word; three steps close the gaps in all words at once.
With 3 bits, highest bit to the left:

.. code-block:: none

    bytes    .....hhh.....ggg.....fff.....eee.....ddd.....ccc.....bbb.....aaa
    pairs    ..........hhhggg..........fffeee..........dddccc..........bbbaaa
    fours    ....................hhhgggfffeee....................dddcccbbbaaa
    all      ........................................hhhgggfffeeedddcccbbbaaa
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError

_WORD = np.dtype("<u8")


def pack_bits(symbols: npt.NDArray[np.uint8], bits: int) -> bytes:
    """Pack symbols and pad them to a whole byte with zeros.

    Args:
        symbols: uint8 of any shape, each below ``2**bits``.
        bits: 1 to 8.

    Returns:
        ``ceil(symbols.size * bits / 8)`` bytes.

    Raises:
        InputError: A symbol needs more bits.

    Example:
        >>> pack_bits(np.array([1, 2, 3], np.uint8), 3).hex()
        'd100'
    """
    if bits == 8:
        return symbols.tobytes()
    largest = int(symbols.max(initial=0))
    if largest >> bits:
        raise InputError(f"found symbol {largest}, expected 0 to {(1 << bits) - 1}: {bits} bits")
    padded = np.zeros(-(-symbols.size // 8) * 8, np.uint8)
    padded[: symbols.size] = symbols.reshape(-1)
    words = padded.view(_WORD)
    for low, high, gap in _steps(bits):
        upper = words & high
        upper >>= gap
        words &= low
        words |= upper
    packed = np.empty((len(words), bits), np.uint8)
    _copy(words.view(np.uint8).reshape(-1, 8), packed, bits)
    return packed.reshape(-1)[: _num_bytes(symbols.size, bits)].tobytes()


def unpack_bits(data: bytes | memoryview, count: int, bits: int) -> npt.NDArray[np.uint8]:
    """Restore what `pack_bits` packed.

    Args:
        data: ``ceil(count * bits / 8)`` bytes, whatever they hold.
        count: Number of symbols.
        bits: 1 to 8.

    Returns:
        The symbols, flat, each below ``2**bits``.

    Raises:
        InputError: ``data`` has another length.
    """
    if len(data) != _num_bytes(count, bits):
        raise InputError(
            f"found {len(data)} bytes, expected {_num_bytes(count, bits)} for {count} symbols "
            f"of {bits} bits"
        )
    num_words = -(-count // 8)
    packed = np.zeros(num_words * bits, np.uint8)
    packed[: len(data)] = np.frombuffer(data, np.uint8)
    spread = np.zeros((num_words, 8), np.uint8)
    _copy(packed.reshape(-1, bits), spread, bits)
    words = spread.reshape(-1).view(_WORD)
    for low, high, gap in reversed(list(_steps(bits))):
        upper = words << gap
        upper &= high
        words &= low
        words |= upper
    return words.view(np.uint8)[:count]


def _copy(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], bits: int) -> None:
    """Copy the first bytes of each row; numpy is slow with runs of so few."""
    for column in range(bits):
        target[:, column] = source[:, column]


def _num_bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def _steps(bits: int) -> Iterator[tuple[np.uint64, np.uint64, np.uint64]]:
    """Yield, for pairs, fours and all: masks of the lower and upper runs, and the gap between."""
    for run, lane in ((bits, 8), (2 * bits, 16), (4 * bits, 32)):
        low = sum(((1 << run) - 1) << start for start in range(0, 64, 2 * lane))
        yield np.uint64(low), np.uint64(low << lane), np.uint64(lane - run)
