"""Nested widths: one link whose first channels and upper bits are narrower links.

A nested codec has one sender and one receiver. What the sender emits can cross at any `Width`: the
first channels alone, and of each symbol the upper bits alone. The receiver gets symbols of the
full width all the same, with 0 in place of what did not cross, so that both programs stay as they
are and each payload may have a width of its own, which its first byte tells.

.. code-block:: none

    width u8 | what the codec of that ratio and bits sends
    halvings of the channels, 4 bits; bits of a symbol, 4 bits

A symbol s of B bits stands for ``s - 2**(B - 1)`` steps; of b bits it is rounded, half up, to a
multiple of ``2**(B - b)`` steps, so that 0 is a level at every width.

References:
    Yu, Yang, Xu, Yang, Huang, "Slimmable neural networks", ICLR 2019,
    https://arxiv.org/abs/1812.08928 (the first channels are a network).
    Rippel, Gelbart, Adams, "Learning ordered representations with nested dropout", ICML 2014,
    https://arxiv.org/abs/1402.0915 (channels in the order of what they are worth).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError
from isthmus.wire.spec import CodecSpec, WireTensor, num_channels
from isthmus.wire.tables import Tables

LEAST_BITS = 2

_NUMBER = re.compile(r"(ratio|bits)=([0-9]{1,9})")
_WIDTH = re.compile(rf"{_NUMBER.pattern},{_NUMBER.pattern}")

Symbols = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How much of a nested link is used.

    Attributes:
        ratio: Channels before / channels on the wire.
        bits: Bits of a symbol.
    """

    ratio: int
    bits: int

    def __str__(self) -> str:
        """Write it as people do: ``ratio=8,bits=4``."""
        return f"ratio={self.ratio},bits={self.bits}"


def parse_width(text: str) -> Width:
    """Read a width as people write it.

    Raises:
        InputError: Another text.

    Example:
        >>> parse_width("ratio=8,bits=4")
        Width(ratio=8, bits=4)
    """
    found = dict(_NUMBER.findall(text))
    if set(found) != {"ratio", "bits"} or not _WIDTH.fullmatch(text):
        raise InputError(f"width {text!r}: expected a ratio and bits, such as ratio=8,bits=4")
    return Width(ratio=int(found["ratio"]), bits=int(found["bits"]))


@lru_cache(maxsize=256)
def widths(spec: CodecSpec) -> tuple[Width, ...]:
    """Return all widths of a nested codec, the widest first; none of another codec.

    Args:
        spec: The codec.
    """
    if not spec.nested:
        return ()
    return tuple(
        Width(ratio=ratio, bits=bits)
        for ratio in spec.ratios
        for bits in range(spec.bits, LEAST_BITS - 1, -1)
    )


def check_width(spec: CodecSpec, width: Width) -> None:
    """Raise unless a codec is nested and has a width.

    Raises:
        InputError: Names the widths that it has.
    """
    known = widths(spec)
    if not known:
        raise InputError(
            f"codec {spec.name}: found width {width}, but it has only one; plan with nested=1"
        )
    if width not in known:
        ratios = ", ".join(map(str, dict.fromkeys(w.ratio for w in known)))
        raise InputError(
            f"codec {spec.name}: found width {width}, expected a ratio of {ratios} and "
            f"{LEAST_BITS} to {spec.bits} bits"
        )


@lru_cache(maxsize=1024)
def at_width(spec: CodecSpec, width: Width) -> CodecSpec:
    """Return the codec of one width that sends what a nested codec sends at that width.

    Raises:
        InputError: The codec has no such width.
    """
    check_width(spec, width)
    return replace(
        spec,
        ratio=width.ratio,
        bits=width.bits,
        nested=False,
        measured_bytes=None,
        measured_spread_bytes=None,
    )


def payload_bytes_at(spec: CodecSpec, width: Width) -> int:
    """Return what a payload of that width takes, at most where it is entropy-coded."""
    return 1 + at_width(spec, width).max_payload_bytes


def width_byte(spec: CodecSpec, width: Width) -> bytes:
    """Return what tells the width at the start of a payload."""
    return bytes([(width.ratio // spec.ratio).bit_length() - 1 << 4 | width.bits])


def read_width(spec: CodecSpec, payload: bytes | memoryview) -> Width:
    """Read the width of a payload.

    Raises:
        InputError: It is empty, or of a width that the codec does not have.
    """
    if not len(payload):
        raise InputError(f"codec {spec.name}: found an empty payload, expected its width")
    width = Width(ratio=spec.ratio << (payload[0] >> 4), bits=payload[0] & 15)
    check_width(spec, width)
    return width


def narrowed(symbols: Symbols, full: WireTensor, narrow: WireTensor) -> Symbols:
    """Return what crosses of the symbols of one tensor.

    Args:
        symbols: Of one sample, as ``full`` says.
        full: The tensor at its full width.
        narrow: The same at the width in question.

    Returns:
        Symbols as ``narrow`` says.
    """
    if full == narrow:
        return symbols
    shift = full.bits - narrow.bits
    first = symbols[_first(narrow.shape)].astype(np.uint16)
    rounded = (first + (1 << shift >> 1)) >> shift
    return np.minimum(rounded, (1 << narrow.bits) - 1).astype(symbols.dtype)


def widened(symbols: Symbols, full: WireTensor, narrow: WireTensor) -> Symbols:
    """Return what the receiver gets for symbols that crossed: 0 where none did.

    Args:
        symbols: Of one sample, as ``narrow`` says.
        full: The tensor at its full width.
        narrow: The same at the width of the symbols.
    """
    if full == narrow:
        return symbols
    whole = np.full(full.shape, 1 << full.bits - 1, symbols.dtype)
    whole[_first(narrow.shape)] = symbols << (full.bits - narrow.bits)
    return whole


def tables_at(
    tables: Sequence[Tables], full: Sequence[WireTensor], narrow: Sequence[WireTensor]
) -> tuple[Tables, ...]:
    """Return the tables of a narrower width, made of those of the widest by adding whole numbers.

    Args:
        tables: Of each tensor that is entropy-coded.
        full: These tensors at their full width.
        narrow: The same at the width in question.
    """
    triples = zip(tables, full, narrow, strict=True)
    return tuple(
        _coarser(one, channels=num_channels(b.shape), shift=a.bits - b.bits)
        for one, a, b in triples
    )


@lru_cache(maxsize=256)
def _coarser(tables: Tables, *, channels: int, shift: int) -> Tables:
    """Add the frequencies of symbols that become one; the distances of neighbours shrink alike."""
    last = (1 << tables.bits - shift) - 1
    becomes = np.minimum((np.arange(1 << tables.bits) + (1 << shift >> 1)) >> shift, last)
    frequencies = np.zeros((len(tables.frequencies), last + 2), np.uint32)
    np.add.at(frequencies.T, becomes, tables.frequencies[:, :-1].T)
    frequencies[:, -1] = tables.frequencies[:, -1]
    for row in frequencies:
        if row[:-1].max() == row.sum():  # of one symbol alone: tables must have an escape there
            row[row.argmax()] -= 1
            row[-1] += 1
    return Tables(
        bits=tables.bits - shift,
        frequencies=frequencies,
        row_of=tables.row_of[:channels],
        centre=becomes[tables.centre[:channels]].astype(np.uint8),
        edges=(tables.edges >> shift).astype(np.uint16),
    )


def _first(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return where the symbols of a narrower tensor stand in the wider one: at its start."""
    return tuple(slice(size) for size in shape)
