"""How few bytes are enough: sizes tried one after the other on held-out training samples.

A base model has seen all training samples, the held-out ones too, and knows them better than any
new ones; so accuracies here are judged by the drop from the model's own on the same samples, which
is larger than on new ones: the size that is found errs on the safe side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.links import Codec
from isthmus.split import SplitModel
from isthmus.train.crossings import begin, match_features, tune_receiver
from isthmus.train.fit import FitConfig, accuracy
from isthmus.train.loop import Progress
from isthmus.train.sizes import payload_bytes

_HELD_OUT = 0.1
_STEP = 2**-0.5  # from one rung to the next
_MOST_RUNGS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One size that was tried, with the first device's network as it came.

    Attributes:
        wanted_bytes: What training aimed at.
        payload_bytes: Mean payload of held-out samples, all coded crossings.
        accuracy: On held-out samples, 0..1.
        drop: Points below the whole model on the same samples.
    """

    wanted_bytes: float
    payload_bytes: float
    accuracy: float
    drop: float


def climb_down(
    make_split: Callable[[], SplitModel],
    whole: nn.Module,
    data: Dataset,
    config: FitConfig,
    *,
    drop: float,
    progress: Progress,
) -> tuple[Rung, ...]:
    """Narrow a crossing step by step until it costs more than is allowed.

    Each rung goes on from the one before with a quarter of the epochs, so that the ladder costs
    about as much as two fits of the receiver.

    Args:
        make_split: Makes the split model, with weights of its own.
        whole: The whole model.
        data: Only its training half is read.
        config: Epochs, rates and seed.
        drop: Points of accuracy that may be lost.
        progress: Told of every rung; with a folder, an interrupted ladder goes on where it was.

    Returns:
        The rungs, widest first; the last one alone may lose too much.

    Raises:
        InputError: Nothing is entropy-coded, so no size can be chosen.
    """
    split_model = make_split()
    check_sizes(split_model, data, replace(config, drop=drop))
    held = _held_out(data)
    config = replace(config, epochs=max(1, config.epochs // 4), wanted_bytes=None)
    fit = begin(split_model, held, config, progress=_kept(progress, 0))
    assert fit is not None
    match_features(fit)
    best = accuracy(whole, held.x_test, held.y_test)
    wanted = float(fit.rate.wanted_bits) / 8
    rungs: list[Rung] = []
    for number in range(_MOST_RUNGS):
        fit.rate.want(wanted)
        aimed = replace(fit.config, wanted_bytes=wanted)
        tune_receiver(replace(fit, config=aimed, progress=_kept(progress, number)))
        reached = accuracy(split_model, held.x_test, held.y_test)
        rungs.append(
            Rung(
                wanted_bytes=wanted,
                payload_bytes=_coded_bytes(split_model, held),
                accuracy=reached,
                drop=100 * (best - reached),
            )
        )
        note = f"{rungs[-1].payload_bytes:.0f} bytes, drop {rungs[-1].drop:.2f}"
        progress.report(f"ladder, {note}", number + 1, _MOST_RUNGS)
        if number and rungs[-1].drop > drop:
            break
        wanted = min(wanted, rungs[-1].payload_bytes) * _STEP
    return tuple(rungs)


def check_sizes(split_model: SplitModel, data: Dataset, config: FitConfig) -> None:
    """Raise where a size is asked for and none can be chosen.

    Where the first device's network stays as it came, what it sends does too, unless it goes
    through a learned layer.

    Args:
        split_model: Says what is entropy-coded.
        data: A tenth of its training half is held out by a ladder.
        config: ``drop``, ``wanted_bytes`` and ``sender``.

    Raises:
        InputError: Nothing is entropy-coded, or nothing that training changes, or there is but
            one sample.
    """
    if config.drop is None and config.wanted_bytes is None:
        return
    coded = [
        (index, codec.spec.name)
        for index, codec in enumerate(split_model.codecs)
        if isinstance(codec, Codec) and codec.spec.entropy
    ]
    if not coded:
        raise InputError(
            "--drop, --bytes: the plan's codecs have fixed sizes; plan with a codec that ends in "
            "+entropy, e.g. --codec bottleneck:ratio=2,stride=2,bits=8+entropy"
        )
    if config.drop is not None and len(data.y_train) < 2:
        raise InputError(
            f"--drop: found {len(data.y_train)} training sample, expected 2 or more, of which a "
            "tenth is held out; bring more"
        )
    index, name = coded[-1]
    frozen = config.drop is not None or config.sender == "frozen"
    if frozen and index == 0 and name != "bottleneck":
        raise InputError(
            "--drop, and --bytes with --freeze-sender: the network before the cut stays as it "
            f"came, and so what {name} sends; plan with another --codec, e.g. "
            "bottleneck:ratio=2,stride=2,bits=8+entropy"
        )


def _kept(progress: Progress, number: int) -> Progress:
    """Return where a rung keeps its state; it reports nothing itself."""
    folder = progress.checkpoints
    return Progress(checkpoints=folder and folder / f"ladder-{number}")


def enough(rungs: tuple[Rung, ...], *, drop: float) -> float:
    """Return the fewest bytes that lost no more than ``drop`` points; the most if none did."""
    good = [rung.payload_bytes for rung in rungs if rung.drop <= drop]
    return min(good, default=max(rung.payload_bytes for rung in rungs))


def _coded_bytes(split_model: SplitModel, data: Dataset) -> float:
    pairs = zip(split_model.codecs, payload_bytes(split_model, data.x_test), strict=True)
    return sum(size for codec, size in pairs if isinstance(codec, Codec) and codec.spec.entropy)


def _held_out(data: Dataset) -> Dataset:
    """Return the training half alone, a tenth of it in place of the test half."""
    num = len(data.y_train)
    order = np.random.default_rng(0).permutation(num)
    held = max(1, int(num * _HELD_OUT))
    kept_N, held_N = np.sort(order[held:]), np.sort(order[:held])
    return Dataset(
        name=f"{data.name}, a tenth of the training set held out",
        x_train=tuple(x[kept_N] for x in data.x_train),
        y_train=data.y_train[kept_N],
        x_test=tuple(x[held_N] for x in data.x_train),
        y_test=data.y_train[held_N],
    )
