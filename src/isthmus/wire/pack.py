"""Symbols to payload and back, one sample at a time, on both sides of a link."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire import nested, stream
from isthmus.wire.bits import pack_bits, unpack_bits
from isthmus.wire.images import decode_png, encode_png
from isthmus.wire.spec import CodecSpec, WireTensor
from isthmus.wire.tables import Tables, as_map, from_map, map_shape, split_tables


def pack(
    spec: CodecSpec,
    symbols: Sequence[npt.NDArray[np.generic] | np.generic],
    tables: Sequence[Tables] = (),
    *,
    width: nested.Width | None = None,
) -> bytes:
    """Make the payload of one sample.

    With tables it is the packed symbols of what they do not code, then the stream of what they
    do, where that is shorter than all packed: the length tells the two apart.

    Args:
        spec: The codec.
        symbols: What the sender emits: arrays as ``spec.wire_tensors`` says, without the batch.
        tables: Those of an entropy-coded codec that has been fitted, for each float tensor.
        width: Of a nested codec: what this payload is to take; None is the widest.

    Returns:
        The payload: ``spec.payload_bytes`` of it where the rate is fixed.

    Raises:
        InputError: An array of another shape or dtype, a symbol out of range, or a width that the
            codec does not have.
    """
    arrays = [np.asarray(symbol) for symbol in symbols]
    expected = [(tensor.shape, tensor.dtype) for tensor in spec.wire_tensors]
    found = [(array.shape, array.dtype.name) for array in arrays]
    if found != expected:
        raise InputError(f"codec {spec.name}: found symbols {found}, expected {expected}")
    if spec.name == "png":
        return encode_png(arrays[0])
    if width is not None or spec.nested:
        return _pack_nested(spec, arrays, tables, width or nested.widths(spec)[0])
    if tables:
        payload = _encode(spec, arrays, tables)
        if len(payload) < spec.max_payload_bytes:
            return payload
    return b"".join(map(_pack_tensor, spec.wire_tensors, arrays))


def unpack(
    spec: CodecSpec, payload: bytes | memoryview, tables: Sequence[Tables] = ()
) -> tuple[npt.NDArray[np.generic], ...]:
    """Restore the symbols of one sample from any bytes at all.

    Args:
        spec: The codec.
        payload: What arrived.
        tables: Those that it was packed with.

    Returns:
        Arrays as ``spec.wire_tensors`` says, without the batch, every symbol in range.

    Raises:
        InputError: The payload cannot have come from this codec.
    """
    if spec.nested:
        return _unpack_nested(spec, payload, tables)
    if len(payload) > spec.max_payload_bytes or (
        spec.fixed_rate and len(payload) < spec.max_payload_bytes
    ):
        raise InputError(
            f"codec {spec.name}: found a payload of {len(payload)} bytes, expected "
            f"{'' if spec.fixed_rate else 'at most '}{spec.max_payload_bytes}"
        )
    if spec.name == "png":
        return (decode_png(payload, spec.shapes[0]),)
    if spec.entropy and len(payload) < spec.max_payload_bytes:
        return _decode(spec, payload, tables)
    arrays = []
    start = 0
    for tensor in spec.wire_tensors:
        stop = start + tensor.payload_bytes
        arrays.append(_unpack_tensor(tensor, payload[start:stop]))
        start = stop
    if spec.name == "label" and not 0 <= int(arrays[0]) < spec.shapes[0][0]:
        raise InputError(f"codec label: found {arrays[0]}, expected 0 to {spec.shapes[0][0] - 1}")
    return tuple(arrays)


def read_tables(path: Path, spec: CodecSpec) -> tuple[Tables, ...]:
    """Read the tables of a codec from a file of `isthmus.wire.tables.join_tables`.

    Raises:
        InputError: They cannot be read, or are not for this codec.
    """
    try:
        tables = split_tables(path.read_bytes())
        check_tables(spec, tables)
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {error}") from error
    return tables


def check_tables(spec: CodecSpec, tables: Sequence[Tables]) -> None:
    """Refuse tables that are not for the tensors that a codec codes.

    Raises:
        InputError: Other tables.
    """
    expected = [(tensor.bits, map_shape(tensor.shape)[0]) for tensor in spec.coded_tensors]
    found = [(one.bits, one.num_channels) for one in tables]
    if found != expected:
        raise InputError(
            f"codec {spec.name}: found tables of (bits, channels) {found}, expected {expected}; "
            "fit the codec anew"
        )


def _pack_nested(
    spec: CodecSpec,
    arrays: Sequence[npt.NDArray[Any]],
    tables: Sequence[Tables],
    width: nested.Width,
) -> bytes:
    narrow = nested.at_width(spec, width)
    triples = zip(arrays, spec.wire_tensors, narrow.wire_tensors, strict=True)
    symbols = [nested.narrowed(array, a, b) for array, a, b in triples]
    return nested.width_byte(spec, width) + pack(narrow, symbols, _tables_at(spec, narrow, tables))


def _unpack_nested(
    spec: CodecSpec, payload: bytes | memoryview, tables: Sequence[Tables]
) -> tuple[npt.NDArray[np.generic], ...]:
    narrow = nested.at_width(spec, nested.read_width(spec, payload))
    symbols = unpack(narrow, payload[1:], _tables_at(spec, narrow, tables))
    triples = zip(symbols, spec.wire_tensors, narrow.wire_tensors, strict=True)
    return tuple(nested.widened(array, a, b) for array, a, b in triples)


def _tables_at(spec: CodecSpec, narrow: CodecSpec, tables: Sequence[Tables]) -> tuple[Tables, ...]:
    if not tables:
        return ()
    check_tables(spec, tables)
    return nested.tables_at(tables, spec.coded_tensors, narrow.coded_tensors)


def _encode(
    spec: CodecSpec, arrays: Sequence[npt.NDArray[Any]], tables: Sequence[Tables]
) -> bytes:
    check_tables(spec, tables)
    triples = list(zip(spec.wire_tensors, spec.coded, arrays, strict=True))
    plain = [_pack_tensor(tensor, array) for tensor, coded, array in triples if not coded]
    maps = [as_map(array) for _, coded, array in triples if coded]
    return b"".join((*plain, stream.encode(list(zip(tables, maps, strict=True)))))


def _decode(
    spec: CodecSpec, payload: bytes | memoryview, tables: Sequence[Tables]
) -> tuple[npt.NDArray[np.generic], ...]:
    check_tables(spec, tables)
    arrays: list[npt.NDArray[np.generic] | None] = []
    shapes = []
    start = 0
    for tensor, coded in zip(spec.wire_tensors, spec.coded, strict=True):
        if coded:
            shapes.append(map_shape(tensor.shape))
            arrays.append(None)
            continue
        stop = start + tensor.payload_bytes
        if stop > len(payload):
            raise InputError(
                f"codec {spec.name}: found a payload of {len(payload)} bytes, expected {stop} or "
                "more"
            )
        arrays.append(_unpack_tensor(tensor, payload[start:stop]))
        start = stop
    maps = iter(stream.decode(list(zip(tables, shapes, strict=True)), payload[start:]))
    return tuple(
        from_map(next(maps), tensor.shape) if array is None else array
        for array, tensor in zip(arrays, spec.wire_tensors, strict=True)
    )


def _pack_tensor(tensor: WireTensor, array: npt.NDArray[np.generic]) -> bytes:
    if tensor.dtype == "uint8":
        return pack_bits(array.astype(np.uint8, copy=False), tensor.bits)
    return array.astype(_little_endian(tensor), copy=False).tobytes()


def _unpack_tensor(tensor: WireTensor, data: bytes | memoryview) -> npt.NDArray[np.generic]:
    flat: npt.NDArray[np.generic]
    if tensor.dtype == "uint8":
        flat = unpack_bits(data, tensor.num_elements, tensor.bits)
    else:
        flat = np.frombuffer(data, _little_endian(tensor)).astype(tensor.dtype)
    return flat.reshape(tensor.shape)


def _little_endian(tensor: WireTensor) -> np.dtype[np.generic]:
    return np.dtype(tensor.dtype).newbyteorder("<")
