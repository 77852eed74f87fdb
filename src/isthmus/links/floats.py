"""Floats of 8 bits: a sign, an exponent and a mantissa, with no range to calibrate.

.. code-block:: none

    x --> clip --> binade, mantissa --> round --> [link] --> mantissa * 2**binade --> x_hat

A symbol is the format's bit pattern. It is found by comparing and by scaling with powers of two
alone, which is exact, so that an exported program finds the same. What is too large becomes the
largest finite value; -0 becomes 0. Binades are constants to the gradient: it passes as 1.

References:
    Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves
from isthmus.wire import CodecSpec, WireTensor

_STEPS = (16, 8, 4, 2, 1)  # of a binary search for a binade: 31 at most
_SIGN = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the 7 bits beside the sign are used.

    Attributes:
        mantissa: Bits after the point.
        bias: The exponent that is written for 1.
        largest: Finite value.
    """

    mantissa: int
    bias: int
    largest: float


FORMATS = {
    "fp8-e4m3": Format(mantissa=3, bias=7, largest=448.0),
    "fp8-e5m2": Format(mantissa=2, bias=15, largest=57_344.0),
}


def float_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float tensor.

    Args:
        spec: Says which format.
        tensor: Not needed.
        shape: Not needed.
        dtype: Of the tensor.
    """
    del tensor, shape
    form = FORMATS[spec.format]
    return Halves(sender=FloatSender(form), receiver=FloatReceiver(form, dtype=dtype))


class FloatSender(nn.Module):
    """Write as a bit pattern, rounded to the nearest, ties to even."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols of a tensor (B, ...); in training, floats that pass gradients."""
        x = x.float()
        negative = x < 0
        ulps = torch.where(negative, -x, x).clamp(max=self.form.largest)
        ulps = ulps * 2.0 ** (self.form.bias - 1)  # 1 is the smallest normal value
        binade = torch.zeros_like(ulps)
        for step in _STEPS:
            beyond = ulps >= 2.0**step
            ulps = torch.where(beyond, ulps * 2.0**-step, ulps)
            binade = torch.where(beyond, binade + step, binade)
        ulps = ulps * 2.0**self.form.mantissa
        code = binade * 2.0**self.form.mantissa + ulps.round()
        symbols = torch.where(negative, code + _SIGN, code)
        if self.training:
            return symbols.detach() + (ulps - ulps.detach())
        return symbols.to(torch.uint8)


class FloatReceiver(nn.Module):
    """Read a bit pattern."""

    def __init__(self, form: Format, *, dtype: str) -> None:
        super().__init__()
        self.form = form
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        symbols = symbols.float()
        negative = symbols >= _SIGN
        code = torch.where(negative, symbols - _SIGN, symbols)
        per_binade = 2.0**self.form.mantissa
        binade = ((code.detach() / per_binade).floor() - 1).clamp(min=0)
        ulps = code - binade * per_binade
        scale = torch.full_like(ulps, 2.0 ** (1 - self.form.bias - self.form.mantissa))
        for step in _STEPS:
            beyond = binade >= step
            scale = torch.where(beyond, scale * 2.0**step, scale)
            binade = torch.where(beyond, binade - step, binade)
        size = ulps * scale
        return torch.where(negative, -size, size).to(self.dtype)
