"""What a cell of the source study is: one training of one narrowed network, judged once.

.. code-block:: none

    choose   candidates on 90 % of the training set, compared on the other 10 %  -->  choice.json
    compute  the chosen recipe on the whole training set  -->  the test set, read once
    search   the chosen recipe on 90 % of the training set  -->  the other 10 %

Nothing opens the test set before ``choice.json`` is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from isthmus.data import Images, load_images
from isthmus.errors import InputError
from isthmus.files import read_json, write_bytes, write_json
from isthmus.graph import capture, find_cut
from isthmus.models import resnet, wires
from isthmus.progress import Report
from isthmus.study.grid import Cell, differences
from isthmus.train import Progress
from isthmus.train.augment import Augmentation, Normalization, normalization_of
from isthmus.train.images import (
    ImageRecipe,
    evaluate_images,
    fast_recipe,
    small_recipe,
    standard_recipe,
    train_images,
)

CHOICE_FILE = "choice.json"
WEIGHTS_FILE = "weights.safetensors"
HELD_OUT = 0.1  # share of the training set: 5,000 of 50,000
COMPARED_CUT = "layer2"  # whose bytes the front is drawn for

_DIGITS = replace(
    small_recipe(),
    batch_size=64,
    augmentation=Augmentation(padding=1, flip=False),
    precision="32-true",  # as fast on any processor
)
RECIPES: dict[str, ImageRecipe] = {
    "fast": fast_recipe(24),
    "small": small_recipe(),
    "small-lower-rate": replace(small_recipe(), learning_rate=0.05),
    "small-32": replace(small_recipe(), precision="32-true"),
    "small-32-lower-rate": replace(small_recipe(), precision="32-true", learning_rate=0.05),
    "standard": standard_recipe(),
    "standard-smooth": replace(
        standard_recipe(), nesterov=True, schedule="cosine", label_smoothing=0.1
    ),
    "digits": _DIGITS,
    "digits-lower-rate": replace(_DIGITS, learning_rate=0.05),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to train, and how well it did on the held-out part.

    Attributes:
        recipe: A key of ``RECIPES``.
        epochs: Passes over the training set.
        accuracy: Top-1 on the held-out part, 0..1.
    """

    recipe: str
    epochs: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How all cells of a study are trained.

    Attributes:
        data: The data set.
        network: What the candidates were tried on.
        candidates: All that were tried; the best is what the cells take.
        held_out: How many images they were compared on.
    """

    SCHEMA = "isthmus.choice/1"
    data: str
    network: str
    candidates: tuple[Candidate, ...]
    held_out: int

    @property
    def best(self) -> Candidate:
        """The candidate of the highest accuracy, the earliest among equals."""
        return max(self.candidates, key=lambda candidate: candidate.accuracy)


def choose(cells: Sequence[Cell], folder: Path, *, report: Report) -> Choice:
    """Compare candidates on a held-out part of the training set, and store what came out.

    Args:
        cells: One for each candidate: plain networks that differ in recipe and epochs.
        folder: Of the study; a choice that is there already is returned as it is.
        report: Told of every epoch.

    Returns:
        The choice.

    Raises:
        InputError: A data set or a recipe is not there, or the folder has the choice of another
            study.
    """
    path, first = folder / CHOICE_FILE, cells[0]
    network = f"resnet{first.depth}, width {first.width}, ratio {first.ratio}"
    if path.is_file():
        choice = read_json(path, Choice)
        stored = _question(choice.data, choice.network, choice.candidates)
        if differing := differences(stored, _question(first.data, network, cells)):
            raise InputError(
                f"{path}: is of another study: {'; '.join(differing)}; name another folder"
            )
        return choice
    data = load_images(first.data, "train")
    kept, held = _divide(data)
    candidates = []
    for cell in cells:
        model = _network(cell, data)
        progress = Progress(
            report=_named(f"recipe {cell.recipe}, {cell.epochs} epochs", report),
            checkpoints=folder / "choice" / cell.key,
        )
        recipe, constants = _recipe(cell), normalization_of(torch.from_numpy(data.x))
        train_images(
            model, *kept, recipe, seed=cell.seed, progress=progress, normalization=constants
        )
        scores = evaluate_images(model, *held, normalization=constants)
        candidates.append(Candidate(recipe=cell.recipe, epochs=cell.epochs, accuracy=scores.top1))
    choice = Choice(
        data=first.data,
        network=network,
        candidates=tuple(candidates),
        held_out=len(held[1]),
    )
    write_json(path, choice)
    return choice


def _question(data: str, network: str, tried: Sequence[Cell | Candidate]) -> dict[str, Any]:
    """Return what is to be chosen, and on what."""
    recipes = [f"{each.recipe}, {each.epochs} epochs" for each in tried]
    return {"data": data, "network": network, "recipes": recipes}


def compute_cell(cell: Cell, folder: Path, report: Report) -> Mapping[str, Any]:
    """Train one cell and judge it once: on the test set, or on the held-out part.

    A plain network that was trained on the whole training set leaves its weights in the folder, as
    ``weights.safetensors``, for pixels in [0, 1] as all other commands feed them.

    Args:
        cell: What to train.
        folder: Keeps its checkpoints; the study's folder, with the choice, is two above.
        report: Told of every epoch.

    Returns:
        Accuracies in 0..1, the loss of each epoch, parameters, MACs, and for each cut between
        stages the channels and bytes that cross with the shares of MACs and weights before it.

    Raises:
        InputError: The study has no choice yet, or a data set is not there.
    """
    choice = folder.parent.parent / CHOICE_FILE
    if not choice.is_file():
        raise InputError(f"{choice}: is missing; the recipe is chosen before a test set is read")
    data = load_images(cell.data, "train")
    model = _network(cell, data)
    constants = normalization_of(torch.from_numpy(data.x))
    whole = (torch.from_numpy(data.x), torch.from_numpy(data.y))
    kept, held = _divide(data) if cell.judged == "held-out" else (whole, None)
    record = train_images(
        model,
        *kept,
        _recipe(cell),
        seed=cell.seed,
        progress=Progress(report=report, checkpoints=folder),
        normalization=constants,
    )
    cuts = _cuts(cell, model, data.x.shape[1:])
    scores = evaluate_images(model, *(held or _test_set(cell)), normalization=constants)
    if cell.ratio == 1 and held is None:
        write_bytes(folder / WEIGHTS_FILE, save(_weights_for_pixels(model, constants)))
    compared = next(cut for cut in cuts if cut["after"] == COMPARED_CUT)
    return {
        "accuracy": scores.top1,
        "top5": scores.top5,
        **({} if scores.superclass is None else {"superclass": scores.superclass}),
        "bytes": compared["int8_bytes"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": record.losses,
        "cuts": cuts,
        "recipe": asdict(_recipe(cell)),
    }


def _test_set(cell: Cell) -> tuple[Tensor, ...]:
    """Return images, labels, and the superclass of each class where there are any."""
    test = load_images(cell.data, "test")
    arrays = (test.x, test.y, test.superclasses)
    return tuple(torch.from_numpy(array) for array in arrays if array is not None)


def _weights_for_pixels(model: nn.Module, constants: Normalization) -> dict[str, Tensor]:
    """Return a trained network's weights with the constants folded into its stem.

    Exact but for the image's border: there the first convolution pads with black instead of the
    mean.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    convolution, mean = weights["stem.0.weight"], weights["stem.1.running_mean"]
    convolution /= torch.tensor(constants.std).view(-1, 1, 1)
    mean += (convolution * torch.tensor(constants.mean).view(-1, 1, 1)).sum((1, 2, 3))
    return weights


def _named(name: str, report: Report) -> Report:
    return lambda step, done, total: report(f"{name}: {step}", done, total)


def _divide(data: Images) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Divide the training set at random, the same way every time."""
    order = np.random.default_rng(0).permutation(len(data.y))
    num_held = int(len(order) * HELD_OUT)

    def part(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(data.x[indices]), torch.from_numpy(data.y[indices])

    return part(np.sort(order[num_held:])), part(np.sort(order[:num_held]))


def _network(cell: Cell, data: Images) -> nn.Module:
    torch.manual_seed(cell.seed)
    return resnet(
        cell.depth,
        num_classes=data.num_classes,
        in_channels=data.x.shape[1],
        width=cell.width,
        ratio=cell.ratio,
        placement=cell.placement,
    )


def _recipe(cell: Cell) -> ImageRecipe:
    if cell.recipe not in RECIPES:
        raise InputError(f"no recipe {cell.recipe!r}; there are {', '.join(RECIPES)}")
    return replace(RECIPES[cell.recipe], epochs=cell.epochs)


def _cuts(cell: Cell, model: nn.Module, image: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return what crosses between the stages, and how much of the network lies before."""
    graph = capture(model, (torch.zeros(2, *image),))
    found = []
    for wire in wires(cell.depth, width=cell.width, ratio=cell.ratio, placement=cell.placement):
        if not wire.between_stages:
            continue
        cut = find_cut(graph, wire.after)
        before = graph.nodes[: cut.index]
        elements = sum(tensor.num_elements for tensor in cut.tensors)
        found.append(
            {
                "after": wire.after,
                "channels": wire.channels,
                "wire_channels": wire.wire_channels,
                "fp32_bytes": 4 * elements,
                "int8_bytes": elements,
                "macs_before_share": sum(node.macs or 0 for node in before) / graph.macs,
                "weights_before_share": sum(node.weight_bytes for node in before)
                / graph.weight_bytes,
            }
        )
    return found
