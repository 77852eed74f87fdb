"""From a program of integers in ONNX, where floats stand between, to integer steps alone.

The program holds each tensor of integers as a QuantizeLinear and a DequantizeLinear. Here a float
is never computed: it is known as levels and their step, both followed through the layers until the
next QuantizeLinear, where all steps on the way become one multiplier (``normalize`` of
`isthmus.export.integers`).

Shapes: C channels, M channels that a layer makes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from isthmus.errors import CaptureError
from isthmus.export.integers import Array, Step, Steps, fixed_point

_INT32 = (1 << 31) - 1
_INT64 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Input:
    """What comes in, as it is: floats, or bytes that crossed."""

    name: str
    floats: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """Levels of at most so much; each stands for ``scale``, which is (C,) along an axis or ()."""

    name: str
    scale: Array
    most: int
    axis: int = 1


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Levels as they are stored, beside the integer that stands for 0."""

    term: _Term
    zero: int


@dataclass(frozen=True, slots=True)
class _Weight:
    """Levels of a weight (M, ...), and the step of each channel, (M,)."""

    levels: Array
    scale: Array


@dataclass(frozen=True, slots=True)
class _Sum:
    """Values: a sum of terms, from 0 up where a ReLU follows."""

    terms: tuple[_Term, ...]
    positive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """An operation in ONNX: what it reads, as far as that is known, and its options.

    The options ``read`` and ``made`` are the shapes of its first input and its output; sizes that
    are not known are 0.
    """

    reads: Sequence[Any]
    options: Mapping[str, Any]

    def read(self, index: int = 0, *, even: bool = False) -> _Term | None:
        """Return an input that is one term; ``even``: of one step for all channels."""
        value = self.reads[index]
        if not isinstance(value, _Sum) or len(value.terms) > 1 or value.positive:
            return None
        (term,) = value.terms
        return None if even and term.scale.size > 1 else term


@dataclass(frozen=True, slots=True)
class _Program:
    """What was written so far."""

    steps: list[Step] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)

    def add(self, kind: str, reads: Sequence[str], *, tensors: Any = (), **options: Any) -> str:
        """Write a step; return the name of what it makes."""
        name = f"{kind}{len(self.steps)}"
        for key, x in dict(tensors).items():
            self.tensors[f"{name}.{key}"] = np.ascontiguousarray(x)
        whole = {key: tuple(map(int, each)) for key, each in options.items()}
        self.steps.append(Step(kind=kind, reads=tuple(reads), makes=name, options=whole))
        return name

    def change(self, kind: str, term: _Term | None, **options: Any) -> _Sum | None:
        """Write a step that leaves the scale of a term as it is."""
        if term is None:
            return None
        return _Sum((replace(term, name=self.add(kind, [term.name], **options)),))


def lower(path: Path) -> tuple[Steps, dict[str, Array]]:
    """Return a program in ONNX as integer steps, and their tensors.

    Raises:
        CaptureError: Something in it is not computed in integers, or its sums leave 32 bits; names
            what.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    program = _Program()
    values: dict[str, Any] = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    inputs = [x for x in graph.input if x.name not in values]
    for x in inputs:
        values[x.name] = _Input(x.name, x.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    shapes = {
        x.name: tuple(size.dim_value for size in x.type.tensor_type.shape.dim)
        for x in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        options = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        options["made"] = shapes.get(node.output[0], ())
        options["read"] = shapes.get(node.input[0], ()) if node.input else ()
        rule = _RULES.get(node.op_type)
        reads = [values[name] for name in node.input if name]
        found = rule and rule(program, _Node(reads=reads, options=options))
        if found is None:
            raise CaptureError(f"{node.op_type} {node.output[0]} is not computed in integers")
        values[node.output[0]] = found
    outputs = [_output(program, values[x.name]) for x in graph.output]
    names = tuple(x.name for x in inputs)
    return Steps(inputs=names, steps=tuple(program.steps), outputs=tuple(outputs)), program.tensors


def _output(program: _Program, value: Any) -> str:
    """Return the name of what leaves: bytes of levels, floats of values."""
    if isinstance(value, _Bytes):
        return program.add("bytes", [value.term.name], by=[value.zero])
    term = _Node(reads=[value], options={}).read()
    if term is None:
        raise CaptureError("an output is not computed in integers")
    scale = np.float32(np.atleast_1d(term.scale))
    return program.add("restore", [term.name], tensors={"scale": scale}, axis=[term.axis])


def _quantize(program: _Program, node: _Node) -> _Bytes | None:
    value, scale, zero = node.reads[0], float(node.reads[1]), int(node.reads[2])
    limits = -zero, 255 - zero
    if isinstance(value, _Input) and value.floats:
        tensors = {"scale": np.float32(scale)}
        name = program.add("quantize", [value.name], tensors=tensors, limits=limits)
    elif isinstance(value, _Sum):
        ratios = [np.atleast_1d(term.scale / scale) for term in value.terms]
        multiplier, shift = fixed_point(np.stack(np.broadcast_arrays(*ratios)))
        largest = multiplier.max(axis=1).tolist()
        most = sum(term.most * m for term, m in zip(value.terms, largest, strict=True))
        axes = {term.axis for term in value.terms if term.scale.size > 1} or {1}
        if len(axes) > 1 or most > _INT64 >> 1:  # room for a half
            return None
        name = program.add(
            "normalize",
            [term.name for term in value.terms],
            tensors={"multiplier": multiplier, "shift": shift},
            axis=axes,
            limits=(0, limits[1]) if value.positive else limits,
        )
    else:
        return None
    return _Bytes(_Term(name=name, scale=np.array(scale), most=max(zero, 255 - zero)), zero)


def _dequantize(program: _Program, node: _Node) -> _Weight | _Sum | None:
    value, scale = node.reads[0], node.reads[1].astype(np.float64)
    if isinstance(value, np.ndarray):
        return _Weight(value, scale)
    if isinstance(value, _Input) and not value.floats:
        zero = int(node.reads[2])
        name = program.add("offset", [value.name], by=[-zero])
        return _Sum((_Term(name=name, scale=scale, most=max(zero, 255 - zero)),))
    return _Sum((value.term,)) if isinstance(value, _Bytes) else None


def _clip(program: _Program, node: _Node) -> _Bytes | _Sum | None:
    if len(node.reads) < 3:  # one of its two ends is left out
        return None
    value, low, high = node.reads[0], float(node.reads[1]), float(node.reads[2])
    if isinstance(value, _Bytes):  # a grid of fewer bits
        limits = int(low) - value.zero, int(high) - value.zero
        name = program.add("clamp", [value.term.name], limits=limits)
        return _Bytes(replace(value.term, name=name, most=max(map(abs, limits))), value.zero)
    term = node.read(even=True)
    if term is None or low != 0:
        return None
    return program.change("clamp", term, limits=(0, round(high / float(term.scale))))


def _conv(program: _Program, node: _Node) -> _Sum | None:
    window = _window(node.options)
    del window["kernel"]
    return _layer(program, "conv", node, axis=1, groups=[node.options["group"]], **window)


def _gemm(program: _Program, node: _Node) -> _Sum | None:
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if any(node.options.get(name, 0) != value for name, value in plain.items()):
        return None
    return _layer(program, "linear", node, axis=-1)


def _layer(program: _Program, kind: str, node: _Node, *, axis: int, **options: Any) -> _Sum | None:
    """Write a layer: its bias in steps of what it adds up, which 32 bits have to hold."""
    term, weight, *bias = node.read(even=True), *node.reads[1:]
    if term is None or not isinstance(weight, _Weight):
        return None
    scale_M = np.broadcast_to(term.scale * weight.scale, len(weight.levels))
    bias_M = np.rint(bias[0] / scale_M) if bias else np.zeros(len(scale_M))
    sums_M = np.abs(np.int64(weight.levels)).reshape(len(scale_M), -1).sum(axis=1) * term.most
    most = int((sums_M + np.abs(bias_M)).max())
    if most > _INT32:
        raise CaptureError(f"the sums of a layer reach {most}, expected what 32 bits hold")
    tensors = {"weight": weight.levels, "bias": np.int32(bias_M)}
    name = program.add(kind, [term.name], tensors=tensors, **options)
    return _Sum((_Term(name=name, scale=scale_M, most=most, axis=axis),))


def _window(options: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Return how the windows of a layer lie."""
    if options.get("auto_pad", b"NOTSET") != b"NOTSET" or options.get("ceil_mode"):
        raise CaptureError("the size of an input decides how windows lie")
    kernel = options["kernel_shape"]
    return {
        "kernel": kernel,
        "stride": options.get("strides", [1] * len(kernel)),
        "padding": options.get("pads", [0] * 2 * len(kernel)),
        "dilation": options.get("dilations", [1] * len(kernel)),
    }


def _relu(program: _Program, node: _Node) -> _Sum | None:
    if (term := node.read()) is not None:
        return program.change("clamp", term, limits=(0, _INT32))
    return replace(node.reads[0], positive=True) if isinstance(node.reads[0], _Sum) else None


def _add(program: _Program, node: _Node) -> _Sum | None:
    del program
    if any(not isinstance(x, _Sum) or x.positive for x in node.reads):
        return None
    return _Sum(tuple(term for x in node.reads for term in x.terms))


def _max_pool(program: _Program, node: _Node) -> _Sum | None:
    return program.change("max_pool", node.read(), **_window(node.options))


def _average_pool(program: _Program, node: _Node) -> _Sum | None:
    window = _window(node.options)
    term = None if any(window["padding"]) else node.read()
    return _mean(program.change("sum_pool", term, **window), prod(window["kernel"]))


def _reduce_mean(program: _Program, node: _Node) -> _Sum | None:
    """Add over axes of sizes that are known; a global pool's are all places."""
    shape, term = node.options["read"], node.read()
    over = node.reads[1] if len(node.reads) > 1 else range(2, len(shape))
    axes = {int(axis) % len(shape) for axis in over}
    num = prod(shape[axis] for axis in axes)
    if term is None or not num or axes & {0, term.axis % len(shape)}:
        return None
    keep = [node.options.get("keepdims", 1)]
    return _mean(program.change("sum", term, axes=sorted(axes), keep=keep), num)


def _mean(sums: _Sum | None, num: int) -> _Sum | None:
    """Return sums of so many levels as their means."""
    if sums is None or sums.terms[0].most * num > _INT32:
        return None
    term = sums.terms[0]
    return _Sum((replace(term, scale=term.scale / num, most=term.most * num),))


def _reshape(program: _Program, node: _Node) -> _Input | _Sum | None:
    value, shape = node.reads[0], node.options["made"][1:]
    if not all(shape) or prod(shape) != prod(node.options["read"][1:]):  # a batch of others
        return None
    if isinstance(value, _Input):
        return replace(value, name=program.add("reshape", [value.name], shape=shape))
    return program.change("reshape", node.read(even=True), shape=shape)


_RULES: Mapping[str, Callable[[_Program, _Node], Any]] = {
    "Constant": lambda _, node: onnx.numpy_helper.to_array(node.options["value"]),
    "Identity": lambda _, node: node.reads[0],
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Clip": _clip,
    "Conv": _conv,
    "Gemm": _gemm,
    "Relu": _relu,
    "Add": _add,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _reduce_mean,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Flatten": _reshape,
}
