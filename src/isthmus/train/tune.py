"""Train a whole model that was changed, with the one that it came from as its teacher."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.data import Dataset, few_of
from isthmus.errors import InputError
from isthmus.models.joint import Joint, first, kept
from isthmus.train.fit import FitConfig, batches_of, check_labels
from isthmus.train.loop import Batch, Inputs, Phase, PhaseRecord, Progress, run_phase
from isthmus.train.losses import EQUAL, LOSSES, MATCHING, PLACED, Answers, hinton_loss
from isthmus.train.reuse import Reuse, shared_classifier
from isthmus.train.views import augmented, laid_out, layout_of

_COMPARED = 512


def tune(
    model: nn.Module,
    teacher: nn.Module,
    data: Dataset,
    config: FitConfig,
    *,
    name: str = "tune",
    keep_norms: bool = False,
    penalty: Callable[[], Tensor] | None = None,
    progress: Progress | None = None,
) -> PhaseRecord:
    """Train all weights of a model, in place.

    Args:
        model: Any classifier; left in evaluation. Of one that gives several answers all are
            trained, the sum of their losses being what is minimised.
        teacher: What it came from; frozen, and shown what the model is shown. With the loss
            ``mutual`` a copy of it learns too.
        data: Only its training half is read.
        config: ``epochs``, ``finetune_rate``, ``losses`` and what goes with them.
        name: Of the phase.
        keep_norms: Leave batch norms the means and deviations that they came with.
        penalty: Returns what is added to the loss of every batch.
        progress: Where to report.

    Returns:
        The record of the phase.

    Raises:
        InputError: A loss is asked for that matches features or reads labels, where there are
            none, or that needs features as wide as the teacher's.
    """
    check_labels(data, config)
    teacher = teacher.eval()
    joint = model if isinstance(model, Joint) else None
    network = joint.settled() if joint else model
    blocks = _blocks(network, teacher, data, config)
    groups = [{"params": _trainable(model), "lr": config.finetune_rate}]
    trained = model
    reuse = Reuse(model, teacher, data.x_train) if "simkd" in config.losses else None
    if reuse:
        groups.append({"params": _trainable(reuse.projector), "lr": config.learning_rate})
        trained = reuse
    if mutual := "mutual" in config.losses:
        teacher = copy.deepcopy(teacher).train()
        groups.append({"params": _trainable(teacher), "lr": config.finetune_rate})
        trained = nn.ModuleDict({"model": model, "peer": teacher})

    def losses(inputs: Inputs, labels_B: Tensor) -> list[Tensor]:
        with kept(network, blocks) as made:
            made_BK = joint.answers(*inputs) if joint else (first(model(*inputs)),)
        with torch.set_grad_enabled(mutual), kept(teacher, blocks) as there:
            taught = not {*config.losses} <= {"task", "teacher-free"}
            says = teacher.to(labels_B.device)(*inputs) if taught else made_BK[0]
        answers = Answers(
            logits=made_BK[0],
            labels=labels_B,
            teacher=first(says).detach(),
            features=tuple(made[path] for path in blocks),
            teacher_features=tuple(there[path].detach() for path in blocks),
            temperature=config.temperature,
        )
        learning = replace(answers, teacher=first(says))  # a peer does, by its own loss alone
        return [LOSSES[x](learning if x == "mutual" else answers) for x in config.losses] + [
            joint.weight * _of_another(joint, replace(answers, logits=x_BK), made_BK[0], config)
            for x_BK in made_BK[1:]
            if joint
        ]

    def loss(batch: Batch) -> Tensor:
        inputs, labels_B, _ = batch
        found = [reuse.loss(inputs)] if reuse else losses(inputs, labels_B)
        found += [penalty()] if penalty else []
        return sum(found[1:], start=found[0])

    layout = layout_of(model)

    def prepare(batch: Inputs, generator: torch.Generator) -> Inputs:
        if config.augmentation is not None:
            batch = augmented(batch, config.augmentation, generator)
        return tuple(laid_out(x, layout) for x in batch)

    phase = Phase(
        name=name, epochs=config.epochs, loss=loss, groups=groups, precision=config.precision
    )
    batches = batches_of(data, config, prepare=prepare)
    _start(model, keep_norms=keep_norms)
    record = run_phase(trained, phase, batches, seed=config.seed, progress=progress or Progress())
    teacher.cpu()
    if reuse:
        reuse.finish()
    model.eval()
    return record


def check_losses(model: nn.Module, teacher: nn.Module, data: Dataset, config: FitConfig) -> str:
    """Find what no change of a model could be tuned by, before one is made.

    Args:
        model: What is to be tuned; left in evaluation.
        teacher: The model itself, or another.
        data: Of its training half two samples are run.
        config: Its losses.

    Returns:
        With the loss ``simkd`` the path of the classifier that is taken over; else nothing.

    Raises:
        InputError: A loss compares blocks, or reuses a classifier, and not both models have these.
    """
    _blocks(model, teacher.eval(), data, config)
    if "simkd" not in config.losses:
        return ""
    return shared_classifier(model, teacher, tuple(torch.from_numpy(x[:2]) for x in data.x_train))


@torch.no_grad()
def agreement(model: nn.Module, teacher: nn.Module, data: Dataset) -> float:
    r"""Return how much more often than by chance both give a sample the same label.

    .. math:: \kappa = \max\Big(0, \frac{a - c}{1 - c}\Big), \quad c = \sum_k p_k \, q_k

    with a the share of equal labels and p, q how often each of the two gives label k: 1 where
    they agree on all, 0 where one says the same of every sample, whatever that is worth.

    Args:
        model: Any classifier; left in evaluation.
        teacher: What it came from.
        data: Of its training half 512 samples are read at most.

    References:
        Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological
        Measurement, 1960.
    """
    inputs = tuple(map(torch.from_numpy, few_of(data.x_train, _COMPARED)))
    scores = [first(network.eval()(*inputs)) for network in (model, teacher)]
    mine_NK, theirs_NK = (
        F.one_hot(x.argmax(dim=1), num_classes=x.shape[1]).double() for x in scores
    )
    same = float((mine_NK * theirs_NK).sum(dim=1).mean())
    chance = float(mine_NK.mean(dim=0) @ theirs_NK.mean(dim=0))
    return max(0.0, (same - chance) / (1 - chance)) if chance < 1 else 0.0


def _start(model: nn.Module, *, keep_norms: bool) -> None:
    model.train()
    for module in model.modules() if keep_norms else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _of_another(model: Joint, answers: Answers, best_BK: Tensor, config: FitConfig) -> Tensor:
    """Return the loss of an answer that is not the best: its own, or its distance to the best."""
    if model.teaching:
        return hinton_loss(answers.logits, best_BK.detach(), temperature=1)
    names = [name for name in config.losses if name not in (*MATCHING, "mutual")] or ["hinton"]
    return torch.stack([LOSSES[name](answers) for name in names]).sum()


def _blocks(
    model: nn.Module, teacher: nn.Module, data: Dataset, config: FitConfig
) -> tuple[str, ...]:
    """Return the outermost modules whose outputs losses compare; none where none does."""
    matching = [loss for loss in config.losses if loss in MATCHING and loss != "simkd"]
    if not matching:
        return ()
    inputs = [torch.from_numpy(x[:2]) for x in data.x_train]
    names = dict(teacher.named_children()).keys() & dict(model.named_children()).keys()
    sides, answers = [], []
    for network in (model.eval(), teacher):
        with torch.no_grad(), kept(network, sorted(names)) as made:
            answers.append(first(network(*inputs)))
        sides.append(made)
    found = {}
    for path, _ in teacher.named_children():
        x, t = (side.get(path) for side in sides)
        if not isinstance(x, Tensor) or not isinstance(t, Tensor) or t is answers[1]:
            continue
        if t.is_floating_point() and x.ndim > 1:
            found[path] = x.shape[1:], t.shape[1:]
    _check_blocks(matching, found)
    return tuple(found)


def _check_blocks(matching: Sequence[str], found: Mapping[str, tuple[torch.Size, ...]]) -> None:
    if not found or ({*matching} & {*PLACED} and all(len(t) < 2 for _, t in found.values())):
        raise InputError(
            f"loss {', '.join(matching)}: found no block with an output to compare, of a "
            "name that both the model and its teacher have; expected task, hinton or decoupled"
        )
    for loss in matching:
        for path, (x, t) in found.items():
            wrong = loss in EQUAL and x != t
            if wrong or len(x) != len(t):
                raise InputError(
                    f"loss {loss}: found {tuple(x)} after {path}, where the teacher has "
                    f"{tuple(t)}; expected fitnets, attention, nst or relational, which compare "
                    "networks of different widths"
                )


def _trainable(model: nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
