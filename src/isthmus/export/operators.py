"""What operators are in ONNX: ours, and torch's, read once per process.

``torch.onnx.export`` reads it from the source of some five hundred functions, anew for every
program: half a second each time, often more than all else that it does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch

from isthmus.models import layers  # it registers the operators


@cache
def our_operators() -> dict[Any, Callable[..., Any]]:
    """Return what those of `isthmus.models.layers` are: integers with their scales."""
    opset: Any = import_module("onnxscript").opset18

    def rounded(x: Any, scale: Any, zero: Any) -> Any:
        return opset.DequantizeLinear(opset.QuantizeLinear(x, scale, zero), scale, zero)

    def restored(weight: Any, scale_C: Any) -> Any:
        return opset.DequantizeLinear(weight, scale_C, axis=0)

    ops = getattr(torch.ops, layers.NAMESPACE)
    return {ops.round_to_int8.default: rounded, ops.from_int8.default: restored}


@contextmanager
def read_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` use what it read before in this process."""
    try:  # takes a second to load, which only who exports should wait for
        module: Any = import_module("torch.onnx._internal.exporter._registration")
        registry = module.ONNXRegistry
        read = registry.from_torchlib
    except (ImportError, AttributeError):  # torch has moved it, and reads it every time
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
