"""Arrays of weights in the fewest bytes that give them back bit for bit.

What an array holds says how it is stored: whatever is left out, shared or rounded makes it
shorter, and nobody has to say so. Each of these is tried and the shortest kept:

.. code-block:: none

    plain      the values as they are in memory
    half       float32 that float16 holds exactly: 2 bytes each
    bfloat16   float32 whose lower 16 bits are 0: the upper ones
    packed     up to 256 different values: these, then for each element its number among them
    coded      the same, the numbers entropy-coded: see `isthmus.wire.stream`
    bitmask-*  a bit for each element, then those that are not 0 in one of the forms above
    codemask-* the same, the bits entropy-coded
    csr-*      for each row how many are not 0, their columns, then the values as above

References:
    Han, Mao, Dally, "Deep Compression", ICLR 2016, https://arxiv.org/abs/1510.00149 (numbers of
    shared values, entropy-coded).
"""

import struct
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire.bits import pack_bits, unpack_bits
from isthmus.wire.stream import decode as decode_stream
from isthmus.wire.stream import encode as encode_stream
from isthmus.wire.tables import Tables, fit_tables

Array = npt.NDArray[Any]

DTYPES = ("float32", "int8")
MAX_ELEMENTS = 1 << 31
_MOST_VALUES = 256
_COUNT = struct.Struct("<H")  # of different values, less one
_LENGTH = struct.Struct("<I")
_COLUMNS = (np.uint8, np.uint16, np.uint32)


def encode_array(array: Array) -> tuple[str, bytes]:
    """Write an array in its shortest form.

    Args:
        array: float32 or int8, of any shape.

    Returns:
        The name of the form and the bytes; `decode_array` takes both.

    Example:
        >>> form, data = encode_array(np.array([0, 0, 0, 0, 0, 0, 0, 1.5], np.float32))
        >>> form, len(data)
        ('bitmask-half', 3)
    """
    return min(_forms(array), key=lambda found: len(found[1]))


def _forms(array: Array) -> Iterator[tuple[str, bytes]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    yield from _dense(flat)
    kept = _bits(flat) != 0  # -0.0 is kept
    if kept.all() or not array.ndim:
        return
    values = list(_dense(flat[kept]))
    mask = np.packbits(kept, bitorder="little").tobytes()
    yield from ((f"bitmask-{form}", mask + data) for form, data in values)
    mask = _coded(kept.astype(np.uint8), 1)
    mask = _LENGTH.pack(len(mask)) + mask
    yield from ((f"codemask-{form}", mask + data) for form, data in values)
    rows = kept.reshape(len(array), -1)
    columns = np.nonzero(rows)[1].astype(_column(rows.shape[1]))
    index = rows.sum(axis=1).astype("<u4").tobytes() + columns.tobytes()
    yield from ((f"csr-{form}", index + data) for form, data in values)


def _dense(flat: Array) -> Iterator[tuple[str, bytes]]:
    """Yield every form of values without a mask."""
    yield "plain", flat.tobytes()
    if flat.dtype == np.float32:
        yield from _halved(flat)
    bits = _bits(flat)
    values, symbols = np.unique(bits, return_inverse=True)
    if not flat.size or len(values) > _MOST_VALUES:
        return
    width = max(1, (len(values) - 1).bit_length())
    numbers = symbols.astype(np.uint8)
    head = _COUNT.pack(len(values) - 1) + values.tobytes()
    yield "packed", head + pack_bits(numbers, width)
    yield "coded", head + _coded(numbers, width)


def _coded(numbers: Array, width: int) -> bytes:
    """Return numbers of so many bits, entropy-coded, behind the tables that were made of them."""
    tables = fit_tables(numbers.reshape(-1, 1, 1, 1), width)
    written = tables.to_bytes()
    stream = encode_stream([(tables, numbers.reshape(1, 1, -1))])
    return _LENGTH.pack(len(written)) + written + stream


def _decoded(data: bytes, size: int) -> Array:
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    tables = Tables.from_bytes(data[_LENGTH.size : start])
    (numbers,) = decode_stream([(tables, (1, 1, size))], data[start:])
    return numbers.reshape(-1)


def _halved(flat: Array) -> Iterator[tuple[str, bytes]]:
    with np.errstate(over="ignore"):
        half = flat.astype(np.float16)
    if (_bits(half.astype(np.float32)) == _bits(flat)).all():
        yield "half", half.tobytes()
    if not (_bits(flat) & 0xFFFF).any():
        yield "bfloat16", (_bits(flat) >> 16).astype("<u2").tobytes()


def decode_array(form: str, data: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    """Restore what `encode_array` wrote, from any bytes at all.

    Args:
        form: The name of the form.
        data: The bytes.
        shape: Of the array.
        dtype: ``"float32"`` or ``"int8"``.

    Returns:
        The array, the same bits.

    Raises:
        InputError: No such form, or bytes that it cannot have written.
    """
    size = prod(shape)
    if dtype not in DTYPES or min(shape, default=0) < 0 or size > MAX_ELEMENTS:
        raise InputError(f"array: found {dtype} {shape}, expected {' or '.join(DTYPES)}")
    outer, _, inner = form.rpartition("-")
    try:
        if not outer:
            return _undense(inner, data, size, dtype).reshape(shape)
        kept, rest = _MASKS[outer](data, shape)
        flat = np.zeros(size, dtype)
        flat[kept] = _undense(inner, rest, int(np.count_nonzero(kept)), dtype)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        line = str(error) if isinstance(error, InputError) else type(error).__name__
        raise InputError(
            f"array: {len(data)} bytes are no {dtype} {shape} in form {form!r} ({line})"
        ) from error
    return flat.reshape(shape)


def _undense(form: str, data: bytes, size: int, dtype: str) -> Array:
    if form == "plain":
        return _exactly(data, dtype, size).copy()
    if form == "half":
        return _exactly(data, "<f2", size).astype(dtype)
    if form == "bfloat16":
        return (_exactly(data, "<u2", size).astype(np.uint32) << 16).view(dtype)
    if form not in ("packed", "coded"):
        raise KeyError(form)
    (last,) = _COUNT.unpack_from(data)
    start = _COUNT.size + (last + 1) * np.dtype(dtype).itemsize
    values = _exactly(data[_COUNT.size : start], dtype, last + 1)
    width = max(1, last.bit_length())
    if form == "packed":
        return values[unpack_bits(data[start:], size, width)]
    return values[_decoded(data[start:], size)]


def _unmask(data: bytes, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.bool_], bytes]:
    size = prod(shape)
    length = -(-size // 8)
    mask = _exactly(data[:length], np.uint8, length)
    return np.unpackbits(mask, count=size, bitorder="little").astype(bool), data[length:]


def _unmask_coded(data: bytes, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.bool_], bytes]:
    (length,) = _LENGTH.unpack_from(data)
    stop = _LENGTH.size + length
    return _decoded(data[_LENGTH.size : stop], prod(shape)) == 1, data[stop:]


def _unrow(data: bytes, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.bool_], bytes]:
    rows, width = shape[0], prod(shape[1:])
    counts = _exactly(data[: 4 * rows], "<u4", rows)
    column = np.dtype(_column(width))
    start = 4 * rows + int(counts.sum(dtype=np.int64)) * column.itemsize
    columns = _exactly(data[4 * rows : start], column, int(counts.sum(dtype=np.int64)))
    kept = np.zeros((rows, width), bool)
    kept[np.repeat(np.arange(rows), counts), columns] = True
    return kept.reshape(-1), data[start:]


_MASKS = {"bitmask": _unmask, "codemask": _unmask_coded, "csr": _unrow}


def _exactly(data: bytes, dtype: Any, count: int) -> Array:
    found = np.frombuffer(data, dtype)
    if len(found) != count:
        raise InputError(f"found {len(found)} values, expected {count}")
    return found


def _bits(flat: Array) -> Array:
    """Return values as the integers that their bits are."""
    return flat.view(f"<u{flat.dtype.itemsize}")


def _column(width: int) -> Any:
    return next(kind for kind in _COLUMNS if width <= np.iinfo(kind).max + 1)
