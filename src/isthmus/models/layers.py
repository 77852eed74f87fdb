"""Layers as plain data, so that a network whose layers were changed can be made again.

`describe` writes a layer down by its kind and its sizes, `build` makes it anew; only the kinds of
``KINDS`` exist, so that reading a description runs nothing. One kind is ours: a layer whose weight
is integers.

Shapes: B batch, C channels that the layer makes, K whatever each of them is a sum over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import InputError, one_line
from isthmus.graph.integers import NAMESPACE
from isthmus.models.blocks import Adder, Concat, Octave, Shift, Switchable
from isthmus.models.rounding import RoundTo

Option = int | float | str | bool | tuple[int | float, ...] | None

BITS, LOWEST, HIGHEST = 8, -128, 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer, without its weights.

    Attributes:
        kind: A key of ``KINDS``.
        options: What it is made with.
        layers: Those inside, of a sequence or of a layer of integers.
    """

    kind: str
    options: Mapping[str, Option] = field(default_factory=dict)
    layers: tuple["Layer", ...] = ()


def levels(bits: int) -> tuple[int, int]:
    """Return the least and the greatest integer of a grid: those of int8, or 0 to 2**bits - 1."""
    return (LOWEST, HIGHEST) if bits == BITS else (0, 2**bits - 1)


@torch.library.custom_op(f"{NAMESPACE}::round_to_int8", mutates_args=())
def round_to_int8(x: Tensor, scale: Tensor, zero: Tensor, bits: int = 8) -> Tensor:
    r"""Return values on a grid of 2**bits steps: what integers hold of them.

    .. math:: s \; (clamp(round(x / s) + z, l, h) - z)

    with the ends l and h that `levels` says. In ONNX it is a QuantizeLinear and a
    DequantizeLinear. Its gradient is that of doing nothing, but for values that are clipped:
    those have none.

    Args:
        x: Of any shape.
        scale: s, float32 without dimensions.
        zero: z, int8 without dimensions: the integer that stands for 0.
        bits: 8, or fewer.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, https://arxiv.org/abs/1712.05877.
        Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic
        Neurons", 2013, https://arxiv.org/abs/1308.3432 (the gradient).
    """
    offset = zero.to(x.dtype)
    return (x / scale).round_().add_(offset).clamp_(*levels(bits)).sub_(offset).mul_(scale)


round_to_int8.register_fake(lambda x, *_: torch.empty_like(x))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    *tensors, ctx.bits = inputs
    ctx.save_for_backward(*tensors)


def _straight_through(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    x, scale, zero = ctx.saved_tensors
    level = (x / scale).round() + zero
    low, high = levels(ctx.bits)
    return grad * ((level >= low) & (level <= high)), None, None, None


round_to_int8.register_autograd(_straight_through, setup_context=_keep)


@torch.library.custom_op(f"{NAMESPACE}::to_integers", mutates_args=())
def to_integers(x: Tensor, scale: Tensor, zero: Tensor, bits: int = 8) -> Tensor:
    """Return the integers of `round_to_int8`, counted from the least up, as uint8.

    In ONNX it is a QuantizeLinear.
    """
    low, high = levels(bits)
    return ((x / scale).round_() + zero).clamp_(low, high).sub_(low).to(torch.uint8)


to_integers.register_fake(lambda x, *_: torch.empty_like(x, dtype=torch.uint8))


@torch.library.custom_op(f"{NAMESPACE}::from_integers", mutates_args=())
def from_integers(x: Tensor, scale: Tensor, zero: Tensor, bits: int = 8) -> Tensor:
    """Return the values of integers of `to_integers`; in ONNX it is a DequantizeLinear."""
    return (x.float() + levels(bits)[0] - zero) * scale


from_integers.register_fake(lambda x, *_: torch.empty_like(x, dtype=torch.float32))


@torch.library.custom_op(f"{NAMESPACE}::from_int8", mutates_args=())
def from_int8(weight: Tensor, scale_C: Tensor, bits: int = 8) -> Tensor:
    """Return the weight (C, ...) that integers times a scale for each channel stand for.

    In ONNX it is a DequantizeLinear. How many bits the integers have says how they are packed
    where there is room for no more.
    """
    del bits
    return weight.float() * scale_C.reshape(-1, *[1] * (weight.ndim - 1))


from_int8.register_fake(lambda weight, *_: torch.empty_like(weight, dtype=torch.float32))


def _convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return layer._conv_forward(x, weight, bias)


WEIGHTED: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Conv1d: _convolved,
    nn.Conv2d: _convolved,
    nn.Conv3d: _convolved,
    nn.Linear: lambda _, x, weight, bias: F.linear(x, weight, bias),
}
"""Layers with a weight (C, ...), and what they do to an input with another weight and bias."""


class Integer(nn.Module):
    """A layer whose weight is int8 times a scale for each channel; input and output may be too.

    .. code-block:: none

        x --> int8 of its grid --> layer --> int8 of its grid --> y
                                     |
                        int8 (C, ...) * scale (C,)

    Args:
        layer: One of ``WEIGHTED``; its own weight goes.
        inputs: Whether the input is rounded to int8 first.
        outputs: Whether the output is, as where no layer of integers reads it: a runtime can then
            compute the layer in integers.
        bits: Of the weight.
        input_bits: Of the input.
        output_bits: Of the output.
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor
    input_zero: Tensor
    output_scale: Tensor
    output_zero: Tensor

    def __init__(
        self,
        layer: nn.Module,
        *,
        inputs: bool,
        outputs: bool,
        bits: int = 8,
        input_bits: int = 8,
        output_bits: int = 8,
    ) -> None:
        super().__init__()
        shape = layer.get_parameter("weight").shape
        device = layer.get_parameter("weight").device
        self.layer, self.inputs, self.outputs = layer, inputs, outputs
        self.computed = WEIGHTED[type(layer)]
        self.bits, self.input_bits, self.output_bits = bits, input_bits, output_bits
        self.layer.weight = None  # type: ignore[assignment]
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(shape[0], device=device))
        for side, rounded in (("input", inputs), ("output", outputs)):
            if rounded:
                zero = torch.zeros((), dtype=torch.int8, device=device)
                self.register_buffer(f"{side}_scale", torch.ones((), device=device))
                self.register_buffer(f"{side}_zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of a batch (B, ...)."""
        if self.inputs:
            x = round_to_int8(x, self.input_scale, self.input_zero, self.input_bits)
        weight = from_int8(self.weight, self.scale, self.bits)
        bias: Any = self.layer.bias
        y = self.computed(self.layer, x, weight, bias)
        if not self.outputs:
            return y
        return round_to_int8(y, self.output_scale, self.output_zero, self.output_bits)


OUTPUT_GRID = "output_grid"


class OutputGrid(nn.Module):
    """Integers to which a module's output is rounded, beside what stands in that module.

    Args:
        bits: Of the integers.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the integers hold of x."""
        return round_to_int8(x, self.scale, self.zero, self.bits)


def round_output(module: nn.Module, grid: nn.Module) -> None:
    """Let a module, whenever it is called, round the one tensor that it returns.

    Args:
        module: Of any kind.
        grid: What rounds; from now on the child ``output_grid`` of the module.
    """
    module.add_module(OUTPUT_GRID, grid)
    module.register_forward_hook(_on_grid)


def _on_grid(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:
    del inputs
    return module.get_submodule(OUTPUT_GRID)(output)


_CONV = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv1d": (nn.Conv1d, _CONV),
    "conv2d": (nn.Conv2d, _CONV),
    "conv3d": (nn.Conv3d, _CONV),
    "conv_transpose1d": (nn.ConvTranspose1d, (*_CONV, "output_padding")),
    "conv_transpose2d": (nn.ConvTranspose2d, (*_CONV, "output_padding")),
    "conv_transpose3d": (nn.ConvTranspose3d, (*_CONV, "output_padding")),
    "linear": (nn.Linear, ("in_features", "out_features")),
    "batch_norm1d": (nn.BatchNorm1d, _NORM),
    "batch_norm2d": (nn.BatchNorm2d, _NORM),
    "batch_norm3d": (nn.BatchNorm3d, _NORM),
    "layer_norm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine")),
    "group_norm": (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "prelu": (nn.PReLU, ("num_parameters",)),
    "identity": (nn.Identity, ()),
    "sequential": (nn.Sequential, ()),
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "channel_shuffle": (nn.ChannelShuffle, ("groups",)),
    "concat": (Concat, ()),
    "switchable": (Switchable, ("widths",)),
    "shift": (Shift, ()),
    "octave": (Octave, ()),
    "adder": (Adder, ("in_channels", "out_channels", "stride", "kernel")),
    "integer": (Integer, ("inputs", "outputs", "bits", "input_bits", "output_bits")),
    "output_grid": (OutputGrid, ("bits",)),
    "round_to": (RoundTo, ("format",)),
}
"""Every kind: its type, and the attributes that its constructor takes by the same names."""

_KIND_OF = {kind: name for name, (kind, _) in KINDS.items()}
_BIASED = {*(name for name in KINDS if name.startswith("conv")), "linear", "adder", "layer_norm"}


def describe(module: nn.Module) -> Layer | None:
    """Write a layer down, or return None where it, or one inside, is of no kind of ``KINDS``."""
    name = _KIND_OF.get(type(module))
    if name is None:
        return None
    options = {option: getattr(module, option) for option in KINDS[name][1]}
    if name in _BIASED:
        options["bias"] = getattr(module, "bias", None) is not None
    inside = [describe(child) for child in module.children()]
    layers = tuple(layer for layer in inside if layer is not None)
    if len(layers) < len(inside):
        return None
    return Layer(kind=name, options=options, layers=layers)


def build(layer: Layer, *, where: str) -> nn.Module:
    """Make a layer, its weights still without memory (on the ``meta`` device).

    Args:
        layer: What `describe` wrote, or any other.
        where: Names it in error messages.

    Raises:
        InputError: No such kind, or options that it does not take.
    """
    if layer.kind not in KINDS:
        raise InputError(f"{where}: found kind {layer.kind!r}, expected {', '.join(KINDS)}")
    kind, options = KINDS[layer.kind]
    known = {*options, *(("bias",) if layer.kind in _BIASED else ())}
    if set(layer.options) != known:
        raise InputError(
            f"{where}: found options {', '.join(sorted(layer.options)) or 'none'}, expected "
            f"{', '.join(sorted(known)) or 'none'} for {layer.kind}; compress the model anew"
        )
    inside = [build(child, where=where) for child in layer.layers]
    made: Any = kind
    try:
        with torch.device("meta"):
            return made(*inside, **layer.options)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise InputError(f"{where}: {layer.kind} cannot be made ({one_line(error)})") from error
