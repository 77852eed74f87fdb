"""Residual networks of 18 to 152 layers, narrowed by a ratio r at one of two places.

.. code-block:: none

    placement "block", inside every block: what passes between blocks stays as wide as before

        x (C) --+--> conv1 --> y (C / r) --> conv2 --> (C) --+--> relu --> (C)
                +------------------- shortcut ---------------+

    placement "cut", between stages or between blocks: all that crosses is narrow, skip included

        block --> (C) --> narrow --> (C / r) ==[cut]==> widen --> (C) --> block

Where the paper on the bottleneck ratio can be read in more than one way, this was chosen:

* It lists the sum, then batch norm and ReLU. Here each branch ends with its own batch norm, then
  come the sum and the ReLU, as in He et al.; a norm after the sum would not be the standard
  network at r = 1.
* It does not say which convolution carries the stride. Here it is the first 3x3 convolution of
  either block. In a bottleneck block He et al. stride in the 1x1 convolution before it; almost
  all networks since do not.
* A standard bottleneck block narrows by 4 already. Here r divides that middle once more, so that
  r = 1 is the standard network at every depth.
* The shortcut is never narrowed, and of C channels ``C // r`` remain.

Narrow and widen are a 1x1 convolution and a batch norm each, without a ReLU: together an affine
map of rank ``C // r``, which keeps the path of the shortcuts linear.

References:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385.
    Lin, Zhu, Eshraghian, "Reducing Data Bottlenecks in Distributed, Heterogeneous Neural
    Networks", 2024, https://arxiv.org/abs/2410.09650 (the ratio; placement "block").
    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    https://arxiv.org/abs/1801.04381 (no ReLU in so few channels, where it would lose most).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.models.blocks import conv_norm

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
RATIOS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What passes from one block of a network to the next.

    Attributes:
        after: The module to cut after, as `isthmus.graph.find_cut` takes it.
        channels: Of the block's output.
        wire_channels: Of the tensor that crosses; fewer where a narrow layer stands.
        between_stages: Whether the block is the last of its stage.
    """

    after: str
    channels: int
    wire_channels: int
    between_stages: bool


def resnet(
    depth: int,
    *,
    num_classes: int = 100,
    in_channels: int = 3,
    width: int = 64,
    stem: str = "cifar",
    ratio: int = 1,
    placement: str = "block",
    narrow_after: str = "stage",
) -> "ResNet":
    """Make a residual network, the standard one or a narrowed one.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: Logits that it returns.
        in_channels: Of the images: 3 for colour, 1 for grey.
        width: Channels of the first stage; each later one has twice as many.
        stem: ``"cifar"`` keeps the resolution (a 3x3 convolution); ``"imagenet"`` quarters it
            (a 7x7 convolution and a maximum pool, both of stride 2).
        ratio: Channels before / channels of the narrow layer, rounded down; 1 narrows nothing,
            `RATIOS` are the paper's.
        placement: ``"block"`` narrows the middle of every block; ``"cut"`` what crosses from one
            to the next.
        narrow_after: With placement ``"cut"``: every ``"stage"`` or every ``"block"`` but the
            last, behind which nothing crosses: the pool and the head stay with it, as the stem
            stays with the first.

    Returns:
        A network that takes images (B, 3, H, W) and returns logits (B, num_classes).

    Raises:
        InputError: There is no such depth, stem or place, or a layer is left without a channel.

    Example:
        >>> narrow = resnet(18, width=16, ratio=8, placement="cut").layer1.narrow
        >>> narrow[0]
        Conv2d(16, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """
    if stem not in ("cifar", "imagenet"):
        raise InputError(f"no stem {stem!r}; there are cifar, imagenet")
    crossings = wires(
        depth, width=width, ratio=ratio, placement=placement, narrow_after=narrow_after
    )
    return ResNet(
        depth,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        stem=stem,
        block_ratio=ratio if placement == "block" else 1,
        crossings=crossings,
    )


def wires(
    depth: int,
    *,
    width: int = 64,
    ratio: int = 1,
    placement: str = "block",
    narrow_after: str = "stage",
) -> tuple[Wire, ...]:
    """List what passes between the blocks of the network that `resnet` makes.

    Arguments and errors are those of `resnet`.

    Returns:
        One entry for every two neighbouring blocks, in order.

    Example:
        >>> stages = [wire for wire in wires(18, ratio=8) if wire.between_stages]
        >>> [(wire.after, wire.wire_channels) for wire in stages]
        [('layer1', 64), ('layer2', 128), ('layer3', 256)]
        >>> wires(50, ratio=8, placement="cut", narrow_after="block")[0].after
        'layer1.narrow0'
    """
    _check(depth, width, ratio, placement, narrow_after)
    found = []
    for stage, num_blocks in enumerate(BLOCKS[depth]):
        layer, channels = f"layer{stage + 1}", (width << stage) * _block(depth).expansion
        for index in range(num_blocks):
            last = index == num_blocks - 1
            narrow = placement == "cut" and ratio > 1 and (last or narrow_after == "block")
            inner = f"{layer}.narrow{index}" if narrow else f"{layer}.{index}"
            wire = Wire(
                after=layer if last else inner,
                channels=channels,
                wire_channels=channels // ratio if narrow else channels,
                between_stages=last,
            )
            found.append(wire)
    return tuple(found[:-1])


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, pool, linear head.

    A stage that passes on a narrow tensor ends with ``narrow``, and the next one begins with
    ``widen``; between the blocks of a stage they carry the number of the block beside them.
    Arguments are those of `resnet`, and these:

    Args:
        block_ratio: Narrows the middle of every block.
        crossings: What passes between the blocks.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int,
        width: int,
        stem: str,
        block_ratio: int,
        crossings: tuple[Wire, ...],
    ) -> None:
        super().__init__()
        block = _block(depth)
        self.stem = (
            conv_norm(in_channels, width, 3)
            if stem == "cifar"
            else nn.Sequential(*conv_norm(in_channels, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        )
        channels = wire_channels = width
        following = iter(crossings)
        for stage, num_blocks in enumerate(BLOCKS[depth]):
            layer = nn.Sequential()
            for index in range(num_blocks):
                if wire_channels < channels:
                    wider = conv_norm(wire_channels, channels, act=None)
                    layer.add_module(f"widen{index or ''}", wider)
                stride = 2 if stage > 0 and index == 0 else 1
                made = block(channels, width << stage, stride=stride, ratio=block_ratio)
                layer.add_module(str(index), made)
                channels = wire_channels = (width << stage) * block.expansion
                wire = next(following, None)
                if wire is not None and wire.wire_channels < channels:
                    wire_channels = wire.wire_channels
                    name = "narrow" if wire.between_stages else f"narrow{index}"
                    layer.add_module(name, conv_norm(channels, wire_channels, act=None))
            self.add_module(f"layer{stage + 1}", layer)
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
        ratio: The first convolution returns ``channels // ratio`` channels.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, ratio: int = 1
    ) -> None:
        super().__init__()
        middle = channels // ratio
        self.conv1 = nn.Conv2d(in_channels, middle, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, channels, 3, padding=1, bias=False)
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
        channels: A quarter of the channels of the output.
        stride: Of the 3x3 convolution and of the shortcut.
        ratio: The 3x3 convolution works on ``channels // ratio`` channels.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, ratio: int = 1
    ) -> None:
        super().__init__()
        middle, out_channels = channels // ratio, channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output (B, 4 * channels, H / stride, W / stride)."""
        y_BCHW = self.bn1(self.conv1(x_BCHW)).relu()
        y_BCHW = self.bn2(self.conv2(y_BCHW)).relu()
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return (y_BCHW + self.shortcut(x_BCHW)).relu()


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Return nothing at all where the shapes agree, else a projection with batch norm."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return conv_norm(in_channels, channels, 1, stride, act=None)


def _block(depth: int) -> type[BasicBlock] | type[BottleneckBlock]:
    return BasicBlock if depth < 50 else BottleneckBlock


def _check(depth: int, width: int, ratio: int, placement: str, narrow_after: str) -> None:
    if depth not in BLOCKS:
        raise InputError(f"no ResNet of depth {depth}; there are {', '.join(map(str, BLOCKS))}")
    if placement not in ("block", "cut"):
        raise InputError(f"no placement {placement!r}; there are block, cut")
    if narrow_after not in ("stage", "block"):
        raise InputError(f"narrow_after {narrow_after!r}: expected stage or block")
    if width < 1 or ratio < 1:
        raise InputError(f"ResNet-{depth}: width {width}, ratio {ratio}; expected at least 1 each")
    if placement == "block":
        layer, channels = "layer1.0.conv1", width
    else:
        layer = "layer1.narrow" if narrow_after == "stage" else "layer1.narrow0"
        channels = width * _block(depth).expansion
    if ratio > channels:  # the first stage has the fewest
        raise InputError(
            f"ResNet-{depth} of width {width}: ratio {ratio} leaves {layer} none of {channels} "
            f"channels; expected a ratio of at most {channels}, or a larger width"
        )
