"""The learned narrow layer: fewer channels, each rounded to a few bits.

.. code-block:: none

    x (B, C, H, W) --> narrow --> y (B, N, H, W) --> round --> [link] --> widen --> x_hat
                                        +--- learned step per channel ---+

Shapes: B batch, C channels of the network, N = C // ratio channels on the wire, H height,
W width, M rows: one for every value that a channel takes. Tensors (B, T, C) and (B, C) pass
through linear layers in place of 1x1 convolutions.

References:
    Lin, Zhu, Eshraghian, "Reducing Data Bottlenecks in Distributed, Heterogeneous Neural
    Networks", 2024, https://arxiv.org/abs/2410.09650 (the ratio; they narrow inside a block and
    do not quantize, this layer stands on the crossing).
    Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153
    (the learned step; here its logarithm is learned, which needs no scaling of the gradient).
    Balle, Laparra, Simoncelli, "End-to-end optimized image compression", ICLR 2017,
    https://arxiv.org/abs/1611.01704 (training through rounding; they use noise, we round and
    pass the gradient straight through).
"""

from functools import partial

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves, per_channel, round_to_symbols, rows
from isthmus.wire import WireTensor
from isthmus.wire.spec import num_channels

_MAX_ROWS = 1 << 17  # of activations that calibration looks at
_MIN_STEP = 1e-6


def bottleneck_halves(tensor: WireTensor, shape: tuple[int, ...], dtype: str) -> Halves:
    """Carry one float tensor (C, H, W), (T, C) or (C,).

    Args:
        tensor: Its symbols, which say how many channels and bits.
        shape: Of one sample.
        dtype: Of the tensor.
    """
    grid = Grid(tensor.shape, bits=tensor.bits)
    sender = BottleneckSender(shape, grid)
    receiver = BottleneckReceiver(shape, grid, dtype=dtype)
    return Halves(
        sender=sender, receiver=receiver, calibrate=partial(_calibrate, sender, receiver)
    )


class Grid(nn.Module):
    """What both halves agree on: a step per wire channel; zero lies in the middle of the range.

    Args:
        shape: Of one sample on the wire.
        bits: 2 to 8.
    """

    def __init__(self, shape: tuple[int, ...], *, bits: int) -> None:
        super().__init__()
        self.shape = shape
        self.bits = bits
        self.middle = (2**bits - 1) / 2
        log_step_N = torch.full((num_channels(shape),), 8 / 2**bits).log()
        self.log_step = nn.Parameter(per_channel(log_step_N, shape))

    def calibrate(self, y_MN: Tensor) -> None:
        """Cover all but ``4**-bits`` of the values, near the best for a Gaussian (Max, 1960)."""
        num_rows = len(y_MN)
        covered = max(1, num_rows - num_rows // 4**self.bits)
        reach_N = y_MN.abs().kthvalue(covered, dim=0).values
        step_N = (reach_N / 2 ** (self.bits - 1)).clamp_min(_MIN_STEP)
        self.log_step.copy_(per_channel(step_N.log(), self.shape))


class BottleneckSender(nn.Module):
    """Narrow, scale and round.

    Args:
        shape: Of one sample before the crossing.
        grid: Shared with the receiver.
    """

    def __init__(self, shape: tuple[int, ...], grid: Grid) -> None:
        super().__init__()
        self.narrow = _mix(num_channels(shape), num_channels(grid.shape), dims=len(shape))
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols (B, N, H, W) of a tensor (B, C, H, W)."""
        y = self.narrow(x.float()).float()  # the second for autocast
        scaled = y / self.grid.log_step.exp() + self.grid.middle
        return round_to_symbols(scaled, self.grid.bits, training=self.training)


class BottleneckReceiver(nn.Module):
    """Scale back and widen.

    Args:
        shape: Of one sample before the crossing.
        grid: Shared with the sender.
        dtype: Of the tensor.
    """

    def __init__(self, shape: tuple[int, ...], grid: Grid, *, dtype: str) -> None:
        super().__init__()
        self.grid = grid
        self.widen = _mix(num_channels(grid.shape), num_channels(shape), dims=len(shape))
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor (B, C, H, W) of its symbols (B, N, H, W)."""
        return self.widen(self.scale_back(symbols)).to(self.dtype)

    def scale_back(self, symbols: Tensor) -> Tensor:
        """Return what was rounded, as floats."""
        return (symbols.float() - self.grid.middle) * self.grid.log_step.exp()


def _mix(num_inputs: int, num_outputs: int, *, dims: int) -> nn.Conv2d | nn.Linear:
    if dims == 3:
        return nn.Conv2d(num_inputs, num_outputs, kernel_size=1)
    return nn.Linear(num_inputs, num_outputs)


def _calibrate(sender: BottleneckSender, receiver: BottleneckReceiver, x: Tensor) -> None:
    """Start from the N principal axes, and widen by least squares from the rounded values."""
    x_MC = _some_rows(x)
    axes_NC = _principal_axes(x_MC, num_channels(sender.grid.shape))
    mean_C = x_MC.mean(dim=0)
    _set_mix(sender.narrow, axes_NC, -axes_NC @ mean_C)
    sender.grid.calibrate((x_MC - mean_C) @ axes_NC.T)

    y_MN = _some_rows(receiver.scale_back(sender(x)))
    y_mean_N = y_MN.mean(dim=0)
    centred_MN = y_MN - y_mean_N
    inverse_NN = torch.linalg.pinv(centred_MN.T @ centred_MN, hermitian=True)
    widen_CN = (x_MC - mean_C).T @ centred_MN @ inverse_NN
    _set_mix(receiver.widen, widen_CN, mean_C - widen_CN @ y_mean_N)


def _principal_axes(x_MC: Tensor, num_axes: int) -> Tensor:
    """Return the axes (N, C) of largest variance."""
    centred_MC = x_MC - x_MC.mean(dim=0)
    _, axes_CC = torch.linalg.eigh(centred_MC.T @ centred_MC)
    return axes_CC.flip(1)[:, :num_axes].T


def _some_rows(x: Tensor) -> Tensor:
    x_MC = rows(x)
    return x_MC[:: -(-len(x_MC) // _MAX_ROWS)].double()


def _set_mix(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)
