"""One phase of training: seeded batches from memory, one loss, lightning around it."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from isthmus.progress import Report, silent

Batch = tuple[tuple[Tensor, ...], Tensor, Tensor]  # inputs, labels, what a teacher says


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One phase of training.

    Attributes:
        phase: base, features or distil.
        epochs: Passes over the training set.
        losses: Mean loss of each.
        seconds: Time it took; of the last sitting, where it was resumed.
    """

    phase: str
    epochs: int
    losses: tuple[float, ...]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What one phase minimises, and over which weights.

    Attributes:
        name: base, features or distil.
        epochs: Passes over the batches.
        loss: From one batch to a scalar.
        groups: Parameter groups as torch's optimizers take them, each with its peak ``lr``.
    """

    name: str
    epochs: int
    loss: Callable[[Batch], Tensor]
    groups: list[dict[str, Any]]


class Batches(torch.utils.data.IterableDataset[Batch]):
    """Whole tensors in seeded order: each pass is one epoch with an order of its own.

    Args:
        inputs: One tensor (N, ...) per model input.
        labels_N: Class labels.
        targets: What the teacher says, (N, K); the labels again where there is none.
        batch_size: Samples per step; a last short batch is dropped, unless it is the only one.
        seed: Of the order.
    """

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        labels_N: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.inputs, self.labels_N, self.targets = inputs, labels_N, targets
        self.batch_size = min(batch_size, len(labels_N))
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels_N) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order_N = torch.randperm(len(self.labels_N), generator=generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order_N[start : start + self.batch_size]
            inputs = tuple(x[chosen] for x in self.inputs)
            yield inputs, self.labels_N[chosen], self.targets[chosen]


def run_phase(
    module: nn.Module, phase: Phase, batches: Batches, *, seed: int, progress: Progress
) -> PhaseRecord:
    """Minimise one loss by AdamW with a one-cycle schedule, in place.

    Args:
        module: Holds every weight of the phase; its state is what a checkpoint keeps.
        phase: What to minimise.
        batches: What over.
        seed: Of whatever is drawn at random in the module.
        progress: Where to report, and where the checkpoints are.

    Returns:
        The record; the losses include epochs of an earlier sitting.
    """
    torch.manual_seed(seed)
    training = _Training(module, phase, batches, progress.report)
    callbacks: list[Callback] = []
    last = None
    if progress.checkpoints is not None:
        folder = progress.checkpoints / phase.name
        callbacks.append(ModelCheckpoint(folder, filename="state", enable_version_counter=False))
        last = folder / "state.ckpt" if (folder / "state.ckpt").is_file() else None
    started = time.perf_counter()
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=phase.epochs,
            callbacks=callbacks,
            accelerator="auto",
            devices=1,
            deterministic=True,
            logger=False,
            enable_checkpointing=progress.checkpoints is not None,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        trainer.fit(training, loader, ckpt_path=last, weights_only=True)
    module.cpu()
    seconds = time.perf_counter() - started
    losses = tuple(training.losses)
    return PhaseRecord(phase=phase.name, epochs=phase.epochs, losses=losses, seconds=seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lightning's notes from the user: no workers are wanted, as the data are in memory."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Training(lightning.LightningModule):
    """One loss, one optimizer, one schedule; every epoch has its order and its report."""

    def __init__(self, module: nn.Module, phase: Phase, batches: Batches, report: Report) -> None:
        super().__init__()
        self.module, self.phase, self.batches, self.report = module, phase, batches, report
        self.losses: list[float] = []
        self.of_this_epoch: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.batches.epoch = self.current_epoch

    def training_step(self, batch: Batch) -> Tensor:
        loss = self.phase.loss(batch)
        self.of_this_epoch.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(float(torch.stack(self.of_this_epoch).mean()))
        self.of_this_epoch.clear()
        step = f"{self.phase.name}, loss {self.losses[-1]:.4f}"
        self.report(step, len(self.losses), self.phase.epochs)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.phase.groups, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in self.phase.groups],
            total_steps=len(self.batches) * self.phase.epochs,
            pct_start=0.2,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["isthmus"] = {"losses": self.losses, "random": torch.get_rng_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["isthmus"]["losses"])
        torch.set_rng_state(checkpoint["isthmus"]["random"])
