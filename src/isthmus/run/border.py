"""Samples at the bundle's border as bytes: little-endian arrays, one after the other."""

from collections.abc import Sequence
from math import prod

import numpy as np

from isthmus.backends import Array, TensorSpec
from isthmus.errors import RunError


def to_bytes(arrays: Sequence[Array], tensors: Sequence[TensorSpec]) -> bytes:
    """Return one sample's arrays as bytes.

    Args:
        arrays: One for each tensor, without a batch.
        tensors: What is expected.

    Raises:
        RunError: Another number of arrays, another shape or dtype.
    """
    found = [(x.shape, x.dtype.name) if hasattr(x, "shape") else type(x).__name__ for x in arrays]
    expected = [(tensor.shape, tensor.dtype) for tensor in tensors]
    if found != expected:
        raise RunError(f"sample: found {found}, expected {expected}")
    return b"".join(
        np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays
    )


def from_bytes(data: bytes | memoryview, tensors: Sequence[TensorSpec]) -> tuple[Array, ...]:
    """Return the arrays that `to_bytes` joined, read-only.

    Raises:
        RunError: Too many bytes, or too few.
    """
    sizes = [prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in tensors]
    if len(data) != sum(sizes):
        raise RunError(f"sample: found {len(data)} bytes, expected {sum(sizes)}")
    arrays, start = [], 0
    for tensor, size in zip(tensors, sizes, strict=True):
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        flat = np.frombuffer(data, dtype, count=prod(tensor.shape), offset=start)
        arrays.append(flat.astype(tensor.dtype, copy=False).reshape(tensor.shape))
        start += size
    return tuple(arrays)
