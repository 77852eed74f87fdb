"""The learned narrow layer: fewer channels, fewer positions, each rounded to a few bits.

.. code-block:: none

    x (B, C, H, W) --> narrow -(+)-> y (B, N, H/s, W/s) --> round -> [link] --> widen --(+)-> x_hat
                 |              |         +--- learned step per channel ---+ |           |
                 +-> refine ----+                                            +-> refine -+

``narrow`` is a convolution of 1x1, or of (2s - 1) x (2s - 1) at stride s, as the weak side has
little to spend. It costs less as a separable one: (2s - 1) x (2s - 1) on each channel by itself,
then 1x1. ``widen`` is a 1x1 convolution to C s^2 channels, of which each s^2 become a patch
of s x s positions. ``refine``, where it is asked for, is two 3x3 convolutions of ``hidden``
channels and one of 1x1, with leaky ReLU between; on the weak side, where that can spend more, it
has ``sender_hidden`` channels, and the first convolution has the window and stride of ``narrow``.

Shapes: B batch, C channels of the network, N = C // ratio channels on the wire, H height,
W width, s stride, D = C s^2 values of a patch, M rows: one for every value that a channel takes.
Tensors (B, T, C) and (B, C) pass through linear layers in place of convolutions.

References:
    Lin, Zhu, Eshraghian, "Reducing Data Bottlenecks in Distributed, Heterogeneous Neural
    Networks", 2024, https://arxiv.org/abs/2410.09650 (the ratio; they narrow inside a block and
    do not quantize, this layer stands on the crossing).
    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", 2017, https://arxiv.org/abs/1704.04861 (separable convolutions).
    Izenman, "Reduced-rank regression for the multivariate linear model", Journal of Multivariate
    Analysis, 1975 (the 1x1 of a separable sender before training).
    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network", CVPR 2016, https://arxiv.org/abs/1609.05158 (patches from
    channels).
    Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153
    (the learned step; here its logarithm is learned, which needs no scaling of the gradient).
    Balle, Laparra, Simoncelli, "End-to-end optimized image compression", ICLR 2017,
    https://arxiv.org/abs/1611.01704 (training through rounding; they use noise, we round and
    pass the gradient straight through).
"""

from functools import partial
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.links.halves import Halves, per_channel, round_to_symbols, rows
from isthmus.links.nested import slots
from isthmus.wire import CodecSpec, WireTensor
from isthmus.wire.nested import widths
from isthmus.wire.spec import channel_dim, num_channels

_MAX_ROWS = 1 << 17  # of activations that calibration looks at
_MIN_STEP = 1e-6
_EVEN_BITS = 3.0  # for each value, from where a rate term goes on
_FAR = 1 << 16  # steps, beyond which values count as one
_FAINT = 0.01  # of a usual start: how loud the refinement is before it is trained
_LEAK = 0.1  # of the rectifiers, so that a narrow refinement cannot die


def bottleneck_halves(
    spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str
) -> Halves:
    """Carry one float tensor (C, H, W), (T, C) or (C,).

    Args:
        spec: Says how far positions are thinned out, and how rich the receiver is.
        tensor: Its symbols, which say how many channels and bits.
        shape: Of one sample.
        dtype: Of the tensor.
    """
    grid = LearnedGrid(tensor.shape, bits=tensor.bits, even=spec.entropy, nested=spec.nested)
    separable = spec.sender == "separable"
    sender = BottleneckSender(
        shape, grid, stride=spec.stride, separable=separable, hidden=spec.sender_hidden
    )
    kept = tuple(dict.fromkeys(num_channels(shape) // width.ratio for width in widths(spec)))
    receiver = BottleneckReceiver(
        shape, grid, stride=spec.stride, hidden=spec.hidden, dtype=dtype, kept=kept
    )
    return Halves(
        sender=sender, receiver=receiver, calibrate=partial(_calibrate, sender, receiver)
    )


class LearnedGrid(nn.Module):
    """What both halves agree on: a step per wire channel; zero lies in the middle of the range.

    Where an entropy code follows, or a width is chosen later, one symbol stands for zero, so that
    a channel may cost almost nothing; else the range is as wide above zero as below.

    Args:
        shape: Of one sample on the wire.
        bits: 2 to 8.
        even: Calibrate one step for all channels, as is best before an entropy code: each then
            takes the bits that it is worth (reverse water-filling: Cover, Thomas, "Elements of
            Information Theory", 2006, section 10.3.3).
        nested: Its symbol for zero is that of `isthmus.wire.nested`.
    """

    def __init__(
        self, shape: tuple[int, ...], *, bits: int, even: bool = False, nested: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        self.bits = bits
        self.even = even
        self.middle = 2.0 ** (bits - 1) if nested or even else (2**bits - 1) / 2
        log_step_N = torch.full((num_channels(shape),), 8 / 2**bits).log()
        self.log_step = nn.Parameter(per_channel(log_step_N, shape))

    def calibrate(self, y_MN: Tensor) -> None:
        """Cover all but ``4**-bits`` of the values, near the best for a Gaussian (Max, 1960).

        An even grid also leaves no more than some bits for each value on average.
        """
        num_rows = len(y_MN)
        covered = max(1, num_rows - num_rows // 4**self.bits)
        reach_N = y_MN.abs().kthvalue(covered, dim=0).values
        step_N = (reach_N / 2 ** (self.bits - 1)).clamp_min(_MIN_STEP)
        if self.even:
            step_N = _even_step(y_MN, least=float(step_N.max())).expand_as(step_N)
        self.log_step.copy_(per_channel(step_N.log(), self.shape))


def _even_step(y_MN: Tensor, *, least: float) -> Tensor:
    """Return the step at which the values have an entropy of ``_EVEN_BITS`` on average."""
    low, high = least, least * 2**12
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _entropy_bits(y_MN / middle) > _EVEN_BITS else (low, middle)
    return y_MN.new_tensor(high)


def _entropy_bits(y_MN: Tensor) -> float:
    """Return the mean entropy of each channel's values when rounded."""
    total = 0.0
    for y_M in y_MN.unbind(1):
        whole_M = y_M.round().clamp(-_FAR, _FAR).long()
        p = torch.bincount(whole_M - whole_M.min()) / len(y_M)
        total -= float(torch.xlogy(p, p).sum()) / log(2)
    return total / y_MN.shape[1]


class BottleneckSender(nn.Module):
    """Narrow, scale and round.

    Args:
        shape: Of one sample before the crossing.
        grid: Shared with the receiver.
        stride: s; 1 for what has no rows and columns.
        separable: Whether each channel is thinned out by itself before channels are mixed.
        hidden: Channels of the refinement; 0 leaves it out.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        grid: LearnedGrid,
        *,
        stride: int,
        separable: bool = False,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.stride = stride
        inputs, outputs = num_channels(shape), num_channels(grid.shape)
        strided = partial(nn.Conv2d, kernel_size=2 * stride - 1, stride=stride, padding=stride - 1)
        dense = strided if len(shape) == 3 else nn.Linear
        self.thin = strided(inputs, inputs, groups=inputs, bias=False) if separable else None
        self.narrow = nn.Conv2d(inputs, outputs, 1) if separable else dense(inputs, outputs)
        self.refine = (
            _refinement(dense(inputs, hidden), hidden, outputs, dims=len(shape))
            if hidden
            else None
        )
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols (B, N, H/s, W/s) of a tensor (B, C, H, W)."""
        x = x.float()
        y = self.narrow(x if self.thin is None else self.thin(x)).float()  # for autocast
        y = y if self.refine is None else y + self.refine(x).float()
        scaled = y / self.grid.log_step.exp() + self.grid.middle
        return round_to_symbols(scaled, 2**self.grid.bits - 1, training=self.training)


class BottleneckReceiver(nn.Module):
    """Scale back and widen.

    Args:
        shape: Of one sample before the crossing.
        grid: Shared with the sender.
        stride: s; 1 for what has no rows and columns.
        hidden: Channels of the refinement; 0 leaves it out.
        dtype: Of the tensor.
        kept: Of a nested codec: how many channels cross at each ratio, each of which has its own
            weights in the first layers.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        grid: LearnedGrid,
        *,
        stride: int,
        hidden: int,
        dtype: str,
        kept: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.shape = shape
        self.stride = stride
        self.grid = grid
        self.kept = kept
        inputs = sum(kept) + len(kept) if kept else num_channels(grid.shape)
        outputs = num_channels(shape) * stride**2
        self.widen = _mix(inputs, outputs, dims=len(shape))
        first = _mix(inputs, hidden, dims=len(shape), window=3) if hidden else None
        self.refine = _refinement(first, hidden, outputs, dims=len(shape)) if first else None
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, C, H, W) of its symbols (B, N, H/s, W/s)."""
        y = self.scale_back(symbols)
        y = slots(y, self.kept, 1 + channel_dim(self.grid.shape)) if self.kept else y
        x = self.widen(y) if self.refine is None else self.widen(y) + self.refine(y)
        if self.stride > 1:
            x = F.pixel_shuffle(x, self.stride)[..., : self.shape[1], : self.shape[2]]
        return x.to(self.dtype)

    def scale_back(self, symbols: Tensor) -> Tensor:
        """Return what was rounded, as floats."""
        return (symbols.float() - self.grid.middle) * self.grid.log_step.exp()


def _mix(num_inputs: int, num_outputs: int, *, dims: int, window: int = 1) -> nn.Module:
    if dims == 3:
        return nn.Conv2d(num_inputs, num_outputs, window, padding=window // 2)
    return nn.Linear(num_inputs, num_outputs)


def _refinement(first: nn.Module, hidden: int, num_outputs: int, *, dims: int) -> nn.Module:
    last = _mix(hidden, num_outputs, dims=dims)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(_FAINT)
    return nn.Sequential(
        first,
        nn.LeakyReLU(_LEAK),
        _mix(hidden, hidden, dims=dims, window=3),
        nn.LeakyReLU(_LEAK),
        last,
    )


def _calibrate(sender: BottleneckSender, receiver: BottleneckReceiver, x: Tensor) -> None:
    """Start from the N principal axes of patches, and widen by least squares from what arrives."""
    num_axes = num_channels(sender.grid.shape)
    x_MD = _some_rows(_patches(x, sender.stride))
    axes_ND = _principal_axes(x_MD, num_axes)
    mean_D = x_MD.mean(dim=0)
    if sender.thin is None:
        _set(sender.narrow, _windows(axes_ND, sender.stride), -axes_ND @ mean_D)
    else:
        thin_CS, mix_NC = _separated(x_MD - mean_D, axes_ND, num_channels(x.shape[1:]))
        axes_ND = (mix_NC[..., None] * thin_CS).flatten(1)
        sender.thin.weight.copy_(_windows(thin_CS, sender.stride))
        _set(sender.narrow, mix_NC, -axes_ND @ mean_D)
    sender.grid.calibrate((x_MD - mean_D) @ axes_ND.T)

    y_MN = _some_rows(receiver.scale_back(sender(x)))
    if not receiver.kept:
        _set(receiver.widen, *_least_squares(y_MN, x_MD))
        return
    each = [_least_squares(y_MN[:, :kept], x_MD) for kept in receiver.kept]
    widen_DS = torch.cat([torch.column_stack(weight_and_bias) for weight_and_bias in each], dim=1)
    _set(receiver.widen, widen_DS, torch.zeros_like(mean_D))


def _least_squares(y_MN: Tensor, x_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (D, N) and the bias (D,) that restore x from y best."""
    y_mean_N, x_mean_D = y_MN.mean(dim=0), x_MD.mean(dim=0)
    centred_MN = y_MN - y_mean_N
    inverse_NN = torch.linalg.pinv(centred_MN.T @ centred_MN, hermitian=True)
    weight_DN = (x_MD - x_mean_D).T @ centred_MN @ inverse_NN
    return weight_DN, x_mean_D - weight_DN @ y_mean_N


def _patches(x: Tensor, stride: int) -> Tensor:
    """Return patches as channels, (B, C s^2, H/s, W/s); beyond the border stands zero."""
    if stride == 1:
        return x
    bottom, right = (-size % stride for size in x.shape[2:])
    return F.pixel_unshuffle(F.pad(x, (0, right, 0, bottom)), stride)


def _principal_axes(x_MD: Tensor, num_axes: int) -> Tensor:
    """Return the axes (N, D) of largest variance."""
    centred_MD = x_MD - x_MD.mean(dim=0)
    _, axes_DD = torch.linalg.eigh(centred_MD.T @ centred_MD)
    return axes_DD.flip(1)[:, :num_axes].T


def _some_rows(x: Tensor) -> Tensor:
    x_MC = rows(x)
    return x_MC[:: -(-len(x_MC) // _MAX_ROWS)].double()


def _separated(x_MD: Tensor, axes_ND: Tensor, num_channels: int) -> tuple[Tensor, Tensor]:
    """Approximate axes by one weighting of a patch for each channel, and a mix of channels.

    Args:
        x_MD: Patches, their mean taken off.
        axes_ND: Their principal axes.
        num_channels: C; S = D / C positions of a patch.

    Returns:
        The weighting (C, S) that is common to a channel's axes, each as strong as it varies, and
        the mix (N, C) from whose result the patches can be restored best.
    """
    strength_N1 = (x_MD @ axes_ND.T).std(dim=0, correction=0)[:, None]
    axes_NCS = (strength_N1 * axes_ND).unflatten(1, (num_channels, -1))
    thin_CS = torch.linalg.svd(axes_NCS.transpose(0, 1), full_matrices=False).Vh[:, 0]
    z_MC = (x_MD.unflatten(1, (num_channels, -1)) * thin_CS).sum(dim=-1)
    restore_CD = torch.linalg.pinv(z_MC.T @ z_MC, hermitian=True) @ (z_MC.T @ x_MD)
    best_ND = _principal_axes(z_MC @ restore_CD, len(axes_ND))
    return thin_CS, best_ND @ restore_CD.T


def _windows(weights: Tensor, stride: int) -> Tensor:
    """Return weights (N, C s^2) of patches as windows, of which they are the lower right part."""
    if stride == 1:
        return weights
    patches = weights.reshape(len(weights), -1, stride, stride)
    return F.pad(patches, (stride - 1, 0, stride - 1, 0))


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert layer.bias is not None
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)
