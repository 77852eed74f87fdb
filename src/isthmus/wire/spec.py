"""What a codec is on paper: what it sends and what its halves cost, before any byte is made.

Shapes are those of one sample, without the batch.
"""

from dataclasses import dataclass
from math import prod

from isthmus.errors import InputError

FLOAT_BITS = {"float32": 32, "float16": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """One tensor of symbols as it goes onto the wire.

    Attributes:
        shape: Sizes for one sample.
        dtype: numpy name of the symbols that the sender's program emits.
        bits: Bits per symbol on the wire; symbols are packed without gaps, then the tensor is
            padded to a whole byte.
    """

    shape: tuple[int, ...]
    dtype: str
    bits: int

    @property
    def payload_bytes(self) -> int:
        """Bytes on the wire for one sample."""
        return (prod(self.shape) * self.bits + 7) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec bound to a crossing.

    Attributes:
        name: A key of ``CODECS``: raw, uniform, bottleneck, pixels, png, label.
        shapes: The crossing's tensors, one sample.
        dtypes: Their numpy names.
        ratio: Channels before / channels on the wire.
        bits: Bits per symbol on the wire.
        measured_bytes: Mean payload seen on calibration data, for a codec of variable rate.
        measured_spread_bytes: Standard deviation of the same.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    ratio: int = 1
    bits: int = 32
    measured_bytes: float | None = None
    measured_spread_bytes: float | None = None
