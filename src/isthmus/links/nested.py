"""Nested widths in training: what a receiver gets of symbols that crossed at a narrower width.

Shapes: B batch, C channels on the wire, S inputs of a layer that knows the ratio.

References:
    Yu, Yang, Xu, Yang, Huang, "Slimmable neural networks", ICLR 2019,
    https://arxiv.org/abs/1812.08928 (some weights of its own for each width).
"""

from itertools import pairwise

import torch
from torch import Tensor

from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.nested import Width, at_width, widths
from isthmus.wire.spec import channel_dim, num_channels


def drawn_widths(spec: CodecSpec, num_samples: int) -> Tensor:
    """Draw a width for each sample of a batch, all as often as each other.

    Returns:
        Places in `isthmus.wire.nested.widths`, (B,).
    """
    num_widths = len(widths(spec))
    return (torch.randperm(num_samples) + torch.randint(num_widths, ())) % num_widths


def same_width(spec: CodecSpec, width: Width, num_samples: int) -> Tensor:
    """Return one width for each sample of a batch, as `drawn_widths` does."""
    return torch.full((num_samples,), widths(spec).index(width))


def crossed(spec: CodecSpec, symbols: tuple[Tensor, ...], widths_B: Tensor) -> tuple[Tensor, ...]:
    """Return what the receiver gets of symbols that cross at these widths.

    It is what `isthmus.wire.nested.widened` makes of `isthmus.wire.nested.narrowed`. Gradients
    pass the rounding straight through, and stop where a channel does not cross.

    Args:
        spec: A nested codec.
        symbols: What its sender emits, each (B, ...): whole numbers, as uint8 or as floats.
        widths_B: For each sample its place in `isthmus.wire.nested.widths`.
    """
    narrow = [at_width(spec, width).wire_tensors for width in widths(spec)]
    return tuple(
        _crossed(x, full, [tensors[k] for tensors in narrow], widths_B.to(x.device))
        for k, (x, full) in enumerate(zip(symbols, spec.wire_tensors, strict=True))
    )


def slots(y: Tensor, kept: tuple[int, ...], dim: int) -> Tensor:
    """Give each ratio inputs of its own, so that the layer behind has weights of its own for it.

    Which ratio a sample crossed at is read from its last channel that is not zero: one whose upper
    channels are zero everywhere counts as narrower, in training as in use.

    Args:
        y: What arrived, (B, ...) at the full width.
        kept: Channels that cross at each ratio, the most first.
        dim: Of the channels.

    Returns:
        (B, ...) of S channels: for each ratio those that cross and a 1, or zeros where the sample
        crossed at another.
    """
    positions = [k for k in range(1, y.ndim) if k != dim]
    loudest_BC = y.abs().amax(positions) if positions else y.abs()
    number_C = torch.arange(1, y.shape[dim] + 1, device=y.device)
    last_B = ((loudest_BC > 0) * number_C).amax(1).reshape(-1, *[1] * (y.ndim - 1))
    one = torch.ones_like(y.narrow(dim, 0, 1))
    return torch.cat(
        [
            torch.cat([y.narrow(dim, 0, most), one], dim) * ((last_B > fewest) & (last_B <= most))
            for most, fewest in pairwise((*kept, -1))
        ],
        dim,
    )


def _crossed(x: Tensor, full: WireTensor, narrow: list[WireTensor], widths_B: Tensor) -> Tensor:
    if full == narrow[-1]:  # no float: it crosses as it is
        return x
    kept_B = x.new_tensor([num_channels(t.shape) for t in narrow], dtype=torch.int64)[widths_B]
    step_B = x.new_tensor([2.0 ** (full.bits - t.bits) for t in narrow], dtype=torch.float32)
    step = step_B[widths_B].reshape(-1, *[1] * len(full.shape))
    s = torch.minimum(x.float(), 2.0**full.bits - step)
    s = s + ((s / step + 0.5).floor() * step - s).detach()
    crosses_BC = torch.arange(num_channels(full.shape), device=x.device) < kept_B[:, None]
    sizes = [len(x), *[1] * len(full.shape)]
    if full.shape:
        sizes[1 + channel_dim(full.shape)] = -1
    return torch.where(crosses_BC.reshape(sizes), s, 2.0 ** (full.bits - 1)).to(x.dtype)
