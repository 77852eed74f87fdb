"""Nested widths in training: what a receiver gets of symbols that crossed at a narrower width.

Shapes: B batch, C channels on the wire.
"""

import torch
from torch import Tensor

from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.nested import Width, at_width, widths
from isthmus.wire.spec import channel_dim, num_channels


def drawn_widths(spec: CodecSpec, num_samples: int) -> Tensor:
    """Draw a width for each sample of a batch, all alike likely.

    Returns:
        Places in `isthmus.wire.nested.widths`, (B,).
    """
    return torch.randint(len(widths(spec)), (num_samples,))


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
