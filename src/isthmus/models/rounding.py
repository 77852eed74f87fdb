"""What a tensor becomes in a number format: one rounder for all that `isthmus.wire.formats` names.

.. code-block:: none

    |x| / 2**k --> which edges of the format's values lie below --> value * 2**k, with the sign

Values and edges are tables, so that torch and an exported program, which searches the same ones by
halves, agree to the bit, and so that floats, posits and logarithms are rounded alike.

Shapes: B batch, K blocks, V values of a block.
"""

from functools import cache
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.graph.integers import NAMESPACE
from isthmus.wire.formats import AnyFormat, Magnitudes, find_format

_POWERS = range(-127, 128)  # of a block's scale, 8 bits


def edges(form: AnyFormat) -> Magnitudes:
    """Return the least magnitude that becomes each value but 0, ties to the even pattern."""
    between = form.between()
    even = np.arange(len(between)) % 2 == 0
    return np.where(even, np.nextafter(between, np.float32(np.inf)), between)


def scales(form: AnyFormat) -> tuple[Magnitudes, Magnitudes]:
    """Return the least largest magnitude that makes a block take each scale, and the scales.

    A scale is the power of two by which the largest value of a block gets the highest exponent of
    the format; the first has no edge.
    """
    top = int(np.frexp(form.magnitudes()[-1])[1]) - 1
    powers = np.array(_POWERS)
    with np.errstate(over="ignore"):
        lowest = np.ldexp(1.0, powers[1:] + top).astype(np.float32)
    return lowest, np.ldexp(1.0, powers).astype(np.float32)


@cache
def _tables(form: AnyFormat) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, (edges(form), form.magnitudes(), *scales(form))))


def round_to(x: Tensor, form: AnyFormat, *, generator: torch.Generator | None = None) -> Tensor:
    """Return the values of a format that are nearest to x, ties to the even pattern.

    Args:
        x: (B, ...); what is too large becomes the largest finite value. Blocks end with each of
            the B, a sample or the row of a weight.
        form: The format.
        generator: Rounds up by chance instead, as likely as x is near: then the mean is x.

    Returns:
        The shape and dtype of x.

    References:
        Gupta, Agrawal, Gopalakrishnan, Narayanan, ICML 2015, https://arxiv.org/abs/1502.02551
        (by chance).

    Example:
        >>> round_to(torch.tensor([0.3, 5.1, 1000.0]), find_format("fp8-e4m3")).tolist()
        [0.3125, 5.0, 448.0]
    """
    above, values, scale_edges, powers = (t.to(x.device) for t in _tables(form))
    exact = x.detach().float()
    if form.block:
        size_BKV = in_groups(exact.abs(), min(form.block, max(exact[:1].numel(), 1)))
        largest_BK1 = size_BKV.amax(dim=-1, keepdim=True)
        scale_BK1 = powers[torch.bucketize(largest_BK1, scale_edges, right=True)]
        found_BKV = _snapped(size_BKV / scale_BK1, above, values, generator) * scale_BK1
        found = out_of_groups(found_BKV, tuple(x.shape[1:]))
    else:
        found = _snapped(exact.abs(), above, values, generator)
    return (found.reshape(x.shape) * exact.sign()).to(x.dtype)


def _snapped(
    size: Tensor, above: Tensor, values: Tensor, generator: torch.Generator | None
) -> Tensor:
    if generator is None:
        return values[torch.bucketize(size, above, right=True)]
    size = size.clamp(max=values[-1].item())
    low = torch.bucketize(size, values, right=True) - 1
    gap = values[(low + 1).clamp(max=len(values) - 1)] - values[low]
    chance = torch.rand(size.shape, generator=generator).to(size.device)
    return values[low + (chance * gap < size - values[low]).long()]


def in_groups(x: Tensor, size: int) -> Tensor:
    """Return a tensor (B, ...) as groups (B, K, V) in the order of memory, zeros at the end."""
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    return F.pad(flat, (0, -flat.shape[1] % size)).unflatten(1, (-1, size))


def out_of_groups(x_BKV: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `in_groups` for samples of ``shape``."""
    return x_BKV.flatten(1)[:, : prod(shape)].reshape(-1, *shape)


@torch.library.custom_op(f"{NAMESPACE}::round_to_format", mutates_args=())
def round_to_format(x: Tensor, name: str) -> Tensor:
    """Return what a number format makes of a batch (B, ...); its gradient passes as 1.

    In ONNX it is a search among the format's values.
    """
    return round_to(x, find_format(name))


round_to_format.register_fake(lambda x, _: torch.empty_like(x))
round_to_format.register_autograd(lambda ctx, grad: (grad, None))


class RoundTo(nn.Module):
    """Rounds what passes to a number format; blocks lie within a sample.

    Args:
        format: As `isthmus.wire.formats.find_format` takes it.
    """

    def __init__(self, format: str) -> None:
        super().__init__()
        find_format(format)
        self.format = format

    def forward(self, x: Tensor) -> Tensor:
        """Return a batch (B, ...) with the values of the format."""
        return round_to_format(x, self.format)
