"""Uniform quantization to 2 to 8 bits, a range per channel.

.. code-block:: none

    x --> (x - low) / step --> round --> [link] --> symbols * step + low --> x_hat
                +------ the same static low and step on both sides ------+

Shapes: B batch, C channels.
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, per_channel, round_to_symbols, rows
from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.spec import num_channels


def uniform_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float tensor.

    Args:
        spec: Not needed.
        tensor: Its symbols, which say how many bits.
        shape: Of one sample.
        dtype: Of the tensor.
    """
    del spec
    affine = Range(shape, bits=tensor.bits)
    return Halves(
        sender=UniformSender(affine),
        receiver=UniformReceiver(affine, dtype=dtype),
        calibrate=affine.calibrate,
    )


class Range(nn.Module):
    """What both halves agree on: where each channel begins and how wide its steps are.

    Until it is calibrated, every channel ranges from -4 to 4.

    Args:
        shape: Of one sample.
        bits: 2 to 8.
    """

    low: Tensor
    step: Tensor

    def __init__(self, shape: tuple[int, ...], *, bits: int) -> None:
        super().__init__()
        self.shape = shape
        self.bits = bits
        ones_C = torch.ones(num_channels(shape))
        self.register_buffer("low", per_channel(-4 * ones_C, shape))
        self.register_buffer("step", per_channel(8 / (2**bits - 1) * ones_C, shape))

    def calibrate(self, x: Tensor) -> None:
        """Let each channel range from the smallest to the largest of its values in (B, ...)."""
        x_MC = rows(x.float())
        low_C, high_C = x_MC.amin(dim=0), x_MC.amax(dim=0)
        step_C = (high_C - low_C) / (2**self.bits - 1)
        step_C = torch.where(step_C > 0, step_C, 1.0)  # a channel that never changes
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
        return round_to_symbols(scaled, self.affine.bits, training=self.training)


class UniformReceiver(nn.Module):
    """Scale back."""

    def __init__(self, affine: Range, *, dtype: str) -> None:
        super().__init__()
        self.affine = affine
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        return (symbols.float() * self.affine.step + self.affine.low).to(self.dtype)
