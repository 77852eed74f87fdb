"""What ``isthmus fit`` leaves: a folder with ``fit.json`` and ``weights.safetensors``."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus.files import new_folder, read_json, write_json
from isthmus.links import make_codec
from isthmus.models import ModelReference, load_model, load_weights, read_weights
from isthmus.plan import Plan
from isthmus.split import SplitModel, split
from isthmus.train.fit import FitConfig
from isthmus.train.loop import PhaseRecord
from isthmus.wire import parse_codec

SCHEMA = "isthmus.fit/1"
RECORD_FILE = "fit.json"
WEIGHTS_FILE = "weights.safetensors"


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
        accuracy_split: Test accuracy through the codecs.
        machine: What it ran on.
        versions: Of the libraries that matter.
    """

    model: ModelReference
    data: str
    plan: Plan
    config: FitConfig
    phases: tuple[PhaseRecord, ...]
    accuracy_whole: float
    accuracy_split: float
    machine: str
    versions: dict[str, str]


def split_with_codecs(model: nn.Module, plan: Plan) -> SplitModel:
    """Return the model split as planned, with the planned codecs on its crossings."""
    codecs = [
        make_codec(parse_codec(c.codec, shapes=c.shapes, dtypes=c.dtypes)) for c in plan.crossings
    ]
    return split(model, plan, codecs)


def write_fitted(folder: Path, record: FitRecord, model: nn.Module, codecs: nn.Module) -> None:
    """Write the folder, whole or not at all.

    Args:
        folder: Where; an older fit there is replaced.
        record: The facts.
        model: The base model, whose weights the stages share.
        codecs: The split model's codecs.
    """
    with new_folder(folder, marker=RECORD_FILE) as temporary:
        save_file(
            _unique(nn.ModuleDict({"model": model, "codecs": codecs})), temporary / WEIGHTS_FILE
        )
        write_json(temporary / RECORD_FILE, record, schema=SCHEMA)


def read_fitted(folder: Path) -> tuple[FitRecord, SplitModel]:
    """Read a fit and make its split model again, in eval mode.

    Raises:
        InputError: A file is missing or damaged, or the model's file has changed since.
    """
    record = read_json(folder / RECORD_FILE, FitRecord, schema=SCHEMA)
    model = load_model(record.model)
    split_model = split_with_codecs(model, record.plan)
    whole = nn.ModuleDict({"model": model, "codecs": split_model.codecs})
    weights = folder / WEIGHTS_FILE
    load_weights(whole, read_weights(weights), where=str(weights))
    return record, split_model.eval()


def _unique(module: nn.Module) -> dict[str, Tensor]:
    """Return a state in which tied tensors stand once, under their first name."""
    seen: dict[tuple[int, torch.Size], str] = {}
    state = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen[key] = name
        state[name] = tensor.detach().contiguous()
    return state
