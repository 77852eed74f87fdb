"""A codec as torch modules: the two halves that carry a crossing, and the table of codecs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import log
from struct import Struct

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.links.bottleneck import LearnedGrid, bottleneck_halves
from isthmus.links.boundary import label_halves, pixel_halves
from isthmus.links.floats import float_halves
from isthmus.links.halves import Halves
from isthmus.links.joint import Join, Part
from isthmus.links.raw import raw_halves
from isthmus.links.uniform import uniform_halves
from isthmus.wire import CodecSpec, WireTensor, pack, unpack
from isthmus.wire.nested import Width
from isthmus.wire.pack import check_tables
from isthmus.wire.spec import FLOATS
from isthmus.wire.tables import Tables, as_map, fit_tables, join_tables, split_tables

Tensors = tuple[Tensor, ...]
_MEASURED = Struct("<dd")
_RANGED = ("uniform", "bottleneck")  # what squares activations to find its ranges
_MOST = 1e16


class Codec(nn.Module):
    """Carries a crossing: a tuple of tensors (B, ...) in, what the far side makes of it out.

    .. code-block:: none

        tensors --> sender --> symbols --> receiver --> tensors
                               |     ^
                    wire.pack  v     |  wire.unpack
                               payload

    In eval mode symbols are integers (or the floats that go as they are), and ``decompress`` of
    ``compress`` is ``forward``, exactly. In training they are floats of the same values that pass
    gradients to the sender.

    Args:
        spec: What it is on paper.
        halves: Sender and receiver of each tensor. What both need to know (ranges, steps) is one
            module that both hold.
    """

    def __init__(self, spec: CodecSpec, halves: Sequence[Halves]) -> None:
        super().__init__()
        self._spec = spec
        self.book = Codebook(spec) if spec.entropy else None
        self.sender: nn.Module = Each([half.sender for half in halves])
        takes = [len(tensors) for tensors in spec.wire_groups]
        self.receiver: nn.Module = Each([half.receiver for half in halves], takes=takes)
        self._calibrate = tuple(half.calibrate for half in halves)
        self._join = Join(spec) if len(spec.carried) < len(spec.shapes) else None
        if self._join is not None:
            self.sender = nn.Sequential(self._join, self.sender)
            self.receiver = nn.Sequential(self.receiver, Part(self._join))

    @property
    def spec(self) -> CodecSpec:
        """What it is on paper, with the size that its tables were measured to give."""
        if self.book is None or not self.book.tables:
            return self._spec
        mean, spread = self.book.measured
        return replace(self._spec, measured_bytes=mean, measured_spread_bytes=spread)

    @property
    def tables(self) -> tuple[Tables, ...]:
        """Of each float tensor; none where nothing is entropy-coded or nothing was counted yet."""
        return self.book.tables if self.book is not None else ()

    def forward(self, tensors: Tensors) -> Tensors:
        """Return the tensors as the far side will see them."""
        restored: Tensors = self.receiver(self.sender(tensors))
        return restored

    @torch.no_grad()
    def compress(self, tensors: Tensors, *, width: Width | None = None) -> list[bytes]:
        """Return one payload per sample.

        Args:
            tensors: The crossing.
            width: Of a nested codec; None is the widest.

        Raises:
            InputError: The codec is in training mode, or has no such width.
        """
        if self.training:
            raise InputError(f"codec {self.spec.name} is in training mode; call eval() first")
        symbols = [symbol.cpu().numpy() for symbol in self.sender(tensors)]
        samples = zip(*symbols, strict=True)
        return [pack(self._spec, sample, self.tables, width=width) for sample in samples]

    @torch.no_grad()
    def decompress(self, payloads: Sequence[bytes]) -> Tensors:
        """Restore a batch from its payloads, one or more, with weights on the CPU.

        Raises:
            InputError: A payload cannot have come from this codec.
        """
        samples = [unpack(self._spec, payload, self.tables) for payload in payloads]
        symbols = zip(*samples, strict=True)
        return self.receiver(tuple(torch.from_numpy(np.stack(symbol)) for symbol in symbols))

    @torch.no_grad()
    def calibrate(self, tensors: Tensors) -> None:
        """Set ranges, steps and narrow layers from real activations, before any training.

        Raises:
            InputError: An activation is not finite, or too large for squares of it.
        """
        carried = tensors if self._join is None else self._join(tensors)
        for calibrate, x in zip(self._calibrate, carried, strict=True):
            if (x.isnan() if self.spec.name == "raw" else ~x.isfinite()).any():
                raise InputError(
                    f"codec {self.spec.name}: the calibration data makes activations that are not "
                    "finite; look for NaN in the data or the weights"
                )
            if self.spec.name in _RANGED and (largest := float(x.float().abs().max())) > _MOST:
                raise InputError(
                    f"codec {self.spec.name}: found activations up to {largest:.3g}, expected "
                    f"{_MOST:g} at most; carry them by float:format=bf16, or raw"
                )
            calibrate(x)

    @torch.no_grad()
    def widen_steps(self, factor: float) -> None:
        """Make the steps of learned layers ``factor`` times as wide; its tables no longer fit."""
        for module in self.modules():
            if isinstance(module, LearnedGrid):
                module.log_step.add_(log(factor))

    @torch.no_grad()
    def fit_tables(self, tensors: Tensors) -> None:
        """Count the symbols of an entropy-coded codec; call it last, for it must know them all.

        Every fourth sample is left out, and the mean and spread of the payload are those of
        these. Does nothing where nothing is entropy-coded.

        Args:
            tensors: Activations (B, ...) of training data, as many as memory holds.

        Raises:
            InputError: The codec is in training mode.
        """
        if self.book is None:
            return
        if self.training:
            raise InputError(f"codec {self.spec.name} is in training mode; call eval() first")
        symbols = [symbol.cpu().numpy() for symbol in self.sender(tensors)]
        held_B = np.arange(len(symbols[0])) % 4 == 3
        counted_B = ~held_B
        self.book.tables = tuple(
            fit_tables(np.stack([as_map(sample) for sample in symbol[counted_B]]), tensor.bits)
            for tensor, coded, symbol in zip(
                self._spec.wire_tensors, self._spec.coded, symbols, strict=True
            )
            if coded
        )
        measured_B = held_B if held_B.any() else counted_B
        samples = zip(*(symbol[measured_B] for symbol in symbols), strict=True)
        sizes = [len(pack(self._spec, sample, self.tables)) for sample in samples]
        self.book.measured = (float(np.mean(sizes)), float(np.std(sizes)))


class Codebook(nn.Module):
    """The tables of a codec and what they were measured to give; weights like any other.

    Args:
        spec: Of the codec that they belong to.
    """

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tables: tuple[Tables, ...] = ()
        self.measured = (0.0, 0.0)

    def get_extra_state(self) -> Tensor:
        """Return mean and spread of the payload, then the tables, as bytes."""
        written = _MEASURED.pack(*self.measured) + join_tables(self.tables)
        return torch.frombuffer(bytearray(written), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` returned.

        Raises:
            InputError: Other bytes, or the tables of another codec.
        """
        written = state.cpu().numpy().tobytes()
        if len(written) < _MEASURED.size:
            raise InputError(
                f"codec {self.spec.name}: found no tables in the weights; fit it anew"
            )
        tables = split_tables(written[_MEASURED.size :])
        if tables:
            check_tables(self.spec, tables)
        mean, spread = _MEASURED.unpack(written[: _MEASURED.size])
        self.tables, self.measured = tables, (mean, spread)


class Each(nn.Module):
    """Applies modules to a tuple of tensors, each to its own.

    Args:
        halves: Each returns a tensor or a tuple of them.
        takes: How many tensors each takes; one if left out.
    """

    def __init__(self, halves: Sequence[nn.Module], *, takes: Sequence[int] = ()) -> None:
        super().__init__()
        self.halves = nn.ModuleList(halves)
        self.takes = tuple(takes) or (1,) * len(halves)

    def forward(self, tensors: Tensors) -> Tensors:
        """Return what all of them return, in one tuple."""
        rest = iter(tensors)
        made = [half(*islice(rest, n)) for half, n in zip(self.halves, self.takes, strict=True)]
        return tuple(x for one in made for x in (one if isinstance(one, tuple) else (one,)))


def make_codec(spec: CodecSpec) -> Codec:
    """Make the modules of a codec: ready for training, and after ``calibrate`` for use."""
    return CODECS[spec.name](spec)


def _per_tensor(
    halves_of: Callable[[CodecSpec, WireTensor, tuple[int, ...], str], Halves], spec: CodecSpec
) -> Codec:
    """Make a codec that carries each float tensor by its own halves, and others as they are."""
    pairs = zip(spec.wire_groups, spec.carried, strict=True)
    return Codec(
        spec,
        [
            (halves_of if dtype in FLOATS else raw_halves)(spec, symbols, shape, dtype)
            for (symbols, *_), (shape, dtype) in pairs
        ],
    )


CODECS: dict[str, Callable[[CodecSpec], Codec]] = {
    "raw": partial(_per_tensor, raw_halves),
    "uniform": partial(_per_tensor, uniform_halves),
    "bottleneck": partial(_per_tensor, bottleneck_halves),
    "float": partial(_per_tensor, float_halves),
    "pixels": partial(_per_tensor, pixel_halves),
    "png": partial(_per_tensor, pixel_halves),
    "label": partial(_per_tensor, label_halves),
}
