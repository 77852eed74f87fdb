r"""The rate term: how many bytes cross, as a loss, and what a byte has to be worth.

The loss gains :math:`\lambda R`, with R the mean bits of a sample over all coded crossings. Where
a size is wanted, lambda follows it while training goes on,

.. math:: \lambda \leftarrow \lambda \exp(\eta \; \mathrm{clip}(R / R_{wanted} - 1, \pm 1/2))

which is dual ascent on the logarithm: a fit ends near the size that was asked for, in one run.
Where there are few steps, eta is larger, so that lambda has the time to get where it has to.

References:
    Balle, Laparra, Simoncelli, "End-to-end optimized image compression", ICLR 2017,
    https://arxiv.org/abs/1611.01704 (rate and distortion as one loss).
    van Rozendaal, Sautiere, Cohen, "Lossy compression with distortion constrained optimization",
    2020, https://arxiv.org/abs/2005.04064 (a constraint in place of a weight that one has to
    guess; there on the distortion).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from isthmus.links import Codec
from isthmus.links.density import Density

_START = 1.5e-3  # points of loss for a bit
_LEAST, _MOST = 1e-5, 0.1
_SLOWEST, _FASTEST = 0.03, 0.06  # eta
_REACH = 6.0  # eta times the number of steps, between the two
_MEMORY = 0.95  # of the running mean of R


class Rate(nn.Module):
    """The densities of all coded crossings, and lambda.

    Args:
        codecs: Of a split model.
        wanted_bytes: Mean bytes of all coded crossings together; None keeps to what they take
            before training.
    """

    weight: Tensor
    bits: Tensor
    wanted_bits: Tensor

    def __init__(self, codecs: Iterable[nn.Module], *, wanted_bytes: float | None) -> None:
        super().__init__()
        self.densities = nn.ModuleDict(
            {
                f"{index}_{k}": Density(tensor.shape, bits=tensor.bits)
                for index, codec in enumerate(codecs)
                if isinstance(codec, Codec) and codec.spec.entropy
                for k, (tensor, coded) in enumerate(
                    zip(codec.spec.wire_tensors, codec.spec.coded, strict=True)
                )
                if coded
            }
        )
        self.register_buffer("weight", torch.tensor(_START))
        self.register_buffer("bits", torch.tensor(0.0))
        self.register_buffer("wanted_bits", torch.tensor(8 * (wanted_bytes or 0.0)))
        self._measures = wanted_bytes is None
        self._follow_by = _SLOWEST

    def calibrate(self, index: int, symbols: Sequence[Tensor]) -> None:
        """Cover the symbols of one crossing."""
        for density, symbol in self._coded(index, symbols):
            density.calibrate(symbol)
            if self._measures:
                self.wanted_bits += density(symbol.float()).mean().detach()

    def forward(self, index: int, symbols: Sequence[Tensor]) -> Tensor:
        """Return the mean bits of a sample on one crossing."""
        parts = [density(symbol).mean() for density, symbol in self._coded(index, symbols)]
        return torch.stack(parts).sum() if parts else self.none()

    def want(self, wanted_bytes: float) -> None:
        """Aim at another size from now on."""
        self.wanted_bits.fill_(8 * wanted_bytes)

    def pace(self, num_steps: int) -> None:
        """Let lambda follow as fast as that many steps call for."""
        self._follow_by = min(_FASTEST, max(_SLOWEST, _REACH / num_steps))

    def none(self) -> Tensor:
        """Return no bits, to add to."""
        return self.weight.new_zeros(())

    def price(self, bits: Tensor) -> Tensor:
        """Return lambda times the mean bits of a sample in a batch; lambda then follows them."""
        price = self.weight.clone()
        if self.densities:
            self._follow(bits.detach())
        return price * bits

    def _follow(self, bits: Tensor) -> None:
        known = self.bits > 0
        self.bits.copy_(torch.where(known, torch.lerp(bits, self.bits, _MEMORY), bits))
        excess = (self.bits / self.wanted_bits - 1).clamp(-0.5, 0.5)
        self.weight.mul_((self._follow_by * excess).exp()).clamp_(_LEAST, _MOST)

    def _coded(self, index: int, symbols: Sequence[Tensor]) -> list[tuple[Density, Tensor]]:
        pairs = ((f"{index}_{k}", symbol) for k, symbol in enumerate(symbols))
        return [
            (density, symbol)
            for name, symbol in pairs
            if name in self.densities and isinstance(density := self.densities[name], Density)
        ]
