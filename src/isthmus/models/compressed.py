"""A compressed model on disk: where it came from, which of its layers changed, its weights.

.. code-block:: none

    compressed/
      compressed.json      the model's source, the techniques, the changed layers, the figures
      weights.safetensors  each tensor in its shortest form, see `isthmus.wire.arrays`

Reading one makes the source model, puts the changed layers in place and loads the weights: a
description and tensors, nothing that runs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.files import new_folder, read_json, sha256, write_bytes, write_json
from isthmus.models.layers import OUTPUT_GRID, Layer, OutputGrid, build, describe, round_output
from isthmus.wire.arrays import DTYPES, decode_array, encode_array

COMPRESSED_FILE = "compressed.json"
WEIGHTS_FILE = "weights.safetensors"
FILES = (COMPRESSED_FILE, WEIGHTS_FILE)
_FORMS = "isthmus.forms"
_PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """Where a model came from, exactly enough to make it again.

    Attributes:
        text: A key of ``MODELS``, ``/absolute/file.py:function``, ``timm:NAME``, or the folder of
            a compressed model.
        sha256: Of the ``.py`` file or of ``compressed.json``; empty for a model with a name.
    """

    text: str
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a model costs, for one sample, and what it is worth.

    Attributes:
        accuracy: On the test set, 0..1; None where no data were given.
        parameters: Weights that are not 0, of those that training learns.
        macs: Multiply-accumulates, zeros included.
        weight_bytes: Of all weights in memory, as the plan counts them.
        stored_bytes: Of the file of weights.
        activation_bytes: Of the largest crossing, in the tensors' own formats.
    """

    accuracy: float | None
    parameters: int
    macs: int
    weight_bytes: int
    stored_bytes: int
    activation_bytes: int


ExitKind = Literal["share", "agreement", "drop"]


@dataclass(frozen=True, slots=True)
class ExitRule:
    """Which samples leave early.

    Attributes:
        kind: A share of all samples leaves; or as many as let a share of those that leave be
            answered as the model does; or as lose so many points of accuracy over all samples.
        value: The share, 0..1, or the points.
    """

    kind: ExitKind
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitFigures:
    """What one early exit is worth, without any other.

    Attributes:
        path: Of the module behind which it is.
        accuracy: On the test set, 0..1, if all samples left here.
        confidence: The largest softmax from which on a sample leaves.
        share: Of the test set's samples, that leave.
        accuracy_with: On the test set, where these leave and the others do not.
        macs: Multiply-accumulates of a sample, in the mean.
    """

    path: str
    accuracy: float
    confidence: float
    share: float
    accuracy_with: float
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A layer that stands in place of another.

    Attributes:
        path: Of the module in the source model; empty for the whole of it.
        layer: What stands there now.
        same_as: Path of an earlier change: the same module stands there too.
    """

    path: str
    layer: Layer
    same_as: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Another network, in place of the module at a path; of the whole model where it is empty."""

    path: str
    model: ModelReference


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """The facts of a compressed model.

    Attributes:
        source: The model that it was made from.
        techniques: What was done, in order, as ``--with`` takes it.
        inputs: Shapes of its inputs, as ``--input`` takes them.
        changes: The layers that are not the source's, nor those of ``networks``.
        weights_sha256: Of the file of weights.
        before: What the source costs.
        after: What this costs.
        networks: Others that stand in the source.
        exits: What early exits are worth, where the network was trained with some.
        data: Name of the data set; empty where none was given.
        machine: What it was made on.
        versions: Of the libraries that matter.
    """

    SCHEMA = "isthmus.compressed/1"
    source: ModelReference
    techniques: tuple[str, ...]
    inputs: tuple[str, ...]
    changes: tuple[Change, ...]
    weights_sha256: str
    before: Figures
    after: Figures
    networks: tuple[Network, ...] = ()
    exits: tuple[ExitFigures, ...] = ()
    data: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def write_compressed(
    folder: Path, facts: Compressed, weights: bytes, *, check: Callable[[Path], None]
) -> None:
    """Write the folder, whole or not at all; an older one there is replaced.

    Args:
        folder: Where.
        facts: The facts.
        weights: What `pack_weights` returned.
        check: Given the folder before it is put in place, raises if it is not to be.

    Raises:
        InputError: Something else stands at ``folder``.
    """
    with new_folder(folder, files=FILES) as temporary:
        write_bytes(temporary / WEIGHTS_FILE, weights)
        write_json(temporary / COMPRESSED_FILE, facts)
        check(temporary)


def read_compressed(folder: Path) -> Compressed:
    """Read the facts.

    Raises:
        InputError: The file is missing or damaged.
    """
    return read_json(folder / COMPRESSED_FILE, Compressed)


def load_changes(model: nn.Module, folder: Path, found: Sequence[Change]) -> nn.Module:
    """Put the changed layers in place, on the ``meta`` device: their weights have no memory yet.

    Args:
        model: The source, as it was made; changed in place.
        folder: Of the compressed model, for error messages.
        found: Its changes.

    Returns:
        The compressed model.

    Raises:
        InputError: A layer cannot be made, or has no place in the source.
    """
    where = str(folder / COMPRESSED_FILE)
    made: dict[str, nn.Module] = {}
    for change in found:
        if change.same_as:
            layer = made.get(change.same_as)
            if layer is None:
                raise InputError(f"{where}: {change.path}: no earlier change {change.same_as!r}")
        else:
            layer = build(change.layer, where=f"{where}: {change.path}")
        made[change.path] = layer
        around, _, name = change.path.rpartition(".")
        owner = _module(model, around, where=where)
        if isinstance(layer, OutputGrid) and name == OUTPUT_GRID and not hasattr(owner, name):
            round_output(owner, layer)
        else:
            model = replaced(model, change.path, layer, where=where)
    return model


def replaced(model: nn.Module, path: str, layer: nn.Module, *, where: str) -> nn.Module:
    """Put a layer in place of a module, wherever it stands in the model.

    Returns:
        The model, or the layer where the path is empty.

    Raises:
        InputError: The model has no module there.
    """
    if not path:
        return layer
    old = _module(model, path, where=where)
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is old
    ]
    for parent, name in places:
        setattr(parent, name, layer)
    _leave_short_cuts(model, [parent for parent, _ in places])
    return model


def _leave_short_cuts(model: nn.Module, changed: Sequence[nn.Module]) -> None:
    """Keep torch from computing transformer layers by the weights of layers that were replaced."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and module in changed:
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and {*module.layers} & {*changed}:
            module.use_nested_tensor = False


def _module(model: nn.Module, path: str, *, where: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise InputError(f"{where}: the model has no module {path!r}") from error


def changes(source: nn.Module, model: nn.Module) -> tuple[Change, ...]:
    """Return the layers of a model that are not those of its source.

    Args:
        source: The model as it was made.
        model: The same after some layers were changed.

    Raises:
        InputError: A module changed that cannot be written down; names it.
    """
    seen: dict[nn.Module, str] = {}
    found: list[Change] = []
    for path, layer in _different("", source, model):
        module = model.get_submodule(path)
        first = seen.setdefault(module, path)
        found.append(Change(path=path, layer=layer, same_as="" if first == path else first))
    return tuple(found)


def _different(path: str, old: nn.Module, new: nn.Module) -> Iterator[tuple[str, Layer]]:
    names = _inside(new)
    if OUTPUT_GRID in names and OUTPUT_GRID not in _inside(old):
        names.remove(OUTPUT_GRID)
        grid = describe(new.get_submodule(OUTPUT_GRID))
        assert grid is not None
        yield f"{path}.{OUTPUT_GRID}", grid
    alike = _class(old) == _class(new) and names == _inside(old)
    layer = describe(new) if not alike or not names else None
    if layer is not None:
        if layer != describe(old):
            yield path, layer
        return
    shapes = [{n: p.shape for n, p in m.named_parameters(recurse=False)} for m in (old, new)]
    if not alike or shapes[0] != shapes[1]:
        raise InputError(
            f"{f'module {path!r}' if path else 'the model itself'}: {type(new).__name__} was "
            "changed, which cannot be written down; leave it out with skip=NAME, or compress a "
            "part of the model"
        )
    for name in names:
        below = f"{path}.{name}" if path else name
        yield from _different(below, old.get_submodule(name), new.get_submodule(name))


def _inside(module: nn.Module) -> list[str]:
    """Return the names of what stands in a module, also the second of two for the same thing."""
    return [name for name, child in module._modules.items() if child is not None]


def _class(module: nn.Module) -> tuple[str, str]:
    """Return what stays the same where a user's file is run anew, with new classes."""
    kind = type(module)
    return kind.__module__, kind.__qualname__


def pack_weights(model: nn.Module) -> bytes:
    """Return the file of a model's weights: safetensors, each tensor in its shortest form.

    Forms other than plain stand as bytes, and the file's metadata say which. What is tied stands
    once, under its first name.
    """
    first: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    forms: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for name, tensor in model.state_dict().items():
        if first.setdefault((tensor.data_ptr() or id(tensor), tensor.shape), name) != name:
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        tensors[name] = tensor.detach().cpu().contiguous().clone()
        if dtype not in DTYPES or not tensor.numel():
            continue
        form, data = encode_array(tensors[name].numpy())
        if form != _PLAIN:
            forms[name] = form, tuple(tensor.shape), dtype
            tensors[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return save(tensors, metadata={_FORMS: json.dumps(forms, separators=(",", ":"))})


def unpack_weights(path: Path, *, digest: str) -> Mapping[str, Tensor]:
    """Read what `pack_weights` made, without running anything in it.

    Args:
        path: The file.
        digest: Its SHA-256.

    Raises:
        InputError: It is another file, cannot be read, or holds something else.
    """
    if not path.is_file() or sha256(path) != digest:
        raise InputError(f"{path}: is not the one that was written; compress the model anew")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            forms = json.loads((file.metadata() or {}).get(_FORMS, "{}"))
        for name, (form, shape, dtype) in forms.items():
            data = tensors[name].numpy().tobytes()
            tensors[name] = torch.from_numpy(decode_array(form, data, tuple(shape), dtype))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: holds no compressed weights ({error})") from error
    return tensors
