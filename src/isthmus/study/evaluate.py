"""The whole chain, once: from a recipe to a record.

.. code-block:: none

    model, data --> fit_base --> capture --> partition --> split --> fit_crossings --> export
                                                                        record <-- run_bundle
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from isthmus.data import Dataset, load_data
from isthmus.export import Verification, export, verify
from isthmus.graph import capture
from isthmus.machine import describe_machine, library_versions
from isthmus.models import load_model, reference
from isthmus.plan import Plan, partition
from isthmus.platform import load_platform
from isthmus.run import RunRecord, run_bundle
from isthmus.study.recipes import Recipe
from isthmus.study.rivals import Rival, png_bytes, rivals
from isthmus.train import (
    FitRecord,
    Progress,
    accuracy,
    fit_base,
    fit_crossings,
    split_with_codecs,
    write_fitted,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run's complete facts.

    Attributes:
        recipe: What was asked.
        fit: Model, plan, training and accuracies before export.
        verification: How far the bundle is from the model.
        run: What the processes measured.
        rivals: The cheap ways, on the same test set.
        seconds: All of it, from the first import of data to the last reply.
    """

    recipe: Recipe
    fit: FitRecord
    verification: Verification
    run: RunRecord
    rivals: tuple[Rival, ...]
    seconds: float

    @property
    def plan(self) -> Plan:
        """The plan that was run."""
        return self.fit.plan


def evaluate(
    recipe: Recipe, folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> Record:
    """Walk the whole chain.

    Args:
        recipe: What to do.
        folder: Receives ``fitted/`` and ``bundle/``.
        say: Receives a line for each step.

    Returns:
        The record.

    Raises:
        IsthmusError: Whatever a step raises.
    """
    started = time.perf_counter()
    data = load_data(recipe.data)
    torch.manual_seed(recipe.fit.seed)
    model = load_model(recipe.model)
    say(f"train {recipe.model} on {recipe.data}: {len(data.y_train)} samples")
    phases = fit_base(model, data, recipe.fit, progress=Progress(say=say))
    plan = make_plan(model, recipe, data)
    say(f"plan for {plan.platform.name}: {', '.join(c.after for c in plan.crossings)}")
    others = (*rivals(model, plan, data), *_smaller(recipe, data, say))
    accuracy_whole = accuracy(model, data.x_test, data.y_test)
    split_model = split_with_codecs(model, plan)
    phases += fit_crossings(split_model, data, recipe.fit, progress=Progress(say=say))
    fit = FitRecord(
        model=reference(recipe.model),
        data=recipe.data,
        plan=plan,
        config=recipe.fit,
        phases=phases,
        accuracy_whole=accuracy_whole,
        accuracy_split=accuracy(split_model, data.x_test, data.y_test),
        machine=describe_machine(),
        versions=library_versions(),
    )
    write_fitted(folder / "fitted", fit, model, split_model.codecs)
    export(split_model, plan, folder / "bundle")
    say("export: verify the bundle against the model")
    verification = verify(folder / "bundle", split_model, data.x_test)
    say(f"run {len(plan.stages)} processes over emulated links: {len(data.y_test)} requests")
    run = run_bundle(folder / "bundle", data.x_test, data.y_test, warmup_inputs=data.x_train)
    return Record(
        recipe=recipe,
        fit=fit,
        verification=verification,
        run=run,
        rivals=others,
        seconds=time.perf_counter() - started,
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


def _smaller(recipe: Recipe, data: Dataset, say: Callable[[str], None]) -> tuple[Rival, ...]:
    """Train the smaller whole network with the same recipe: what one device alone could do."""
    if recipe.smaller is None:
        return ()
    say(f"train the rival {recipe.smaller}")
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
