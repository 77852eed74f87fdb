"""Pickled batches of images, read without running anything.

A pickle may name any function and have it called. Here it can name four: those by which numpy
stores an array, and each is replaced by a stand-in that only keeps bytes.
"""

import io
import pickle
from typing import Any

import numpy as np

from isthmus.errors import InputError


def read_pickled(data: bytes, *, where: str) -> dict[str, Any]:
    """Read a pickled dictionary of numbers, text, lists and uint8 arrays.

    Args:
        data: The file; text of Python 2 comes back as bytes.
        where: Names the file in errors.

    Returns:
        The dictionary, its keys as text.

    Raises:
        InputError: Damaged, or it asks for anything else.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__}")
        return {
            text(key): value.values if isinstance(value, _Array) else value
            for key, value in batch.items()
        }
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{where}: cannot be read ({reason}); expected the published pickle: "
            "a dictionary of lists, text, numbers and one uint8 array"
        ) from error


def text(value: bytes | str) -> str:
    """Return text of Python 2 or 3 as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class _Dtype:
    """Stands for numpy.dtype: its code, such as ``u1``."""

    def __init__(self, code: bytes | str, align: int, copy: int) -> None:
        del align, copy
        self.code = text(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Ignore byte order and fields: a byte has none."""


class _Array:
    """Stands for numpy.ndarray: the values, once the pickle has given them."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, columns_first, raw = state
        if dtype.code != "u1":
            raise pickle.UnpicklingError(f"an array of {dtype.code}")
        values = np.frombuffer(raw, np.uint8)
        self.values = values.reshape(shape, order="F" if columns_first else "C")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes | str) -> _Array:
    del kind, shape, code
    return _Array()


def _encode(latin: str, codec: str) -> bytes:
    """Stand for codecs.encode, by which Python 3 writes bytes as Python 2 can read them."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes as {codec}")
    return latin.encode("latin1")


_ADMITTED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # written by numpy 2
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]
