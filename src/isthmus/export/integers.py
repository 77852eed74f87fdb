r"""A stage by integers alone: what a device without floats has to do, and that done in numpy.

.. code-block:: none

    DEVICE.safetensors
      tensors     weights int8, biases int32, multipliers int32, shifts int8, by step and name
      "isthmus"   in its metadata, JSON: inputs, outputs, and the steps in their order

A tensor in it is the levels of a grid, counted from the one that stands for 0. A layer adds
products of levels to its bias, in 32 bits; ``normalize`` (integer channel normalization) brings
these sums, of which each channel has a step of its own, to the grid that the next layer reads:

.. math:: y_c = clamp\Big(\Big\lfloor \frac{\sum_t m_{tc} \, x_{tc} + 2^{s_c - 1}}{2^{s_c}}
          \Big\rfloor, l, h\Big)

with one term t for a layer and two for the sum of a skip; the multiplier m of 31 bits and the
shift s stand for the ratio of the steps, :math:`m \, 2^{-s}`. Only ``quantize``, of what comes in
as floats, and ``restore``, of what leaves as floats, are not integer arithmetic.

Shapes: B batch, C channels, K values of a window.

References:
    Rusci, Capotondi, Benini, "Memory-Driven Mixed Low Precision Quantization for Enabling Deep
    Network Inference on Microcontrollers", MLSys 2020, https://arxiv.org/abs/1905.13082,
    equation 4 (integer channel normalization).
    Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877, section 2.2 (the multiplier).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from isthmus.errors import InputError
from isthmus.files import from_json, to_json, write_bytes

METADATA = "isthmus"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation on levels.

    Attributes:
        kind: A key of ``STEPS``.
        reads: Names of what it reads: inputs, or what earlier steps made.
        makes: The name of what it makes; its tensors are called ``MAKES.NAME``.
        options: Whole numbers, such as strides.
    """

    kind: str
    reads: tuple[str, ...]
    makes: str
    options: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A program of integers without its tensors.

    Attributes:
        inputs: Names, in order.
        steps: In the order in which they are made.
        outputs: Names, in order.
    """

    SCHEMA = "isthmus.integers/1"
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


def write_integers(path: Path, program: Steps, tensors: Mapping[str, Array]) -> None:
    """Write a program of integers."""
    write_bytes(path, save(dict(tensors), {METADATA: to_json(program)}))


def read_integers(path: Path) -> tuple[Steps, dict[str, Array]]:
    """Read what `write_integers` wrote.

    Raises:
        InputError: The file is damaged, or a step is none of ``STEPS``.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: found no program of integers ({error})") from error
    program = from_json(text, Steps, where=str(path))
    for step in program.steps:
        if step.kind not in STEPS:
            raise InputError(f"{path}: found step {step.kind!r}, expected {', '.join(STEPS)}")
    return program, tensors


def run_integers(
    program: Steps, tensors: Mapping[str, Array], inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """Return what a program makes of its inputs, each (B, ...).

    Raises:
        InputError: A step cannot be done with what it reads.
    """
    values: dict[str, Array] = dict(zip(program.inputs, inputs, strict=True))
    for step in program.steps:
        prefix = f"{step.makes}."
        own = {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}
        try:
            read = [values[name] for name in step.reads]
            values[step.makes] = STEPS[step.kind](*read, **own, **step.options)
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise InputError(f"step {step.makes}: cannot be done ({error})") from error
    return tuple(values[name] for name in program.outputs)


def fixed_point(scale: Array) -> tuple[Array, Array]:
    """Return multipliers of 31 bits and shifts that stand for scales.

    Args:
        scale: Of each term and channel, (T, C), above 0.

    Returns:
        Multipliers (T, C), int32, and shifts (C,), int8; about ``scale * 2**shift``.
    """
    exponent_C = np.frexp(scale.max(axis=0))[1]
    shift_C = np.clip(31 - exponent_C, 1, 62)
    most = np.iinfo(np.int32).max
    multiplier = np.minimum(np.rint(np.ldexp(scale, shift_C)), most)
    return multiplier.astype(np.int32), shift_C.astype(np.int8)


def _quantize(x: Array, *, scale: Array, limits: tuple[int, ...]) -> Array:
    return _clamp(np.rint(x / scale), limits=limits).astype(np.int64)


def _restore(x: Array, *, scale: Array, axis: tuple[int, ...]) -> Array:
    return (x * _along(scale, axis[0], x.ndim)).astype(np.float32)


def _offset(x: Array, *, by: tuple[int, ...]) -> Array:
    return x.astype(np.int64) + by[0]


def _bytes(x: Array, *, by: tuple[int, ...]) -> Array:
    return (x + by[0]).astype(np.uint8)


def _clamp(x: Array, *, limits: tuple[int, ...]) -> Array:
    return np.clip(x, limits[0], limits[1])


def _normalize(
    *terms: Array, multiplier: Array, shift: Array, axis: tuple[int, ...], limits: tuple[int, ...]
) -> Array:
    shift = _along(shift, axis[0], terms[0].ndim)
    sums = 1 << (shift - 1)
    for x, multiplier_C in zip(terms, multiplier, strict=True):
        sums = sums + x * _along(multiplier_C, axis[0], x.ndim)
    return _clamp(sums >> shift, limits=limits)


def _along(x_C: Array, axis: int, dims: int) -> Array:
    """Return what spreads over a tensor of so many dimensions, of which one is C."""
    whole = x_C if x_C.dtype.kind == "f" else x_C.astype(np.int64)
    return whole.reshape([-1 if k == axis % dims else 1 for k in range(dims)])


def _windows(
    x: Array,
    fill: int,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Array:
    """Return (B, C, *places, K) of maps (B, C, *size)."""
    dims = len(kernel)
    pads = [(0, 0), (0, 0), *zip(padding[:dims], padding[dims:], strict=True)]
    padded = np.pad(x, pads, constant_values=fill)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    axes = tuple(range(2, 2 + dims))
    seen = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    places = [slice(None, None, step) for step in stride]
    inside = [slice(None, None, step) for step in dilation]
    chosen = seen[(slice(None), slice(None), *places, *inside)]
    return chosen.reshape(*chosen.shape[: 2 + dims], -1)


def _conv(
    x: Array, *, weight: Array, bias: Array, groups: tuple[int, ...], **window: tuple[int, ...]
) -> Array:
    windows = _windows(x, 0, kernel=weight.shape[2:], **window)
    num, size, places = groups[0], windows.shape[2:-1], prod(windows.shape[2:-1])
    columns = windows.reshape(len(x), num, -1, places, windows.shape[-1])
    columns = columns.transpose(0, 1, 2, 4, 3).reshape(len(x), num, -1, places)  # (B, g, K, L)
    rows = weight.astype(np.int64).reshape(num, len(weight) // num, -1)
    return (rows @ columns).reshape(len(x), len(weight), *size) + _along(bias, 1, x.ndim)


def _linear(x: Array, *, weight: Array, bias: Array) -> Array:
    return x @ weight.astype(np.int64).T + bias


def _max_pool(x: Array, **window: tuple[int, ...]) -> Array:
    return _windows(x, np.iinfo(np.int64).min, **window).max(axis=-1)


def _sum_pool(x: Array, **window: tuple[int, ...]) -> Array:
    return _windows(x, 0, **window).sum(axis=-1)


def _sum(x: Array, *, axes: tuple[int, ...], keep: tuple[int, ...]) -> Array:
    return x.sum(axis=axes, keepdims=bool(keep[0]))


def _reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(len(x), *shape)


STEPS: Mapping[str, Callable[..., Array]] = {
    "quantize": _quantize,
    "restore": _restore,
    "offset": _offset,
    "bytes": _bytes,
    "clamp": _clamp,
    "normalize": _normalize,
    "conv": _conv,
    "linear": _linear,
    "max_pool": _max_pool,
    "sum_pool": _sum_pool,
    "sum": _sum,
    "reshape": _reshape,
}
"""By name: from the levels that a step reads to those that it makes."""
