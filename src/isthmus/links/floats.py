"""Floats in few bits: a sign, an exponent and a mantissa, with no range to calibrate.

.. code-block:: none

    x --> clip --> binade, mantissa --> round --> [link] --> mantissa * 2**binade --> x_hat
    mx: x / 2**k in place of x, and k is sent: 32 values share it, that of the largest of them

A symbol is the format's bit pattern. It is found by comparing and by scaling with powers of two
alone, which is exact, so that an exported program finds the same. What is too large becomes the
largest finite value; -0 becomes 0. The gradient passes as 1.

The 32 values of a block lie side by side in memory: neighbours in a row of a map (C, H, W),
channels of one token in (T, C). The last block of a sample may be shorter.

Shapes: B batch, K blocks, V values of a block.

References:
    See `isthmus.wire.formats`.
"""

from math import floor, log2

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves
from isthmus.models.rounding import in_groups, out_of_groups
from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.formats import BLOCK, CROSSING, Format

_LEAST, _MOST = -126, 127  # exponents of normal float32 numbers
_SCALE_BIAS = 127
_STEEPEST = 60
_FINITE = torch.finfo(torch.float32).max


def float_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float tensor.

    Args:
        spec: Says which format.
        tensor: Its symbols, which say their dtype.
        shape: Of one sample.
        dtype: Of the tensor.
    """
    form = CROSSING[spec.format]
    sender = FloatSender(form, tensor.dtype)
    receiver = FloatReceiver(form, dtype)
    if form.block:
        return Halves(
            sender=BlockSender(sender, shape), receiver=BlockReceiver(receiver, shape, dtype=dtype)
        )
    return Halves(sender=sender, receiver=receiver)


class FloatSender(nn.Module):
    """Write as a bit pattern, rounded to the nearest, ties to even.

    Args:
        form: The format.
        symbol_dtype: Of the patterns.
    """

    def __init__(self, form: Format, symbol_dtype: str) -> None:
        super().__init__()
        self.form = form
        self.symbol_dtype: torch.dtype = getattr(torch, symbol_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols of a tensor (B, ...); in training, floats that pass gradients."""
        form = self.form
        sign, per_binade = 2 ** (form.bits - 1), 2.0**form.mantissa
        x = x.float()
        negative = x < 0
        size = torch.where(negative, -x, x).clamp(max=form.largest)
        ulps, binade = _split(size.detach(), least=1 - form.bias, largest=form.largest)
        ulps = ulps * per_binade
        code = binade * per_binade + ulps.round()
        if form.complement:
            symbols = torch.where(negative & (code > 0), 2 * sign - code, code)
        else:
            symbols = torch.where(negative, code + sign, code)
        if not self.training:
            return symbols.to(self.symbol_dtype)
        slope = size / _step(code, form)
        slope = torch.where(negative, -slope, slope) if form.complement else slope
        return symbols + (slope - slope.detach())


class FloatReceiver(nn.Module):
    """Read a bit pattern; one that stands for no finite value becomes the largest.

    Args:
        form: The format.
        dtype: Of the tensor.
    """

    def __init__(self, form: Format, dtype: str) -> None:
        super().__init__()
        self.form = form
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        form, sign = self.form, 2 ** (self.form.bits - 1)
        symbols = symbols.float()
        negative = symbols >= sign
        rest = 2 * sign - symbols if form.complement else symbols - sign
        code = torch.where(negative, rest, symbols)
        binade = _binade(code, form)
        ulps = code.detach() / 2.0**form.mantissa - binade
        size = _times_power(ulps * 2.0 ** (1 - form.bias), binade).clamp(max=form.largest)
        if self.training:
            size = size + (code - code.detach()) * _step(code, form)
        return torch.where(negative, -size, size).to(self.dtype)


class BlockSender(nn.Module):
    """Divide each block by a power of two, then write its values.

    Args:
        sender: Of values.
        shape: Of one sample.
    """

    def __init__(self, sender: FloatSender, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sender = sender
        self.shape = shape
        self.largest_exponent = floor(log2(sender.form.largest))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the symbols (B, ...) of a tensor and its scales (B, K)."""
        x_BKV = in_groups(x.float(), BLOCK).clamp(-_FINITE, _FINITE)
        largest_BK1 = x_BKV.detach().abs().amax(dim=-1, keepdim=True)
        _, binade_BK1 = _split(largest_BK1, least=_LEAST, largest=2.0**_MOST)
        power_BK1 = (binade_BK1 - self.largest_exponent).clamp(min=0)
        scale_BK1 = _times_power(torch.full_like(power_BK1, 2.0**_LEAST), power_BK1)
        symbols = out_of_groups(self.sender(x_BKV / scale_BK1), self.shape)
        code_BK = power_BK1[..., 0] + (_LEAST + _SCALE_BIAS)
        return symbols, code_BK if self.training else code_BK.to(torch.uint8)


class BlockReceiver(nn.Module):
    """Read values and scale them back.

    Args:
        receiver: Of values.
        shape: Of one sample.
        dtype: Of the tensor.
    """

    def __init__(self, receiver: FloatReceiver, shape: tuple[int, ...], *, dtype: str) -> None:
        super().__init__()
        self.receiver = receiver
        self.shape = shape
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor, code_BK: Tensor) -> Tensor:
        """Return the tensor (B, ...)."""
        power_BK1 = (code_BK.float() - (_LEAST + _SCALE_BIAS)).clamp(0, _MOST - _LEAST)[..., None]
        scale_BK1 = _times_power(torch.full_like(power_BK1, 2.0**_LEAST), power_BK1)
        x_BKV = self.receiver(in_groups(symbols.float(), BLOCK)).float() * scale_BK1
        return out_of_groups(x_BKV, self.shape).to(self.dtype)


def _binade(code: Tensor, form: Format) -> Tensor:
    """Return how many binades above the least one a value's bit pattern lies, without its sign."""
    return ((code.detach() / 2.0**form.mantissa).floor() - 1).clamp(min=0)


def _step(code: Tensor, form: Format) -> Tensor:
    """Return what the next bit pattern adds to a value: within what gradients can be scaled by."""
    exponent = _binade(code, form) + (1 - form.bias - form.mantissa)
    return exponent.clamp(-_STEEPEST, _STEEPEST).exp2()


def _split(size: Tensor, *, least: int, largest: float) -> tuple[Tensor, Tensor]:
    """Return m and k with ``size = m 2**(least + k)``: m in [1, 2), or in [0, 1) where k = 0."""
    binade = torch.zeros_like(size)
    for step in _steps(floor(log2(largest)) - least):
        beyond = size >= 2.0 ** (least + step)
        size = torch.where(beyond, size * 2.0**-step, size)
        binade = torch.where(beyond, binade + step, binade)
    # The clamp changes nothing, but holds compilers off from one factor beyond what float32 holds.
    return (size * 2.0**-least).clamp(max=2.0), binade


def _times_power(x: Tensor, power: Tensor) -> Tensor:
    """Return ``x 2**power``, for whole powers from 0 to 255."""
    for step in _steps(_MOST - _LEAST):
        beyond = power >= step
        x = torch.where(beyond, x * 2.0**step, x)
        power = torch.where(beyond, power - step, power)
    return x


def _steps(most: int) -> tuple[int, ...]:
    """Return the steps of a binary search from 0 to ``most``; 2**64 is exact in float32."""
    return (64,) * (most // 64) + (32, 16, 8, 4, 2, 1)
