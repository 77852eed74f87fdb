"""Compact blocks: what may stand in place of a 3x3 convolution, each in a few lines.

A block takes maps (B, C, H, W) to (B, M, H / s, W / s) and ends without a norm or an activation,
as the convolution does whose place it takes. It is made of torch's own layers and of the few here,
so that a network with it can be written down (`isthmus.models.layers`).

References:
    Iandola et al., "SqueezeNet", 2016, https://arxiv.org/abs/1602.07360 (fire).
    Howard et al., "MobileNets", 2017, https://arxiv.org/abs/1704.04861 (separable).
    Sandler et al., "MobileNetV2", CVPR 2018, https://arxiv.org/abs/1801.04381 (inverted).
    Zhang, Zhou, Lin, Sun, "ShuffleNet", CVPR 2018, https://arxiv.org/abs/1707.01083 (shuffle).
    Chen et al., "Drop an Octave", ICCV 2019, https://arxiv.org/abs/1904.05049 (octave).
    Han et al., "GhostNet", CVPR 2020, https://arxiv.org/abs/1911.11907 (ghost).
    Wu et al., "Shift", CVPR 2018, https://arxiv.org/abs/1711.08141 (shift).
    Chen et al., "AdderNet", CVPR 2020, https://arxiv.org/abs/1912.13200 (adder).
"""

from collections.abc import Callable, Mapping
from itertools import product
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.graph.integers import NAMESPACE


class Concat(nn.Sequential):
    """Gives what passes to each layer, and joins the channels that they make."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, sum of the layers' channels, ...)."""
        return torch.cat([layer(x) for layer in self], dim=1)


class Switchable(nn.Sequential):
    """Norms of a layer of several widths, one for each; what passes is as wide as the last takes.

    Args:
        norms: Of each width, the narrowest first.
        widths: Shares of the channels, the last of them 1.

    References:
        Yu, Yang, Xu, Yang, Huang, "Slimmable Neural Networks", ICLR 2019,
        https://arxiv.org/abs/1812.08928 (switchable batch normalization).
    """

    def __init__(self, *norms: nn.Module, widths: tuple[float, ...]) -> None:
        super().__init__(*norms)
        if len(widths) != len(norms):
            raise ValueError(f"found {len(norms)} norms for {len(widths)} widths")
        self.widths = tuple(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return self[-1](x)


class Sum(nn.Sequential):
    """Gives what passes to each layer, and adds what they make."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape that each layer makes."""
        first, *others = [layer(x) for layer in self]
        return sum(others, start=first)


class Gate(nn.Sequential):
    """Multiplies what passes by what its layers make of it, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        gate = x
        for layer in self:
            gate = layer(gate)
        return x * gate


class Shift(nn.Module):
    """Moves channels by a place: a ninth of them in each of nine directions, what is left not."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the shape of x (B, C, H, W), zeros coming in at the edges."""
        each = x.shape[1] // 9
        padded = F.pad(x, (1, 1, 1, 1))
        ends = (-2, -1, None)
        moved = [
            padded[:, each * k : each * (k + 1), i : ends[i], j : ends[j]]
            for k, (i, j) in enumerate(product(range(3), repeat=2))
        ]
        return torch.cat([*moved, x[:, 9 * each :]], dim=1)


class Octave(nn.Module):
    r"""Convolves some channels at half the resolution, and lets both parts read each other.

    .. math:: y_H = K_{HH} x_H + up(K_{LH} x_L), \quad y_L = K_{LL} x_L + K_{HL} \, pool(x_H)

    Channels of x are those of H, then those of L; :math:`x_L` is pooled first, :math:`y_L` is
    brought back to the full resolution last.

    Args:
        hh: From high to high, as all of one stride.
        hl: From high to low.
        lh: From low to high.
        ll: From low to low.
    """

    def __init__(self, hh: nn.Module, hl: nn.Module, lh: nn.Module, ll: nn.Module) -> None:
        super().__init__()
        self.hh, self.hl, self.lh, self.ll = hh, hl, lh, ll

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, M, H / s, W / s)."""
        layers: Any = self.hh.modules()  # the convolution may be inside of what took its place
        high = x[:, : next(each.in_channels for each in layers if hasattr(each, "in_channels"))]
        pooled = F.avg_pool2d(x, 2, ceil_mode=True)
        pooled_high, low = pooled[:, : high.shape[1]], pooled[:, high.shape[1] :]
        made = self.hh(high)
        size = made.shape[2:]
        up = F.interpolate(torch.cat([self.lh(low), self.ll(low) + self.hl(pooled_high)], 1), size)
        num = made.shape[1]
        return torch.cat([made + up[:, :num], up[:, num:]], dim=1)


@torch.library.custom_op(f"{NAMESPACE}::l1_distances", mutates_args=())
def l1_distances(x: Tensor, weight: Tensor) -> Tensor:
    r"""Return :math:`-\sum_k |x_{blk} - w_{mk}|` (B, M, L) of x (B, L, K) and w (M, K).

    Gradients are the paper's: :math:`x - w` for the weight, that cut to -1..1 and negated for x.
    """
    return -torch.cdist(x, weight[None].expand(len(x), -1, -1), p=1).transpose(1, 2).contiguous()


@l1_distances.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    of_x, of_weight = torch.zeros_like(x), torch.empty_like(weight)
    for m, row in enumerate(weight):
        off = x - row
        of_weight[m] = (grad[:, m, :, None] * off).sum(dim=(0, 1))
        of_x -= grad[:, m, :, None] * off.clamp_(-1, 1)
    return of_x, of_weight


l1_distances.register_autograd(_gradients, setup_context=_keep)


class Adder(nn.Module):
    r"""A convolution that adds in place of multiplying: how near a window is to each kernel.

    .. math:: y_m = -\sum_k |x_k - w_{mk}| + b_m

    Args:
        in_channels: C.
        out_channels: M.
        stride: s.
        bias: Whether there is b.
        kernel: An odd number, by which half the windows are padded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, bias: bool, kernel: int = 3
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.kernel = stride, kernel
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, M, H / s, W / s)."""
        height, width = (-(-size // self.stride) for size in x.shape[2:])
        columns = F.unfold(x, self.kernel, padding=self.kernel // 2, stride=self.stride)
        windows = columns.transpose(1, 2)
        y = l1_distances(windows, self.weight.flatten(1)).unflatten(2, (height, width))
        return y if self.bias is None else y + self.bias[:, None, None]


def conv_norm(
    read: int, made: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    """Return a convolution without bias, its batch norm, and an activation, None for none."""
    conv = nn.Conv2d(read, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), *([] if act is None else [act()]))


def _point(read: int, made: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(read, made, 1, stride, groups=groups, bias=False)


def fire(read: int, made: int, stride: int = 1) -> nn.Sequential:
    """Squeeze to an eighth of the channels, then make half of them by 1x1 and half by 3x3."""
    few, half = max(made // 8, 1), made // 2
    wide = nn.Conv2d(few, made - half, 3, stride, 1, bias=False)
    return nn.Sequential(conv_norm(read, few), Concat(_point(few, half, stride=stride), wide))


def separable(read: int, made: int, stride: int = 1, *, act: Any = nn.ReLU) -> nn.Sequential:
    """Convolve each channel by itself, then mix them."""
    return nn.Sequential(
        conv_norm(read, read, 3, stride, groups=read, act=act), _point(read, made)
    )


def inverted(read: int, made: int, stride: int = 1, *, expand: int = 2) -> nn.Sequential:
    """Expand, convolve each channel by itself, and narrow without an activation."""
    wide = expand * read
    first = [conv_norm(read, wide, act=nn.ReLU6)] if expand > 1 else []
    return nn.Sequential(*first, separable(wide, made, stride, act=nn.ReLU6))


def shuffle(
    read: int, made: int, stride: int = 1, *, groups: int = 4, first: int | None = None
) -> nn.Sequential:
    """Mix within groups, shuffle them, convolve each channel by itself, mix within groups.

    Args:
        read: C.
        made: M; the middle has a quarter of them, or of all that the block makes with its skip.
        stride: s.
        groups: g, of both mixing layers; less where the channels are not divided by it.
        first: Groups of the first of them where it has others.
    """
    middle = -(-(made if first is None else made + read * (stride > 1)) // 4)
    before = gcd(read, middle, groups) if first is None else first
    after = gcd(middle, made, groups)
    return nn.Sequential(
        conv_norm(read, middle, groups=before),
        nn.ChannelShuffle(after),
        conv_norm(middle, middle, 3, stride, groups=middle, act=None),
        _point(middle, made, groups=after),
    )


def ghost(
    read: int,
    made: int,
    stride: int = 1,
    *,
    kernel: int = 3,
    norm: bool = False,
    act: Any = nn.ReLU,
) -> nn.Sequential:
    """Make half of the channels, and the others from these, each by itself.

    Args:
        read: C.
        made: M, an even number.
        stride: s.
        kernel: Of the first convolution.
        norm: Whether the others have a norm of their own and an activation.
        act: The activation; None for none.
    """
    half = made // 2
    cheap = conv_norm(half, half, 3, groups=half, act=act)
    first = conv_norm(read, half, kernel, stride, act=act)
    return nn.Sequential(first, Concat(nn.Identity(), cheap if norm else cheap[0]))


def octave(read: int, made: int, stride: int = 1, *, kernel: int = 3) -> Octave:
    """Convolve half of the channels at half the resolution."""
    low, few = read // 2, made // 2
    pairs = ((read - low, made - few), (read - low, few), (low, made - few), (low, few))
    sizes = (kernel, stride, kernel // 2)
    return Octave(*(nn.Conv2d(c, m, *sizes, bias=False) for c, m in pairs))


BLOCKS: Mapping[str, Callable[[int, int, int], nn.Module]] = {
    "fire": fire,
    "separable": separable,
    "inverted": inverted,
    "shuffle": shuffle,
    "octave": octave,
    "ghost": ghost,
    "shift": lambda read, made, stride: nn.Sequential(Shift(), _point(read, made, stride=stride)),
    "adder": lambda read, made, stride: Adder(read, made, stride, bias=False),
}
"""By name: from C, M and s to a block."""
