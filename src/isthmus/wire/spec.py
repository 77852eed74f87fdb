"""What a codec is on paper: what it sends and what its halves cost, before any byte is made.

Shapes are those of one sample, without the batch. In every codec a tensor that holds no floats
(a mask, token numbers) crosses as it is, in its own dtype; ``uint4`` and ``uint2`` are integers
that a program holds as uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from operator import mul

import numpy as np

from isthmus.errors import InputError
from isthmus.wire.formats import BLOCK, BLOCK_SCALE_BITS, CROSSING, VECTOR, VECTOR_SCALE_BITS
from isthmus.wire.images import max_png_bytes
from isthmus.wire.options import (
    ALL_OPTIONS,
    check_options,
    option_names,
    parse_options,
    write_options,
)
from isthmus.wire.tables import MAX_CHANNELS, MAX_ROWS

FLOATS = ("float32", "float16", "bfloat16", "float64")
_INTEGER_BITS = {
    "bool": 1, "uint2": 2, "uint4": 4, "uint8": 8, "int8": 8, "int16": 16, "int32": 32,
    "int64": 64,
}  # fmt: skip
SYMBOLS = dict.fromkeys(("bool", "uint2", "uint4"), "uint8")  # of what numpy does not pack
_LABELS = ("uint8", "int16", "int32")

# Deflate works by the byte and not by MACs. Assumed: about as many cycles per byte as zlib takes
# at its default level on a processor that does one MAC per cycle.
_DEFLATE_MACS_PER_BYTE = 60
_INFLATE_MACS_PER_BYTE = 10

# So does the entropy stage by the symbol. Assumed: the cycles that benchmarks/wire_speed.py shows.
_ENCODE_MACS_PER_SYMBOL = 160
_DECODE_MACS_PER_SYMBOL = 190

# A float is written and read by a binary search for its exponent: operations of either half.
_FLOAT_MACS_PER_SYMBOL = 45


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
    def num_elements(self) -> int:
        """Symbols of one sample."""
        return prod(self.shape)

    @property
    def payload_bytes(self) -> int:
        """Bytes on the wire for one sample."""
        return (self.num_elements * self.bits + 7) // 8


@dataclass(frozen=True, kw_only=True)  # no slots: what a planner asks again and again is kept
class CodecSpec:
    """A codec bound to a crossing.

    Which dimension holds the channels cannot be told from a shape alone. The rule: of a tensor
    with two dimensions it is the last, (T, C), of any other the first, (C,) and (C, H, W). Thus
    ``bottleneck`` narrows the time of a 1-D convolution's (C, T); there ``uniform`` is at home.
    Where the ratio does not divide the channels, N = C // ratio of them cross. A ``stride`` of s
    lets every s-th row and column of a (C, H, W) cross: N maps of ceil(H / s) by ceil(W / s).

    ``pixels`` and ``png`` carry an image in [0, 1] as it is, and floats that calibration saw
    outside of that as 256 levels over each channel's range.

    Attributes:
        name: raw, uniform, bottleneck, float, pixels, png or label.
        shapes: The crossing's tensors, one sample.
        dtypes: Their numpy names.
        ratio: Channels before / channels on the wire, rounded down.
        stride: Rows before / rows on the wire, and columns alike, rounded up.
        hidden: Channels inside the receiver of a bottleneck; 0 makes it linear.
        sender: How a bottleneck narrows maps at a stride: by one ``dense`` convolution, or by a
            ``separable`` one: depthwise, then 1x1.
        sender_hidden: Channels inside the sender's refinement; 0 leaves it out.
        bits: Bits per symbol on the wire; a float that is narrower already, and a label, take
            fewer.
        per: Whether each ``channel`` of a uniform grid has a range, or the ``tensor`` has one;
            per ``vector`` a channel's range is shared out: 16 values take as much as they need.
        range: How calibration chooses it, a name in `isthmus.links.ranges.RANGES`.
        symmetric: Whether a uniform grid reaches as far down as up, with 0 among its levels,
            from 2 bits on.
        format: Of the codec ``float``, a name in `isthmus.wire.formats.CROSSING`.
        nested: Whether a bottleneck may cross at narrower widths too, see `isthmus.wire.nested`.
        joint: Whether a bottleneck narrows all float tensors together, as one of all channels, so
            that what a skip has in common with the rest crosses once.
        entropy: Whether the symbols of floats are coded by how often they come; ``+entropy``.
        measured_bytes: Mean payload seen on calibration data, for a codec of variable rate.
        measured_spread_bytes: Standard deviation of the same.

    Raises:
        InputError: No such codec, an option out of bounds, or a crossing it cannot carry.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    ratio: int = 1
    stride: int = 1
    hidden: int = 0
    sender: str = "dense"
    sender_hidden: int = 0
    bits: int = 32
    per: str = "channel"
    range: str = "minmax"
    symmetric: bool = False
    format: str = ""
    nested: bool = False
    joint: bool = False
    entropy: bool = False
    measured_bytes: float | None = None
    measured_spread_bytes: float | None = None

    def __post_init__(self) -> None:
        check_options(self.name, {option: getattr(self, option) for option in ALL_OPTIONS})
        problem = _problem(self)
        if problem:
            raise InputError(f"codec {self.name}: {problem}")

    @property
    def fixed_rate(self) -> bool:
        """Whether every sample takes the same, exactly predicted payload."""
        return self.name != "png" and not self.entropy and not self.nested

    @cached_property
    def wire_tensors(self) -> tuple[WireTensor, ...]:
        """All that the sender emits, in order."""
        return tuple(tensor for group in self.wire_groups for tensor in group)

    @cached_property
    def wire_groups(self) -> tuple[tuple[WireTensor, ...], ...]:
        """For each tensor of the crossing its symbols, then the scales that go with them."""
        return tuple(
            (_wire_tensor(self, shape, dtype), *_scales(self, shape, dtype))
            for shape, dtype in self.carried
        )

    @cached_property
    def carried(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of what the halves carry; of a joint codec all floats as one, first."""
        pairs = tuple(zip(self.shapes, self.dtypes, strict=True))
        floats = [pair for pair in pairs if pair[1] in FLOATS]
        if not self.joint or len(floats) < 2:
            return pairs
        shape, dtype = floats[0]
        joined = list(shape)
        joined[channel_dim(shape)] = sum(num_channels(each) for each, _ in floats)
        return ((tuple(joined), dtype), *(pair for pair in pairs if pair[1] not in FLOATS))

    @property
    def payload_bytes(self) -> float:
        """Payload of one sample: exact at a fixed rate, else the measured mean or the bound."""
        if self.measured_bytes is not None and not self.fixed_rate:
            return self.measured_bytes
        return float(self.max_payload_bytes)

    @property
    def max_payload_bytes(self) -> int:
        """Bytes that no payload exceeds; what the entropy stage does not shorten goes packed."""
        if self.name == "png":
            return max_png_bytes(self.shapes[0])
        return self.nested + sum(tensor.payload_bytes for tensor in self.wire_tensors)

    @property
    def coded(self) -> tuple[bool, ...]:
        """Whether the entropy stage codes each of the wire tensors; scales go as they are."""
        pairs = zip(self.wire_groups, self.carried, strict=True)
        return tuple(
            self.entropy and dtype in FLOATS and tensor is group[0]
            for group, (_, dtype) in pairs
            for tensor in group
        )

    @property
    def coded_tensors(self) -> tuple[WireTensor, ...]:
        """Those that the entropy stage codes."""
        return tuple(t for t, coded in zip(self.wire_tensors, self.coded, strict=True) if coded)

    @property
    def encoder_macs(self) -> int:
        """Multiply-accumulates of the sender half, one sample."""
        return self._macs(_DEFLATE_MACS_PER_BYTE, encoder=True)

    @property
    def decoder_macs(self) -> int:
        """Multiply-accumulates of the receiver half, one sample."""
        return self._macs(_INFLATE_MACS_PER_BYTE, encoder=False)

    @property
    def encoder_weight_bytes(self) -> int:
        """Bytes of the sender half's weights, scales and offsets."""
        if self.name in ("uniform", "pixels", "png"):
            return sum(8 * (1 if self.per == "tensor" else c) for c, _ in self.narrowed)
        if self.name == "bottleneck":  # narrow and refine with their biases, step
            layers = (self._sender_layers(*narrowing) for narrowing in self._narrowings)
            width = self.sender_hidden
            others = sum(2 * (n + width) + n * (width > 0) for *_, n in self._narrowings)
            return 4 * (others + sum(k * a * b for each in layers for k, a, b in each))
        return 0

    @property
    def decoder_weight_bytes(self) -> int:
        """Bytes of the receiver half's weights, scales and offsets."""
        if self.name == "bottleneck":  # step, then widen and refine with their biases
            layers = (self._receiver_layers(*narrowing) for narrowing in self._narrowings)
            steps = sum(4 * n for _, _, n in self._narrowings)
            return steps + sum(4 * b * (k * a + 1) for each in layers for k, a, b in each)
        return self.encoder_weight_bytes

    @property
    def encoder_buffer_bytes(self) -> int:
        """Memory that encoding one sample takes beside the crossing: values, symbols, payload."""
        if self.name != "bottleneck":
            return self.decoder_buffer_bytes
        thin, width = self.sender == "separable", self.sender_hidden
        places = (prod(_wire_shape(self, shape)) // n for shape, _, n in self._narrowings)
        channels = (c * thin + 2 * width for _, c, _ in self._narrowings)  # between layers
        return self.decoder_buffer_bytes + 4 * sum(map(mul, places, channels))

    @property
    def decoder_buffer_bytes(self) -> int:
        """Memory that decoding one sample takes beside the crossing: payload, symbols, values.

        The entropy stage also takes its tables, 4 bytes for each symbol of a row, and each
        symbol's place and rank.
        """
        symbols = sum(t.num_elements * np.dtype(t.dtype).itemsize for t in self.wire_tensors)
        for tensor in self.coded_tensors:
            symbols += 4 * MAX_ROWS * ((1 << tensor.bits) + 1) + 12 * tensor.num_elements
        return symbols + 4 * self._scaled_elements + self.max_payload_bytes

    @property
    def narrowed(self) -> tuple[tuple[int, int], ...]:
        """Channels before and on the wire, C and N, of every float tensor."""
        return tuple((channels, wire_channels) for _, channels, wire_channels in self._narrowings)

    @property
    def ratios(self) -> tuple[int, ...]:
        """Those of a nested codec: doubled up to 32, or as long as no tensor is left without."""
        most = max(self.ratio, min(_MAX_RATIO, *(channels for channels, _ in self.narrowed)))
        doubled = (self.ratio << doublings for doublings in range(_MAX_RATIO.bit_length()))
        return tuple(ratio for ratio in doubled if ratio <= most)

    @property
    def _scaled_elements(self) -> int:
        """Symbols that are floats until they are rounded, and again after they arrive."""
        if self.name in ("raw", "label"):
            return 0
        pairs = zip(self.wire_groups, self.carried, strict=True)
        return sum(t.num_elements for group, (_, dtype) in pairs if dtype in FLOATS for t in group)

    @property
    def _narrowings(self) -> tuple[tuple[tuple[int, ...], int, int], ...]:
        """Shape, C and N of every float tensor; C is 1 for a scalar."""
        floats = (shape for shape, dtype in self.carried if dtype in FLOATS)
        channels = ((shape, num_channels(shape)) for shape in floats)
        return tuple((shape, c, c // self.ratio) for shape, c in channels)

    def _sender_layers(
        self, shape: tuple[int, ...], channels: int, wire_channels: int
    ) -> tuple[tuple[int, int, int], ...]:
        """Return the window, inputs and outputs of each layer; a depthwise one has 1 output."""
        window = (2 * self.stride - 1) ** 2 if len(shape) == 3 else 1
        found = [(window, channels, wire_channels)]
        if self.sender == "separable":
            found = [(window, channels, 1), (1, channels, wire_channels)]
        if width := self.sender_hidden:
            between = (9 if len(shape) == 3 else 1, width, width)
            found += [(window, channels, width), between, (1, width, wire_channels)]
        return tuple(found)

    def _receiver_layers(
        self, shape: tuple[int, ...], channels: int, wire_channels: int
    ) -> tuple[tuple[int, int, int], ...]:
        """Return the window, inputs and outputs of each layer of a bottleneck's receiver.

        Of a nested one every ratio has inputs of its own, and one for its bias.
        """
        window, width = (9 if len(shape) == 3 else 1), self.hidden
        outputs = channels * (self.stride**2 if len(shape) == 3 else 1)
        inputs = wire_channels
        if self.nested:
            inputs = sum(channels // ratio + 1 for ratio in self.ratios)
        widen = (1, inputs, outputs)
        if not width:
            return (widen,)
        return (widen, (window, inputs, width), (window, width, width), (1, width, outputs))

    def _macs(self, png_macs_per_byte: int, *, encoder: bool) -> int:
        macs = self._scaled_elements * (2 if self.per == "vector" else 1)
        if self.name == "bottleneck":
            layers = self._sender_layers if encoder else self._receiver_layers
            for shape, c, n in self._narrowings:
                places = prod(_wire_shape(self, shape)) // n
                macs += places * sum(window * a * b for window, a, b in layers(shape, c, n))
        if self.name == "float":
            macs += _FLOAT_MACS_PER_SYMBOL * self._scaled_elements
        if self.name == "label":
            macs += prod(self.shapes[0])
        if self.entropy:
            macs += self._scaled_elements * (
                _ENCODE_MACS_PER_SYMBOL if encoder else _DECODE_MACS_PER_SYMBOL
            )
        if self.name == "png":
            macs += png_macs_per_byte * prod(self.shapes[0])
        return macs


def parse_codec(text: str, *, shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> CodecSpec:
    """Read a codec as people write it and bind it to a crossing.

    Args:
        text: A name and its options, ``"bottleneck:ratio=8,bits=4"``.
        shapes: The crossing's tensors, one sample.
        dtypes: Their numpy names.

    Returns:
        The codec.

    Raises:
        InputError: An unknown name or option, or a crossing that the codec cannot carry.

    Example:
        >>> parse_codec("bottleneck:bits=4", shapes=[(64, 7, 7)], dtypes=["float32"]).ratio
        8
    """
    name, values = parse_options(text)
    bound = tuple(tuple(shape) for shape in shapes)
    return CodecSpec(name=name, shapes=bound, dtypes=tuple(dtypes), **values)


def codec_text(spec: CodecSpec) -> str:
    """Write a codec so that `parse_codec` reads it back, without options that say nothing."""
    values = {option: getattr(spec, option) for option in option_names(spec.name)}
    return write_options(spec.name, values, entropy=spec.entropy)


def default_codec_text(shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> str:
    """Name a narrow codec for a crossing.

    Returns:
        A bottleneck of at most 8 channels to 1 that leaves two channels or more, at 8 bits; eight
        plain bits where a tensor cannot be narrowed so; raw where nothing is a float.
    """
    floats = [tuple(shape) for shape, dtype in zip(shapes, dtypes, strict=True) if dtype in FLOATS]
    if not floats:
        return "raw"
    ratio = min(8, *(num_channels(shape) // 2 for shape in floats))
    if ratio < 2 or any(len(shape) not in _NARROWED_DIMS for shape in floats):
        return "uniform:bits=8"
    return f"bottleneck:ratio={ratio},bits=8"


def channel_dim(shape: Sequence[int]) -> int:
    """Return which dimension of one sample holds the channels: (C,), (T, C) or (C, ...)."""
    return 1 if len(shape) == 2 else 0


def num_channels(shape: Sequence[int]) -> int:
    """Return the number of channels of one sample; 1 for a scalar."""
    return shape[channel_dim(shape)] if shape else 1


_NARROWED_DIMS = (1, 2, 3)
_MAX_RATIO = 32  # of a nested codec; a widest one that is narrower still is the only one
_MOST_CODED_BITS = 8


def _problem(spec: CodecSpec) -> str:
    """Return why the codec cannot carry the crossing and what can; empty where it can."""
    if len(spec.shapes) != len(spec.dtypes) or not spec.shapes:
        return f"{len(spec.shapes)} shapes and {len(spec.dtypes)} dtypes; give one of each"
    if spec.name != "raw" and not all(map(prod, spec.shapes)):
        return f"found {_found(spec)}, expected values in every tensor; choose another cut"
    unknown = set(spec.dtypes) - {*FLOATS, *_INTEGER_BITS}
    if unknown:
        known = ", ".join((*FLOATS, *_INTEGER_BITS))
        return f"a {min(unknown)} tensor cannot cross; choose another cut, or cast it to {known}"
    if spec.name in ("pixels", "png"):
        return _image_problem(spec)
    if spec.name == "label":
        one_vector = len(spec.shapes) == 1 and len(spec.shapes[0]) == 1
        if one_vector and spec.dtypes[0] in FLOATS:
            return ""
        return f"found {_found(spec)}, expected one vector of class scores; use raw or uniform"
    if spec.name != "raw" and not any(dtype in FLOATS for dtype in spec.dtypes):
        return f"found {_found(spec)}, expected floats; use raw"
    problem = _narrow_problem(spec) if spec.name == "bottleneck" else ""
    return problem or (_entropy_problem(spec) if spec.entropy else "")


def _entropy_problem(spec: CodecSpec) -> str:
    if spec.bits > _MOST_CODED_BITS:
        return f"found {spec.bits} bits and +entropy, expected at most {_MOST_CODED_BITS} bits"
    most = max(num_channels(tensor.shape) for tensor in spec.coded_tensors)
    if most > MAX_CHANNELS:
        return (
            f"found {most} channels and +entropy, which counts the symbols of each, expected at "
            f"most {MAX_CHANNELS}; leave +entropy out, or cut before the values are flattened"
        )
    return ""


def _image_problem(spec: CodecSpec) -> str:
    shape = spec.shapes[0]
    one_float32 = spec.dtypes == ("float32",)
    if one_float32 and len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0:
        return ""
    return (
        f"found {_found(spec)}, expected one float32 image (1 or 3, height, width); "
        "use raw or uniform"
    )


def _narrow_problem(spec: CodecSpec) -> str:
    floats = [pair for pair in zip(spec.shapes, spec.dtypes, strict=True) if pair[1] in FLOATS]
    if spec.joint and len({(*_places(shape), dtype) for shape, dtype in floats}) > 1:
        return f"found {_found(spec)} and joint=1, expected floats that differ in channels alone"
    for shape, dtype in spec.carried:
        if dtype not in FLOATS:
            continue
        if len(shape) not in _NARROWED_DIMS:
            return f"found a tensor {shape}, expected (C,), (T, C) or (C, H, W); use uniform"
        if num_channels(shape) < spec.ratio:
            most = num_channels(shape)
            return f"ratio {spec.ratio} leaves no channel of {most}; use ratio={most} or less"
        if spec.stride > 1 and len(shape) != 3:
            return f"found stride={spec.stride} and {shape}, expected (C, H, W); use stride=1"
    if spec.sender == "separable" and spec.stride == 1:
        return "found sender=separable and stride=1, whose 1x1 is as cheap; use sender=dense"
    return ""


def _places(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its channels; how many sizes it has counts, too."""
    rest = list(shape)
    del rest[channel_dim(shape) : channel_dim(shape) + 1]
    return (len(shape), *rest)


def _found(spec: CodecSpec) -> str:
    pairs = zip(spec.shapes, spec.dtypes, strict=True)
    return " and ".join(f"{dtype} {shape}" for shape, dtype in pairs)


def _wire_tensor(spec: CodecSpec, shape: tuple[int, ...], dtype: str) -> WireTensor:
    if dtype not in FLOATS:
        symbol = SYMBOLS.get(dtype, dtype)
        return WireTensor(shape=shape, dtype=symbol, bits=_INTEGER_BITS[dtype])
    if spec.name == "raw":
        whole = {"float16": 16, "float64": 64}.get(dtype, 32)  # of a bfloat16 too, numpy has none
        bits = whole if spec.bits == 32 else 16
        return WireTensor(shape=shape, dtype=f"float{bits}", bits=bits)
    if spec.name == "label":
        symbol = next(name for name in _LABELS if shape[0] - 1 <= np.iinfo(name).max)
        return WireTensor(shape=(), dtype=symbol, bits=_INTEGER_BITS[symbol])
    if spec.name == "bottleneck":
        shape = _wire_shape(spec, shape)
    return WireTensor(shape=shape, dtype=f"uint{max(8, spec.bits)}", bits=spec.bits)


def _scales(spec: CodecSpec, shape: tuple[int, ...], dtype: str) -> tuple[WireTensor, ...]:
    """Return what goes with the symbols of a tensor: a scale for each block or vector."""
    if dtype in FLOATS and spec.format and CROSSING[spec.format].block:
        size, bits = BLOCK, BLOCK_SCALE_BITS
    elif dtype in FLOATS and spec.per == "vector":
        size, bits = VECTOR, VECTOR_SCALE_BITS
    else:
        return ()
    return (WireTensor(shape=(-(-prod(shape) // size),), dtype="uint8", bits=bits),)


def _wire_shape(spec: CodecSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return what is left of a shape by a bottleneck's ratio and stride."""
    if len(shape) == 3:
        height, width = (-(-size // spec.stride) for size in shape[1:])
        return (shape[0] // spec.ratio, height, width)
    return (*shape[:-1], shape[-1] // spec.ratio)
