"""Which range a uniform grid should cover: what lies outside is clipped, what lies inside rounded.

A wider range clips less and rounds more coarsely. Each function answers for every channel by
itself, from plain values alone.

Every function takes ``x_MC``, floats that are finite, M values of each of C channels; ``bits``, 1
or more, of the grid; and ``symmetric``, whether the range must reach as far down as up. It returns
``low_C`` and ``high_C``: within the channel's smallest and largest value, but for ``symmetric``,
where ``low_C`` is ``-high_C``. They are equal where a channel never changes, or where nearly none
of its values differs from the others.

The functions that look for the best reach about a centre do so one-sided, upwards from the
smallest value, in a channel without negative values (after a ReLU); else both ways, from the mean
or, where symmetric, from 0. Values that lie on the centre itself, as a ReLU's zeros do, count in
no distribution: they are exact in any range.

Shapes: M values of a channel, C channels, K bins.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Ends = tuple[Tensor, Tensor]

_CHUNKS = 64
_MIN_CHUNK = 256  # values of a channel, so that the ends of a chunk say something
_MOMENTUM = 0.1
_PERCENTILE = 99.99
_MAX_SEARCHED = 1 << 20  # values in all channels that a search looks at
_SHARES = [0.9**k for k in range(45)]  # of the way to the outermost value, down to 1 %
_BINS = 2048
_BIN_STRIDE = 16
_SMALL_SHARE = 1e-6  # stands for a share of 0, of which there is no logarithm
_NEWTON_STEPS = 30


class RangeFinder(Protocol):
    """Chooses low and high of every channel; the module says what it takes and returns."""

    def __call__(self, x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
        """Return the ends (C,) and (C,)."""
        ...


def num_steps(bits: int, *, symmetric: bool) -> int:
    """Return how many steps a grid has: an even number if symmetric, so that 0 is a level.

    One bit has one step, from low to high, either way.
    """
    return max(1, 2**bits - (2 if symmetric else 1))


def minmax(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Cover every value: ``low = min(x)``, ``high = max(x)``.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, https://arxiv.org/abs/1712.05877.
    """
    del bits
    if symmetric:
        high_C = x_MC.abs().amax(dim=0)
        return -high_C, high_C
    return x_MC.amin(dim=0), x_MC.amax(dim=0)


def average(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Cover what a usual batch covers: the moving average of the ends of runs of values.

    ``end = 0.9 end + 0.1 end(run)``, beginning with the first run's. There are 64 runs, or fewer
    of 256 values.

    References:
        Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877 (section 3.1).
    """
    runs = x_MC.tensor_split(max(1, min(_CHUNKS, len(x_MC) // _MIN_CHUNK)))
    low_C, high_C = minmax(runs[0], bits=bits, symmetric=symmetric)
    for run_MC in runs[1:]:
        ends = minmax(run_MC, bits=bits, symmetric=symmetric)
        low_C, high_C = low_C.lerp(ends[0], _MOMENTUM), high_C.lerp(ends[1], _MOMENTUM)
    return low_C, high_C


def percentile(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Leave out one value of 10,000 at each end: ``high`` is the 99.99th percentile.

    References:
        Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical
        Evaluation", 2020, https://arxiv.org/abs/2004.09602 (section 5.1).
    """
    del bits
    left_out = int(len(x_MC) * (1 - _PERCENTILE / 100))

    def upper(values_MC: Tensor) -> Tensor:
        return values_MC.kthvalue(len(values_MC) - left_out, dim=0).values

    if symmetric:
        high_C = upper(x_MC.abs())
        return -high_C, high_C
    return -upper(-x_MC), upper(x_MC)


def mse(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Search the range of least squared error: ``argmin E[(x - Q(x; low, high))^2]``.

    Each end is tried at 1 % to 100 % of the way from 0 (or the value nearest to it) to the
    outermost value, in ratios of 0.9: the upper end, then the lower, then the upper once more.

    References:
        Nagel et al., "A White Paper on Neural Network Quantization", 2021,
        https://arxiv.org/abs/2106.08295 (section 3.1).
    """
    x_MC = _some(x_MC)
    low_C, high_C = minmax(x_MC, bits=bits, symmetric=symmetric)
    steps = num_steps(bits, symmetric=symmetric)
    if symmetric:
        return _least_error(x_MC, ((share * low_C, share * high_C) for share in _SHARES), steps)
    pivot_C = torch.zeros_like(low_C).clamp(low_C, high_C)
    highs = [torch.lerp(pivot_C, high_C, share) for share in _SHARES]
    lows = [torch.lerp(pivot_C, low_C, share) for share in _SHARES]
    low_C, high_C = _least_error(x_MC, ((low_C, high) for high in highs), steps)
    if bool((lows[0] == pivot_C).all()):
        return low_C, high_C
    low_C, high_C = _least_error(x_MC, ((low, high_C) for low in lows), steps)
    return _least_error(x_MC, ((low_C, high) for high in highs), steps)


def kl(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Keep the distribution: ``argmin KL(P || Q)`` over ranges that end at a bin's edge.

    Of a histogram with 2,048 bins, P is the part up to the edge, with all beyond it in the last
    bin; Q is that part merged into the grid's levels and spread again over its filled bins.

    References:
        Migacz, "8-bit Inference with TensorRT", GPU Technology Conference, 2017.
    """
    side = _sides(x_MC, symmetric=symmetric)
    counts_CK = _histogram(side.size)
    bins_C = torch.full_like(side.centre, _BINS)
    for one_sided in side.one_sided.unique().tolist():
        num_levels = 2 ** (bits if one_sided else bits - 1)
        found_C = _most_similar(counts_CK, num_levels)
        bins_C = torch.where(side.one_sided == one_sided, found_C, bins_C)
    return side.ends(side.reach * bins_C / _BINS)


def aciq_laplace(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Clip where it is best for a Laplace distribution of the same mean absolute deviation.

    With scale b and M bits, ``2 b^2 e^(-a/b) + a^2 / (3 * 4^M)`` is least where
    ``(a/b) e^(a/b) = 3 * 4^M``; a one-sided grid is half of one with a bit more.

    References:
        Banner et al., "Post Training 4-bit Quantization of Convolutional Networks for
        Rapid-Deployment", NeurIPS 2019, https://arxiv.org/abs/1810.05723.
    """

    def factor(num_bits: int) -> float:
        return _root(lambda a: a * math.exp(a) - 3 * 4.0**num_bits)

    side = _sides(x_MC, symmetric=symmetric)
    return side.ends(side.mean(side.size) * side.by_bits(factor, bits))


def aciq_gauss(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Clip where it is best for a Gaussian of the same variance.

    With unit variance and M bits, ``a^2 / (3 * 4^M) + 2 int_a^inf (x - a)^2 phi(x) dx`` is least
    where ``a / (6 * 4^M) = phi(a) - a Phi(-a)``; a one-sided grid is half of one with a bit more.

    References:
        Banner et al., NeurIPS 2019, https://arxiv.org/abs/1810.05723.
    """

    def factor(num_bits: int) -> float:
        def slope(a: float) -> float:
            density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
            return a / (6 * 4.0**num_bits) - density + a * math.erfc(a / math.sqrt(2)) / 2

        return _root(slope)

    side = _sides(x_MC, symmetric=symmetric)
    return side.ends(side.mean(side.size**2).sqrt() * side.by_bits(factor, bits))


def octav(x_MC: Tensor, *, bits: int, symmetric: bool) -> Ends:
    """Clip where noise from rounding and from clipping balance, by Newton's recursion.

    ``s = E[|x| 1(|x| >= s)] / (4^-B / 3 * E[1(0 < |x| < s)] + E[1(|x| >= s)])``, with 12 in place
    of 3 where the grid is one-sided. The error that it minimizes is that of a grid with a level
    amid the values; a symmetric grid of 2 bits or more has one, any other need not.

    References:
        Sakr et al., "Optimal Clipping and Magnitude-aware Differentiation for Improved
        Quantization-aware Training", ICML 2022, https://arxiv.org/abs/2206.06501 (equation 6).
    """
    side = _sides(_some(x_MC), symmetric=symmetric)
    noise_C = 4.0**-bits / torch.where(side.one_sided, 12.0, 3.0)
    reach_C = side.mean(side.size)
    for _ in range(_NEWTON_STEPS):
        beyond_MC = side.size >= reach_C.clamp_min(torch.finfo(torch.float32).tiny)
        inside_C = ((side.size > 0) & ~beyond_MC).sum(dim=0)
        weight_C = noise_C * inside_C + beyond_MC.sum(dim=0)
        reach_C = (side.size * beyond_MC).sum(dim=0) / weight_C.clamp_min(noise_C)
    return side.ends(reach_C)


RANGES: dict[str, RangeFinder] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
    "aciq-laplace": aciq_laplace,
    "aciq-gauss": aciq_gauss,
    "octav": octav,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """How far values lie from their channel's centre, and whether all of them lie above it."""

    low: Tensor  # (C,)
    high: Tensor  # (C,)
    centre: Tensor  # (C,)
    one_sided: Tensor  # (C,)
    size: Tensor  # (M, C)
    symmetric: bool

    @property
    def reach(self) -> Tensor:
        return self.size.amax(dim=0)

    def mean(self, values_MC: Tensor) -> Tensor:
        """Average over the values that do not lie on the centre; 0 where all do."""
        return values_MC.sum(dim=0) / (self.size > 0).sum(dim=0).clamp_min(1)

    def by_bits(self, factor: Callable[[int], float], bits: int) -> Tensor:
        """Return a two-sided grid's factor, a one-sided one's being that of one more bit."""
        return torch.where(self.one_sided, factor(bits + 1), factor(bits))

    def ends(self, reach_C: Tensor) -> Ends:
        """Return low and high for a reach about the centre, no wider than the values are."""
        if self.symmetric:
            reach_C = torch.minimum(reach_C, self.reach)
            return -reach_C, reach_C
        return (
            torch.maximum(self.low, self.centre - reach_C),
            torch.minimum(self.high, self.centre + reach_C),
        )


def _sides(x_MC: Tensor, *, symmetric: bool) -> _Sides:
    low_C, high_C = x_MC.amin(dim=0), x_MC.amax(dim=0)
    one_sided_C = (low_C >= 0) & (not symmetric)
    centre_C = torch.where(one_sided_C, low_C, x_MC.mean(dim=0).clamp(low_C, high_C))
    if symmetric:
        centre_C = torch.zeros_like(low_C)
    return _Sides(
        low=low_C,
        high=high_C,
        centre=centre_C,
        one_sided=one_sided_C,
        size=(x_MC - centre_C).abs(),
        symmetric=symmetric,
    )


def _some(x_MC: Tensor) -> Tensor:
    """Draw rows, as many as a search can afford; even spacing could meet the same channel only."""
    if x_MC.numel() <= _MAX_SEARCHED:
        return x_MC
    num_rows = max(1, _MAX_SEARCHED // x_MC.shape[1])
    drawn = torch.randint(len(x_MC), (num_rows,), generator=torch.Generator().manual_seed(0))
    return x_MC[drawn.to(x_MC.device)]


def _least_error(x_MC: Tensor, candidates: Iterable[Ends], steps: int) -> Ends:
    """Return, for each channel, the ends of least squared error; the first of equals."""
    least_C = torch.full_like(x_MC[0], math.inf)
    best_low_C, best_high_C = torch.zeros_like(least_C), torch.zeros_like(least_C)
    for low_C, high_C in candidates:
        step_C = ((high_C - low_C) / steps).clamp_min(torch.finfo(torch.float32).tiny)
        level_MC = ((x_MC - low_C) / step_C).round_().clamp_(0, steps)
        error_C = level_MC.mul_(step_C).add_(low_C).sub_(x_MC).square_().sum(dim=0)
        better_C = error_C < least_C
        least_C = torch.where(better_C, error_C, least_C)
        best_low_C = torch.where(better_C, low_C, best_low_C)
        best_high_C = torch.where(better_C, high_C, best_high_C)
    return best_low_C, best_high_C


def _histogram(size_MC: Tensor) -> Tensor:
    """Count the values of each channel in bins of equal width; those of size 0 in none."""
    width_C = size_MC.amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / _BINS
    bin_MC = (size_MC / width_C).long().clamp_max(_BINS - 1)
    bin_MC = bin_MC + _BINS * torch.arange(size_MC.shape[1], device=size_MC.device)
    counts = torch.bincount(bin_MC[size_MC > 0], minlength=_BINS * size_MC.shape[1])
    return counts.reshape(-1, _BINS).double()


def _most_similar(counts_CK: Tensor, num_levels: int) -> Tensor:
    """Return how many bins each channel's range should have by the Kullback-Leibler divergence."""
    least_C = torch.full_like(counts_CK[:, 0], math.inf)
    best_C = torch.full_like(least_C, _BINS)
    for num_bins in range(_BINS, max(num_levels, _BIN_STRIDE) - 1, -_BIN_STRIDE):
        part_CK = counts_CK[:, :num_bins]
        p_CK = part_CK.clone()
        p_CK[:, -1] += counts_CK[:, num_bins:].sum(dim=1)
        level_K = torch.arange(num_bins, device=counts_CK.device) * num_levels // num_bins
        filled_CK = (part_CK > 0).double()
        merged, used = (
            torch.zeros(len(part_CK), num_levels).to(part_CK).index_add_(1, level_K, x)
            for x in (part_CK, filled_CK)
        )
        q_CK = filled_CK * (merged / used.clamp_min(1))[:, level_K]
        p_CK, q_CK = (x / x.sum(dim=1, keepdim=True).clamp_min(1) for x in (p_CK, q_CK))
        divergence_C = torch.xlogy(p_CK, p_CK / q_CK.clamp_min(_SMALL_SHARE)).sum(dim=1)
        better_C = divergence_C < least_C
        least_C = torch.where(better_C, divergence_C, least_C)
        best_C = torch.where(better_C, float(num_bins), best_C)
    return best_C.float()


def _root(rising: Callable[[float], float]) -> float:
    """Find by halving where a function goes from below 0 to above it, between 0 and 64."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low
