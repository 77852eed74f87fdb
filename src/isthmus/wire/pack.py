"""Symbols to payload and back, one sample at a time, on both sides of a link."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire.bits import pack_bits, unpack_bits
from isthmus.wire.spec import CodecSpec, WireTensor


def pack(spec: CodecSpec, symbols: Sequence[npt.NDArray[np.generic] | np.generic]) -> bytes:
    """Make the payload of one sample.

    Args:
        spec: The codec.
        symbols: What the sender emits: arrays as ``spec.wire_tensors`` says, without the batch.

    Returns:
        The payload: ``spec.payload_bytes`` of it where the rate is fixed.

    Raises:
        InputError: An array of another shape or dtype, or a symbol out of range.
    """
    arrays = [np.asarray(symbol) for symbol in symbols]
    expected = [(tensor.shape, tensor.dtype) for tensor in spec.wire_tensors]
    found = [(array.shape, array.dtype.name) for array in arrays]
    if found != expected:
        raise InputError(f"codec {spec.name}: found symbols {found}, expected {expected}")
    if spec.name == "png":
        return _images().encode_png(arrays[0])
    return b"".join(map(_pack_tensor, spec.wire_tensors, arrays))


def unpack(spec: CodecSpec, payload: bytes | memoryview) -> tuple[npt.NDArray[np.generic], ...]:
    """Restore the symbols of one sample from any bytes at all.

    Args:
        spec: The codec.
        payload: What arrived.

    Returns:
        Arrays as ``spec.wire_tensors`` says, without the batch, every symbol in range.

    Raises:
        InputError: The payload cannot have come from this codec.
    """
    if len(payload) > spec.max_payload_bytes or (
        spec.fixed_rate and len(payload) < spec.max_payload_bytes
    ):
        raise InputError(
            f"codec {spec.name}: found a payload of {len(payload)} bytes, expected "
            f"{'' if spec.fixed_rate else 'at most '}{spec.max_payload_bytes}"
        )
    if spec.name == "png":
        return (_images().decode_png(payload, spec.shapes[0]),)
    arrays = []
    start = 0
    for tensor in spec.wire_tensors:
        stop = start + tensor.payload_bytes
        arrays.append(_unpack_tensor(tensor, payload[start:stop]))
        start = stop
    if spec.name == "label" and not 0 <= int(arrays[0]) < spec.shapes[0][0]:
        raise InputError(f"codec label: found {arrays[0]}, expected 0 to {spec.shapes[0][0] - 1}")
    return tuple(arrays)


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


def _images() -> ModuleType:
    try:
        from isthmus.wire import images  # noqa: PLC0415  Pillow is optional
    except ImportError as error:
        raise InputError('codec png needs Pillow: pip install "isthmus[fit]"') from error
    return images
