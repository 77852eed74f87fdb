"""One phase of training: seeded batches from memory, one loss.

Lightning is loaded when training begins: it takes seconds, and most commands do not train.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from isthmus.progress import Report, silent

Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor, Tensor]  # inputs, labels, what a teacher says
Groups = list[dict[str, Any]]  # of parameters, as torch's optimizers take them
Precision = Literal["32-true", "bf16-mixed"]
Schedule = Callable[[Optimizer, int], LRScheduler]  # of an optimizer, over so many steps


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One phase of training.

    Attributes:
        phase: base, features, receiver or whole.
        epochs: Passes over the training set.
        losses: Mean loss of each.
        learning_rates: With which each began; of the first group of weights.
        accuracies: On held-out samples after each, 0..1; empty where none were held out.
        rate_weight: Lambda at its end, the loss that a bit costs; None where nothing is coded.
        seconds: Time it took; of the last sitting, where it was resumed.
    """

    phase: str
    epochs: int
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    rate_weight: float | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training reports and keeps its state.

    Attributes:
        report: Told of every epoch.
        checkpoints: Folder for the state of each phase, to go on from; None keeps none.
    """

    report: Report = silent
    checkpoints: Path | None = None


def adamw(groups: Groups) -> Optimizer:
    """Return AdamW with a small weight decay."""
    return torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)


def one_cycle(optimizer: Optimizer, num_steps: int, **how: Any) -> LRScheduler:
    """Return a schedule that rises to each group's rate in a fifth of the steps, then falls.

    In fewer than three steps the rate stays as it is: all of it would be at the ends.
    """
    if num_steps < 3:
        return LambdaLR(optimizer, lambda step: 1.0)
    rise = 0.2 if num_steps > 5 else 2 / num_steps  # of 5 steps torch divides by 0, of fewer ...
    rates = [group["lr"] for group in optimizer.param_groups]  # ... it leaves the highest rate out
    return OneCycleLR(optimizer, rates, num_steps, pct_start=rise, **how)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What one phase minimises, over which weights, and how.

    Attributes:
        name: base, features, receiver or whole.
        epochs: Passes over the batches.
        loss: From one batch to a scalar.
        groups: Parameter groups, each with its peak ``lr``.
        optimizer: Made from the groups.
        schedule: Made from the optimizer; takes a step after each of the optimizer's.
        precision: Of the loss and its gradient: float32, or bfloat16 where torch's autocast
            allows it; the weights are float32 either way.
        measure: Accuracy on held-out samples, taken after each epoch; None takes none.
        note: What else to report after each epoch; None is nothing.
    """

    name: str
    epochs: int
    loss: Callable[[Batch], Tensor]
    groups: Groups
    optimizer: Callable[[Groups], Optimizer] = adamw
    schedule: Schedule = one_cycle
    precision: Precision = "32-true"
    measure: Callable[[], float] | None = None
    note: Callable[[], str] | None = None


class Batches(torch.utils.data.IterableDataset[Batch]):
    """Whole tensors in seeded order: each pass is one epoch with an order of its own.

    Args:
        inputs: One tensor (N, ...) per model input, all on the device of the labels.
        labels_N: Class labels.
        targets: What the teacher says, (N, K); the labels again where there is none.
        batch_size: Samples per step; a last short batch is dropped, unless it is the only one.
        seed: Of the order, and of all that is drawn in ``prepare``.
        prepare: Turns the inputs of a batch into what the model takes, drawing from the generator
            it is given, on the device of the labels; None hands them on.
        views: How often every sample stands in the inputs and targets, one whole set after the
            other, (views * N, ...); each time one of them is drawn.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels_N: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int,
        prepare: Callable[[Inputs, torch.Generator], Inputs] | None = None,
        views: int = 1,
    ) -> None:
        super().__init__()
        self.inputs, self.labels_N, self.targets, self.views = inputs, labels_N, targets, views
        self.batch_size = min(batch_size, len(labels_N))
        self.seed = seed
        self.prepare = prepare
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels_N) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        device = self.labels_N.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.epoch)
        order_N = torch.randperm(len(self.labels_N), generator=generator, device=device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order_N[start : start + self.batch_size]
            rows = chosen
            if self.views > 1:
                shape = (len(chosen),)
                view = torch.randint(self.views, shape, generator=generator, device=device)
                rows = view * len(self.labels_N) + chosen
            inputs = tuple(x[rows] for x in self.inputs)
            if self.prepare is not None:
                inputs = self.prepare(inputs, generator)
            yield inputs, self.labels_N[chosen], self.targets[rows]


def training_device() -> torch.device:
    """Return where `run_phase` trains: lightning's first accelerator, else the processor."""
    from lightning import Fabric  # noqa: PLC0415  takes seconds

    return Fabric(accelerator="auto", devices=1).device


def run_phase(
    module: nn.Module, phase: Phase, batches: Batches, *, seed: int, progress: Progress
) -> PhaseRecord:
    """Minimise one loss, in place.

    The same seed on the same machine gives the same bits: always on a processor, on an
    accelerator wherever torch has a deterministic algorithm.

    Args:
        module: Holds every weight of the phase; its state is what a checkpoint keeps.
        phase: What to minimise, and how.
        batches: What over.
        seed: Of whatever is drawn at random in the module.
        progress: Where to report, and where the checkpoints are.

    Returns:
        The record; its curves include epochs of an earlier sitting.

    Raises:
        InputError: A checkpoint cannot be written (the one before it stands), or is damaged; or
            an epoch's loss is no number.
    """
    from isthmus.train.trainer import train  # noqa: PLC0415  takes seconds

    return train(module, phase, batches, seed=seed, progress=progress)
