"""The ends of the network: the input as an image, the output as a class number.

.. code-block:: none

    image in [0, 1] --> * 255 --> round --> [link] --> / 255 --> image
    scores (B, K) --> argmax --> [link] --> one-hot (B, K)

A PNG carries the same symbols as plain pixels; it is made of them by ``isthmus.wire``.

Shapes: B batch, K classes.
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, round_to_symbols
from isthmus.wire import WireTensor


def pixel_halves(tensor: WireTensor, shape: tuple[int, ...], dtype: str) -> Halves:
    """Carry one float32 image valued in [0, 1] as 8-bit pixels.

    Args:
        tensor: Its symbols.
        shape: Not needed: symbols have the image's own shape.
        dtype: Not needed: the image is float32.
    """
    del tensor, shape, dtype
    return Halves(sender=PixelSender(), receiver=PixelReceiver())


def label_halves(tensor: WireTensor, shape: tuple[int, ...], dtype: str) -> Halves:
    """Carry the class number of one vector of scores.

    Args:
        tensor: The class number.
        shape: (K,).
        dtype: Of the scores.
    """
    sender = LabelSender(tensor.dtype)
    return Halves(sender=sender, receiver=LabelReceiver(shape[0], dtype=dtype))


class PixelSender(nn.Module):
    """Scale by 255 and round."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the pixels of images (B, 1 or 3, H, W)."""
        return round_to_symbols(255 * x, 8, training=self.training)


class PixelReceiver(nn.Module):
    """Scale back."""

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the images (B, 1 or 3, H, W)."""
        return symbols.float() / 255


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
