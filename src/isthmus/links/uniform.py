"""Uniform quantization to 1 to 8 bits, a range for each channel or for the tensor.

.. code-block:: none

    x --> (x - low) / step --> round --> [link] --> symbols * step + low --> x_hat
                +------ the same static low and step on both sides ------+

Shapes: B batch, C channels, or 1 where the tensor has one range.
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, per_channel, round_to_symbols, rows
from isthmus.links.ranges import RANGES, num_steps
from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.spec import num_channels


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
    affine = Range(spec, shape)
    return Halves(
        sender=UniformSender(affine),
        receiver=UniformReceiver(affine, dtype=dtype),
        calibrate=affine.calibrate,
    )


class Range(nn.Module):
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
        sizes = per_channel(torch.ones(num_channels(shape) if self._each else 1), shape).shape
        self.register_buffer("low", torch.empty(sizes))
        self.register_buffer("step", torch.empty(sizes))
        four_C = torch.full((self.low.numel(),), 4.0)
        self._set(-four_C, four_C)

    @property
    def _each(self) -> bool:
        return self.spec.per == "channel"

    def calibrate(self, x: Tensor) -> None:
        """Choose the range from values (B, ...), as the codec's ``range`` says."""
        x_MC = rows(x.float())
        if not self._each:
            x_MC = x_MC.reshape(-1, 1)
        choose = RANGES[self.spec.range]
        self._set(*choose(x_MC, bits=self.spec.bits, symmetric=self.spec.symmetric))

    def _set(self, low_C: Tensor, high_C: Tensor) -> None:
        step_C = (high_C - low_C) / self.num_steps
        step_C = torch.where(step_C > 0, step_C, 1.0)  # a channel that never changes
        if self.spec.symmetric:
            low_C = -step_C * (self.num_steps / 2)  # rounded as the receiver does: 0 comes back
        self.low.copy_(per_channel(low_C, self.shape))
        self.step.copy_(per_channel(step_C, self.shape))


class UniformSender(nn.Module):
    """Scale and round."""

    def __init__(self, affine: Range) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols of a tensor (B, ...)."""
        scaled = (x.float() - self.affine.low) / self.affine.step
        return round_to_symbols(scaled, self.affine.num_steps, training=self.training)


class UniformReceiver(nn.Module):
    """Scale back."""

    def __init__(self, affine: Range, *, dtype: str) -> None:
        super().__init__()
        self.affine = affine
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        return (symbols.float() * self.affine.step + self.affine.low).to(self.dtype)
