"""What really crosses: tables of the symbols that training samples send, and payloads coded."""

from collections.abc import Sequence
from math import exp, inf, log, prod

import numpy as np
import torch

from isthmus.data import Dataset, few_of
from isthmus.links import Codec
from isthmus.split import SplitModel
from isthmus.train.fit import leaving, walk_on
from isthmus.train.loop import Inputs

NUM_CALIBRATED = 1024
NUM_COUNTED = 4096  # training samples whose symbols fill the tables

_NUDGE, _BOLDEST = 0.002, 0.3  # of the logarithm of a step at a time
_LEAST_SAMPLES = 64
_MOST_VALUES = 1 << 26  # at a crossing, of all of them
_BATCH = 512


def fill_tables(
    split_model: SplitModel,
    inputs: Inputs,
    *,
    most_bytes: float | None = None,
    widest: float = 1.0,
) -> None:
    """Count the symbols that samples send, where they are entropy-coded.

    Args:
        split_model: Its codecs ready for use.
        inputs: Training samples, one tensor (B, ...) per model input.
        most_bytes: That all of it may take for a sample on average; where it takes more, the
            steps of learned layers are made wider, all alike.
        widest: How many times as wide at most.
    """
    coded = [c for c in split_model.codecs if isinstance(c, Codec) and c.spec.entropy]
    if not coded:
        return
    room = log(widest) if any(c.spec.name == "bottleneck" for c in coded) else 0.0
    first = leaving(split_model, inputs)
    while True:
        for _, codec, tensors in walk_on(split_model, first):
            codec.fit_tables(tensors)
        excess = sum(c.spec.measured_bytes or 0.0 for c in coded) / (most_bytes or inf) - 1
        if excess <= 0 or room <= 0:
            return
        step = min(excess / 2 + _NUDGE, _BOLDEST, room)
        room -= step
        for codec in coded:
            codec.widen_steps(exp(step))


def some_samples(split_model: SplitModel, data: Dataset, most: int) -> Inputs:
    """Return training samples, drawn evenly, as many at most as memory has room for."""
    specs = [codec.spec for codec in split_model.codecs if isinstance(codec, Codec)]
    widest = max((sum(map(prod, spec.shapes)) for spec in specs), default=1)
    room = max(_LEAST_SAMPLES, _MOST_VALUES // widest)
    return tuple(map(torch.from_numpy, few_of(data.x_train, min(most, room))))


def payload_bytes(split_model: SplitModel, inputs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return the mean payload of each crossing, by really coding what is of variable rate.

    Args:
        split_model: Ready for use.
        inputs: One array (N, ...) per model input.
    """
    sizes = [0.0] * len(split_model.codecs)
    num = len(inputs[0])
    with torch.no_grad():
        for start in range(0, num, _BATCH):
            tensors: Inputs = tuple(torch.from_numpy(x[start : start + _BATCH]) for x in inputs)
            before: Codec | None = None
            pairs = zip(split_model.stages[:-1], split_model.codecs, strict=True)
            for index, (stage, codec) in enumerate(pairs):
                tensors = stage(*tensors)
                if isinstance(codec, Codec):
                    before = codec
                    payloads = codec.compress(tensors)
                    sizes[index] += sum(map(len, payloads))
                    tensors = codec.decompress(payloads)
                elif before is not None:  # a relay passes on what came
                    sizes[index] = sizes[index - 1]
    return tuple(size / num for size in sizes)
