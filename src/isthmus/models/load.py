"""Find a model by name or in a file of the user's, and give it its weights.

A ``.py`` file runs when it is loaded: trusted local files only. Weights never run: safetensors, or
torch checkpoints read with ``weights_only=True``.
"""

import inspect
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isthmus.errors import InputError, few
from isthmus.files import call_function, sha256
from isthmus.models import compact
from isthmus.models.compressed import (
    COMPRESSED_FILE,
    WEIGHTS_FILE,
    ModelReference,
    Network,
    load_changes,
    read_compressed,
    replaced,
    unpack_weights,
)
from isthmus.models.resnet import BLOCKS, resnet
from isthmus.models.small import digits_resnet

_MOST_NUMBERS = 1 << 30  # of one input
_INPUT_DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that has a name.

    Attributes:
        make: Returns it, untrained.
        input: The shape of its usual input, as ``--input`` takes it.
    """

    make: Callable[[], nn.Module]
    input: str


MODELS: dict[str, KnownModel] = {
    "digits-resnet": KnownModel(make=digits_resnet, input="1x1x8x8"),
    "digits-resnet-small": KnownModel(make=lambda: digits_resnet(width=12), input="1x1x8x8"),
    **{
        f"resnet{depth}": KnownModel(make=partial(resnet, depth), input="1x3x32x32")
        for depth in BLOCKS
    },
    "squeezenet": KnownModel(make=compact.squeezenet, input="1x3x224x224"),
    "mobilenet-v1": KnownModel(make=compact.mobilenet_v1, input="1x3x224x224"),
    "mobilenet-v2": KnownModel(make=compact.mobilenet_v2, input="1x3x224x224"),
    "shufflenet": KnownModel(make=compact.shufflenet, input="1x3x224x224"),
    "ghostnet": KnownModel(make=compact.ghostnet, input="1x3x224x224"),
    "octave-resnet50": KnownModel(make=compact.octave_resnet50, input="1x3x224x224"),
    "shift-resnet20": KnownModel(make=compact.shift_resnet20, input="1x3x32x32"),
    "adder-resnet20": KnownModel(make=compact.adder_resnet20, input="1x3x32x32"),
}


def reference(text: str) -> ModelReference:
    """Resolve what the user wrote into a reference that does not depend on the current folder.

    Args:
        text: A key of ``MODELS``, ``path/to/file.py:function``, ``timm:NAME``, or a folder that
            ``isthmus compress`` made.

    Returns:
        The reference, with the hash of the file.

    Raises:
        InputError: Nothing has that name.
    """
    file, _, function = text.rpartition(":")
    if file.endswith(".py"):
        path = Path(file).resolve()
        if not path.is_file():
            raise InputError(f"model {text!r}: no file {path}; expected path/to/file.py:function")
        return ModelReference(text=f"{path}:{function}", sha256=sha256(path))
    if text in MODELS or file == "timm":
        return ModelReference(text=text)
    folder = Path(text).resolve()
    if (folder / COMPRESSED_FILE).is_file():
        return ModelReference(text=str(folder), sha256=sha256(folder / COMPRESSED_FILE))
    known = ", ".join(sorted(MODELS))
    raise InputError(
        f"model {text!r}: unknown; expected {known}, path/to/file.py:function, timm:NAME or "
        "a folder that `isthmus compress` made"
    )


def carries_weights(text: str) -> bool:
    """Return whether a model comes with its weights: a folder that ``isthmus compress`` made."""
    return text not in MODELS and (Path(text) / COMPRESSED_FILE).is_file()


def is_random(text: str) -> bool:
    """Return whether a model is made with random weights: one of ours, or of timm."""
    return text in MODELS or text.startswith("timm:")


def load_model(source: str | ModelReference, *, weights: Path | None = None) -> nn.Module:
    """Make a model and load its weights.

    Args:
        source: As for `reference`, or a reference: then the file must not have changed since.
        weights: safetensors, or a torch checkpoint (``.pt``, ``.pth``, ``.th``, ``.ckpt``).

    Returns:
        The model, in eval mode; untrained from torch's current seed where no weights are given.

    Raises:
        InputError: No such model, a changed file, or weights that do not match.
    """
    ref = reference(source) if isinstance(source, str) else source
    file, _, name = ref.text.rpartition(":")
    if file.endswith(".py"):
        model = _from_file(Path(file), name, ref.sha256)
    elif file == "timm":
        model = _from_timm(name)
    elif ref.sha256:
        model = _from_folder(Path(ref.text), ref.sha256)
    elif ref.text in MODELS:
        model = MODELS[ref.text].make()
    else:
        raise InputError(f"model {ref.text!r}: unknown; expected what `isthmus compress` takes")
    if weights is not None:
        load_weights(model, read_weights(weights), where=str(weights))
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running anything in it.

    Raises:
        InputError: It cannot be read, holds pickled code, or no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # torch warns of pickles that it then refuses
            warnings.simplefilter("ignore")
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: holds no plain weights ({type(error).__name__}); expected safetensors, or a "
            "checkpoint of tensors alone (torch.save(model.state_dict(), FILE))"
        ) from error
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path}: holds {type(found).__name__}, expected tensors by name")
    return {key.removeprefix("module."): value for key, value in found.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Copy weights into a model; every key and shape must match, but the size of a codec's tables.

    Raises:
        InputError: Names the keys that are missing, left over, or of another shape.
    """
    check_weights(model, weights, where=where)
    model.load_state_dict(dict(weights), strict=False)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Raise unless weights are those of a model; see `load_weights`."""
    own = model.state_dict(keep_vars=True)  # what is tied is then one object, also without memory
    given = {_storage(own[key]) for key in weights if key in own}
    missing = [key for key in own if key not in weights and _storage(own[key]) not in given]
    extra = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
        if not key.endswith("_extra_state")
    ]
    problems = [
        f"{label} {few(keys)}"
        for label, keys in (("missing", missing), ("unexpected", extra), ("shape:", shapes))
        if keys
    ]
    if problems:
        raise InputError(f"{where}: weights do not match the model: {'; '.join(problems)}")


def _storage(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tied tensors share; an empty tensor is tied to none."""
    return (tensor.data_ptr() or id(tensor), tensor.shape)


def _from_file(path: Path, function: str, digest: str) -> nn.Module:
    if path.is_file() and sha256(path) != digest:
        raise InputError(f"{path}: has changed since it was fitted or compressed; do that again")
    return call_function(path, function, nn.Module, "a torch.nn.Module")


def _from_folder(folder: Path, digest: str) -> nn.Module:
    """Make a compressed model: its source, then its layers, then its weights."""
    file = folder / COMPRESSED_FILE
    if not file.is_file() or sha256(file) != digest:
        raise InputError(f"{file}: has changed since it was fitted or compressed; do that again")
    facts = read_compressed(folder)
    model = load_with(facts.source, facts.networks, where=str(file))
    model = load_changes(model, folder, facts.changes)
    path = folder / WEIGHTS_FILE
    weights = unpack_weights(path, digest=facts.weights_sha256)
    check_weights(model, weights, where=str(path))  # before memory is taken for it
    for change in facts.changes:
        model.get_submodule(change.path).to_empty(device="cpu")
    load_weights(model, weights, where=str(path))
    return model


def load_with(source: ModelReference, networks: Sequence[Network], *, where: str) -> nn.Module:
    """Make a model with other networks in their places; begin at the last that stands for all."""
    for number, network in enumerate(networks, start=1):
        if not network.path:
            return load_with(network.model, networks[number:], where=where)
    model = load_model(source)
    for network in networks:
        model = replaced(model, network.path, load_model(network.model), where=where)
    return model


def _from_timm(name: str) -> nn.Module:
    try:
        import timm  # noqa: PLC0415  (optional dependency)
    except ImportError as error:
        raise InputError(f"model timm:{name}: needs timm; pip install timm") from error
    try:
        return timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise InputError(f"model timm:{name}: {error}") from error


def example_inputs(texts: Sequence[str], model: nn.Module) -> tuple[Tensor, ...]:
    """Make example inputs from what ``--input`` takes.

    Args:
        texts: One per input: ``1x3x32x32``, ``1x16:int64`` or ``NAME:1x16:int64``; the batch
            comes first, float32 where no dtype is named. Named inputs may stand in any order.
        model: Its forward says which names there are.

    Returns:
        Zeros for integers, seeded uniform numbers in [0, 1) for floats, in forward's order.

    Raises:
        InputError: A text is not of that form, or forward takes other inputs.

    Example:
        >>> [tuple(x.shape) for x in example_inputs(["1x3x32x32"], nn.Identity())]
        [(1, 3, 32, 32)]
    """
    arguments = [
        argument
        for argument in inspect.signature(model.forward).parameters.values()
        if argument.kind not in (argument.KEYWORD_ONLY, argument.VAR_KEYWORD)
    ]
    plain = [argument for argument in arguments if argument.kind != argument.VAR_POSITIONAL]
    names = [argument.name for argument in plain]
    stars = [f"*{argument.name}" for argument in arguments[len(plain) :]]
    takes = f"forward takes {', '.join(names + stars) or 'no tensors'}"
    if len(texts) > len(names) and not stars:
        raise InputError(f"--input: found {len(texts)}, but {takes}; give one for each")
    inputs = _named(texts, names, takes)
    needed = [k for k, a in enumerate(plain) if a.default is a.empty or a.name in inputs]
    missing = [name for name in names[: max(needed, default=-1) + 1] if name not in inputs]
    if missing:
        raise InputError(f"--input: no {', '.join(missing)}; {takes}; give one for each")
    order = [name for name in names if name in inputs]
    return tuple(inputs[name] for name in [*order, *(n for n in inputs if n not in order)])


def _named(texts: Sequence[str], names: Sequence[str], takes: str) -> dict[str, Tensor]:
    """Return the inputs by argument; those beyond the names, by position.

    Args:
        texts: As for `example_inputs`.
        names: Of forward's arguments, in order.
        takes: The same in words, for errors.
    """
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    for position, text in enumerate(texts):
        name, example = _example(text, generator)
        if name is None:
            name = names[position] if position < len(names) else str(position)
        elif name not in names:
            raise InputError(f"--input {text!r}: {takes}; use one of these names")
        if name in inputs:
            raise InputError(f"--input {text!r}: {name} is given twice; name each input once")
        inputs[name] = example
    return inputs


def _example(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    """Return the name, where one is given, and an input of the shape and dtype."""
    match = re.fullmatch(r"(?:([A-Za-z_]\w*):)?(\d+(?:x\d+)*)(?::(\w+))?", text)
    shape = tuple(map(int, match[2].split("x"))) if match else (0,)
    dtype_name = (match and match[3]) or "float32"
    if match is None or 0 in shape or dtype_name not in _INPUT_DTYPES:
        raise InputError(
            f"--input {text!r}: expected sizes with the batch first, like 1x3x32x32 or "
            f"NAME:1x16:int64 (dtypes: {', '.join(_INPUT_DTYPES)})"
        )
    if prod(shape) > _MOST_NUMBERS:
        raise InputError(
            f"--input {text!r}: found {prod(shape):,} numbers, expected 2**30 or less"
        )
    dtype: torch.dtype = getattr(torch, dtype_name)
    if dtype.is_floating_point:
        return match[1], torch.rand(shape, generator=generator).to(dtype)
    return match[1], torch.zeros(shape, dtype=dtype)
