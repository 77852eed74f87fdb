"""Small networks as published, of the blocks in `isthmus.models.blocks`.

Each takes images (B, 3, H, W), of 224 pixels or, where the name ends with 20, of 32, and returns
logits (B, num_classes). Their parameters and MACs are those of the papers; weights they have none.
"""

from collections.abc import Callable

from torch import nn

from isthmus.models.blocks import (
    Adder,
    Concat,
    Gate,
    Shift,
    Sum,
    conv_norm,
    ghost,
    inverted,
    octave,
    separable,
    shuffle,
)
from isthmus.models.resnet import resnet


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def squeezenet(num_classes: int = 1000) -> nn.Sequential:
    """Make SqueezeNet 1.0: 1.25 million parameters.

    References:
        Iandola et al., 2016, https://arxiv.org/abs/1602.07360, table 1.
    """

    def act(conv: nn.Module) -> nn.Sequential:
        return nn.Sequential(conv, nn.ReLU())

    layers: list[nn.Module] = [act(nn.Conv2d(3, 96, 7, 2))]
    read = 96
    for number, half in enumerate((64, 64, 128, 128, 192, 192, 256, 256)):
        if number in (0, 3, 7):
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        few = half // 4
        wide = Concat(act(nn.Conv2d(few, half, 1)), act(nn.Conv2d(few, half, 3, padding=1)))
        layers += [act(nn.Conv2d(read, few, 1)), wide]
        read = 2 * half
    layers += [nn.Dropout(), act(nn.Conv2d(read, num_classes, 1))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mobilenet_v1(num_classes: int = 1000) -> nn.Sequential:
    """Make MobileNet: 4.2 million parameters, 569 million MACs.

    References:
        Howard et al., 2017, https://arxiv.org/abs/1704.04861, tables 1 and 4.
    """
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    read = 32
    for made, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2),
        (1024, 1),
    ):  # fmt: skip
        block = separable(read, made, stride)
        layers.append(nn.Sequential(block, nn.BatchNorm2d(made), nn.ReLU()))
        read = made
    return nn.Sequential(*layers, *_head(read, num_classes))


def mobilenet_v2(num_classes: int = 1000) -> nn.Sequential:
    """Make MobileNetV2: 3.4 million parameters, 300 million MACs.

    References:
        Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381, tables 2 and 4.
    """
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.ReLU6)]
    read = 32
    for expand, made, times, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(times):
            block = inverted(read, made, 1 if number else first, expand=expand)
            narrow = nn.Sequential(block, nn.BatchNorm2d(made))
            layers.append(Sum(nn.Identity(), narrow) if number else narrow)
            read = made
    layers += [conv_norm(read, 1280, act=nn.ReLU6)]
    return nn.Sequential(*layers, *_head(1280, num_classes))


def shufflenet(num_classes: int = 1000) -> nn.Sequential:
    """Make ShuffleNet 1x of three groups: 137 million MACs.

    References:
        Zhang, Zhou, Lin, Sun, CVPR 2018, https://arxiv.org/abs/1707.01083, tables 1 and 2.
    """
    layers: list[nn.Module] = [conv_norm(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    read = 24
    for made, times in ((240, 4), (480, 8), (960, 4)):
        for number in range(times):
            new = made if number else made - read
            first = 1 if read == 24 else 3
            block = shuffle(read, new, 1 if number else 2, groups=3, first=first)
            branch = nn.Sequential(block, nn.BatchNorm2d(new))
            skip = Sum(nn.Identity(), branch) if number else Concat(nn.AvgPool2d(3, 2, 1), branch)
            layers += [skip, nn.ReLU()]
            read = made
    return nn.Sequential(*layers, *_head(read, num_classes))


_GHOSTS = (  # kernel, channels inside, channels made, whether gated, stride
    (3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2), (5, 120, 40, 1, 1),
    (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1),
    (3, 480, 112, 1, 1), (3, 672, 112, 1, 1), (5, 672, 160, 1, 2), (5, 960, 160, 0, 1),
    (5, 960, 160, 1, 1), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1),
)  # fmt: skip


def ghostnet(num_classes: int = 1000) -> nn.Sequential:
    """Make GhostNet 1.0: 5.2 million parameters, 141 million MACs.

    References:
        Han et al., CVPR 2020, https://arxiv.org/abs/1911.11907, tables 1 and 7; the sizes of the
        gates are those of the authors' code.
    """
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2)]
    read = 16
    for kernel, inside, made, gated, stride in _GHOSTS:
        parts: list[nn.Module] = [ghost(read, inside, kernel=1, norm=True)]
        if stride > 1:
            parts.append(conv_norm(inside, inside, kernel, stride, groups=inside, act=None))
        if gated:
            few = max(4, (inside // 4 + 2) // 4 * 4)
            parts.append(
                Gate(
                    nn.AdaptiveAvgPool2d(1), nn.Conv2d(inside, few, 1), nn.ReLU(),
                    nn.Conv2d(few, inside, 1), nn.Hardsigmoid(),
                )
            )  # fmt: skip
        parts.append(ghost(inside, made, kernel=1, norm=True, act=None))
        skip: nn.Module = nn.Identity()
        if stride > 1 or read != made:
            depth = conv_norm(read, read, kernel, stride, groups=read, act=None)
            skip = nn.Sequential(depth, conv_norm(read, made, act=None))
        layers.append(Sum(skip, nn.Sequential(*parts)))
        read = made
    layers += [conv_norm(read, 960), nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, num_classes))


def octave_resnet50(num_classes: int = 1000) -> nn.Module:
    """Make ResNet-50 with octave convolutions, half of the channels low: 2.3 billion MACs.

    The paper's has 2.4, as the first of its layers reads all channels at the full resolution and
    norms stand before convolutions. The last stage keeps its own: 7x7 maps have no half.

    References:
        Chen et al., ICCV 2019, https://arxiv.org/abs/1904.05049, table 3.
    """
    model = resnet(50, num_classes=num_classes, stem="imagenet")
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and path.startswith(("layer1", "layer2", "layer3")):
            block = octave(
                layer.in_channels, layer.out_channels, layer.stride[0], kernel=layer.kernel_size[0]
            )
            model.set_submodule(path, block)
    return model


def _resnet20(
    block: Callable[[int, int, int], nn.Module], narrow: Callable[[int, int, int], nn.Module]
) -> nn.Sequential:
    """Make the residual network of nine blocks for images of 32 pixels, without its head."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3)]
    read = 16
    for made in (16, 32, 64):
        for number in range(3):
            stride = 2 if read != made and not number else 1
            skip = nn.Identity() if read == made else narrow(read, made, stride)
            layers += [Sum(skip, block(read, made, stride)), nn.ReLU()]
            read = made
    return nn.Sequential(*layers)


def shift_resnet20(num_classes: int = 100, *, expand: int = 6) -> nn.Sequential:
    """Make ShiftResNet-20: 0.19 million parameters; expanded 1, 3, 9 times 0.03, 0.10, 0.28.

    References:
        Wu et al., CVPR 2018, https://arxiv.org/abs/1711.08141, table 4.
    """

    def block(read: int, made: int, stride: int) -> nn.Module:
        wide = expand * made
        last = conv_norm(wide, made, 1, stride, act=None)
        return nn.Sequential(conv_norm(read, wide), Shift(), last)

    def narrow(read: int, made: int, stride: int) -> nn.Module:
        return conv_norm(read, made, 1, stride, act=None)

    return nn.Sequential(*_resnet20(block, narrow), *_head(64, num_classes))


def adder_resnet20(num_classes: int = 100) -> nn.Sequential:
    """Make ResNet-20 of adders: 0.27 million parameters, multiplications in its ends only.

    References:
        Chen et al., CVPR 2020, https://arxiv.org/abs/1912.13200, table 1.
    """

    def norm(read: int, made: int, stride: int, kernel: int = 1) -> list[nn.Module]:
        return [Adder(read, made, stride, kernel=kernel, bias=False), nn.BatchNorm2d(made)]

    def block(read: int, made: int, stride: int) -> nn.Module:
        return nn.Sequential(*norm(read, made, stride, 3), nn.ReLU(), *norm(made, made, 1, 3))

    return nn.Sequential(
        *_resnet20(block, lambda *sizes: nn.Sequential(*norm(*sizes))), *_head(64, num_classes)
    )
