r"""Fit the crossings of a split model; its teacher is the whole model.

.. code-block:: none

    calibrate  every codec from the activations that it will carry, steps as the wanted size asks
    features   the codecs alone: what arrives shall equal what left
    receiver   the codecs and all behind the first device, whose network stays as it came
    whole      everything

The last two minimise :math:`\sum L + \lambda R`: the losses that were chosen, by default those of
the labels and of the teacher's softened outputs (`isthmus.train.losses`), and the rate of what is
entropy-coded (`isthmus.train.rate`). What the first device makes of the training set is computed
once for ``features`` and ``receiver`` (`isthmus.train.views`).

References:
    Matsubara et al., "Head network distillation", IEEE Access 2020,
    https://arxiv.org/abs/2011.13102: match features across the cut first.
    Matsubara, Yang, Levorato, Mandt, "Supervised compression for resource-constrained edge
    computing systems", WACV 2022, https://arxiv.org/abs/2108.11898: then freeze the sender and
    tune the rest, with a rate term.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.links import Codec
from isthmus.links.nested import crossed, drawn_widths
from isthmus.models.joint import first
from isthmus.split import SplitModel
from isthmus.train.fit import FitConfig, Sender, calibrate, check_base, predict, walk
from isthmus.train.loop import Batch, Batches, Inputs, Phase, PhaseRecord, Progress, run_phase
from isthmus.train.losses import LOSSES, MATCHING, PLACED, Answers, feature_loss
from isthmus.train.rate import Rate
from isthmus.train.sizes import NUM_CALIBRATED, NUM_COUNTED, fill_tables, some_samples
from isthmus.train.views import Views, augmented, laid_out, layout_of, make_views

LEARNED = ("bottleneck", "uniform", "float")  # what they lose, training can win back

_FIRST_WIDENING, _LAST_WIDENING = 32.0, 2.0  # of steps, before training and after it
_DENSITY_RATE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the phases share.

    Attributes:
        split_model: What is fitted.
        teacher: Its stages before training, frozen.
        rate: What the coded crossings take.
        data: The data; only its training half is read.
        config: How.
        views: What the first stage makes of the training set; None where it is too much to keep.
        progress: Where to report.
    """

    split_model: SplitModel
    teacher: nn.ModuleList
    rate: Rate
    data: Dataset
    config: FitConfig
    views: Views | None
    progress: Progress


def fit_crossings(
    split_model: SplitModel,
    data: Dataset,
    config: FitConfig,
    *,
    progress: Progress | None = None,
    judge: Callable[[Sender], None] = lambda sender: None,
) -> tuple[PhaseRecord, ...]:
    """Calibrate the codecs, then train the crossings and what stands around them, in place.

    The teacher is the split model itself before training, with every crossing raw: that is the
    whole model.

    Args:
        split_model: As `isthmus.split.split` returns it, the model's weights trained.
        data: Only its training half is read.
        config: Epochs, rates, what is wanted, seed.
        progress: Where to report.
        judge: Called twice with the model ready for use: the sender as it came, then tuned.

    Returns:
        One record per phase; nothing where no codec loses anything.
    """
    fit = begin(split_model, data, config, progress=progress or Progress())
    if fit is None:
        fill_tables(split_model, some_samples(split_model, data, NUM_COUNTED))
        return ()
    records = [match_features(fit), tune_receiver(fit)]
    judge("frozen")
    if config.sender == "frozen":
        kept = copy.deepcopy(split_model.state_dict())
    records.append(_run(fit, _whole(fit), modes=tuple(split_model.stages)))
    _fill(fit)
    judge("tuned")
    if config.sender == "frozen":
        split_model.load_state_dict(kept)
    return tuple(record for record in records if record is not None)


def begin(
    split_model: SplitModel, data: Dataset, config: FitConfig, *, progress: Progress
) -> Fit | None:
    """Calibrate the codecs and prepare their training; None where none of them learns.

    Args:
        split_model: As for `fit_crossings`.
        data: Only its training half is read.
        config: As for `fit_crossings`.
        progress: Where to report.
    """
    teacher = copy.deepcopy(split_model.stages).eval().requires_grad_(requires_grad=False)
    start = some_samples(split_model, data, NUM_CALIBRATED)
    calibrate(split_model, start)
    if not any(_learns(codec) for codec in split_model.codecs):
        return None
    check_training(split_model, config)
    if config.wanted_bytes is not None:
        fill_tables(split_model, start, most_bytes=config.wanted_bytes, widest=_FIRST_WIDENING)
    rate = Rate(split_model.codecs, wanted_bytes=config.wanted_bytes)
    _calibrate_rate(rate, split_model, start)
    return Fit(
        split_model=split_model,
        teacher=teacher,
        rate=rate,
        data=data,
        config=config,
        views=make_views(
            teacher[0],
            lambda *crossing: first(_behind(teacher[1:], crossing)),
            data.x_train,
            config.augmentation,
            seed=config.seed,
        ),
        progress=progress,
    )


def check_training(split_model: SplitModel, config: FitConfig) -> None:
    """Raise where weights cannot be trained, or a loss is none for these crossings."""
    check_base(split_model.stages, config)
    short = {p.dtype for p in split_model.stages.parameters()} & {torch.float16, torch.bfloat16}
    if short and any(map(_learns, split_model.codecs)):
        raise InputError(
            f"the model's weights are {str(min(short, key=str))[6:]}, in which the steps of "
            "training are lost; expected float32: cast the model (model.float()), plan it anew, "
            "and train with --bf16 if it is for speed"
        )
    shapes = [s for c in split_model.codecs if isinstance(c, Codec) for s in c.spec.shapes]
    for name in ("mutual", "simkd"):
        if name in config.losses:
            raise InputError(
                f"loss {name}: a network learns beside another one, but in a fit the whole model "
                "stays as it is; expected hinton, or `isthmus compress`"
            )
    placed = [loss for loss in config.losses if loss in PLACED]
    if placed and shapes and all(len(shape) < 2 for shape in shapes):
        raise InputError(
            f"loss {', '.join(placed)}: found crossings {shapes}, expected positions in one of "
            "them, (C, H, W) or (T, C); leave this loss out"
        )


def match_features(fit: Fit) -> PhaseRecord | None:
    """Run the phase ``features``."""
    return _run(fit, _features(fit), modes=())


def tune_receiver(fit: Fit) -> PhaseRecord | None:
    """Run the phase ``receiver`` and fill the tables of what is entropy-coded."""
    record = _run(fit, _receiver(fit), modes=tuple(fit.split_model.stages[1:]))
    _fill(fit)
    return record


def _fill(fit: Fit) -> None:
    """Fill the tables, and meet the size that was wanted."""
    inputs = some_samples(fit.split_model, fit.data, NUM_COUNTED)
    wanted = fit.config.wanted_bytes
    fill_tables(fit.split_model, inputs, most_bytes=wanted, widest=_LAST_WIDENING)


def _run(fit: Fit, phase: Phase, *, modes: Sequence[nn.Module]) -> PhaseRecord | None:
    """Run one phase, with the codecs and the modules in ``modes`` in training mode."""
    if not phase.groups:
        return None
    model = fit.split_model.eval()
    for module in (*modes, model.codecs):
        module.train()
    everything = nn.ModuleDict({"model": model, "rate": fit.rate})
    batches = _batches(fit, live=phase.name == "whole")
    fit.rate.pace(len(batches) * phase.epochs)
    phase = replace(phase, precision=fit.config.precision)
    if fit.rate.densities:
        phase = replace(phase, note=lambda: f"{float(fit.rate.bits) / 8:.0f} bytes")
    with _laid_out(everything):
        record = run_phase(everything, phase, batches, seed=fit.config.seed, progress=fit.progress)
    model.eval()
    return replace(record, rate_weight=float(fit.rate.weight)) if fit.rate.densities else record


def _features(fit: Fit) -> Phase:
    """The codecs alone: each shall give back what the whole model has at its crossing."""

    def loss(batch: Batch) -> Tensor:
        tensors, bits, errors = _crossing(fit, batch[0]), fit.rate.none(), []
        pairs = zip(fit.split_model.codecs, fit.teacher[1:], strict=True)
        for index, (codec, stage) in enumerate(pairs):
            if _learns(codec):
                num = len(tensors[0])
                restored, taken = _across(fit, index, codec, tensors, num)
                bits = bits + taken
                left = tuple(torch.cat([x] * (len(restored[0]) // num)) for x in tensors)
                errors.append(feature_loss(restored, left))
            with torch.no_grad():
                tensors = stage.to(tensors[0].device)(*tensors)
        return torch.stack(errors).sum() + fit.rate.price(bits)

    return Phase(
        name="features",
        epochs=max(1, fit.config.epochs // 4),
        loss=loss,
        groups=_groups((_codec_weights(fit), fit.config.learning_rate), _densities(fit)),
    )


def _receiver(fit: Fit) -> Phase:
    """The codecs and what stands behind the first device."""
    front = {id(p) for p in fit.split_model.stages[0].parameters()}
    behind = [p for p in fit.split_model.stages[1:].parameters() if id(p) not in front]

    def loss(batch: Batch) -> Tensor:
        tensors = _crossing(fit, batch[0])
        targets = batch[2] if fit.views else _targets(fit, tensors, batch[2])
        return _distance(fit, tensors, batch[1], targets, wanted=tensors)

    return Phase(
        name="receiver",
        epochs=fit.config.epochs,
        loss=loss,
        groups=_groups(
            (behind, fit.config.finetune_rate),
            (_codec_weights(fit), fit.config.learning_rate),
            _densities(fit),
        ),
    )


def _whole(fit: Fit) -> Phase:
    """Everything; where images are augmented, the teacher sees what the student sees."""

    def loss(batch: Batch) -> Tensor:
        inputs, labels_B, targets = batch
        wanted: Inputs = ()
        if fit.config.augmentation is not None or _matches(fit):
            with torch.no_grad():
                wanted = fit.teacher.to(inputs[0].device)[0](*inputs)
            targets = _targets(fit, wanted, targets)
        return _distance(fit, fit.split_model.stages[0](*inputs), labels_B, targets, wanted=wanted)

    return Phase(
        name="whole",
        epochs=fit.config.epochs,
        loss=loss,
        groups=_groups(
            (list(fit.split_model.stages.parameters()), fit.config.finetune_rate),
            (_codec_weights(fit), fit.config.learning_rate / 3),
            _densities(fit),
        ),
    )


def _distance(
    fit: Fit, tensors: Inputs, labels_B: Tensor, targets_BK: Tensor, *, wanted: Inputs
) -> Tensor:
    """Return the loss of what the first stage made; the teacher's made what is wanted.

    Where a link is nested, every sample crosses twice, each time at a width drawn for it; losses
    that compare what arrives read the first.
    """
    bits = fit.rate.none()
    there = _at_crossings(fit, wanted) if _matches(fit) else ()
    restored: dict[int, Inputs] = {}
    stages = fit.split_model.stages[1:]
    num = len(labels_B)
    for index, (codec, stage) in enumerate(zip(fit.split_model.codecs, stages, strict=True)):
        if isinstance(codec, Codec) and codec.spec.name != "label":
            tensors, taken = _across(fit, index, codec, tensors, num)
            bits = bits + taken
            restored[index] = tensors
        tensors = stage(*tensors)
    logits_BK = first(tensors)
    times = len(logits_BK) // num
    answers = Answers(
        logits=logits_BK,
        labels=labels_B.repeat(times),
        teacher=targets_BK.repeat(times, 1),
        features=tuple(x[:num] for each in restored.values() for x in each),
        teacher_features=tuple(x for index in restored if there for x in there[index]),
        temperature=fit.config.temperature,
    )
    losses = [LOSSES[name](answers) for name in fit.config.losses]
    return sum(losses[1:], start=losses[0]) + fit.rate.price(bits)


def _targets(fit: Fit, leaving: Inputs, kept: Tensor) -> Tensor:
    """Return the teacher's outputs: those kept, or of a batch that was augmented, its own."""
    if fit.config.augmentation is None:
        return kept
    with torch.no_grad():
        outputs: Tensor = first(_behind(fit.teacher.to(leaving[0].device)[1:], leaving))
    return outputs


def _matches(fit: Fit) -> bool:
    """Return whether a loss compares what arrives with what the teacher has there."""
    return not {*MATCHING}.isdisjoint(fit.config.losses)


def _at_crossings(fit: Fit, leaving: Inputs) -> Sequence[Inputs]:
    """Return what the teacher has at every crossing, from what leaves its first stage."""
    crossings = [leaving]
    with torch.no_grad():
        for stage in fit.teacher.to(leaving[0].device)[1:-1]:
            crossings.append(stage(*crossings[-1]))
    return crossings


def _across(
    fit: Fit, index: int, codec: nn.Module, tensors: Inputs, num: int
) -> tuple[Inputs, Tensor]:
    """Return what arrives on the far side, and the mean bits of a sample at the widest.

    Where the codec is nested, the ``num`` samples cross twice, at widths drawn for each.
    """
    assert isinstance(codec, Codec)
    symbols = codec.sender(tensors)
    bits = fit.rate(index, tuple(x[:num] for x in symbols))
    if codec.spec.nested:
        twice = tuple(torch.cat([x, x]) if len(x) == num else x for x in symbols)
        symbols = crossed(codec.spec, twice, drawn_widths(codec.spec, 2 * num))
    return codec.receiver(symbols), bits


def _crossing(fit: Fit, tensors: Inputs) -> Inputs:
    """Return what leaves the first stage: it is there already where views are kept."""
    if fit.views is not None:
        return tensors
    with torch.no_grad():
        crossing: Inputs = fit.teacher[0].to(tensors[0].device)(*tensors)
    return crossing


def _behind(stages: nn.ModuleList, tensors: Inputs) -> Inputs:
    """Return the outputs of stages with raw crossings between them."""
    for stage in stages:
        tensors = stage(*tensors)
    return tensors


def _batches(fit: Fit, *, live: bool) -> Batches:
    """Return the training set: as it leaves the first stage, or ``live`` from the inputs on."""
    views = None if live else fit.views
    inputs = tuple(torch.from_numpy(x) for x in fit.data.x_train)
    if views is not None:
        targets, inputs = views.targets, views.tensors
    elif fit.views is not None:
        targets = fit.views.targets[: len(fit.data.y_train)]
    else:
        fit.teacher.cpu()
        targets = predict(lambda *x: first(_behind(fit.teacher, x)), fit.data.x_train)
    augmentation = fit.config.augmentation if views is None else None
    layout = layout_of(fit.split_model)

    def prepare(batch: Inputs, generator: torch.Generator) -> Inputs:
        if augmentation is not None:
            batch = augmented(batch, augmentation, generator)
        if views is not None:
            batch = tuple(map(Tensor.to, batch, views.dtypes))
        return tuple(laid_out(x, layout) for x in batch)

    return Batches(
        inputs,
        torch.from_numpy(fit.data.y_train),
        targets,
        batch_size=fit.config.batch_size,
        seed=fit.config.seed,
        prepare=prepare,
        views=1 if views is None else views.num_views,
    )


@torch.no_grad()
def _calibrate_rate(rate: Rate, split_model: SplitModel, inputs: Inputs) -> None:
    """Let the densities cover what the calibrated codecs send."""
    for index, codec, tensors in walk(split_model, inputs):
        rate.calibrate(index, codec.sender(tensors))


@contextmanager
def _laid_out(module: nn.Module) -> Iterator[None]:
    """Let the weights of convolutions lie as what they read does."""
    lay_out: Any = module.to  # torch's stubs know no memory_format
    lay_out(memory_format=layout_of(module))
    try:
        yield
    finally:
        lay_out(memory_format=torch.contiguous_format)


def _learns(codec: nn.Module) -> bool:
    return isinstance(codec, Codec) and codec.spec.name in LEARNED


def _codec_weights(fit: Fit) -> list[nn.Parameter]:
    codecs = (codec for codec in fit.split_model.codecs if _learns(codec))
    return [p for codec in codecs for p in codec.parameters()]


def _densities(fit: Fit) -> tuple[list[nn.Parameter], float]:
    return list(fit.rate.parameters()), _DENSITY_RATE


def _groups(*groups: tuple[list[nn.Parameter], float]) -> list[dict[str, Any]]:
    """Return parameter groups without those that hold nothing to learn."""
    learned = [([p for p in params if p.requires_grad], rate) for params, rate in groups]
    return [{"params": params, "lr": rate} for params, rate in learned if params]
