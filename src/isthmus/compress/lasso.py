r"""Structured pruning by sparse regression: while the network is trained, or layer by layer.

Shapes: C channels of a group, which leave together; F features that a layer reads, k of each
channel; n channels that it makes; M places of all samples.

Group lasso (``prune:group-lasso``) trains the network with the norms of all its channels added to
the loss, each over whatever leaves with the channel: the rows that make it, the columns that read
it. Norms of 0 are then many, and these channels go.

.. math:: L + \lambda \sum_{g} \sum_{c \in g} \sqrt{\sum_{w \in c} w^2}

Network slimming (``prune:slimming``) does so with the scales of batch norms alone:
:math:`L + \lambda \sum |\gamma|`.

Channel selection (``prune:least-squares``) asks of each layer that reads the group which of its
channels to keep, so that it makes nearly what it made. With X (M, F) what it reads, W (n, F) its
weight and Y (M, n) what it made in the network as it came, both without the bias:

.. math:: \min_\beta \; \| Y - \sum_c \beta_c X_c W_c^T \|^2 + \lambda \|\beta\|_1,
          \quad \|\beta\|_0 \le \lfloor keep \; C \rfloor; \qquad
          \min_{W'} \; \| Y - X' W'^T \|^2

:math:`\lambda` falls until as many are not 0 (least angle regression). Of several readers the
errors add up. Groups are taken in the order of the network, so that a later one makes up for what
the earlier ones lost.

References:
    Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016,
    https://arxiv.org/abs/1608.03665 (equation 3; filters and the channels that they make as one
    group, as in Fang et al., CVPR 2023, https://arxiv.org/abs/2301.12900, equation 4).
    Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network
    Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519 (equation 1).
    He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    https://arxiv.org/abs/1707.06168 (equation 2 to 5).
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.compress.prune import (
    CHANNELLED,
    LEAST_SAMPLES,
    OPTIONS,
    SMALLER,
    channels_of,
    check_pruned,
    groups_of,
    ignored_layers,
    kept_of,
    makes,
    pruning,
    tracing,
)
from isthmus.compress.technique import Options, Samples, Technique, needs_data, number, watch
from isthmus.errors import InputError

_GROUP_LASSO, _LEAST_SQUARES = "prune:group-lasso", "prune:least-squares"
_SLIMMING = "prune:slimming"
_PLACES = 64  # of each sample, at most
_BATCH = 64
_RIDGE = 1e-4  # of a feature's mean square
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def group_lasso(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Train with the norms of channels in the loss, then remove those of the smallest norms."""
    _check_trains(_GROUP_LASSO, samples)
    ignored = ignored_layers(_GROUP_LASSO, model, samples, options, keep=options["keep"])
    groups = groups_of(_GROUP_LASSO, model, samples, ignored)
    apply = pruning(_GROUP_LASSO, lambda *_: lambda group: channel_norms(group).detach())
    apply(copy.deepcopy(model), options, samples)  # whether it can shows now, not after an hour

    def norms() -> list[Tensor]:
        return [channel_norms(group) for group in groups]

    _train_towards_0(model, norms, options, samples)
    return apply(model.eval(), options, samples)


def slimming(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Remove the channels of the smallest scales, trained towards 0 first where a strength is."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scales = [norm.weight for norm in norms if norm.affine]
    if not scales:
        raise InputError(f"technique {_SLIMMING}: found no batch norm; expected one, or prune:l2")
    apply = pruning(_SLIMMING, lambda library, *_: library.importance.BNScaleImportance())
    if options["strength"]:
        _check_trains(_SLIMMING, samples)
        apply(copy.deepcopy(model), options, samples)  # whether it can shows now
        _train_towards_0(model, lambda: [scale.abs() for scale in scales], options, samples)
    return apply(model.eval(), options, samples)


def _check_trains(name: str, samples: Samples) -> None:
    if samples.training is None:
        raise InputError(f"technique {name}: trains before it prunes; add --data, --epochs")


def _train_towards_0(
    model: nn.Module, norms: Callable[[], list[Tensor]], options: Options, samples: Samples
) -> None:
    """Train with the sum of norms, times the strength, added to the loss."""
    assert samples.training is not None
    strength = options["strength"]
    samples.training.whole(model.train(), "lasso", lambda: strength * torch.cat(norms()).sum())


def channel_norms(group: Any) -> Tensor:
    """Return the norm of all weights that leave with each channel of a group, (C,)."""
    total: Tensor | None = None
    for item in group:
        layer = item.dep.target.module
        if type(layer) not in CHANNELLED or (getattr(layer, "groups", 1) > 1 and not makes(item)):
            continue  # a column of several groups is that of several channels
        columns = makes(item) == isinstance(layer, _TRANSPOSED)
        weight = layer.weight.movedim(1, 0) if columns else layer.weight
        squares = weight.square().flatten(1).sum(1)
        rows, roots = (torch.tensor(x, device=squares.device) for x in (item.idxs, item.root_idxs))
        if total is None:
            total = squares.new_zeros(len(group[0].idxs))
        total = total.index_add(0, roots, squares[rows])
    assert total is not None  # a group has a layer that makes its channels
    return (total + 1e-12).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """A layer that reads a group's channels.

    Attributes:
        path: Of it.
        roots: The channel of the group that each feature belongs to, (F,); -1: of another group.
    """

    path: str
    roots: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Sums over all places of what a layer reads and of what it made in the whole network.

    Attributes:
        xx: (F, F).
        xy: (F, n).
    """

    xx: Tensor
    xy: Tensor


def least_squares(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Keep the channels from which readers can best make what they made."""
    needs_data(samples, technique=_LEAST_SQUARES, least=LEAST_SAMPLES)
    ignored = ignored_layers(_LEAST_SQUARES, model, samples, options, keep=options["keep"])
    whole = copy.deepcopy(model)
    rest = {path: torch.arange(channels_of(m)) for path, m in _channelled(model)}
    removed = 0
    with tracing(_LEAST_SQUARES, model, samples, ignored):
        for root in _in_order(model, groups_of(_LEAST_SQUARES, model, samples, ignored), samples):
            # what the library knows of the network is of before the last group was pruned
            groups = groups_of(_LEAST_SQUARES, model, samples, ignored)
            group = next(each for each in groups if each[0].dep.target.module is root)
            removed += _select(model, whole, group, rest, options, samples)
    if not removed and options["keep"] < 1:
        raise InputError(
            f"technique {_LEAST_SQUARES}: found no channels that only linear layers and 2d "
            "convolutions without groups, padded with zeros, read; expected some, or prune:l2"
        )
    check_pruned(_LEAST_SQUARES, whole, model, samples, options)
    return model


def _select(
    model: nn.Module,
    whole: nn.Module,
    group: Any,
    rest: dict[str, Tensor],
    options: Options,
    samples: Samples,
) -> int:
    """Remove channels of one group and fit its readers anew; return how many went."""
    readers = _readers(group, model)
    channels, unit = len(group[0].idxs), options["round_to"]
    count = kept_of(channels, options["keep"])
    count -= count % unit if count > unit else 0
    if not readers or count == channels:
        return 0
    before = dict(rest)
    moments = [_moments(model, whole, reader, rest[reader.path], samples) for reader in readers]
    kept = _best(model, readers, moments, channels, count)
    _remove(model, group, sorted(set(range(channels)) - set(kept)), rest)
    for reader, each in zip(readers, moments, strict=True):
        still = torch.isin(before[reader.path], rest[reader.path])  # it may make some of them too
        _refit(model.get_submodule(reader.path), reader, replace(each, xy=each.xy[:, still]), kept)
    return channels - count


def _channelled(model: nn.Module) -> list[tuple[str, Any]]:
    return [(path, module) for path, module in model.named_modules() if type(module) in CHANNELLED]


def _in_order(model: nn.Module, groups: Sequence[Any], samples: Samples) -> list[nn.Module]:
    """Return the first layer of each group, in the order in which groups are first read."""
    called: dict[nn.Module, int] = {}

    def note(layer: nn.Module, *_: object) -> None:
        called.setdefault(layer, len(called))

    watch(model, {layer: note for _, layer in _channelled(model)}, samples.example)

    def first_read(group: Any) -> int:
        layers = [item.dep.target.module for item in group if not makes(item)]
        return min((called[layer] for layer in layers if layer in called), default=len(called))

    return [group[0].dep.target.module for group in sorted(groups, key=first_read)]


def _remove(model: nn.Module, group: Any, gone: Sequence[int], rest: dict[str, Tensor]) -> None:
    """Remove channels of a group, and note which outputs of each layer are left."""
    paths = {module: path for path, module in model.named_modules()}
    root = group[0].dep
    leaving = group._DG.get_pruning_group(root.target.module, root.handler, list(gone))
    for item in leaving:
        path = paths.get(item.dep.target.module, "")
        if path in rest and makes(item):
            kept = torch.ones(len(rest[path]), dtype=torch.bool)
            kept[item.idxs] = False
            rest[path] = rest[path][kept]
    leaving.prune()


def _readers(group: Any, model: nn.Module) -> list[_Reader]:
    """Return the layers that read the group; none where one of them is no plain layer."""
    paths = {module: path for path, module in model.named_modules()}
    found = []
    for item in group:
        layer = item.dep.target.module
        if getattr(layer, "num_groups", 1) > 1 or 1 < getattr(layer, "groups", 1) < len(item.idxs):
            return []  # channels of which as many have to go from each part
        if type(layer) not in CHANNELLED or makes(item):
            continue
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        if not plain:
            return []
        roots = torch.full((layer.weight.shape[1],), -1)
        roots[item.idxs] = torch.tensor(item.root_idxs)
        kernel = layer.weight[0, 0].numel()
        found.append(_Reader(path=paths[layer], roots=roots.repeat_interleave(kernel)))
    return found


@torch.no_grad()
def _moments(
    model: nn.Module, whole: nn.Module, reader: _Reader, outputs: Tensor, samples: Samples
) -> _Moments:
    """Return what a reader's weight is fitted by; ``outputs`` are those that it has left."""
    layer: Any = model.get_submodule(reader.path)
    there: Any = whole.get_submodule(reader.path)
    features, channels = layer.weight[0].numel(), len(layer.weight)
    xx = torch.zeros(features, features, dtype=torch.float64)
    xy = torch.zeros(features, channels, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(samples.inputs[0]), _BATCH):
        inputs = tuple(x[start : start + _BATCH] for x in samples.inputs)
        x_BPF = _unfolded(layer, _passing(model, layer, inputs)[0])
        y_BPn = _places(_passing(whole, there, inputs)[1], there)
        chosen = torch.randperm(x_BPF.shape[1], generator=generator)[:_PLACES]
        x = x_BPF[:, chosen].flatten(0, 1).double()
        y = y_BPn[:, chosen].flatten(0, 1).double()
        y = (y if there.bias is None else y - there.bias)[:, outputs]
        xx += x.T @ x
        xy += x.T @ y
    return _Moments(xx=xx, xy=xy)


def _passing(
    model: nn.Module, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return what a layer read and made, of the last call where there are several."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = {layer: lambda _, read, made: seen.append((read[0], made))}
    watch(model, hook, inputs, batch_size=len(inputs[0]))
    return seen[-1]


def _unfolded(layer: Any, x: Tensor) -> Tensor:
    """Return what each place of the output is a sum over, (B, P, F)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT


def _places(y: Tensor, layer: nn.Module) -> Tensor:
    """Return an output as places and channels, (B, P, n)."""
    return y.reshape(len(y), -1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).mT


@torch.no_grad()
def _best(
    model: nn.Module,
    readers: Sequence[_Reader],
    moments: Sequence[_Moments],
    channels: int,
    count: int,
) -> list[int]:
    """Return the channels that the lasso keeps."""
    gram = torch.zeros(channels, channels, dtype=torch.float64)
    towards = torch.zeros(channels, dtype=torch.float64)
    for reader, each in zip(readers, moments, strict=True):
        weight = model.get_submodule(reader.path).get_parameter("weight").double().flatten(1)
        own, roots = reader.roots >= 0, reader.roots[reader.roots >= 0]
        rest = each.xy - each.xx[:, ~own] @ weight[:, ~own].T  # what other channels do not make
        weight = weight[:, own]
        products = (weight.T @ weight) * each.xx[own][:, own]
        rows = torch.zeros(channels, len(roots), dtype=torch.float64).index_add(0, roots, products)
        gram.index_add_(1, roots, rows)
        towards.index_add_(0, roots, (weight.T * rest[own]).sum(1))
    linear: Any = import_module("sklearn.linear_model")
    with warnings.catch_warnings(action="ignore"):  # of channels that others equal
        _, _, path = linear.lars_path_gram(
            towards.numpy(), gram.numpy(), n_samples=1, method="lasso", max_iter=8 * channels
        )
    size = torch.from_numpy(abs(path))  # (C, steps)
    enough = ((size > 0).sum(0) >= count).nonzero().flatten().tolist()
    chosen = size[:, enough[0] if enough else -1]
    alone = towards.square() / gram.diagonal().clamp_min(1e-30)  # where the path ends with fewer
    order = sorted(range(channels), key=lambda c: (-chosen[c].item(), -alone[c].item()))
    return sorted(order[:count])


@torch.no_grad()
def _refit(layer: Any, reader: _Reader, moments: _Moments, kept: Sequence[int]) -> None:
    """Give a reader the weight that makes most of what it made, near to the one that it has."""
    left = (reader.roots < 0) | torch.isin(reader.roots, torch.tensor(kept))
    xx, xy = moments.xx[left][:, left], moments.xy[left]
    weight = layer.weight.double().flatten(1)
    ridge = _RIDGE * xx.diagonal().mean() + 1e-12
    error = xy - xx @ weight.T
    better = weight.T + torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype), error)
    layer.weight.copy_(better.T.reshape(layer.weight.shape))


LASSO = (
    Technique(
        name=_SLIMMING,
        does="removes channels that batch norm scales little; strength=1e-4 trains them to first",
        paper="Liu, Li, Shen, Huang, Yan, Zhang, ICCV 2017, https://arxiv.org/abs/1708.06519",
        improves=SMALLER,
        stage="structure",
        apply=slimming,
        options={**OPTIONS, "strength": number(low=0, high=1, default=0)},
    ),
    Technique(
        name=_GROUP_LASSO,
        does="trains channels towards 0 together with all that depends on them, removes the least",
        paper="Wen, Wu, Wang, Chen, Li, NeurIPS 2016, https://arxiv.org/abs/1608.03665",
        needs="training",
        improves=SMALLER,
        stage="structure",
        apply=group_lasso,
        options={**OPTIONS, "strength": number(low=0, high=1, default=1e-3)},
    ),
    Technique(
        name=_LEAST_SQUARES,
        does="keeps the channels that let the next layer, fitted anew, make most of what it made",
        paper="He, Zhang, Sun, ICCV 2017, https://arxiv.org/abs/1707.06168",
        needs="data",
        improves=SMALLER,
        stage="structure",
        apply=least_squares,
        options={name: OPTIONS[name] for name in ("keep", "round_to")},
    ),
)
