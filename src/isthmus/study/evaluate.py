"""The whole chain, once: from a recipe to a record.

.. code-block:: none

    model, data --> fit_base --> capture --> partition --> split --> fit_crossings --> export
                                                                        record <-- run_bundle
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.bundle import WidthEntry
from isthmus.data import Dataset, few_of, load_data
from isthmus.data.images import NO_LABEL
from isthmus.errors import InputError
from isthmus.export import Verification, check_devices, export
from isthmus.files import check_ours, sha256
from isthmus.graph import Graph, capture
from isthmus.links import Codec
from isthmus.machine import describe_machine, library_versions
from isthmus.models import ModelReference, load_model, reference
from isthmus.models.compressed import ExitRule
from isthmus.plan import Plan, partition, with_payloads
from isthmus.platform import load_platform
from isthmus.progress import Report, silent
from isthmus.run import RunRecord, run_bundle
from isthmus.split import SplitModel
from isthmus.study.recipes import Recipe
from isthmus.study.state import data_fingerprint, kept_state
from isthmus.train import (
    FitConfig,
    FitRecord,
    FitResult,
    Fitted,
    PhaseRecord,
    Progress,
    Rival,
    Rung,
    accuracy,
    calibrate_exit,
    check_fits,
    check_labels,
    climb_down,
    enough,
    fit_base,
    fit_crossings,
    fit_exit,
    measure_widths,
    payload_bytes,
    png_bytes,
    read_fitted,
    rivals,
    split_with_codecs,
    with_answers,
    write_fitted,
)
from isthmus.train.crossings import check_training
from isthmus.train.exits import parted, smaller_exit
from isthmus.train.fit import Sender
from isthmus.train.fitted import FILES, Judge
from isthmus.train.ladder import check_sizes

_NUM_SAMPLES = 64  # test inputs that travel with a fit, to verify an export
_EXIT_SAMPLES = 1000  # test inputs on which an early exit is compared with the whole network


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run's complete facts.

    Attributes:
        fit: Model, plan, training and accuracies before export.
        graph: The captured model.
        verification: How far the bundle is from the model.
        run: What the processes measured.
        rivals: The cheap ways, on the same test set.
    """

    fit: FitRecord
    graph: Graph
    verification: Verification
    run: RunRecord
    rivals: tuple[Rival, ...]

    @property
    def plan(self) -> Plan:
        """The plan that was run."""
        return self.fit.plan


def evaluate(recipe: Recipe, folder: Path, *, report: Report = silent) -> Record:
    """Walk the whole chain.

    Args:
        recipe: What to do.
        folder: Receives ``fitted/`` and ``bundle/``.
        report: Told of every step.

    Returns:
        The record.

    Raises:
        IsthmusError: Whatever a step raises.
    """
    data = load_data(recipe.data)
    torch.manual_seed(recipe.fit.seed)
    model = load_model(recipe.model)
    phases = fit_base(model, data, recipe.fit, progress=Progress(report=report))
    plan = make_plan(model, recipe, data)
    report(f"plan for {plan.platform.name}", 1, 1)
    smaller = _smaller(recipe, data)
    report("rivals", 1, 1)
    fitted = fit_model(
        model, plan, data, reference(recipe.model), recipe.fit, phases, Progress(report=report)
    )
    write_fitted(folder / "fitted", fitted)
    verification = export(fitted.split_model, plan, folder / "bundle", samples=data.x_test)
    report("export and verify", 1, 1)
    run = run_bundle(
        folder / "bundle",
        data.x_test,
        data.y_test,
        warmup_inputs=data.x_train,
        progress=lambda done, total: report(f"run {len(plan.stages)} processes", done, total),
    )
    return Record(
        fit=fitted.record,
        graph=fitted.graph,
        verification=verification,
        run=run,
        rivals=(*fitted.record.rivals, *smaller),
    )


def fit_plan(
    model_text: str,
    plan: Plan,
    data: Dataset,
    out: Path,
    *,
    weights: Path | None,
    config: FitConfig,
    report: Report = silent,
) -> FitRecord:
    """Fit a plan that was made before, and write the folder ``isthmus fit`` leaves.

    The state of training is kept beside ``out`` until it is done: interrupted, the same call
    goes on from the last finished epoch.

    Args:
        model_text: As the command line takes it.
        plan: The plan.
        data: What to learn from; its test half is read once, at the end. Where that has no
            labels, accuracies are the agreement with the whole model.
        out: The folder to make.
        weights: The model's trained weights; without them the base model is trained too.
        config: Epochs, rates, seed.
        report: Told of every epoch.

    Returns:
        The facts, as written to ``fit.json``.

    Raises:
        InputError: Model, weights, plan and data do not belong together, or no bundle can hold
            the plan.
    """
    check_ours(out, files=FILES)
    source = reference(model_text)
    torch.manual_seed(config.seed)
    model = load_model(source, weights=weights)
    check_devices(plan, model)
    _check_inputs(plan, data)
    check_fits(model, data)
    check_labels(data, config)
    pieces = split_with_codecs(model, plan, eval_form=config.eval_form)  # before long training
    check_sizes(pieces, data, config)
    check_training(pieces, config)
    asked = (source, plan, data_fingerprint(data), weights and sha256(weights), config)
    with kept_state(out, asked, report) as progress:
        phases = fit_base(model, data, config, progress=progress)
        fitted = fit_model(model, plan, data, source, config, phases, progress)
        return write_fitted(out, fitted)


def export_fitted(
    folder: Path,
    out: Path,
    *,
    exit_data: Dataset | None = None,
    exit_rule: ExitRule | None = None,
    exit_model: str | None = None,
) -> Verification:
    """Export what `fit_plan` wrote; see `isthmus.export.export`.

    Args:
        folder: What `fit_plan` wrote.
        out: The folder to make.
        exit_data: Fit an early exit to what the model makes of its training half; its test half
            then takes the place of the fit's samples. Without it there is no early exit.
        exit_rule: Which requests it is to answer though the others are not silent; a fifth of the
            training half is kept to calibrate how sure it has to be. None: none.
        exit_model: What answers in place of a fitted exit: a folder of a compressed model.

    Returns:
        How far the bundle is from the model.

    Raises:
        InputError: Early answers are never so good, or there are no labels to count a drop of.
    """
    fitted = read_fitted(folder)
    model, plan = fitted.split_model, fitted.record.plan
    widths = tuple(
        WidthEntry(
            ratio=found.width.ratio,
            bits=found.width.bits,
            payload_bytes=found.payload_bytes,
            accuracy=found.accuracy,
        )
        for found in fitted.record.widths
    )
    own = None if exit_model is None else smaller_exit(exit_model, model, fitted.samples)
    if exit_data is None:
        return export(model, plan, out, samples=fitted.samples, widths=widths, early_exit=own)
    _check_inputs(plan, exit_data)
    if exit_rule is not None and exit_rule.kind == "drop" and exit_data.unlabelled:
        raise InputError(
            f"{exit_data.name}: found no labels, of which a drop of accuracy is counted; bring "
            "some, or ask for an agreement (--exit-agreement)"
        )
    judged = slice(_EXIT_SAMPLES)
    options: dict[str, Any] = {"samples": [x[judged] for x in exit_data.x_test], "widths": widths}
    if not (exit_data.y_test == NO_LABEL).any():
        options["labels"] = exit_data.y_test[judged]
    if exit_rule is None:
        return export(
            model, plan, out, early_exit=own or fit_exit(model, exit_data.x_train), **options
        )
    fitted_N, calibrated_N = parted(exit_data)
    early_exit = own or fit_exit(model, [x[fitted_N] for x in exit_data.x_train])
    least = calibrate_exit(
        early_exit,
        model,
        [x[calibrated_N] for x in exit_data.x_train],
        exit_rule,
        exit_data.y_train[calibrated_N],
    )
    return export(model, plan, out, early_exit=early_exit, exit_confidence=least, **options)


def fit_model(
    model: nn.Module,
    plan: Plan,
    data: Dataset,
    source: ModelReference,
    config: FitConfig,
    phases: tuple[PhaseRecord, ...],
    progress: Progress,
) -> Fitted:
    """Fit the crossings of a trained model and measure both on the test set.

    Args:
        model: The whole model, trained; its weights are tuned in place.
        plan: Where to cut it.
        data: Its training half is learned from, its test half read once, at the end.
        source: Where the model came from.
        config: Epochs, rates, seed.
        phases: What training did so far.
        progress: Where to report.

    Returns:
        The fit.
    """
    judge: Judge = "whole model" if (data.y_test == NO_LABEL).any() else "labels"
    data = with_answers(model, data)
    accuracy_whole = accuracy(model, data.x_test, data.y_test)
    graph = capture(model, tuple(torch.from_numpy(x[:2]) for x in data.x_train))
    found = rivals(model, plan, data)
    ladder: tuple[Rung, ...] = ()
    if config.drop is not None:
        ladder = climb_down(
            lambda: split_with_codecs(copy.deepcopy(model), plan, eval_form=config.eval_form),
            model,
            data,
            config,
            drop=config.drop,
            progress=progress,
        )
        config = replace(config, wanted_bytes=enough(ladder, drop=config.drop))
    split_model = split_with_codecs(model, plan, eval_form=config.eval_form)
    results: list[FitResult] = []

    def keep(sender: Sender) -> None:
        results.append(
            FitResult(
                sender=sender,
                accuracy=accuracy(split_model, data.x_test, data.y_test),
                payload_bytes=payload_bytes(split_model, data.x_test),
            )
        )

    phases += fit_crossings(split_model, data, config, progress=progress, judge=keep)
    record = FitRecord(
        model=source,
        data=data.name,
        plan=with_payloads(plan, graph, _expected_bytes(split_model, plan)),
        config=config,
        phases=phases,
        accuracy_whole=accuracy_whole,
        accuracy_split=accuracy(split_model, data.x_test, data.y_test),
        rivals=found,
        machine=describe_machine(),
        versions=library_versions(),
        results=tuple(results),
        ladder=ladder,
        widths=measure_widths(split_model, data.x_test, data.y_test),
        judge=judge,
    )
    return Fitted(
        record=record,
        graph=graph,
        model=model,
        split_model=split_model,
        samples=few_of(data.x_test, _NUM_SAMPLES),
    )


def _expected_bytes(split_model: SplitModel, plan: Plan) -> list[float]:
    """Return the mean payload that each crossing's codec has now; a relay passes on what came."""
    sizes: list[float] = []
    for codec, crossing in zip(split_model.codecs, plan.crossings, strict=True):
        size = crossing.payload_bytes
        if isinstance(codec, Codec) and codec.spec.entropy:
            size = codec.spec.payload_bytes
        elif not isinstance(codec, Codec) and sizes:
            size = sizes[-1]
        sizes.append(size)
    return sizes


def _check_inputs(plan: Plan, data: Dataset) -> None:
    planned = [(i.shape, i.dtype) for i in plan.inputs]
    given = [(x.shape[1:], x.dtype.name) for x in data.x_train]
    if planned != given:
        raise InputError(
            f"{data.name}: samples of {given}, but the plan was made for {planned}; "
            "plan with the --input of these data"
        )


def make_plan(model: nn.Module, recipe: Recipe, data: Dataset) -> Plan:
    """Capture the model on two samples and choose cuts and devices."""
    graph = capture(model, tuple(torch.from_numpy(x[:2]) for x in data.x_train))
    return partition(
        graph,
        load_platform(recipe.platform),
        objective=recipe.objective,
        codec=recipe.codec,
        png_bytes=png_bytes(data),
    )


def _smaller(recipe: Recipe, data: Dataset) -> tuple[Rival, ...]:
    """Train the smaller whole network with the same recipe: what one device alone could do."""
    if recipe.smaller is None:
        return ()
    torch.manual_seed(recipe.fit.seed)
    model = load_model(recipe.smaller)
    fit_base(model, data, recipe.fit)
    num_bytes = sum(p.numel() for p in model.parameters()) * 4
    return (
        Rival(
            name="smaller network",
            payload_bytes=1,
            accuracy=accuracy(model, data.x_test, data.y_test),
            what=f"{recipe.smaller}, {num_bytes / 1000:.0f} kB of weights, whole on the near "
            "device; the label crosses",
        ),
    )
