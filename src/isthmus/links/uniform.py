"""Uniform quantization to 1 to 8 bits, a range for each channel or for the tensor.

.. code-block:: none

    x --> (x - low) / step --> round --> [link] --> symbols * step + low --> x_hat
                +------ the same static low and step on both sides ------+

Per vector, ``step`` is times a whole number from 0 to 15 that is sent for every 16 values: the
least that reaches the outermost of them. They lie side by side in memory: neighbours in a row of
a map (C, H, W), channels of one token in (T, C). Levels then count from ``low`` or, where the
grid is symmetric, from 0.

Shapes: B batch, C channels, or 1 where the tensor has one range, K vectors, V values of a vector.

References:
    Dai et al., "VS-Quant: Per-Vector Scaled Quantization for Accurate Low-Precision Neural
    Network Inference", MLSys 2021, https://arxiv.org/abs/2102.04503 (whole-number scales of
    vectors; theirs lie along the channels, ours in the order of memory).
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, per_channel, round_to_symbols, rows
from isthmus.links.ranges import RANGES, num_steps
from isthmus.models.rounding import in_groups, out_of_groups
from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.formats import VECTOR, VECTOR_SCALE_BITS
from isthmus.wire.spec import num_channels

_MIN_STEP = 1e-6
_MOST_SCALE = 2**VECTOR_SCALE_BITS - 1


def uniform_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float tensor.

    Args:
        spec: Says what has a range, and how it is chosen.
        tensor: Not needed.
        shape: Of one sample.
        dtype: Of the tensor.
    """
    del tensor
    affine = AffineGrid(spec, shape)
    vector = spec.per == "vector"
    return Halves(
        sender=VectorSender(affine) if vector else UniformSender(affine),
        receiver=(VectorReceiver if vector else UniformReceiver)(affine, dtype=dtype),
        calibrate=affine.calibrate,
    )


class AffineGrid(nn.Module):
    """What both halves agree on: where each channel begins and how wide its steps are.

    Until it is calibrated, every channel ranges from -4 to 4.

    Args:
        spec: Of the codec: bits, and how the range is chosen.
        shape: Of one sample.
    """

    low: Tensor
    step: Tensor

    def __init__(self, spec: CodecSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.shape = shape
        self.num_steps = num_steps(spec.bits, symmetric=spec.symmetric)
        self.vector = spec.per == "vector"
        num_ranges = 1 if spec.per == "tensor" else num_channels(shape)
        sizes = per_channel(torch.ones(num_ranges), shape).shape
        self.register_buffer("low", torch.empty(sizes))
        self.register_buffer("step", torch.empty(sizes))
        four_C = torch.full((self.low.numel(),), 4.0)
        self._set(-four_C, four_C)

    def calibrate(self, x: Tensor) -> None:
        """Choose the range from values (B, ...), as the codec's ``range`` says."""
        x_MC = rows(x.float())
        if self.spec.per == "tensor":
            x_MC = x_MC.reshape(-1, 1)
        bits = self.spec.bits + (VECTOR_SCALE_BITS if self.vector else 0)
        self._set(*RANGES[self.spec.range](x_MC, bits=bits, symmetric=self.spec.symmetric))

    def _set(self, low_C: Tensor, high_C: Tensor) -> None:
        step_C = (high_C - low_C) / (self.num_steps * (_MOST_SCALE if self.vector else 1))
        odd = self.spec.symmetric and self.num_steps % 2  # no level at 0, which alone is left
        step_C = torch.where(step_C > 0, step_C, _MIN_STEP if odd else 1.0)  # it never changes
        if self.spec.symmetric:
            # rounded as the receiver does: 0 comes back
            low_C = -step_C * (0 if self.vector else self.num_steps / 2)
        self.low.copy_(per_channel(low_C, self.shape))
        self.step.copy_(per_channel(step_C, self.shape))


class UniformSender(nn.Module):
    """Scale and round."""

    def __init__(self, affine: AffineGrid) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols of a tensor (B, ...)."""
        scaled = (x.float() - self.affine.low) / self.affine.step
        return round_to_symbols(scaled, self.affine.num_steps, training=self.training)


class UniformReceiver(nn.Module):
    """Scale back."""

    def __init__(self, affine: AffineGrid, *, dtype: str) -> None:
        super().__init__()
        self.affine = affine
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        return (symbols.float() * self.affine.step + self.affine.low).to(self.dtype)


class VectorSender(nn.Module):
    """Scale each vector by a whole number of the channel's steps, and round."""

    def __init__(self, affine: AffineGrid) -> None:
        super().__init__()
        self.affine = affine
        self.middle = affine.num_steps / 2 if affine.spec.symmetric else 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the symbols (B, ...) of a tensor and its scales (B, K)."""
        affine = self.affine
        steps_BKV = in_groups((x.float() - affine.low) / affine.step, VECTOR)
        sizes_BKV = steps_BKV.detach().abs() if self.middle else steps_BKV.detach()
        least_BK1 = sizes_BKV.amax(dim=-1, keepdim=True) / (affine.num_steps - self.middle)
        scale_BK1 = least_BK1.ceil().clamp(0, _MOST_SCALE)
        scaled = out_of_groups(steps_BKV / scale_BK1.clamp(min=1) + self.middle, affine.shape)
        symbols = round_to_symbols(scaled, affine.num_steps, training=self.training)
        scale_BK = scale_BK1[..., 0]
        return symbols, scale_BK if self.training else scale_BK.to(torch.uint8)


class VectorReceiver(nn.Module):
    """Scale back."""

    def __init__(self, affine: AffineGrid, *, dtype: str) -> None:
        super().__init__()
        self.affine = affine
        self.middle = affine.num_steps / 2 if affine.spec.symmetric else 0
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor, scale_BK: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        levels_BKV = in_groups(symbols.float() - self.middle, VECTOR)
        steps = out_of_groups(levels_BKV * scale_BK.float()[..., None], self.affine.shape)
        return (steps * self.affine.step + self.affine.low).to(self.dtype)
