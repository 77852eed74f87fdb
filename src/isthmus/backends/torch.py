"""Stages by torch: their weights, and a list of operations that is data, never code.

.. code-block:: none

    program.safetensors
      tensors     the weights and constants, by name
      "isthmus"   in its metadata, JSON: inputs, outputs, and the calls in their order, such as
                  {"operator": "aten.relu.default", "arguments": [{"value": "add"}], "result": "x"}

A call may name an operator of ``OPERATORS`` and no other: none of them touches a file, another
process or its own arguments, none draws random numbers. An argument is a number, a text, a list, a
value that an earlier call made, or one of the constants of ``_CONSTANTS``. So a program is neither
pickled nor imported, and a ``.pt2`` is never opened.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from isthmus.backends import Array, Program
from isthmus.errors import InputError, RunError, one_line
from isthmus.files import from_json

METADATA = "isthmus"

# Operators of the Core ATen IR, to which torch.export breaks a network down.
OPERATORS = frozenset(
    f"aten.{name}"
    for name in """
    _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default
    _native_batch_norm_legit_no_training.default _softmax.default _log_softmax.default
    _to_copy.default abs.default acos.default acosh.default add.Scalar add.Tensor addmm.default
    alias.default amax.default amin.default any.default any.dim any.dims arange.start_step
    argmax.default argmin.default asin.default asinh.default atan.default atan2.default
    atanh.default avg_pool2d.default avg_pool3d.default bitwise_and.Scalar bitwise_and.Tensor
    bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor
    bmm.default cat.default ceil.default clamp.Tensor clamp.default clone.default col2im.default
    constant_pad_nd.default convolution.default cos.default cosh.default cumsum.default
    diagonal.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode elu.default
    embedding.default eq.Scalar eq.Tensor erf.default exp.default expand.default expm1.default
    fill.Scalar flip.default floor.default fmod.Scalar fmod.Tensor full.default full_like.default
    gather.default ge.Scalar ge.Tensor gelu.default grid_sampler_2d.default gt.Scalar gt.Tensor
    hardtanh.default index.Tensor index_put.default index_select.default isinf.default
    isnan.default le.Scalar le.Tensor leaky_relu.default log.default log10.default log1p.default
    log2.default logical_and.default logical_not.default logical_or.default logical_xor.default
    lt.Scalar lt.Tensor max.dim max_pool2d_with_indices.default max_pool3d_with_indices.default
    maximum.default mean.default mean.dim min.dim minimum.default mm.default mul.Scalar mul.Tensor
    native_group_norm.default native_layer_norm.default ne.Scalar ne.Tensor neg.default
    permute.default polar.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod.default
    prod.dim_int reciprocal.default reflection_pad1d.default reflection_pad2d.default
    reflection_pad3d.default relu.default remainder.Scalar remainder.Tensor repeat.default
    replication_pad2d.default replication_pad3d.default round.default rsqrt.default
    scalar_tensor.default scatter.src scatter.value scatter_add.default select.int
    select_scatter.default sigmoid.default sign.default sin.default sinh.default slice.Tensor
    slice_scatter.default sort.default split_with_sizes.default sqrt.default squeeze.dim
    squeeze.dims sub.Scalar sub.Tensor sum.dim_IntList sym_numel.default sym_size.int tan.default
    tanh.default topk.default trunc.default unsqueeze.default upsample_bilinear2d.vec
    upsample_nearest2d.vec var.correction var.dim view.default view_as_complex.default
    view_as_real.default where.self
    """.split()  # noqa: SIM905  a list would take a line for each
)
SIZES = {  # of tensors, whole numbers
    "add": operator.add,
    "floordiv": operator.floordiv,
    "mul": operator.mul,
    "sub": operator.sub,
}
PART = "getitem"  # of a result of several tensors
_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
    "uint16", "uint32", "bool", "complex64",
)  # fmt: skip
_CONSTANTS: Mapping[str, Any] = {
    **{name: getattr(torch, name) for name in _DTYPES},
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "strided": torch.strided,
    "cpu": torch.device("cpu"),
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
}
_MAX_CALLS = 100_000
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a program takes.

    Attributes:
        name: Of the value.
        dtype: Its numpy name.
        shape: Its sizes; None where any will do.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operation.

    Attributes:
        operator: A name of ``OPERATORS`` or of ``SIZES``, or ``PART``.
        arguments: By order: numbers, texts, lists of such, ``{"value": NAME}`` for an earlier
            result, ``{"constant": NAME}`` for one of ``_CONSTANTS``.
        named: By name, likewise.
        result: What its result is called.
    """

    operator: str
    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """A program without its weights.

    Attributes:
        inputs: In order.
        calls: In the order in which they are made.
        outputs: Names of values.
    """

    SCHEMA = "isthmus.calls/1"
    inputs: tuple[Input, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """Stands for a value that is made when the program runs."""

    name: str


@dataclass(frozen=True, slots=True)
class _Step:
    """A call that was found to be good, and the values that nobody reads after it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    result: str
    last: tuple[str, ...]


def load(path: Path, *, threads: int) -> Program:
    """Load a program; see `isthmus.backends.Backend`."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(METADATA)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path}: torch cannot load it ({one_line(error)})") from error
    if text is None:
        raise RunError(f"{path}: torch cannot load it (it holds weights, but no list of calls)")
    try:
        calls = from_json(text, Calls, where=str(path))
        steps = _steps(calls, weights)
    except InputError as error:
        raise RunError(f"{path}: torch cannot load it ({one_line(error)})") from error

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        _check_inputs(path, calls.inputs, arrays)
        values: dict[str, Any] = dict(weights)
        for each, array in zip(calls.inputs, arrays, strict=True):
            values[each.name] = torch.from_numpy(np.array(array))  # a copy, which may be written
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                for step in steps:
                    named = {name: _filled(each, values) for name, each in step.named.items()}
                    result = step.function(*_filled(step.arguments, values), **named)
                    values[step.result] = result
                    for name in step.last:
                        del values[name]
                return tuple(values[name].numpy() for name in calls.outputs)
        except Exception as error:  # an operator raises many types
            raise RunError(f"{path}: torch failed ({one_line(error)})") from error
        finally:
            torch.set_num_threads(before)

    return run


def _filled(argument: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with its values in place."""
    if isinstance(argument, _Value):
        return values[argument.name]
    if isinstance(argument, tuple):
        return [_filled(each, values) for each in argument]
    return argument


def _steps(calls: Calls, weights: Mapping[str, Any]) -> tuple[_Step, ...]:
    """Return the calls ready to be made.

    Raises:
        InputError: A call names what it may not, or a value that is not there.
    """
    if len(calls.calls) > _MAX_CALLS:
        raise InputError(f"found {len(calls.calls)} calls, expected at most {_MAX_CALLS}")
    names = Counter([*weights, *(each.name for each in calls.inputs)])
    names.update(call.result for call in calls.calls)
    name, times = names.most_common(1)[0] if names else ("", 1)
    if times > 1:
        raise InputError(f"found the value {name[:60]!r} {times} times, expected it once")
    known = {*weights, *(each.name for each in calls.inputs)}
    good = []
    for call in calls.calls:
        arguments = tuple(_read(each, known) for each in call.arguments)
        named = {name: _read(each, known) for name, each in call.named.items()}
        good.append((call, arguments, named, _values((arguments, tuple(named.values())))))
        known.add(call.result)
    lost = [name for name in calls.outputs if name not in known]
    if lost or not calls.outputs:
        raise InputError(f"found outputs {list(calls.outputs)[:4]}, expected values of the calls")
    steps: list[_Step] = []
    later = {*calls.outputs, *weights}
    for call, arguments, named, reads in reversed(good):
        last = (reads | {call.result}) - later
        later |= last
        steps.append(
            _Step(_function(call.operator), arguments, named, call.result, tuple(sorted(last)))
        )
    return tuple(reversed(steps))


def _function(name: str) -> Callable[..., Any]:
    if name in SIZES:
        return partial(_of_sizes, SIZES[name])
    if name == PART:
        return operator.getitem
    if name not in OPERATORS:
        raise InputError(f"found the operator {name[:60]!r}, expected one of those allowed")
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _of_sizes(function: Callable[[int, int], int], first: object, second: object) -> int:
    if type(first) is not int or type(second) is not int:
        raise InputError("found something else than whole numbers where sizes are expected")
    result = function(first, second)
    if abs(result) >> 63:
        raise InputError("found a size over 2**63")
    return result


def _read(argument: Any, known: set[str], depth: int = 0) -> Any:
    """Return an argument as it is handed over, with a `_Value` for each that is made later."""
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    if isinstance(argument, list) and depth < _MAX_DEPTH:
        return tuple(_read(each, known, depth + 1) for each in argument)
    if isinstance(argument, dict) and len(argument) == 1:
        ((kind, name),) = argument.items()
        if kind == "value" and isinstance(name, str) and name in known:
            return _Value(name)
        if kind == "constant" and isinstance(name, str) and name in _CONSTANTS:
            return _CONSTANTS[name]
    raise InputError(f"found the argument {str(argument)[:60]}, expected a number, list or value")


def _values(argument: Any) -> set[str]:
    """Return the names of the values in an argument."""
    if isinstance(argument, _Value):
        return {argument.name}
    if isinstance(argument, tuple):
        return set().union(*map(_values, argument))
    return set()


def _check_inputs(path: Path, inputs: Sequence[Input], arrays: Sequence[Array]) -> None:
    if len(arrays) != len(inputs):
        raise RunError(f"{path}: found {len(arrays)} inputs, expected {len(inputs)}")
    for each, array in zip(inputs, arrays, strict=True):
        fits = len(array.shape) == len(each.shape) and all(
            want in (None, size) for size, want in zip(array.shape, each.shape, strict=True)
        )
        if array.dtype.name != each.dtype or not fits:
            sizes = ", ".join("n" if size is None else str(size) for size in each.shape)
            raise RunError(
                f"{path}: input {each.name}: found {array.dtype.name}{list(array.shape)}, "
                f"expected {each.dtype}[{sizes}]"
            )
