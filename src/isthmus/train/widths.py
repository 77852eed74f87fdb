"""What each width of a fitted nested link is worth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.links import Codec
from isthmus.links.nested import crossed, same_width
from isthmus.models.joint import first
from isthmus.split import SplitModel
from isthmus.wire.nested import Width, widths
from isthmus.wire.pack import pack

_BATCH = 500
_NUM_CODED = 1000  # samples that are really packed, or coded, for the mean payload


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthResult:
    """What one width came to.

    Attributes:
        width: How much of every nested crossing is used.
        payload_bytes: Mean payload of all nested crossings together, by really packing the first
            1,000 samples.
        accuracy: 0..1.
    """

    width: Width
    payload_bytes: float
    accuracy: float


def common_widths(codecs: Iterable[nn.Module]) -> tuple[Width, ...]:
    """Return the widths that all nested codecs of a split model have, every second number of bits.

    Args:
        codecs: Of the split model.
    """
    known = [widths(codec.spec) for codec in codecs if _nested(codec)]
    if not known:
        return ()
    most = known[0][0].bits
    return tuple(
        width
        for width in known[0]
        if (most - width.bits) % 2 == 0 and all(width in others for others in known)
    )


@torch.no_grad()
def measure_widths(
    split_model: SplitModel, inputs: Sequence[np.ndarray], labels_N: np.ndarray
) -> tuple[WidthResult, ...]:
    """Judge a fitted split model at each width that its nested links have in common.

    What stands before the first nested link runs once for all of them.

    Args:
        split_model: In eval mode, ready for use.
        inputs: One array (N, ...) per model input.
        labels_N: Class labels.

    Returns:
        The widest first; nothing where no codec is nested.
    """
    found = common_widths(split_model.codecs)
    right, sizes = [0] * len(found), [0] * len(found)
    num_coded = min(_NUM_CODED, len(labels_N))
    for start in range(0, len(labels_N) if found else 0, _BATCH):
        rows = slice(start, start + _BATCH)
        front, tensors = _to_nested(split_model, tuple(torch.from_numpy(x[rows]) for x in inputs))
        labels_B = torch.from_numpy(labels_N[rows])
        for k, width in enumerate(found):
            scores_BK, num_bytes = _at_width(
                split_model, front, tensors, width, num_coded=max(0, num_coded - start)
            )
            right[k] += int((scores_BK.argmax(dim=1) == labels_B).sum())
            sizes[k] += num_bytes
    return tuple(
        WidthResult(width=width, payload_bytes=size / num_coded, accuracy=good / len(labels_N))
        for width, good, size in zip(found, right, sizes, strict=True)
    )


def _to_nested(
    split_model: SplitModel, tensors: tuple[Tensor, ...]
) -> tuple[int, tuple[Tensor, ...]]:
    """Return the index of the first nested link and what it is to carry."""
    for index, codec in enumerate(split_model.codecs):
        tensors = split_model.stages[index](*tensors)
        if _nested(codec):
            return index, tensors
        tensors = codec(tensors)
    raise AssertionError("no codec is nested")


def _at_width(
    split_model: SplitModel,
    front: int,
    tensors: tuple[Tensor, ...],
    width: Width,
    *,
    num_coded: int,
) -> tuple[Tensor, int]:
    """Return the scores of a batch and the bytes of its first ``num_coded`` samples."""
    num_bytes = 0
    for index, codec in enumerate(split_model.codecs[front:], start=front):
        if _nested(codec):
            spec = codec.spec
            symbols = codec.sender(tensors)
            few = [x[:num_coded].numpy() for x in symbols]
            samples = zip(*few, strict=True)
            num_bytes += sum(len(pack(spec, s, codec.tables, width=width)) for s in samples)
            tensors = codec.receiver(
                crossed(spec, symbols, same_width(spec, width, len(symbols[0])))
            )
        else:
            tensors = codec(tensors)
        tensors = split_model.stages[index + 1](*tensors)
    return first(tensors), num_bytes


def _nested(codec: nn.Module) -> TypeGuard[Codec]:
    return isinstance(codec, Codec) and codec.spec.nested
