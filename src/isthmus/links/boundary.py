"""The ends of the network: the input as an image, the output as a class number.

.. code-block:: none

    x --> (x - low) * 255 / span --> round --> [link] --> symbols * span / 255 + low --> x_hat
                 +--------- the same static low and span on both sides --------+
    scores (B, K) --> argmax --> [link] --> one-hot (B, K)

An image in [0, 1] is carried by just those pixels: there low is 0 and span is 1. A PNG carries the
same symbols as plain pixels; it is made of them by ``isthmus.wire``.

Shapes: B batch, C channels (1 or 3), H height, W width, K classes.
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, round_to_symbols
from isthmus.wire import CodecSpec, WireTensor


def pixel_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float32 image as 8-bit pixels.

    Args:
        spec: Not needed.
        tensor: Not needed: symbols have the image's own shape.
        shape: (C, H, W).
        dtype: Not needed: the image is float32.
    """
    del spec, tensor, dtype
    affine = PixelRange(shape[0])
    return Halves(
        sender=PixelSender(affine), receiver=PixelReceiver(affine), calibrate=affine.calibrate
    )


def label_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry the class number of one vector of scores.

    Args:
        spec: Not needed.
        tensor: The class number.
        shape: (K,).
        dtype: Of the scores.
    """
    del spec
    sender = LabelSender(tensor.dtype)
    return Halves(sender=sender, receiver=LabelReceiver(shape[0], dtype=dtype))


class PixelRange(nn.Module):
    """What both halves agree on: which values black and white stand for, 0 and 1 at first.

    Args:
        num_channels: C.
    """

    low: Tensor
    span: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(num_channels, 1, 1))
        self.register_buffer("span", torch.ones(num_channels, 1, 1))

    def calibrate(self, x: Tensor) -> None:
        """Keep 0 to 1 if (B, C, H, W) holds no other values, else take each channel's range."""
        low_C11, high_C11 = (
            f(x.float(), dim=(0, 2, 3), keepdim=True)[0] for f in (torch.amin, torch.amax)
        )
        if low_C11.min() >= 0 and high_C11.max() <= 1:
            low_C11, high_C11 = torch.zeros_like(low_C11), torch.ones_like(high_C11)
        span_C11 = high_C11 - low_C11
        self.low.copy_(low_C11)
        self.span.copy_(torch.where(span_C11 > 0, span_C11, 1.0))  # a channel that never changes


class PixelSender(nn.Module):
    """Scale to 0 to 255 and round."""

    def __init__(self, affine: PixelRange) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        """Return the pixels of images (B, C, H, W)."""
        scaled = 255 * (x - self.affine.low) / self.affine.span
        return round_to_symbols(scaled, 255, training=self.training)


class PixelReceiver(nn.Module):
    """Scale back."""

    def __init__(self, affine: PixelRange) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the images (B, C, H, W)."""
        return symbols.float() * self.affine.span / 255 + self.affine.low


class LabelSender(nn.Module):
    """Choose the class of the highest score.

    Args:
        dtype: Of the class number.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, scores_BK: Tensor) -> Tensor:
        """Return class numbers (B,); in training, one-hot floats with the softmax's gradient."""
        label_B = scores_BK.argmax(dim=1)
        if not self.training:
            return label_B.to(self.dtype)
        soft_BK = scores_BK.softmax(dim=1)
        hard_BK = torch.zeros_like(soft_BK).scatter(1, label_B[:, None], 1.0)
        return hard_BK + (soft_BK - soft_BK.detach())


class LabelReceiver(nn.Module):
    """Make scores of a class number: 1 for the class, 0 for the others.

    Args:
        num_classes: K.
        dtype: Of the scores.
    """

    def __init__(self, num_classes: int, *, dtype: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return scores (B, K) for class numbers (B,), or one-hot floats as they are."""
        if symbols.is_floating_point():
            return symbols
        classes_K = torch.arange(self.num_classes, device=symbols.device)
        return (symbols.long()[:, None] == classes_K).to(self.dtype)
