"""Train a whole model that was changed, with the one that it came from as its teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.train.fit import FitConfig, first
from isthmus.train.loop import Batch, Batches, Inputs, Phase, PhaseRecord, Progress, run_phase
from isthmus.train.losses import LABELLED, LOSSES, MATCHING, Answers
from isthmus.train.views import augmented, innermost


def tune(
    model: nn.Module,
    teacher: nn.Module,
    data: Dataset,
    config: FitConfig,
    *,
    name: str = "tune",
    progress: Progress | None = None,
) -> PhaseRecord:
    """Train all weights of a model, in place.

    Args:
        model: Any classifier; left in evaluation.
        teacher: What it came from; frozen, and shown what the model is shown.
        data: Only its training half is read.
        config: ``epochs``, ``finetune_rate``, ``losses`` and what goes with them.
        name: Of the phase.
        progress: Where to report.

    Returns:
        The record of the phase.

    Raises:
        InputError: A loss is asked for that matches features or reads labels, where there are
            none.
    """
    matching = [loss for loss in config.losses if loss in MATCHING]
    if matching:
        raise InputError(
            f"loss {', '.join(matching)}: matches features at crossings, of which there are none "
            "before a plan; expected task, hinton or decoupled"
        )
    reading = [loss for loss in config.losses if loss in LABELLED]
    if data.unlabelled and reading:
        raise InputError(
            f"{data.name}: found no labels to train on, but the loss {', '.join(reading)} reads "
            "them; expected hinton"
        )
    teacher = teacher.eval()
    taught = config.losses != ("task",)

    def loss(batch: Batch) -> Tensor:
        inputs, labels_B, _ = batch
        logits_BK = first(model(*inputs))
        with torch.no_grad():
            says = teacher.to(labels_B.device)(*inputs) if taught else logits_BK
        answers = Answers(
            logits=logits_BK,
            labels=labels_B,
            teacher=first(says),
            temperature=config.temperature,
        )
        losses = [LOSSES[name](answers) for name in config.losses]
        return sum(losses[1:], start=losses[0])

    def prepare(batch: Inputs, generator: torch.Generator) -> Inputs:
        if config.augmentation is not None:
            batch = augmented(batch, config.augmentation, generator)
        return tuple(innermost(x) for x in batch)

    phase = Phase(
        name=name,
        epochs=config.epochs,
        loss=loss,
        groups=[{"params": _trainable(model), "lr": config.finetune_rate}],
    )
    labels = torch.from_numpy(data.y_train)
    batches = Batches(
        tuple(torch.from_numpy(x) for x in data.x_train),
        labels,
        labels,
        batch_size=config.batch_size,
        seed=config.seed,
        prepare=prepare,
    )
    model.train()
    record = run_phase(model, phase, batches, seed=config.seed, progress=progress or Progress())
    teacher.cpu()
    model.eval()
    return record


def _trainable(model: nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
