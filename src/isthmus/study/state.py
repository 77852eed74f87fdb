"""The state of training beside what it makes, so that an interrupted command goes on."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from isthmus.data import Dataset
from isthmus.errors import IsthmusError, StateError
from isthmus.files import refusing
from isthmus.progress import Report
from isthmus.train import Progress


@contextmanager
def kept_state(out: Path, asked: object, report: Report) -> Iterator[Progress]:
    """Keep the state of training beside ``out`` until it is done.

    Interrupted, or out of room on the disk, the same call goes on from the last finished epoch.
    Any other error of the user's ends it: going on would end there again.

    Args:
        out: What is to be made.
        asked: All that it depends on; its ``repr`` tells one call from another.
        report: Told of every epoch.

    Yields:
        What training takes; a `StateError` says that nothing can be kept there.
    """
    state = out.parent / f".{out.name}.{hashlib.sha256(repr(asked).encode()).hexdigest()[:12]}"
    with refusing(out, "cannot be made", "name another --out"):
        state.mkdir(parents=True, exist_ok=True)
    try:
        yield Progress(report=report, checkpoints=state)
    except Exception as error:
        refused = isinstance(error, StateError) or isinstance(error.__cause__, OSError)
        if isinstance(error, IsthmusError) and not refused:
            shutil.rmtree(state, ignore_errors=True)
        with suppress(OSError):  # what holds something stays
            state.rmdir()
        raise
    shutil.rmtree(state, ignore_errors=True)


def data_fingerprint(data: Dataset) -> str:
    """Return a hash of all samples and labels."""
    return _hash(*data.x_train, data.y_train, *data.x_test, data.y_test)


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of all tensors of a model, in their order."""
    flat = (tensor.detach().cpu().reshape(-1) for tensor in weights.values())
    return _hash(*(tensor.view(torch.uint8).numpy() for tensor in flat))


def _hash(*arrays: np.ndarray) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
