"""Lightning around one phase of training: checkpoints, curves, an interruption."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from isthmus.errors import InputError, StateError
from isthmus.files import write_bytes
from isthmus.progress import Report, quiet
from isthmus.train.loop import Batch, Batches, Phase, PhaseRecord, Progress


def train(
    module: nn.Module, phase: Phase, batches: Batches, *, seed: int, progress: Progress
) -> PhaseRecord:
    """Do what `isthmus.train.loop.run_phase` says."""
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
            kept = "the state of the epoch before" if Path(path).is_file() else "no state of it"
            raise StateError(f"{error}; {kept} is kept: start again") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> Any:
        try:
            found = super().load_checkpoint(path, *args, **options)
            if missing := {"isthmus", "pytorch-lightning_version"} - found.keys():
                raise KeyError(min(missing))
            return found
        except Exception as error:  # a damaged file raises nearly anything
            reason = type(error).__name__  # torch's own words advise to run what the file says
            raise StateError(
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
        if not isfinite(self.losses[-1]):
            raise InputError(
                f"{self.phase.name}, epoch {len(self.losses)}: found a loss of {self.losses[-1]}, "
                "expected a number; are the samples around -1 to 1? if so, name other losses"
            )
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
