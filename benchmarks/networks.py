"""Networks for the benchmarks that nobody brings weights for: they train them themselves."""

from collections import OrderedDict

from torch import Tensor, nn

from isthmus.models import resnet
from isthmus.models.blocks import Concat, conv_norm


def resnet18_quarter() -> nn.Module:
    """ResNet-18 with a quarter of its channels: what two cores train within an hour."""
    return resnet(18, width=16)


class Part(nn.Module):
    """Passes channels ``start`` to ``stop`` (B, C, H, W)."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, stop - start, H, W)."""
        return x[:, self.start : self.stop]


def shuffle_student(num_classes: int = 100) -> nn.Sequential:
    """Units of ShuffleNetV2 for images of 32 pixels: 11.9 million MACs.

    A pooling in front of a stage takes the place of the stride, and most units stand where maps
    are small: so it trains faster on a processor, as a profile by hand showed.

    References:
        Ma, Zhang, Zheng, Sun, "ShuffleNet V2", ECCV 2018, https://arxiv.org/abs/1807.11164.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=conv_norm(3, 16, 3))
    read = 16
    for number, (made, units) in enumerate(((64, 2), (160, 4), (320, 4)), start=1):
        stage = [nn.MaxPool2d(2), _wider(read, made), nn.ChannelShuffle(2)]
        for _ in range(units - 1):
            stage += [_unit(made), nn.ChannelShuffle(2)]
        layers[f"layer{number}"] = nn.Sequential(*stage)
        read = made
    last = [conv_norm(read, 512), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(layers | {"head": nn.Sequential(*last, nn.Linear(512, num_classes))})


def _depthwise(channels: int) -> nn.Sequential:
    return conv_norm(channels, channels, 3, groups=channels, act=None)


def _wider(read: int, made: int) -> Concat:
    """Make half of the channels in each of two ways."""
    half = made // 2
    return Concat(
        nn.Sequential(_depthwise(read), conv_norm(read, half)),
        nn.Sequential(conv_norm(read, half), _depthwise(half), conv_norm(half, half)),
    )


def _unit(channels: int) -> Concat:
    """Pass one half of the channels, and change the other."""
    half = channels // 2
    parts = (conv_norm(half, half), _depthwise(half), conv_norm(half, half))
    return Concat(Part(0, half), nn.Sequential(Part(half, channels), *parts))
