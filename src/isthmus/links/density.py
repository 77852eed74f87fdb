r"""How often each symbol comes, as a smooth function that training can lower the rate by.

Each channel n has a mixture of K logistic densities over whole numbers s,

.. math::

    p_n(s) = \sum_k w_{nk} \left[ \sigma\left(\frac{s + 1/2 - m_{nk}}{b_{nk}}\right)
             - \sigma\left(\frac{s - 1/2 - m_{nk}}{b_{nk}}\right) \right]

where the first symbol also takes all that lies below it, and the last all above. It is needed
while training only: what goes on the wire is coded by counted tables, `isthmus.wire`.

Shapes: B batch, N channels on the wire, M rows: one for every value that a channel takes.

References:
    Balle, Minnen, Singh, Hwang, Johnston, "Variational image compression with a scale
    hyperprior", ICLR 2018, https://arxiv.org/abs/1802.01436 (a learned density for each channel).
    Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017, https://arxiv.org/abs/1701.05517
    (the mixture of logistics over whole numbers, and its ends).
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import rows
from isthmus.wire.spec import num_channels

_NUM_PARTS = 3
_LEAST = 1e-6  # probability, so that a symbol never seen has a finite price


class Density(nn.Module):
    """A mixture for each channel.

    Args:
        shape: Of one sample of symbols.
        bits: The symbols are 0 to ``2**bits - 1``.
    """

    def __init__(self, shape: tuple[int, ...], *, bits: int) -> None:
        super().__init__()
        self.last = 2**bits - 1
        channels = num_channels(shape)
        self.middle = nn.Parameter(torch.zeros(channels, _NUM_PARTS))
        self.log_width = nn.Parameter(torch.zeros(channels, _NUM_PARTS))
        self.weight = nn.Parameter(torch.zeros(channels, _NUM_PARTS))

    @torch.no_grad()
    def calibrate(self, symbols: Tensor) -> None:
        """Cover the symbols (B, ...) of a few samples."""
        s_MN = rows(symbols.float())
        std_N = s_MN.std(dim=0, correction=min(1, len(s_MN) - 1))  # of one symbol there is none
        mean_N1, std_N1 = s_MN.mean(dim=0)[:, None], std_N[:, None].clamp_min(0.3)
        self.middle.copy_(mean_N1 + std_N1 * torch.linspace(-1, 1, _NUM_PARTS))
        self.log_width.copy_((std_N1 / 2).log().expand_as(self.log_width))
        self.weight.zero_()

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the bits that symbols (B, ...) take, (B,), by the ideal code for this density."""
        s_MN1 = rows(symbols)[..., None]
        scale_NK = (-self.log_width).exp()
        above = torch.sigmoid((s_MN1 + 0.5 - self.middle) * scale_NK)
        below = torch.sigmoid((s_MN1 - 0.5 - self.middle) * scale_NK)
        above = torch.where(s_MN1 >= self.last, 1.0, above)
        below = torch.where(s_MN1 <= 0, 0.0, below)
        p_MN = ((above - below) * self.weight.softmax(dim=-1)).sum(dim=-1)
        return -p_MN.clamp_min(_LEAST).log2().reshape(len(symbols), -1).sum(dim=1)
