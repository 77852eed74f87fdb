"""Networks that train in seconds."""

from collections import OrderedDict

from torch import nn

from isthmus.models.blocks import conv_norm
from isthmus.models.resnet import BasicBlock


def digits_resnet(num_classes: int = 10, *, width: int = 16) -> nn.Sequential:
    """Make the demo's network: a ResNet of three blocks for images of 8x8 pixels.

    Args:
        num_classes: Logits that it returns.
        width: Channels of the stem and the first block; the others have twice as many.

    Returns:
        A network that takes images (B, 1, 8, 8) in [0, 1] and returns logits (B, num_classes).
    """
    return nn.Sequential(
        OrderedDict(
            stem=conv_norm(1, width, 3),
            layer1=BasicBlock(width, width),
            layer2=BasicBlock(width, 2 * width, stride=2),
            layer3=BasicBlock(2 * width, 2 * width, stride=2),
            head=nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes)
            ),
        )
    )
