"""Number formats: what a weight becomes with few exponent and mantissa bits, also in blocks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.sparse import SPARSE
from isthmus.compress.technique import Number, Options, Samples, Technique, Word, layers

_LEAST_EXPONENT, _MOST_EXPONENT = -127, 127  # of a block's scale, 8 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """A sign, an exponent and a mantissa.

    Attributes:
        exponent: Bits of the exponent; with 0 the values are as far apart everywhere.
        mantissa: Bits after the point.
        bias: The exponent that is written for 1.
        largest: Finite value; where None, that of the highest exponent with all mantissa bits, the
            exponent being one less where the highest stands for infinity.
        infinite: Whether the highest exponent stands for infinity.
        block: How many values share a power of two, in the order of memory; 0 for none.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: float | None = None
    infinite: bool = True
    block: int = 0

    @property
    def most(self) -> float:
        """The largest finite value."""
        if self.largest is not None:
            return self.largest
        full = 2 - 2.0**-self.mantissa
        if not self.exponent:
            return (full - 1) * 2.0 ** (1 - self.bias)
        return full * 2.0 ** (2**self.exponent - 1 - self.infinite - self.bias)

    @property
    def bits(self) -> float:
        """Of one value, with its part of what a block shares."""
        return 1 + self.exponent + self.mantissa + (8 / self.block if self.block else 0)


FORMATS: Mapping[str, NumberFormat] = {
    "fp16": NumberFormat(exponent=5, mantissa=10, bias=15),
    "bf16": NumberFormat(exponent=8, mantissa=7, bias=127),
    "tf32": NumberFormat(exponent=8, mantissa=10, bias=127),
    "dlfloat16": NumberFormat(exponent=6, mantissa=9, bias=31),
    "fp8-e5m2": NumberFormat(exponent=5, mantissa=2, bias=15),
    "fp8-e4m3": NumberFormat(exponent=4, mantissa=3, bias=7, largest=448.0, infinite=False),
    "fp8-e3m4": NumberFormat(exponent=3, mantissa=4, bias=3),
    "fp6-e3m2": NumberFormat(exponent=3, mantissa=2, bias=3, infinite=False),
    "fp6-e2m3": NumberFormat(exponent=2, mantissa=3, bias=1, infinite=False),
    "fp4-e2m1": NumberFormat(exponent=2, mantissa=1, bias=1, infinite=False),
    "bfp8": NumberFormat(exponent=0, mantissa=7, bias=1, block=16),
    "bfp4": NumberFormat(exponent=0, mantissa=3, bias=1, block=16),
    "mxfp8-e4m3": NumberFormat(
        exponent=4, mantissa=3, bias=7, largest=448.0, infinite=False, block=32
    ),
    "mxfp6-e2m3": NumberFormat(exponent=2, mantissa=3, bias=1, infinite=False, block=32),
    "mxfp4-e2m1": NumberFormat(exponent=2, mantissa=1, bias=1, infinite=False, block=32),
}
"""IEEE 754; Agrawal et al., "DLFloat", ARITH 2019; Micikevicius et al., 2022,
https://arxiv.org/abs/2209.05433 (fp8); Drumond et al., NeurIPS 2018,
https://arxiv.org/abs/1804.01526 (block floating point); Rouhani et al., 2023,
https://arxiv.org/abs/2310.10537 (MX)."""


def round_to(x: Tensor, form: NumberFormat, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Return the values of a format that are nearest to x, ties to even.

    .. math:: u = 2^{max(\lfloor \log_2 |x| \rfloor, 1 - bias) - mantissa}, \quad
              \hat{x} = clamp(u \; round(x / u))

    Args:
        x: Of any shape; what is too large becomes the largest finite value.
        form: The format.
        generator: Rounds up by chance instead, as likely as x is near: then the mean is x.

    Returns:
        float32 of the shape of x.

    References:
        Gupta, Agrawal, Gopalakrishnan, Narayanan, ICML 2015, https://arxiv.org/abs/1502.02551
        (by chance).

    Example:
        >>> round_to(torch.tensor([0.3, 5.1, 1000.0]), FORMATS["fp8-e4m3"]).tolist()
        [0.3125, 5.0, 448.0]
    """
    values = x.detach().double()
    scale = torch.ones_like(values)
    if form.block:
        scale = _block_scale(values, form)
    values = values / scale
    least = 1 - form.bias
    binade = torch.frexp(values).exponent - 1
    binade = binade.clamp_min(least) if form.exponent else torch.full_like(binade, least)
    unit = torch.ldexp(torch.ones_like(values), binade - form.mantissa)
    steps = values / unit
    if generator is None:
        steps = steps.round()
    else:
        chance = torch.rand(steps.shape, generator=generator, dtype=steps.dtype)
        steps = (steps + chance).floor()
    return ((steps * unit).clamp(-form.most, form.most) * scale).float()


def _block_scale(values: Tensor, form: NumberFormat) -> Tensor:
    """Return the power of two of each value's block: its largest has the highest exponent."""
    flat = values.reshape(-1)
    padded = torch.zeros(-(-len(flat) // form.block) * form.block, dtype=flat.dtype)
    padded[: len(flat)] = flat
    largest = padded.reshape(-1, form.block).abs().amax(dim=1)
    top = int(torch.frexp(torch.tensor(form.most, dtype=torch.float64)).exponent)
    power = torch.where(largest > 0, torch.frexp(largest).exponent - top, 0)
    power = power.clamp(_LEAST_EXPONENT, _MOST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(largest), power)
    return scale.repeat_interleave(form.block)[: len(flat)].reshape(values.shape)


class InFormat(nn.Module):
    """Rounds a weight on its way; the gradient passes as 1, and a weight of 0 stays 0.

    Args:
        form: The format.
        kept: Which weights are not 0.
    """

    kept: Tensor

    def __init__(self, form: NumberFormat, kept: Tensor) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the weight becomes."""
        weight = torch.where(self.kept, weight, 0.0)
        return weight + (round_to(weight, self.form) - weight).detach()


def formatted(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Round the weights of every layer to a format."""
    del samples
    form = FORMATS[options["name"]]
    generator = torch.Generator().manual_seed(options["seed"])
    for layer in layers(model, SPARSE, options, technique="format").values():
        weight = layer.get_parameter("weight")
        if options["round"] == "chance":
            with torch.no_grad():
                weight.copy_(round_to(weight, form, generator=generator))
        rounding = InFormat(form, weight.detach() != 0)
        parametrize.register_parametrization(layer, "weight", rounding)
    return model


FORMATTING = (
    Technique(
        name="format",
        does="weights in a number format of few bits",
        paper="Rouhani et al., 2023, https://arxiv.org/abs/2310.10537 (MX); Micikevicius et al., "
        "2022, https://arxiv.org/abs/2209.05433 (fp8)",
        level="arithmetic",
        needs="nothing",
        improves=("stored bytes", "energy"),
        stage="values",
        apply=formatted,
        options={
            "name": Word(words=tuple(FORMATS), default="fp8-e4m3"),
            "round": Word(words=("nearest", "chance"), default="nearest"),
            "seed": Number(low=0, high=1 << 31, default=0, whole=True),
        },
    ),
)
