"""One phase of training: seeded batches from memory, one loss, lightning around it."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from isthmus.errors import InputError
from isthmus.files import write_bytes
from isthmus.progress import Report, quiet, silent

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
        seconds: Time it took; of the last sitting, where it was resumed.
    """

    phase: str
    epochs: int
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
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
    return torch.optim.AdamW(groups, weight_decay=1e-4)


def one_cycle(optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """Return a schedule that rises to each group's rate in a fifth of the steps, then falls."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=num_steps, pct_start=0.2)


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
    return lightning.Fabric(accelerator="auto", devices=1).device


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
        InputError: A checkpoint cannot be written (the one before it stands), or is damaged.
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
    with quiet("lightning.pytorch"), _deterministic():
        trainer = lightning.Trainer(
            max_epochs=phase.epochs,
            callbacks=callbacks,
            plugins=[_WholeFiles()],
            accelerator="auto",
            devices=1,
            precision=phase.precision,
            deterministic="warn",
            logger=False,
            enable_checkpointing=progress.checkpoints is not None,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        try:
            trainer.fit(training, loader, ckpt_path=last, weights_only=True)
        except SystemExit as error:  # what lightning makes of an interruption
            raise KeyboardInterrupt from error
    module.cpu()
    return PhaseRecord(
        phase=phase.name,
        epochs=phase.epochs,
        losses=tuple(training.losses),
        learning_rates=tuple(training.learning_rates),
        accuracies=tuple(training.accuracies),
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let lightning turn torch's deterministic algorithms on; leave the switches as they were."""
    switches: Any = torch.utils.deterministic
    fill = switches.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Else every new tensor is written twice; nothing here reads memory that was never written.
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        switches.fill_uninitialized_memory = fill


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or absent, also on a full disk: the one before stays till then.

    Lightning's own are written in the system's temporary folder, which may be another file system,
    and then copied over the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        del storage_options
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_bytes(Path(path), buffer.getvalue())
        except InputError as error:
            raise InputError(
                f"{error}; the state of the last epoch that could be kept stands: start again"
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> Any:
        try:
            return super().load_checkpoint(path, *args, **options)
        except Exception as error:  # a damaged file raises nearly anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{path}: is damaged ({reason}); delete it, and this training begins anew"
            ) from error


class _Training(lightning.LightningModule):
    """One loss, one optimizer, one schedule; every epoch has its order and its report."""

    def __init__(self, module: nn.Module, phase: Phase, batches: Batches, report: Report) -> None:
        super().__init__()
        self.module, self.phase, self.batches, self.report = module, phase, batches, report
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.accuracies: list[float] = []
        self.of_this_epoch: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.batches.epoch = self.current_epoch
        self.learning_rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    def training_step(self, batch: Batch) -> Tensor:
        loss = self.phase.loss(batch)
        self.of_this_epoch.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(float(torch.stack(self.of_this_epoch).mean()))
        self.of_this_epoch.clear()
        step = f"{self.phase.name}, loss {self.losses[-1]:.4f}"
        if self.phase.measure is not None:
            self.accuracies.append(self.phase.measure())
            step += f", held out {self.accuracies[-1]:.4f}"
        if self.phase.note is not None:
            step += f", {self.phase.note()}"
        self.report(step, len(self.losses), self.phase.epochs)

    def configure_optimizers(self) -> Any:
        optimizer = self.phase.optimizer(self.phase.groups)
        schedule = self.phase.schedule(optimizer, len(self.batches) * self.phase.epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["isthmus"] = {
            "losses": self.losses,
            "learning_rates": self.learning_rates,
            "accuracies": self.accuracies,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["isthmus"]
        self.losses = list(kept["losses"])
        self.learning_rates = list(kept["learning_rates"])
        self.accuracies = list(kept["accuracies"])
        torch.set_rng_state(kept["random"])
        torch.cuda.set_rng_state_all(kept["random_cuda"])
