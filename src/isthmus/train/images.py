"""Train and judge image classifiers: the data on the device as bytes, no loader processes.

Shapes: N images, B of them in a batch, C channels, H height, W width, K classes.

References:
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
    https://arxiv.org/abs/2404.00498: where the data lives, and the shape of `fast_recipe`.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from isthmus.errors import InputError, one_line
from isthmus.train.augment import Augmentation, Normalization, augment, to_float
from isthmus.train.loop import (
    Batch,
    Batches,
    Groups,
    Inputs,
    Phase,
    PhaseRecord,
    Precision,
    Progress,
    Schedule,
    one_cycle,
    run_phase,
    training_device,
)
from isthmus.train.views import layout_of

ScheduleName = Literal["step", "one-cycle", "cosine"]

SCHEDULES: dict[ScheduleName, Schedule] = {
    "step": lambda optimizer, num_steps: MultiStepLR(
        optimizer, [num_steps * tenths // 10 for tenths in (3, 6, 8)], gamma=0.2
    ),
    "one-cycle": partial(one_cycle, anneal_strategy="linear", cycle_momentum=False),
    "cosine": CosineAnnealingLR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How an image classifier is trained, by stochastic gradient descent.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images per step.
        learning_rate: The largest.
        momentum: Of the optimizer.
        nesterov: Whether it is Nesterov's.
        weight_decay: Of the weights.
        decay_all: Whether biases and the scales of norms (whatever has fewer than two dimensions)
            decay as well.
        schedule: ``"step"`` takes a fifth of the rate at 30, 60 and 80 % of the steps;
            ``"one-cycle"`` rises in a line for a fifth of them, then falls in a line to nothing;
            ``"cosine"`` falls as half a wave.
        label_smoothing: Share of the target that is spread over all classes.
        augmentation: What may happen to a training image.
        precision: See `isthmus.train.loop.Phase`. On a processor, bfloat16 pays only where it has
            instructions for it (avx512_bf16, amx_bf16).
        channels_last: Whether images and weights lie in memory with the channels innermost, where
            `isthmus.train.views.layout_of` allows it.

    Raises:
        InputError: A number is out of its range, or there is no such schedule.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    schedule: ScheduleName = "step"
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: Precision = "32-true"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise InputError(f"schedule: found {self.schedule!r}, expected {known}")
        for name, least in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: found {getattr(self, name)}, expected {least} or more")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected 0 to below 1")


def standard_recipe() -> ImageRecipe:
    """Return the recipe by which plain ResNets on CIFAR-100 are usually compared.

    References:
        https://github.com/weiaicunzai/pytorch-cifar100: there the first epoch warms up as well.
    """
    return ImageRecipe(epochs=200, augmentation=Augmentation(rotation_deg=15))


def fast_recipe(epochs: int) -> ImageRecipe:
    """Return a recipe of few epochs for an accelerator: large batches, one cycle, bfloat16."""
    return ImageRecipe(
        epochs=epochs,
        batch_size=512,
        learning_rate=0.4,
        nesterov=True,
        decay_all=False,
        schedule="one-cycle",
        label_smoothing=0.1,
        augmentation=Augmentation(border="reflection"),
        precision="bf16-mixed",
        channels_last=True,
    )


def small_recipe() -> ImageRecipe:
    """Return the fast recipe for two processor cores: eight epochs, batches of 128."""
    return replace(fast_recipe(8), batch_size=128, learning_rate=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScores:
    """Shares of images, 0..1.

    Attributes:
        top1: Whose largest logit is the label's.
        top5: Whose label is among the five largest logits.
        superclass: Whose predicted class has the label's superclass; None where there are none.
    """

    top1: float
    top5: float
    superclass: float | None = None


def train_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: ImageRecipe,
    *,
    seed: int,
    progress: Progress | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    normalization: Normalization | None = None,
) -> PhaseRecord:
    """Train an image classifier, in place.

    The images lie on the training device as bytes, once; order and augmentation are drawn there,
    from ``seed``. On a processor, the same seed, machine and number of threads give the same bits,
    also across an interruption, after which training goes on from the last whole epoch; on an
    accelerator they do wherever torch has a deterministic algorithm.

    Args:
        model: Takes images (B, C, H, W) and returns logits (B, K).
        images: uint8, (N, C, H, W).
        labels: int64, (N,), below K.
        recipe: How.
        seed: Of everything that is drawn.
        progress: Where to report, and where the checkpoints are.
        held_out: Images and labels to take the accuracy on after each epoch.
        normalization: What the model takes; None is pixels in [0, 1], as all other commands feed
            it. Where a batch norm follows the first convolution the constants matter only at the
            borders.

    Returns:
        The record, with its curves. The model is in eval mode.

    Raises:
        InputError: The tensors do not fit each other or the model, or a checkpoint cannot be
            written.
    """
    normalization = normalization or Normalization()
    _check(model, images, labels, normalization)
    layout = layout_of(model) if recipe.channels_last else torch.contiguous_format

    def prepare(inputs: Inputs, generator: torch.Generator) -> Inputs:
        x_BCHW = augment(inputs[0], recipe.augmentation, generator=generator)
        return (to_float(x_BCHW, normalization).contiguous(memory_format=layout),)

    def loss(batch: Batch) -> Tensor:
        (x_BCHW,), labels_B, _ = batch
        smoothing = recipe.label_smoothing
        return F.cross_entropy(model(x_BCHW), labels_B, label_smoothing=smoothing)

    def measure() -> float:
        assert held_out is not None
        return evaluate_images(model, *held_out, normalization=normalization).top1

    device = training_device()
    labels_N = labels.to(device)
    batches = Batches(
        (images.to(device),),
        labels_N,
        labels_N,
        batch_size=recipe.batch_size,
        seed=seed,
        prepare=prepare,
    )
    phase = Phase(
        name="base",
        epochs=recipe.epochs,
        loss=loss,
        groups=_groups(model, recipe),
        optimizer=lambda groups: SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov),
        schedule=SCHEDULES[recipe.schedule],
        precision=recipe.precision,
        measure=None if held_out is None else measure,
    )
    lay_out: Any = model.train().to  # torch's stubs know no memory_format
    lay_out(memory_format=layout)
    record = run_phase(model, phase, batches, seed=seed, progress=progress or Progress())
    lay_out(memory_format=torch.contiguous_format)
    model.eval()
    return record


def evaluate_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    coarse: Tensor | None = None,
    *,
    normalization: Normalization | None = None,
    batch_size: int = 512,
) -> ImageScores:
    """Judge an image classifier.

    Args:
        model: As for `train_images`; its mode and its device are what they were, afterwards.
        images: uint8, (N, C, H, W).
        labels: int64, (N,), below K.
        coarse: The superclass of each class, int64, (K,), as `isthmus.data.Images` has them; -1
            for a class without an image.
        normalization: As it was trained with.
        batch_size: Images at a time.

    Returns:
        Its scores.

    Raises:
        InputError: The tensors do not fit each other or the model.
    """
    normalization = normalization or Normalization()
    _check(model, images, labels, normalization)
    logits_NK = _logits(model, images, normalization, batch_size)
    labels_N = labels.cpu()
    top_N5 = logits_NK.topk(min(5, logits_NK.shape[1])).indices
    right_N5 = top_N5 == labels_N[:, None]
    superclass = None
    if coarse is not None:
        coarse_K = coarse.cpu()
        if len(coarse_K) != logits_NK.shape[1] or int(coarse_K[labels_N].min()) < 0:
            raise InputError(
                f"superclasses: found {len(coarse_K)}, expected one for each of the model's "
                f"{logits_NK.shape[1]} classes, and 0 or more for each that has an image here"
            )
        superclass = _share(coarse_K[top_N5[:, 0]] == coarse_K[labels_N])
    return ImageScores(
        top1=_share(right_N5[:, 0]), top5=_share(right_N5.any(dim=1)), superclass=superclass
    )


def _share(right_N: Tensor) -> float:
    return int(right_N.sum()) / len(right_N)


def _logits(
    model: nn.Module, images: Tensor, normalization: Normalization, batch_size: int
) -> Tensor:
    """Return the logits (N, K) in float32, on the processor; the model stays as it was."""
    mode, home, device = model.training, next(model.parameters()).device, training_device()
    try:
        model.eval().to(device)
        with torch.no_grad():
            parts = [
                model(to_float(x_BCHW.to(device), normalization))
                for x_BCHW in images.split(batch_size)
            ]
    finally:
        model.train(mode).to(home)
    return torch.cat(parts).float().cpu()


def _groups(model: nn.Module, recipe: ImageRecipe) -> Groups:
    weights = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in weights if recipe.decay_all or p.ndim > 1]
    kept = [p for p in weights if not recipe.decay_all and p.ndim < 2]
    groups = ((decayed, recipe.weight_decay), (kept, 0.0))
    return [
        {"params": params, "lr": recipe.learning_rate, "weight_decay": decay}
        for params, decay in groups
        if params
    ]


def _check(model: nn.Module, images: Tensor, labels: Tensor, normalization: Normalization) -> None:
    """Raise unless images, labels, constants and model fit each other."""
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise InputError(
            f"images: found {images.dtype} of shape {tuple(images.shape)}, "
            "expected torch.uint8 of shape (N, C, H, W)"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, "
            f"expected torch.int64 of shape ({len(images)},), one for each image"
        )
    for name, values in (("mean", normalization.mean), ("std", normalization.std)):
        if len(values) not in (1, images.shape[1]):
            raise InputError(
                f"normalization: {name}: found {len(values)} values for {images.shape[1]} "
                "channels, expected one, or one for each"
            )
    try:
        logits_BK = _logits(model, images[:2], normalization, 2)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(
            f"images: the model does not take {shape} ({one_line(error)}); bring images of its "
            "input shape"
        ) from error
    if logits_BK.ndim != 2 or not 0 <= int(labels.min()) <= int(labels.max()) < logits_BK.shape[1]:
        raise InputError(
            f"labels: found {int(labels.min())} to {int(labels.max())}, but the model returns "
            f"{tuple(logits_BK.shape[1:])}; expected labels from 0, below its number of classes"
        )
