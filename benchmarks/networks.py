"""Networks for `link_rate.py` that nobody brings weights for: it trains them itself."""

from torch import nn

from isthmus.models import resnet


def resnet18_quarter() -> nn.Module:
    """ResNet-18 with a quarter of its channels: what two cores train within an hour."""
    return resnet(18, width=16)
