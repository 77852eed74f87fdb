"""What operators are in ONNX: ours, and torch's, read once per process.

``torch.onnx.export`` reads it from the source of some five hundred functions, anew for every
program: half a second each time, often more than all else that it does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
import torch

from isthmus.graph.integers import NAMESPACE
from isthmus.models.layers import BITS, levels
from isthmus.models.rounding import edges, scales
from isthmus.wire.formats import Magnitudes, find_format


@cache
def our_operators() -> dict[Any, Callable[..., Any]]:
    """Return what those of `isthmus.models.layers` are: integers with their scales, tables."""
    opset: Any = import_module("onnxscript").opset18
    onnx: Any = import_module("onnx")

    def rounded(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        return values(integers(x, scale, zero, bits), scale, zero, bits)

    def shifted(zero: Any, bits: int) -> Any:
        """Return the zero of uint8, which ONNX Runtime computes with on any processor."""
        least = _held(opset, np.int32(levels(bits)[0]))
        from_least = opset.Sub(opset.Cast(zero, to=onnx.TensorProto.INT32), least)
        return opset.Cast(from_least, to=onnx.TensorProto.UINT8)

    def integers(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        found = opset.QuantizeLinear(x, scale, shifted(zero, bits))
        if bits == BITS:
            return found
        low, high = levels(bits)
        return opset.Clip(found, *(_held(opset, np.uint8(end)) for end in (0, high - low)))

    def values(x: Any, scale: Any, zero: Any, bits: int = BITS) -> Any:
        return opset.DequantizeLinear(x, scale, shifted(zero, bits))

    def restored(weight: Any, scale_C: Any, bits: int = BITS) -> Any:
        del bits
        return opset.DequantizeLinear(weight, scale_C, axis=0)

    def distances(x_BLK: Any, weight_MK: Any) -> Any:
        x_B1LK = opset.Unsqueeze(x_BLK, _held(opset, [1]))
        off = opset.Sub(x_B1LK, opset.Unsqueeze(weight_MK, _held(opset, [1])))
        return opset.Neg(opset.ReduceL1(off, _held(opset, [-1]), keepdims=0))

    ops = getattr(torch.ops, NAMESPACE)
    return {
        ops.round_to_int8.default: rounded,
        ops.to_integers.default: integers,
        ops.from_integers.default: values,
        ops.from_int8.default: restored,
        ops.round_to_format.default: partial(_in_format, opset),
        ops.l1_distances.default: distances,
    }


def give_zeros(model: Any) -> None:
    """Give each reader of integer weights, in a model of onnx_ir, a copy of these with zeros.

    ONNX Runtime moves int8 weights by 128 where a processor would else add them up in 16 bits (see
    `isthmus.backends.onnxruntime`), and moves the zeros with them: one for each channel has to be
    there, and nobody else may read either, as another call of the layer would.
    """
    ir: Any = import_module("onnx_ir")
    tape = ir.tape.Tape(model.graph)
    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.const_value is None or len(node.inputs) > 2:
            continue
        for reader, index in list(node.outputs[0].uses()):
            name = f"{weight.name}.{reader.name}"
            own = tape.initializer(weight.const_value, name)
            zeros = np.zeros(weight.shape[0], np.int8)
            reads = own, node.inputs[1], tape.initializer(ir.tensor(zeros), f"{name}.zero")
            reader.replace_input_with(index, tape.op(node.op_type, reads, {"axis": 0}))
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]
    model.graph.sort()


def _in_format(opset: Any, x: Any, name: str) -> Any:
    """Do what `isthmus.models.rounding.round_to` does to samples (B, ...)."""
    form, hold = find_format(name), partial(_held, opset)
    size, num_values = opset.Abs(x), prod(x.shape[1:])
    if not form.block:
        found = _search(opset, size, edges(form), form.magnitudes())
        return opset.Mul(found, opset.Sign(x))
    block = min(form.block, max(num_values, 1))
    groups = -(-num_values // block)
    pads = hold([0, 0, 0, groups * block - num_values])
    size_BKV = opset.Reshape(opset.Pad(opset.Flatten(size), pads), hold([0, groups, block]))
    largest_BK1 = opset.ReduceMax(size_BKV, hold([-1]), keepdims=1)
    scale_BK1 = _search(opset, largest_BK1, *scales(form))
    found = _search(opset, opset.Div(size_BKV, scale_BK1), edges(form), form.magnitudes())
    flat = opset.Flatten(opset.Mul(found, scale_BK1))
    cut = opset.Slice(flat, hold([0]), hold([num_values]), hold([1]))
    return opset.Mul(opset.Reshape(cut, opset.Shape(x)), opset.Sign(x))


def _search(opset: Any, size: Any, above: Magnitudes, values: Magnitudes) -> Any:
    """Return the value that as many edges lie below: a binary search in a full tree of them."""
    depth, hold = len(above).bit_length(), partial(_held, opset)
    missing = 2**depth - 1 - len(above)
    edges = hold(np.pad(above, (0, missing), constant_values=np.inf))
    index: Any = hold(0)
    for step in (2**k for k in reversed(range(depth))):
        probe = opset.Gather(edges, opset.Add(index, hold(step - 1)))
        beyond = opset.GreaterOrEqual(size, probe)
        index = opset.Where(beyond, opset.Add(index, hold(step)), index)
    return opset.Gather(hold(np.pad(values, (0, missing), mode="edge")), index)


def _held(opset: Any, value: Any) -> Any:
    tensor: Any = import_module("onnxscript").ir.tensor
    return opset.Constant(value=tensor(np.asarray(value)))


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
