"""Residual networks of 18 to 152 layers.

References:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385. As is usual since, a bottleneck block strides in its 3x3
    convolution, not in its first.
"""

from typing import Literal

from torch import Tensor, nn

from isthmus.errors import InputError

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def resnet(
    depth: int,
    *,
    num_classes: int = 100,
    width: int = 64,
    stem: Literal["cifar", "imagenet"] = "cifar",
) -> "ResNet":
    """Make a standard residual network.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: Logits that it returns.
        width: Channels of the first stage; each later one has twice as many.
        stem: ``"cifar"`` keeps the resolution (a 3x3 convolution); ``"imagenet"`` quarters it
            (a 7x7 convolution and a maximum pool, both of stride 2).

    Returns:
        A network that takes images (B, 3, H, W) and returns logits (B, num_classes).

    Raises:
        InputError: There is no such depth or stem.
    """
    if depth not in BLOCKS:
        raise InputError(f"no ResNet of depth {depth}; there are {', '.join(map(str, BLOCKS))}")
    if stem not in ("cifar", "imagenet"):
        raise InputError(f"no stem {stem!r}; there are cifar, imagenet")
    return ResNet(depth, num_classes=num_classes, width=width, stem=stem)


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, pool, linear head.

    Args:
        depth: A key of `BLOCKS`.
        num_classes: Logits that it returns.
        width: Channels of the first stage.
        stem: ``"cifar"`` or ``"imagenet"``.
    """

    def __init__(self, depth: int, *, num_classes: int, width: int, stem: str) -> None:
        super().__init__()
        block = BasicBlock if depth < 50 else BottleneckBlock
        self.stem = cifar_stem(3, width) if stem == "cifar" else _imagenet_stem(width)
        channels = width
        for stage, num_blocks in enumerate(BLOCKS[depth]):
            blocks: list[nn.Module] = []
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width << stage, stride=stride))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, 3, H, W)."""
        for child in self.children():
            x_BCHW = child(x_BCHW)
        return x_BCHW


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output (B, channels, H / stride, W / stride)."""
        y_BCHW = self.bn1(self.conv1(x_BCHW)).relu()
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return (y_BCHW + self.shortcut(x_BCHW)).relu()


class BottleneckBlock(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the 3x3 convolution; the output has four times as many.
        stride: Of the 3x3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output (B, 4 * channels, H / stride, W / stride)."""
        y_BCHW = self.bn1(self.conv1(x_BCHW)).relu()
        y_BCHW = self.bn2(self.conv2(y_BCHW)).relu()
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return (y_BCHW + self.shortcut(x_BCHW)).relu()


def cifar_stem(in_channels: int, channels: int) -> nn.Sequential:
    """Return a 3x3 convolution with batch norm and ReLU, which keeps the resolution."""
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _imagenet_stem(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(), pool)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Return nothing at all where the shapes agree, else a projection with batch norm."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(channels))
