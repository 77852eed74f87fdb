"""Fit the base model, and say how well a model does.

All training runs on lightning; the same seed on the same machine gives the same bits. With a
folder for checkpoints an interrupted fit goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.data import Dataset
from isthmus.data.images import NO_LABEL
from isthmus.errors import InputError, one_line
from isthmus.links import Codec
from isthmus.models.joint import first
from isthmus.split import SplitModel
from isthmus.train.augment import Augmentation
from isthmus.train.loop import Batches, Phase, PhaseRecord, Precision, Progress, run_phase
from isthmus.train.losses import LABELLED, LOSSES, task_loss

_PREDICTED = 512  # samples at a time
_BATCH = 128
_UNLIKE = 0.01  # times the largest score: answers to the same batch differ
_MIXED = 0.1  # the same of another batch, where the last bits differ and roundings follow them
_SEEDS = 1 << 32  # that torch and lightning take

Sender = Literal["frozen", "tuned"]  # the first device's network: as it came, or trained too


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How long and how fast.

    Attributes:
        epochs: Passes over the training set in each of the phases ``receiver`` and ``whole``;
            ``features`` takes a quarter.
        base_epochs: Passes in the phase ``base``; 0 leaves the model's weights as they came.
        batch_size: Samples per step.
        learning_rate: Peak of the one-cycle schedule for new weights.
        finetune_rate: The same for the model's own weights.
        losses: What the phases ``receiver`` and ``whole`` minimise the sum of, names in
            `isthmus.train.losses.LOSSES`.
        temperature: Of the softened outputs.
        wanted_bytes: Mean payload of all entropy-coded crossings together that is allowed; None
            keeps to what calibration gives.
        drop: Points of accuracy that may be lost: the bytes are found by trying, see
            `isthmus.train.ladder`; None tries none.
        sender: Which of the two results is kept.
        augmentation: What may happen to images among the inputs; None leaves them as they are.
        precision: See `isthmus.train.loop.Phase`; that of all phases.
        seed: Of everything.
        eval_form: Train the split model in the form that the model has in evaluation, where
            training differs in more than dropout and norms; see `isthmus.split.split`.
    """

    epochs: int = 20
    base_epochs: int = 0
    batch_size: int = 64
    learning_rate: float = 3e-3
    finetune_rate: float = 1e-3
    losses: tuple[str, ...] = ("task", "hinton")
    temperature: float = 4.0
    wanted_bytes: float | None = None
    drop: float | None = None
    sender: Sender = "tuned"
    augmentation: Augmentation | None = None
    precision: Precision = "32-true"
    seed: int = 0
    eval_form: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.base_epochs < 0:
            raise InputError(f"epochs: found {self.epochs}, expected 1 or more")
        if self.batch_size < 1:
            raise InputError(f"batch_size: found {self.batch_size}, expected 1 or more")
        check_seed(self.seed)
        if self.drop is not None and not 0 <= self.drop <= 100:
            raise InputError(f"drop: found {self.drop:g}, expected 0 to 100 points")
        if self.wanted_bytes is not None and not 0 < self.wanted_bytes < inf:
            raise InputError(f"bytes: found {self.wanted_bytes:g}, expected a number over 0")
        if not self.losses or len({*self.losses} & {*LOSSES}) < len(self.losses):
            raise InputError(
                f"losses: found {','.join(self.losses) or 'none'}, expected one or more of "
                f"{', '.join(LOSSES)}, each once"
            )
        if "simkd" in self.losses and len(self.losses) > 1:
            raise InputError(
                "losses: found simkd beside others, which the classifier that it takes over "
                "would not see; expected simkd alone"
            )


def check_seed(seed: int) -> None:
    """Raise unless torch, numpy and lightning take a seed."""
    if not 0 <= seed < _SEEDS:
        raise InputError(f"seed: found {seed}, expected 0 to {_SEEDS - 1:,}")


def fit_base(
    model: nn.Module, data: Dataset, config: FitConfig, *, progress: Progress | None = None
) -> tuple[PhaseRecord, ...]:
    """Train the whole model on its labels, in place.

    Args:
        model: Any classifier.
        data: Only its training half is read.
        config: ``base_epochs`` and what goes with it; 0 epochs do nothing.
        progress: Where to report.

    Returns:
        The record of the phase, or nothing.

    Raises:
        InputError: The data do not fit the model, or have no labels.
    """
    check_fits(model, data)
    check_base(model, config)
    _check_base(data, config)
    if config.base_epochs == 0:
        return ()
    model.train()
    phase = Phase(
        name="base",
        epochs=config.base_epochs,
        loss=lambda batch: task_loss(first(model(*batch[0])), batch[1]),
        groups=[{"params": list(model.parameters()), "lr": config.learning_rate}],
        precision=config.precision,
    )
    batches = batches_of(data, config)
    record = run_phase(model, phase, batches, seed=config.seed, progress=progress or Progress())
    model.eval()
    return (record,)


def calibrate(split_model: SplitModel, inputs: Sequence[Tensor]) -> None:
    """Set every codec's ranges from the activations that it will carry, first crossing first."""
    for _, codec, tensors in walk(split_model, inputs):
        codec.calibrate(tensors)


def walk(
    split_model: SplitModel, inputs: Sequence[Tensor]
) -> Iterator[tuple[int, Codec, tuple[Tensor, ...]]]:
    """Yield the index of each crossing with a codec, this, and what leaves the stage before it.

    The next stage gets what the codec, as it is by then, makes of that. All in evaluation.
    """
    yield from walk_on(split_model, leaving(split_model, inputs))


@torch.no_grad()
def leaving(split_model: SplitModel, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what leaves the first stage, in evaluation; no codec changes it."""
    return _in_batches(split_model.eval().stages[0], tuple(inputs))


@torch.no_grad()
def walk_on(
    split_model: SplitModel, tensors: tuple[Tensor, ...]
) -> Iterator[tuple[int, Codec, tuple[Tensor, ...]]]:
    """Do what `walk` does, from what leaves the first stage."""
    before: nn.Module | None = None
    for index, codec in enumerate(split_model.eval().codecs):
        if isinstance(before, Codec):
            tensors = _in_batches(lambda *x, codec=before: codec(x), tensors)
        if index:
            tensors = _in_batches(split_model.stages[index], tensors)
        if isinstance(codec, Codec):
            yield index, codec, tensors
        before = codec


def _in_batches(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Compute few samples at a time, as those inside may be larger than what comes out."""
    batches = zip(*(x.split(_BATCH) for x in tensors), strict=True)
    parts = [function(*batch) for batch in batches]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def predict(function: Callable[..., Tensor], inputs: Sequence[np.ndarray]) -> Tensor:
    """Return a function's outputs for all samples, without gradients.

    Args:
        function: Takes one tensor (B, ...) per input and returns (B, K), or several tensors of
            which the first counts.
        inputs: One array (N, ...) per input.

    Returns:
        A tensor (N, K).
    """
    with torch.no_grad():
        parts = [
            first(function(*(torch.from_numpy(x[i : i + _PREDICTED]) for x in inputs)))
            for i in range(0, len(inputs[0]), _PREDICTED)
        ]
    return torch.cat(parts)


def accuracy(
    function: Callable[..., Tensor], inputs: Sequence[np.ndarray], labels: np.ndarray
) -> float:
    """Return the share of samples (0..1) whose largest output is the label."""
    scores_NK = predict(function, inputs)
    return int((scores_NK.argmax(dim=1) == torch.from_numpy(labels)).sum()) / len(labels)


def with_answers(model: nn.Module, data: Dataset) -> Dataset:
    """Put the model's own answers where samples have no labels.

    An accuracy on these is the agreement with the model.
    """

    def filled(inputs: Sequence[np.ndarray], labels_N: np.ndarray) -> np.ndarray:
        missing_N = labels_N == NO_LABEL
        if not missing_N.any():
            return labels_N
        answers_N: np.ndarray = predict(model, inputs).argmax(dim=1).numpy()
        return np.where(missing_N, answers_N, labels_N)

    return replace(
        data,
        y_train=filled(data.x_train, data.y_train),
        y_test=filled(data.x_test, data.y_test),
    )


def check_labels(data: Dataset, config: FitConfig) -> None:
    """Raise where labels are missing that training would read.

    Raises:
        InputError: Says what reads them.
    """
    reading = [name for name in config.losses if name in LABELLED]
    if data.unlabelled and reading:
        raise InputError(
            f"{data.name}: found no labels to train on, but the loss {', '.join(reading)} reads "
            "them; leave it out (--loss hinton)"
        )
    _check_base(data, config)


def check_base(model: nn.Module, config: FitConfig) -> None:
    """Raise where the whole model is to be trained and has nothing that learns."""
    if config.base_epochs and not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the model came without weights and has no parameters that learn; bring its trained "
            "weights (--weights), or let some learn (requires_grad_(True))"
        )


def _check_base(data: Dataset, config: FitConfig) -> None:
    if data.unlabelled and config.base_epochs:
        raise InputError(
            f"{data.name}: found no labels to train on, but the model came without weights; bring "
            "its trained weights (--weights)"
        )


def check_fits(model: nn.Module, data: Dataset) -> None:
    """Raise unless the model takes the data's samples, each by itself, and has a score per label.

    Of real numbers two samples are tried; of integers all, as a token may be beyond the last.

    Raises:
        InputError: Says what does not fit.
    """
    model.eval()
    halves = [data.x_train, data.x_test]
    if all(x.dtype.kind == "f" for x in data.x_train):
        halves = [tuple(x[:2] for x in half) for half in halves]
    try:
        scores_NK, _ = (predict(model, half) for half in halves)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join("x".join(map(str, x.shape[1:])) for x in data.x_train)
        raise InputError(
            f"{data.name}: the model does not take its samples of {shapes} ({one_line(error)}); "
            "bring data of the model's input shape and range"
        ) from error
    said, least = f"the model's output is {tuple(scores_NK.shape[1:])}", data.num_classes
    if scores_NK.ndim != 2 or scores_NK.shape[1] < 2:
        raise InputError(
            f"{said}, expected a score for each of two classes or more, (K,), to fit or tune it"
        )
    if scores_NK.shape[1] < least:
        raise InputError(
            f"{data.name}: labels up to {least - 1}, but {said}; expected {least} or more"
        )
    _check_answers(model, data)


def _check_answers(model: nn.Module, data: Dataset) -> None:
    """Raise unless what a model answers depends on the sample alone."""
    two, again = (predict(model, [x[:2] for x in data.x_train]) for _ in range(2))
    alone = predict(model, [x[:1] for x in data.x_train])
    if two.isnan().any():
        raise InputError(
            "the model answers NaN, expected scores; look for NaN in its weights or in the data"
        )
    largest = float(two.abs().max())
    if float((two - again).abs().max()) > _UNLIKE * largest:
        raise InputError(
            "the model answers the same samples differently, expected no random numbers in "
            "evaluation; for dropout, say F.dropout(x, p, self.training)"
        )
    if float((two[:1] - alone).abs().max()) > _MIXED * largest:
        raise InputError(
            "the model answers a sample differently in another batch, expected each sample to "
            "be computed by itself; let nothing reduce or mix over dimension 0"
        )


def batches_of(data: Dataset, config: FitConfig, **how: Any) -> Batches:
    """Return batches of all training samples, whose targets are their labels."""
    x, y = tuple(map(torch.from_numpy, data.x_train)), torch.from_numpy(data.y_train)
    return Batches(x, y, y, batch_size=config.batch_size, seed=config.seed, **how)
