"""What the frozen side makes of the training set, computed once: an epoch then costs the rest.

Shapes: N samples, V views of each, K classes.

References:
    Matsubara, Yang, Levorato, Mandt, "SC2: supervised compression for split computing", TMLR 2023,
    https://arxiv.org/abs/2203.08875 (a frozen encoder; the decoder and the rest are tuned).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.train.augment import Augmentation, augment
from isthmus.train.loop import Inputs

MOST_VIEWS = 4
_MOST_BYTES = 7 << 30
_BATCH = 256
_FEW_CHANNELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A training set as it leaves the frozen side.

    Attributes:
        tensors: What crosses first, each (V * N, ...), view by view; floats in 16 bits where they
            fit, which is far below a codec's own steps.
        dtypes: What each was before, and is to be again.
        targets: What the teacher says of each view, (V * N, K).
        num_views: V. The first view is the samples as they are.
    """

    tensors: Inputs
    dtypes: tuple[torch.dtype, ...]
    targets: Tensor
    num_views: int


def make_views(
    frozen: Callable[..., Inputs],
    rest: Callable[..., Tensor],
    inputs: Sequence[np.ndarray],
    augmentation: Augmentation | None,
    *,
    seed: int,
) -> Views | None:
    """Send every sample through the frozen side, and through the teacher's rest.

    Args:
        frozen: From a batch of inputs to what crosses first.
        rest: From there to the teacher's scores (B, K).
        inputs: One array (N, ...) for each input of the model.
        augmentation: What may happen to an image; None makes one view.
        seed: Of what happens.

    Returns:
        The views, as many as memory allows; None where not even one fits.
    """
    num = len(inputs[0])
    with torch.no_grad():
        tried = frozen(*(torch.from_numpy(x[:2]) for x in inputs))
        scores = rest(*tried)
    kept = [torch.float16 if x.dtype == torch.float32 else x.dtype for x in tried]
    per_view = num * sum(x[0].numel() * k.itemsize for x, k in zip(tried, kept, strict=True))
    num_views = min(MOST_VIEWS if augmentation else 1, _MOST_BYTES // max(1, per_view))
    if not num_views:
        return None
    tensors = tuple(
        torch.empty((num_views * num, *x.shape[1:]), dtype=k)
        for x, k in zip(tried, kept, strict=True)
    )
    targets = torch.empty((num_views * num, *scores.shape[1:]))
    generator = torch.Generator().manual_seed(seed)
    for view in range(num_views):
        for start in range(0, num, _BATCH):
            batch: Inputs = tuple(torch.from_numpy(x[start : start + _BATCH]) for x in inputs)
            if view and augmentation is not None:
                batch = augmented(batch, augmentation, generator)
            rows = slice(view * num + start, view * num + start + len(batch[0]))
            with torch.no_grad():
                crossing = frozen(*(laid_out(x, torch.channels_last) for x in batch))
                targets[rows] = rest(*crossing)
            for kept_x, x in zip(tensors, crossing, strict=True):
                kept_x[rows] = x
                if not kept_x[rows].isfinite().all():  # beyond what 16 bits hold
                    return None
    dtypes = tuple(x.dtype for x in tried)
    return Views(tensors=tensors, dtypes=dtypes, targets=targets, num_views=num_views)


def layout_of(model: nn.Module) -> torch.memory_format:
    """Return how images lie while a model is trained: channels innermost, which is faster.

    Not where a convolution of 1x1 with a stride reads fewer than 16 channels: with fewer than its
    blocks hold, which with AVX2 is 8, oneDNN writes past its memory, and the process dies or
    learns nonsense (https://github.com/uxlfoundation/oneDNN/issues/6035). Nor beside volumes, to
    which torch gives no such order.
    """
    if any(x.ndim > 4 for x in (*model.parameters(), *model.buffers())):
        return torch.contiguous_format
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
            continue
        if layer.stride != (1, 1) and layer.in_channels // layer.groups < _FEW_CHANNELS:
            return torch.contiguous_format
    return torch.channels_last


def laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return a batch of images in a layout, anything else as it is."""
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


def augmented(inputs: Inputs, augmentation: Augmentation, generator: torch.Generator) -> Inputs:
    """Move and mirror every image (B, C, H, W) among the inputs; leave the others."""
    return tuple(
        augment(x, augmentation, generator=generator)
        if x.ndim == 4 and x.is_floating_point()
        else x
        for x in inputs
    )
