"""What ``isthmus fit`` leaves on disk.

.. code-block:: none

    fitted/
      fit.json             the model's source, the plan, the training, the accuracies
      weights.safetensors  the model's weights and the codecs'
      graph.json           the captured model, for the report
      samples.npz          a few test inputs, to verify an export with
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from isthmus.data import read_arrays
from isthmus.errors import InputError
from isthmus.files import new_folder, read_json, sha256, write_bytes, write_json
from isthmus.graph import Graph
from isthmus.links import make_codec
from isthmus.models import ModelReference, load_model, load_weights, read_weights
from isthmus.plan import Plan
from isthmus.split import SplitModel, split
from isthmus.train.fit import FitConfig, Sender
from isthmus.train.ladder import Rung
from isthmus.train.loop import PhaseRecord
from isthmus.train.rivals import Rival
from isthmus.train.widths import WidthResult
from isthmus.wire import parse_codec

Judge = Literal["labels", "whole model"]

RECORD_FILE = "fit.json"
WEIGHTS_FILE = "weights.safetensors"
GRAPH_FILE = "graph.json"
SAMPLES_FILE = "samples.npz"
FILES = (RECORD_FILE, WEIGHTS_FILE, GRAPH_FILE, SAMPLES_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What one way to tune came to, on the test set.

    Attributes:
        sender: Whether the first device's network stayed as it came (``frozen``) or was ``tuned``.
        accuracy: Through the codecs, 0..1.
        payload_bytes: Mean payload of each crossing.
    """

    sender: Sender
    accuracy: float
    payload_bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """Everything about a fit but the weights.

    Attributes:
        model: Where the model came from.
        data: The data set, as the user wrote it.
        plan: What was fitted.
        config: Epochs, rates, seed.
        phases: What training did.
        accuracy_whole: Test accuracy of the model without cuts, 0..1.
        accuracy_split: Test accuracy through the codecs, of the result that was kept.
        results: Both ways to tune; empty where no codec learns.
        ladder: The sizes that were tried, where a drop was given.
        widths: What each width of nested crossings is worth, of the result that was kept.
        judge: What accuracies were counted by: the labels, or where the test set has none, the
            answers of the whole model.
        rivals: The cheap ways, on the same test set, before the crossing was fitted.
        machine: What it ran on.
        versions: Of the libraries that matter.
        files: SHA-256 of the files beside it, by name.
    """

    SCHEMA = "isthmus.fit/2"
    model: ModelReference
    data: str
    plan: Plan
    config: FitConfig
    phases: tuple[PhaseRecord, ...]
    accuracy_whole: float
    accuracy_split: float
    rivals: tuple[Rival, ...]
    machine: str
    versions: dict[str, str]
    results: tuple[FitResult, ...] = ()
    ladder: tuple[Rung, ...] = ()
    widths: tuple[WidthResult, ...] = ()
    judge: Judge = "labels"
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.plan.crossings), *(len(r.payload_bytes) for r in self.results)}
        if len(sizes) > 1:
            raise ValueError("found a result with more or fewer payloads than crossings")


def split_with_codecs(model: nn.Module, plan: Plan, *, eval_form: bool = False) -> SplitModel:
    """Return the model split as planned, with the planned codecs on its crossings."""
    codecs = [
        make_codec(parse_codec(c.codec, shapes=c.shapes, dtypes=c.dtypes)) for c in plan.crossings
    ]
    return split(model, plan, codecs, eval_form=eval_form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A fit: the facts, and what they are about.

    Attributes:
        record: The facts.
        graph: The captured model.
        model: The whole model; the split one uses its weights.
        split_model: The model split as planned, in eval mode.
        samples: A few test inputs, one array (N, ...) per model input.
    """

    record: FitRecord
    graph: Graph
    model: nn.Module
    split_model: SplitModel
    samples: tuple[np.ndarray, ...]


def write_fitted(folder: Path, fitted: Fitted) -> FitRecord:
    """Write the folder, whole or not at all; an older fit there is replaced.

    Returns:
        The facts, with the checksums of the files beside them.

    Raises:
        InputError: Something else stands at ``folder``.
    """
    with new_folder(folder, files=FILES) as temporary:
        weights = save(_weights(fitted.model, fitted.split_model))
        write_bytes(temporary / WEIGHTS_FILE, weights)
        write_json(temporary / GRAPH_FILE, fitted.graph)
        np.savez(temporary / SAMPLES_FILE, *fitted.samples)
        files = {name: sha256(temporary / name) for name in FILES[1:]}
        record = replace(fitted.record, files=files)
        write_json(temporary / RECORD_FILE, record)
    return record


def read_fitted(folder: Path) -> Fitted:
    """Read a fit and make its split model again.

    Raises:
        InputError: A file is missing or damaged, or the model's file has changed since.
    """
    record = read_json(folder / RECORD_FILE, FitRecord)
    for path in (folder / name for name in FILES[1:]):
        if record.files and path.is_file() and record.files.get(path.name) != sha256(path):
            raise InputError(f"{path}: is not what the fit wrote; fit it anew")
    graph = read_json(folder / GRAPH_FILE, Graph)
    model = load_model(record.model)
    split_model = split_with_codecs(model, record.plan, eval_form=record.config.eval_form).eval()
    path = folder / WEIGHTS_FILE
    load_weights(_together(model, split_model), read_weights(path), where=str(path))
    samples = read_arrays(folder / SAMPLES_FILE)
    return Fitted(
        record=record,
        graph=graph,
        model=model,
        split_model=split_model,
        samples=tuple(samples[f"arr_{k}"] for k in range(len(samples))),
    )


def _together(model: nn.Module, split_model: SplitModel) -> nn.Module:
    return nn.ModuleDict({"model": model, "codecs": split_model.codecs})


def _weights(model: nn.Module, split_model: SplitModel) -> dict[str, Tensor]:
    """Return all weights; what is tied stands once, under its first name."""
    state = _together(model, split_model).state_dict()
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr() or id(tensor), tensor.shape), name)
    return {name: state[name].detach().contiguous() for name in first.values()}
