"""Networks that train in seconds."""

from collections import OrderedDict

from torch import nn

from isthmus.models.resnet import BasicBlock, cifar_stem


def digits_resnet(num_classes: int = 10) -> nn.Sequential:
    """Make the demo's network: a ResNet of three blocks for images of 8x8 pixels.

    Args:
        num_classes: Logits that it returns.

    Returns:
        A network that takes images (B, 1, 8, 8) in [0, 1] and returns logits (B, num_classes).
    """
    return nn.Sequential(
        OrderedDict(
            stem=cifar_stem(1, 16),
            layer1=BasicBlock(16, 16),
            layer2=BasicBlock(16, 32, stride=2),
            layer3=BasicBlock(32, 32, stride=2),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)),
        )
    )
