"""What torch's operators are in ONNX, read once per process.

``torch.onnx.export`` reads it from the source of some five hundred functions, anew for every
program: half a second each time, often more than all else that it does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import Any

try:
    from torch.onnx._internal.exporter import _registration
except ImportError:  # torch has moved it, and reads it every time
    _registration = None  # type: ignore[assignment]


@contextmanager
def read_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` use what it read before in this process."""
    registry: Any = getattr(_registration, "ONNXRegistry", None)
    read = getattr(registry, "from_torchlib", None)
    if read is None:
        yield
        return
    registry.from_torchlib = staticmethod(partial(_copied, read))
    try:
        yield
    finally:
        registry.from_torchlib = read


@cache
def _kept(read: Callable[..., Any], **options: int) -> Any:
    return read(**options)


def _copied(read: Callable[..., Any], **options: int) -> Any:
    """Return operators to which the exporter may add its caller's."""
    operators = copy(_kept(read, **options))
    operators.functions = {name: [*ways] for name, ways in operators.functions.items()}
    return operators
