"""What codecs are made of: the halves for one tensor, and rounding that gradients pass.

Shapes: B batch, C channels, M rows: one for every value that a channel takes, K groups, V values
of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.wire.spec import channel_dim, num_channels


def _keep(x: Tensor) -> None:
    """Set nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Both ends of the way of one tensor.

    Attributes:
        sender: Maps a tensor (B, ...) to its symbols (B, ...), or to these and their scales.
        receiver: Maps back what the sender returns.
        calibrate: Sets static ranges and steps, in both halves, from real activations (B, ...).
    """

    sender: nn.Module
    receiver: nn.Module
    calibrate: Callable[[Tensor], None] = _keep


def round_to_symbols(x: Tensor, largest: int, *, training: bool) -> Tensor:
    """Round to whole numbers from 0 to the largest symbol.

    Args:
        x: float32 of any shape.
        largest: At most 255.
        training: Return floats whose gradient is that of the clamp alone, in place of uint8.

    References:
        Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013, https://arxiv.org/abs/1308.3432 (the
        straight-through estimator).
    """
    clamped = x.clamp(0, largest)
    rounded = clamped.round()
    if training:
        return clamped + (rounded - clamped).detach()
    return rounded.to(torch.uint8)


def rows(x: Tensor) -> Tensor:
    """Return a tensor (B, ...) as rows (M, C): one channel a column, C = 1 for scalars."""
    shape = tuple(x.shape[1:])
    if not shape:
        return x[:, None]
    return x.movedim(1 + channel_dim(shape), -1).reshape(-1, num_channels(shape))


def per_channel(values_C: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Shape one value per channel so that it broadcasts over samples of ``shape``."""
    sizes = [1] * len(shape)
    if shape:
        sizes[channel_dim(shape)] = len(values_C)
    return values_C.reshape(sizes)
