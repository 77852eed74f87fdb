"""Small floats: how their bits are used, and how many values share a scale.

References:
    Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433.
    Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023;
    Rouhani et al., "Microscaling Data Formats for Deep Learning", 2023,
    https://arxiv.org/abs/2310.10537 (``mx``: 32 values share a power of two).
    Dai et al., "VS-Quant: Per-Vector Scaled Quantization for Accurate Low-Precision Neural
    Network Inference", MLSys 2021, https://arxiv.org/abs/2102.04503 (16 values share a scale).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

VECTOR = 16  # values that share a scale where a uniform grid has one per vector
VECTOR_SCALE_BITS = 4
BLOCK = 32  # values that share a power of two
BLOCK_SCALE_BITS = 8  # s stands for 2**(s - 127)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A sign, then an exponent and a mantissa: binades of ``2**mantissa`` values each.

    Attributes:
        bits: Of a symbol.
        mantissa: Bits after the point.
        bias: The exponent that is written for 1.
        largest: Finite value.
        block: Whether 32 values share a power of two.
        complement: Whether a negative value is written as its two's complement; in place of an
            exponent there is then one bit before the point.
    """

    bits: int = 8
    mantissa: int
    bias: int
    largest: float
    block: bool = False
    complement: bool = False


_E4M3 = Format(mantissa=3, bias=7, largest=448.0)
_E5M2 = Format(mantissa=2, bias=15, largest=57_344.0)

FORMATS: Mapping[str, Format] = {
    "fp8-e4m3": _E4M3,
    "fp8-e5m2": _E5M2,
    "fp16": Format(bits=16, mantissa=10, bias=15, largest=65_504.0),
    "bf16": Format(bits=16, mantissa=7, bias=127, largest=(2 - 2**-7) * 2.0**127),
    "mxfp8-e4m3": replace(_E4M3, block=True),
    "mxfp8-e5m2": replace(_E5M2, block=True),
    "mxfp6-e2m3": Format(bits=6, mantissa=3, bias=1, largest=7.5, block=True),
    "mxfp6-e3m2": Format(bits=6, mantissa=2, bias=3, largest=28.0, block=True),
    "mxfp4-e2m1": Format(bits=4, mantissa=1, bias=1, largest=6.0, block=True),
    "mxint8": Format(mantissa=6, bias=1, largest=127 / 64, block=True, complement=True),
}
