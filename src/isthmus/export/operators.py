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

from isthmus.graph.integers import NAMESPACE
from isthmus.models.layers import BITS, levels


@cache
def our_operators() -> dict[Any, Callable[..., Any]]:
    """Return what those of `isthmus.models.layers` are: integers with their scales."""
    opset: Any = import_module("onnxscript").opset18
    onnx: Any = import_module("onnx")

    def rounded(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        found = opset.QuantizeLinear(x, scale, zero)
        if bits < BITS:
            found = opset.Clip(
                found, *(constant(end, onnx.TensorProto.INT8) for end in levels(bits))
            )
        return opset.DequantizeLinear(found, scale, zero)

    def shifted(zero: Any, bits: int) -> Any:
        """Return the zero of uint8, which ONNX Runtime computes with on any processor."""
        from_least = opset.Sub(
            opset.Cast(zero, to=onnx.TensorProto.INT32),
            constant(levels(bits)[0], onnx.TensorProto.INT32),
        )
        return opset.Cast(from_least, to=onnx.TensorProto.UINT8)

    def integers(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        found = opset.QuantizeLinear(x, scale, shifted(zero, bits))
        if bits == BITS:
            return found
        low, high = levels(bits)
        return opset.Clip(
            found, *(constant(end, onnx.TensorProto.UINT8) for end in (0, high - low))
        )

    def values(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        return opset.DequantizeLinear(x, scale, shifted(zero, bits))

    def constant(value: int, kind: int) -> Any:
        return opset.Constant(value=onnx.helper.make_tensor("", kind, [], [value]))

    def restored(weight: Any, scale_C: Any, bits: int = BITS) -> Any:
        del bits
        return opset.DequantizeLinear(weight, scale_C, axis=0)

    ops = getattr(torch.ops, NAMESPACE)
    return {
        ops.round_to_int8.default: rounded,
        ops.to_integers.default: integers,
        ops.from_integers.default: values,
        ops.from_int8.default: restored,
    }


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
