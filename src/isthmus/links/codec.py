"""A codec as torch modules: the two halves that carry a crossing, and the table of codecs."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.links.bottleneck import bottleneck_halves
from isthmus.links.boundary import label_halves, pixel_halves
from isthmus.links.halves import Halves
from isthmus.links.raw import raw_halves
from isthmus.links.uniform import uniform_halves
from isthmus.wire import CodecSpec, WireTensor, pack, unpack
from isthmus.wire.spec import FLOATS

Tensors = tuple[Tensor, ...]


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
        self.spec = spec
        self.sender = Each([half.sender for half in halves])
        self.receiver = Each([half.receiver for half in halves])
        self._calibrate = tuple(half.calibrate for half in halves)

    def forward(self, tensors: Tensors) -> Tensors:
        """Return the tensors as the far side will see them."""
        return self.receiver(self.sender(tensors))

    @torch.no_grad()
    def compress(self, tensors: Tensors) -> list[bytes]:
        """Return one payload per sample.

        Raises:
            InputError: The codec is in training mode.
        """
        if self.training:
            raise InputError(f"codec {self.spec.name} is in training mode; call eval() first")
        symbols = [symbol.cpu().numpy() for symbol in self.sender(tensors)]
        return [pack(self.spec, sample) for sample in zip(*symbols, strict=True)]

    @torch.no_grad()
    def decompress(self, payloads: Sequence[bytes]) -> Tensors:
        """Restore a batch from its payloads, one or more, with weights on the CPU.

        Raises:
            InputError: A payload cannot have come from this codec.
        """
        samples = [unpack(self.spec, payload) for payload in payloads]
        symbols = zip(*samples, strict=True)
        return self.receiver(tuple(torch.from_numpy(np.stack(symbol)) for symbol in symbols))

    @torch.no_grad()
    def calibrate(self, tensors: Tensors) -> None:
        """Set ranges, steps and narrow layers from real activations, before any training.

        Raises:
            InputError: An activation is not finite.
        """
        for calibrate, x in zip(self._calibrate, tensors, strict=True):
            if not x.isfinite().all():
                raise InputError(
                    f"codec {self.spec.name}: the calibration data makes activations that are not "
                    "finite; look for NaN in the data or the weights"
                )
            calibrate(x)


class Each(nn.Module):
    """Applies one module to each tensor of a tuple."""

    def __init__(self, halves: Sequence[nn.Module]) -> None:
        super().__init__()
        self.halves = nn.ModuleList(halves)

    def forward(self, tensors: Tensors) -> Tensors:
        """Return a tuple of as many tensors."""
        return tuple(half(x) for half, x in zip(self.halves, tensors, strict=True))


def make_codec(spec: CodecSpec) -> Codec:
    """Make the modules of a codec: ready for training, and after ``calibrate`` for use."""
    return CODECS[spec.name](spec)


def _per_tensor(
    halves_of: Callable[[CodecSpec, WireTensor, tuple[int, ...], str], Halves], spec: CodecSpec
) -> Codec:
    """Make a codec that carries each float tensor by its own halves, and others as they are."""
    triples = zip(spec.wire_tensors, spec.shapes, spec.dtypes, strict=True)
    return Codec(
        spec,
        [
            (halves_of if dtype in FLOATS else raw_halves)(spec, tensor, shape, dtype)
            for tensor, shape, dtype in triples
        ],
    )


CODECS: dict[str, Callable[[CodecSpec], Codec]] = {
    "raw": partial(_per_tensor, raw_halves),
    "uniform": partial(_per_tensor, uniform_halves),
    "bottleneck": partial(_per_tensor, bottleneck_halves),
    "pixels": partial(_per_tensor, pixel_halves),
    "png": partial(_per_tensor, pixel_halves),
    "label": partial(_per_tensor, label_halves),
}
