"""Number formats of few bits: the values that each of them has, and how many share a scale.

One dataclass holds floats, block floating point and fixed point; posits and logarithms have their
own, since their steps grow otherwise. `find_format` reads a name of ``FORMATS``, or of a family:

.. code-block:: none

    e4m3, e4m3b11, e2m1x32   exponent and mantissa bits, the bias, values that share a power of two
    q3.4                     fixed point: bits before and after the point, beside the sign
    posit8, posit16e1        bits, and bits of the exponent (2 where none are given)
    log8f3                   bits, of the logarithm's 3 after the point
    rns15-16-17              residues modulo these: integers up to half their product

Residues add and multiply exactly within that range, so that a network sees of them the integers
alone.

References:
    IEEE 754. Agrawal et al., "DLFloat", ARITH 2019.
    Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433.
    Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023;
    Rouhani et al., "Microscaling Data Formats for Deep Learning", 2023,
    https://arxiv.org/abs/2310.10537 (``mx``: 32 values share a power of two).
    Dai et al., "VS-Quant: Per-Vector Scaled Quantization for Accurate Low-Precision Neural
    Network Inference", MLSys 2021, https://arxiv.org/abs/2102.04503 (16 values share a scale).
    Koster et al., "Flexpoint", NeurIPS 2017, https://arxiv.org/abs/1711.02213 (a tensor shares).
    Drumond et al., NeurIPS 2018, https://arxiv.org/abs/1804.01526 (block floating point).
    Fox, Rasoulinezhad, Faraone, Boland, Leong, "A Block Minifloat Representation for Training
    Deep Neural Networks", ICLR 2021 (48 x 48 values share).
    Gustafson, Yonemoto, "Beating Floating Point at Its Own Game: Posit Arithmetic", 2017.
    Miyashita, Lee, Murmann, 2016, https://arxiv.org/abs/1603.01025 (logarithms).
    Samimi, Kamal, Afzali-Kusha, Pedram, "Res-DNN", IEEE TCAS-I 2020 (residues).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, gcd, isfinite, log2, prod

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError

VECTOR = 16  # values that share a scale where a uniform grid has one per vector
VECTOR_SCALE_BITS = 4
BLOCK = 32  # values that share a power of two in what crosses
BLOCK_SCALE_BITS = 8  # s stands for 2**(s - 127)
WHOLE = 1 << 62  # values that share a power of two: all that there are
EXAMPLES = "e4m3, e4m3b11, e2m1x32, q3.4, posit8, log8f3, rns15-16-17"
_MOST_BITS = 19
_LEAST_STEP = -148  # of float32, and half of it is a number too

Magnitudes = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    r"""A sign, then an exponent and a mantissa: binades of ``2**mantissa`` values each.

    .. math:: 2^{max(e, 1) - bias} \; ([e > 0] + m / 2^{mantissa})

    Attributes:
        exponent: Bits of e; with 0 the values are as far apart everywhere, which is fixed point.
        mantissa: Bits of m.
        bias: The exponent that is written for 1.
        infinite: Whether the highest exponent stands for infinity.
        end: The largest finite value, where it is not that of the highest e with the highest m.
        block: How many values share a power of two, in the order of memory; 0 for none.
        complement: Whether a negative value is written as its two's complement.
    """

    exponent: int
    mantissa: int
    bias: int
    infinite: bool = False
    end: float | None = None
    block: int = 0
    complement: bool = False

    @property
    def bits(self) -> int:
        """Of a symbol, without what a block shares."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite value."""
        if self.end is not None:
            return self.end
        power = max(2**self.exponent - 1 - self.infinite, 1) - self.bias
        return (1 + (self.exponent > 0) - 2.0**-self.mantissa) * 2.0**power

    def magnitudes(self) -> Magnitudes:
        """Return every value that is not negative, in the order of patterns, which ascends."""
        e, m = np.divmod(np.arange(2 ** (self.bits - 1)), 2**self.mantissa)
        steps = m + (e > 0) * 2**self.mantissa
        values = np.ldexp(steps.astype(float), np.maximum(e, 1) - self.bias - self.mantissa)
        return values[values <= self.largest].astype(np.float32)

    def between(self) -> Magnitudes:
        """Return where one value ends and the next begins, of equals nothing said: the middle."""
        values = self.magnitudes().astype(float)
        return ((values[1:] + values[:-1]) / 2).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posit:
    r"""A sign, a regime r of one bit and more, an exponent e and whatever is left, a fraction f.

    .. math:: 2^{r 2^{exponent} + e} \; (1 + f)

    Attributes:
        bits: Of a symbol.
        exponent: Bits of e.
    """

    bits: int
    exponent: int
    block = 0

    def magnitudes(self) -> Magnitudes:
        """Return every value that is not negative, in the order of patterns, which ascends."""
        return np.array([self._value(p) for p in range(2 ** (self.bits - 1))], np.float32)

    def between(self) -> Magnitudes:
        """Return where one value ends and the next begins: the posit of one bit more.

        Nothing but 0 becomes 0.
        """
        finer = replace(self, bits=self.bits + 1)
        middle = [finer._value(p) for p in range(1, 2**self.bits - 1, 2)]
        return np.array([0.0, *middle[1:]], np.float32)

    def _value(self, pattern: int) -> float:
        text = f"{pattern:0{self.bits - 1}b}"
        if not pattern:
            return 0.0
        run = len(text) - len(text.lstrip(text[0]))
        regime = run - 1 if text[0] == "1" else -run
        rest = text[run + 1 :]
        exponent = int(rest[: self.exponent].ljust(self.exponent, "0") or "0", 2)
        fraction = rest[self.exponent :]
        part = int(fraction, 2) / 2 ** len(fraction) if fraction else 0.0
        return float(2.0 ** (regime * 2**self.exponent + exponent) * (1 + part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Logarithm:
    r"""A sign and a binary logarithm l, in fixed point, of what is not 0.

    .. math:: 2^{l / 2^{fraction}}, \quad |l| < 2^{bits - 2}

    Attributes:
        bits: Of a symbol.
        fraction: Bits of the logarithm after the point.
        block: How many values share a power of two.
    """

    bits: int
    fraction: int
    block: int = WHOLE

    def magnitudes(self) -> Magnitudes:
        """Return every value that is not negative, in the order of patterns, which ascends."""
        end = 2 ** (self.bits - 2)
        logs = np.arange(1 - end, end) / 2**self.fraction
        return np.concatenate(([0.0], 2.0**logs)).astype(np.float32)

    def between(self) -> Magnitudes:
        """Return where one value ends and the next begins: the middle of their logarithms."""
        values = self.magnitudes().astype(float)
        middle = np.sqrt(values[1:] * values[:-1])
        return np.concatenate(([values[1] / 2], middle[1:])).astype(np.float32)


AnyFormat = Format | Posit | Logarithm

_E4M3 = Format(exponent=4, mantissa=3, bias=7, end=448.0)
_E5M2 = Format(exponent=5, mantissa=2, bias=15, infinite=True)
_E3M2 = Format(exponent=3, mantissa=2, bias=3)
_E2M3 = Format(exponent=2, mantissa=3, bias=1)
_E2M1 = Format(exponent=2, mantissa=1, bias=1)

FORMATS: Mapping[str, Format] = {
    "fp8-e4m3": _E4M3,
    "fp8-e5m2": _E5M2,
    "fp8-e3m4": Format(exponent=3, mantissa=4, bias=3, infinite=True),
    "fp6-e3m2": _E3M2,
    "fp6-e2m3": _E2M3,
    "fp4-e2m1": _E2M1,
    "fp16": Format(exponent=5, mantissa=10, bias=15, infinite=True),
    "bf16": Format(exponent=8, mantissa=7, bias=127, infinite=True),
    "tf32": Format(exponent=8, mantissa=10, bias=127, infinite=True),
    "dlfloat16": Format(exponent=6, mantissa=9, bias=31, end=2.0**32 * (1 + 510 / 512)),
    "mxfp8-e4m3": replace(_E4M3, block=BLOCK),
    "mxfp8-e5m2": replace(_E5M2, block=BLOCK),
    "mxfp6-e3m2": replace(_E3M2, block=BLOCK),
    "mxfp6-e2m3": replace(_E2M3, block=BLOCK),
    "mxfp4-e2m1": replace(_E2M1, block=BLOCK),
    "mxint8": Format(exponent=0, mantissa=7, bias=0, block=BLOCK, complement=True),
    "bfp8": Format(exponent=0, mantissa=7, bias=1, block=16),
    "bfp4": Format(exponent=0, mantissa=3, bias=1, block=16),
    "bm8-e2m5": Format(exponent=2, mantissa=5, bias=1, block=48 * 48),
    "flex16": Format(exponent=0, mantissa=15, bias=1, block=WHOLE),
}

CROSSING: Mapping[str, Format] = {
    name: form for name, form in FORMATS.items() if form.bits <= 16 and form.block in (0, BLOCK)
}
"""Those of the codec ``float``: a symbol of 16 bits at most, and blocks of 32 if any."""


@cache
def find_format(name: str) -> AnyFormat:
    """Return the format of a name.

    Raises:
        InputError: There is none, or it has more bits than are worth a table.

    Example:
        >>> find_format("q3.4").largest
        7.9375
        >>> find_format("posit8").magnitudes().max().item()
        16777216.0
    """
    if name in FORMATS:
        return FORMATS[name]
    for pattern, make in _FAMILIES:
        match = re.fullmatch(pattern, name)
        form = make(*match.groups()) if match else None
        if form is not None:
            return form
    raise InputError(
        f"number format {name!r}: expected {', '.join(FORMATS)}, or like {EXAMPLES}, with at most "
        f"{_MOST_BITS} bits (posit and log: 16)"
    )


def _float(exponent: str, mantissa: str, bias: str | None, block: str | None) -> Format | None:
    e, m = int(exponent), int(mantissa)
    if 1 + e + m > _MOST_BITS or e > 8:
        return None
    form = Format(
        exponent=e,
        mantissa=m,
        bias=int(bias) if bias else 2 ** (e - 1) - 1 if e else 1,
        infinite=e == 8,
        block=int(block or 0),
    )
    fits = 1 - form.bias - m >= _LEAST_STEP and abs(form.bias) < 256
    return form if m + e and fits and isfinite(np.float32(form.largest)) else None


def _fixed(before: str, after: str) -> Format | None:
    i, f = int(before), int(after)
    return Format(exponent=0, mantissa=i + f, bias=1 - i) if 0 < i + f < _MOST_BITS else None


def _posit(bits: str, exponent: str | None) -> Posit | None:
    form = Posit(bits=int(bits), exponent=int(exponent or 2))
    return form if 3 <= form.bits <= 16 and form.exponent <= 3 else None


def _logarithm(bits: str, fraction: str) -> Logarithm | None:
    form = Logarithm(bits=int(bits), fraction=int(fraction))
    inside = 3 <= form.bits <= 16 and 2 ** (form.bits - 2 - form.fraction) <= 64
    return form if inside else None


def _residues(text: str) -> Format | None:
    moduli = [int(part) for part in text.split("-")]
    most = (prod(moduli) - 1) // 2
    alone = all(gcd(a, b) == 1 for k, a in enumerate(moduli) for b in moduli[:k])
    if not alone or not 1 <= most < 2 ** (_MOST_BITS - 1):
        return None
    mantissa = max(1, ceil(log2(most + 1)))
    return Format(exponent=0, mantissa=mantissa, bias=1 - mantissa, end=float(most), block=WHOLE)


_FAMILIES: tuple[tuple[str, Callable[..., AnyFormat | None]], ...] = (
    (r"e(\d)m(\d{1,2})(?:b(-?\d{1,3}))?(?:x(\d{1,6}))?", _float),
    (r"q(\d{1,2})\.(\d{1,2})", _fixed),
    (r"posit(\d{1,2})(?:e(\d))?", _posit),
    (r"log(\d{1,2})f(\d)", _logarithm),
    (r"rns(\d{1,4}(?:-\d{1,4}){1,7})", _residues),
)
