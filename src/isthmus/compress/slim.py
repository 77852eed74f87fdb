r"""Slimmable networks: one set of weights that is a network at each of several widths.

The network of width w has of every layer the first :math:`\lfloor w c \rfloor` of its c channels,
and the weights between those. Only batch norms are not shared, as the statistics of each width are
its own: a layer has as many as there are widths. Which channels have to be the same, through sums
and concatenations, is torch-pruning's work, as in `isthmus.compress.prune`.

.. code-block:: none

    width 1    conv (8, 8)       --> norm of 8 --> ...  learns the labels
    width 0.5  conv (8, 8)[:4, :4] --> norm of 4 --> ...  learns what width 1 says

In each step of training the widest and the narrowest take part, and at most two others, drawn
anew (the sandwich rule).

References:
    Yu, Yang, Xu, Yang, Huang, "Slimmable Neural Networks", ICLR 2019,
    https://arxiv.org/abs/1812.08928.
    Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
    https://arxiv.org/abs/1903.05134 (sandwich rule, inplace distillation).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.compress.prune import (
    SMALLER,
    check_pruned,
    check_runs,
    ignored_layers,
    ratio_of,
    remove,
)
from isthmus.compress.technique import Options, Samples, Technique, number, shares
from isthmus.errors import InputError
from isthmus.graph.trace import named_tensors
from isthmus.models.blocks import Switchable
from isthmus.models.compressed import replaced
from isthmus.models.joint import Joint, first

SLIMMABLE, WIDTH = "prune:slimmable", "prune:width"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHERS = 2  # widths of a step beside the widest and the narrowest

Places = tuple[Tensor | None, ...]  # along each axis which entries; None: all


@dataclass(frozen=True, slots=True, kw_only=True)
class _Narrow:
    """A network of one width.

    Attributes:
        template: Its layers, whose weights have no memory.
        places: Where its weights lie in those of the whole network, by name.
    """

    template: nn.Module
    places: Mapping[str, Places]


class Slimmable(Joint):
    """A network that runs at several widths, the widest where nothing else is said.

    Args:
        model: With `Switchable` norms.
        narrow: The narrower networks, by width, the narrowest first.
    """

    teaching, weight = True, 1.0

    def __init__(self, model: nn.Module, narrow: Mapping[float, _Narrow]) -> None:
        super().__init__()
        self.model = model
        self._narrow = dict(narrow)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the whole network says."""
        return self.model(*inputs)

    def answers(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the whole network says (B, K), then the narrowest and some others."""
        narrowest, *others = self._narrow
        drawn = [others[k] for k in torch.randperm(len(others))[:_OTHERS].tolist()]
        made = (self(*inputs), *(self.at(width, *inputs) for width in (narrowest, *drawn)))
        return tuple(map(first, made))

    def at(self, width: float, *inputs: Tensor) -> Any:
        """Return what the network of one width says."""
        template = self._narrow[width].template.train(self.training)
        return torch.func.functional_call(template, self._state(width), inputs)

    def cut(self, width: float) -> nn.Module:
        """Return the network of one width, with weights of its own."""
        made = copy.deepcopy(self._narrow[width].template).to_empty(device="cpu")
        state = self._state(width)
        for name, tensor in named_tensors(made):
            tensor.data = state[name].detach().clone()
        return made.train(self.training)

    def settled(self) -> nn.Module:
        """Return the whole network, with the norms of all widths."""
        return self.model

    def _state(self, width: float) -> dict[str, Tensor]:
        """Return the parameters and buffers of one width; those of norms are the model's own."""
        narrow = self._narrow[width]
        modules = dict(self.model.named_modules(remove_duplicate=False))
        own = dict(named_tensors(self.model))
        state = {}
        tied: dict[int, Tensor] = {}
        for name, places in narrow.places.items():
            path, _, leaf = name.rpartition(".")
            norms = modules[path]
            if isinstance(norms, Switchable):
                state[name] = own[f"{path}.{norms.widths.index(width)}.{leaf}"]
            else:
                whole = own[name]
                state[name] = tied.setdefault(id(whole), _taken(whole, places))
        return state


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms of a model that is to be slimmable, by path.

    Raises:
        InputError: There is none.
    """
    norms = {path: module for path, module in model.named_modules() if type(module) in _NORMS}
    if not norms:
        raise InputError(
            f"technique {SLIMMABLE}: found no batch norm, of which each width has its own; "
            "use prune:l1 for each width by itself"
        )
    return norms


def slimmable(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Give batch norms of their own to each of several widths; see `isthmus.compress.slim`."""
    norms = norms_of(model)
    widths_after(SLIMMABLE, options, widths_of(model))
    whole, widths = copy.deepcopy(model), options["widths"]
    narrow = _narrowed(SLIMMABLE, model, options, samples, widths)
    for path, norm in norms.items():
        each = [_norm(norm, path, narrow[width]) for width in widths]
        made = Switchable(*each, norm, widths=(*widths, 1.0))
        model = replaced(model, path, made, where=SLIMMABLE)
    slim = Slimmable(model, narrow)
    for each_width in widths:  # whether it can shows now, not when it is trained
        check_pruned(SLIMMABLE, whole, slim.cut(each_width), samples, options)
    return slim


def width(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Cut the network of one width out of a slimmable one."""
    norms = {path: each for path, each in model.named_modules() if isinstance(each, Switchable)}
    widths, wanted = widths_of(model), options["width"]
    widths_after(WIDTH, options, widths)
    narrow = _narrowed(WIDTH, model, options, samples, (wanted,))
    found = {
        path: (norms[path][widths.index(wanted)].num_features, each.num_features)
        for path, each in narrow[wanted].template.named_modules()
        if path in norms
    }
    for path, (there, here) in found.items():
        if there != here:
            raise InputError(
                f"technique {WIDTH}: {path} has {there} channels, where this cuts to {here}; "
                "give the only= and skip= with which it was made slimmable"
            )
    made = Slimmable(model, narrow).cut(wanted).eval()
    check_runs(WIDTH, made, samples)
    return made


def widths_of(model: nn.Module) -> tuple[float, ...]:
    """Return the widths of a slimmable model; none of another."""
    norms = (module for module in model.modules() if isinstance(module, Switchable))
    return next((tuple(norm.widths) for norm in norms), ())


def widths_after(name: str, options: Options, widths: Sequence[float]) -> tuple[float, ...]:
    """Return the widths of a model after one of these techniques, from those before it.

    Raises:
        InputError: It has several already, or not the one that is to be cut out.
    """
    if name == SLIMMABLE and widths:
        raise InputError(f"technique {name}: the model is slimmable already; leave it out")
    if name == WIDTH and options["width"] not in widths:
        known = " or ".join(f"width={each:g}" for each in widths)
        raise InputError(
            f"technique {name}: found width={options['width']:g}, expected "
            f"{known or f'a model of {SLIMMABLE}, which has several'}"
        )
    return (*options["widths"], 1.0) if name == SLIMMABLE else ()


def _narrowed(
    name: str, model: nn.Module, options: Options, samples: Samples, widths: Sequence[float]
) -> dict[float, _Narrow]:
    """Return the network of each width, without changing the model.

    Where a weight came from shows when the library removes channels of a network whose weights
    are their own numbers.
    """
    plain = copy.deepcopy(model)
    for path, module in list(plain.named_modules()):
        if isinstance(module, Switchable):
            plain = replaced(plain, path, module[-1], where=name)
    found = {}
    for share in widths:
        made = copy.deepcopy(plain).eval()
        ignored = ignored_layers(name, made, samples, options, keep=min(share, 1))
        remove(
            name,
            made,
            samples,
            mark=_number,
            importance=lambda group: -torch.arange(len(group[0].idxs), dtype=torch.float64),
            pruning_ratio=ratio_of(share),
            ignored_layers=list(ignored),
        )
        shapes = {key: tensor.shape for key, tensor in named_tensors(plain)}
        places = {key: _places(tensor, shapes[key]) for key, tensor in named_tensors(made)}
        found[share] = _Narrow(template=made.to("meta"), places=places)
    return found


def _number(model: nn.Module) -> None:
    for _, tensor in named_tensors(model):
        numbers = torch.arange(tensor.numel(), dtype=torch.float64)
        tensor.data = numbers.reshape(tensor.shape)


def _places(numbers: Tensor, shape: torch.Size) -> Places:
    """Return of each axis which entries are left of a tensor that held its numbers."""
    found: list[Tensor | None] = []
    for axis, (size, left) in enumerate(zip(shape, numbers.shape, strict=True)):
        line = numbers.movedim(axis, 0).reshape(left, -1)[:, 0].long()
        index = line // shape[axis + 1 :].numel() % size
        found.append(None if left == size else index)
    return tuple(found)


def _taken(tensor: Tensor, places: Places) -> Tensor:
    for axis, index in enumerate(places):
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _norm(norm: nn.Module, path: str, narrow: _Narrow) -> nn.Module:
    """Return the norm of a narrower network, as a norm of the whole one begins it."""
    made = copy.deepcopy(narrow.template.get_submodule(path)).to_empty(device="cpu")
    state = dict(named_tensors(norm))
    for name, tensor in named_tensors(made):
        tensor.data = _taken(state[name].detach(), narrow.places[f"{path}.{name}"]).clone()
    return made.train(norm.training)


SLIMMING = (
    Technique(
        name=SLIMMABLE,
        does="trains one set of weights for several widths; prune:width cuts one of them out",
        paper="Yu, Yang, Xu, Yang, Huang, ICLR 2019, https://arxiv.org/abs/1812.08928; "
        "Yu, Huang, ICCV 2019, https://arxiv.org/abs/1903.05134",
        needs="training",
        improves=("time", "energy"),
        stage="structure",
        apply=slimmable,
        options={"widths": shares(0.25, 0.5, 0.75)},
    ),
    Technique(
        name=WIDTH,
        does="cuts the network of one width out of one of prune:slimmable",
        paper="Yu, Yang, Xu, Yang, Huang, ICLR 2019, https://arxiv.org/abs/1812.08928",
        improves=SMALLER,
        stage="structure",
        apply=width,
        options={"width": number(low=0.001, high=1, default=0.5)},
    ),
)
