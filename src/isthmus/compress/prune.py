"""Structured pruning: whole channels go, with all that depends on them.

Which channels depend on each other (through sums, norms, concatenations) and how they are taken
out is torch-pruning's work; what is ours is which layers may lose some, and what was measured.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.compress.technique import (
    Apply,
    Option,
    Options,
    Samples,
    Technique,
    layers,
    learnable,
    losses,
    needs_data,
    number,
    watch,
    word,
)
from isthmus.errors import InputError, one_line
from isthmus.graph import capture
from isthmus.models.blocks import Adder, Octave
from isthmus.models.compressed import changes

LEAST_SAMPLES = 16
_TIE = 1e-6
_HAIR = 1e-9  # so that 0.29 of 100 channels are 29
_SMALL = 1e-3  # of a share
_MOST_OF_ONE = 15 / 16  # of the channels of a layer, where all compete
CHANNELLED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
SMALLER = ("parameters", "macs", "weight bytes", "stored bytes", "activation bytes")
OPTIONS: Mapping[str, Option] = {
    "keep": number(low=0.001, high=1, default=0.5),
    "round_to": number(low=1, high=1024, default=1, whole=True),
    "scope": word(("layer", "model"), default="layer"),
}


def pruning(name: str, importance: Callable[[Any, nn.Module, Samples], Any]) -> Apply:
    """Return a technique's function for one measure of importance."""

    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        import torch_pruning  # noqa: PLC0415  (extra "compress")

        ignored = ignored_layers(name, model, samples, options, keep=options["keep"])
        before = copy.deepcopy(model)
        remove(
            name,
            model,
            samples,
            importance=importance(torch_pruning, model, samples),
            global_pruning=options["scope"] == "model",
            pruning_ratio=ratio_of(options["keep"]),
            max_pruning_ratio=_MOST_OF_ONE if options["scope"] == "model" else 1.0,
            round_to=options["round_to"] if options["round_to"] > 1 else None,
            ignored_layers=list(ignored),
        )
        model.zero_grad(set_to_none=True)
        if _sizes(before) == _sizes(model) and options["keep"] < 1:
            lost = ", ".join(_lost(model, samples, ignored))
            raise InputError(
                f"technique {name}: no channel could be removed with keep={options['keep']:g}, "
                f"round_to={options['round_to']}; "
                f"{f'cannot follow {lost}' if lost else 'keep less or round to fewer'}"
            )
        check_pruned(name, before, model, samples, options)
        return model

    return apply


def remove(
    name: str,
    model: nn.Module,
    samples: Samples,
    *,
    mark: Callable[[nn.Module], None] = lambda model: None,
    **how: Any,
) -> None:
    """Let torch-pruning remove channels, and whatever depends on them.

    Args:
        name: Of the technique, for error messages.
        model: Changed.
        samples: Its example is traced.
        mark: May put other weights in the model, before any is removed.
        how: What the library's pruner takes.

    Raises:
        InputError: The library cannot tell what depends on what.
    """
    with tracing(name, model, samples, how.get("ignored_layers", ())):
        pruner = make_pruner(model, samples, **how)
        mark(model)
        pruner.step()


def make_pruner(model: nn.Module, samples: Samples, **how: Any) -> Any:
    """Return torch-pruning's pruner, with what it found of dependencies."""
    import torch_pruning  # noqa: PLC0415  (extra "compress")

    for path, module in model.named_modules():
        if isinstance(module, (Adder, Octave)):
            kind = type(module).__name__
            raise InputError(
                f"prune: {path} is an {kind}, whose channels the library cannot follow; prune "
                f"first, then replace:{kind.lower()}"
            )

    how.setdefault("importance", torch_pruning.importance.GroupMagnitudeImportance(p=2))
    how["root_module_types"] = list(CHANNELLED)  # what recurrent layers make stays
    with learnable(model), _padded_with_zeros(model):  # the library follows gradients
        return torch_pruning.pruner.BasePruner(model, samples.example, **how)


@contextmanager
def _padded_with_zeros(model: Any) -> Iterator[None]:
    """Hide from the library how maps are padded: it does not come back from circular padding."""
    modes = {m: m.padding_mode for m in model.modules() if hasattr(m, "padding_mode")}
    for module in modes:
        module.padding_mode = "zeros"
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.padding_mode = mode


@contextmanager
def tracing(
    name: str, model: nn.Module, samples: Samples, ignored: Collection[nn.Module]
) -> Iterator[None]:
    """Turn whatever the library raises into an `InputError` that says what to leave out."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except InputError:
        raise
    except Exception as error:  # the library raises many types
        found = "+".join(_lost(model, samples, ignored))
        raise InputError(
            f"technique {name}: cannot tell which channels depend on each other "
            f"({type(error).__name__}: {error}); leave the layers before a reshape, a recurrent "
            f"layer or a norm of places out with skip={found}"
        ) from error


def _lost(model: nn.Module, samples: Samples, ignored: Collection[nn.Module]) -> list[str]:
    """Return the layers whose channels the library cannot follow, as far as it can be told."""
    found = []
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        every = {p: m for p, m in model.named_modules() if type(m) in CHANNELLED}
        pruner = make_pruner(model, samples, ignored_layers=list(every.values()))
        for path, module in every.items():
            if module not in ignored:
                try:
                    root = pruner.DG.get_pruner_of_module(module).prune_out_channels
                    channels = list(range(channels_of(module)))
                    pruner.importance(pruner.DG.get_pruning_group(module, root, channels))
                except Exception:  # the library raises many types
                    found.append(path)
    return found


def removable(name: str, model: nn.Module, samples: Samples, options: Options) -> dict[str, int]:
    """Return of each group of layers that lose channels together one path, and its channels.

    Raises:
        InputError: There are none, or the library cannot tell what depends on what.
    """
    ignored = ignored_layers(name, model, samples, options)
    paths = {module: path for path, module in model.named_modules()}
    groups = groups_of(name, model, samples, ignored)
    return {paths[m]: channels_of(m) for m in (group[0].dep.target.module for group in groups)}


def groups_of(name: str, model: nn.Module, samples: Samples, ignored: set[nn.Module]) -> list[Any]:
    """Return the groups of layers that lose channels together, as the library has them.

    Raises:
        InputError: The library cannot tell what depends on what.
    """
    with tracing(name, model, samples, ignored):
        found = make_pruner(model, samples, ignored_layers=list(ignored))
        return list(found.DG.get_all_groups(found.ignored_layers, found.root_module_types))


def kept_of(channels: int, keep: float) -> int:
    """Return how many channels a share is, rounded down: of 10 channels 0.3 is 3."""
    return int(channels * keep + _HAIR)


def ratio_of(keep: float) -> float:
    """Return the share that the library is to remove, so that `kept_of` of each layer stay."""
    return max(0.0, 1 - keep - _HAIR)


def ignored_layers(
    name: str, model: nn.Module, samples: Samples, options: Options, *, keep: float = 1
) -> set[nn.Module]:
    """Return the layers that must lose no channel.

    Args:
        name: Of the technique, for error messages.
        model: The model.
        samples: Its example is traced.
        options: ``only`` and ``skip``.
        keep: Share of the channels that the others are to keep.

    Raises:
        InputError: No other is left, or one would go whole.
    """
    chosen = set(layers(model, CHANNELLED, options, technique=name).values())
    channelled = {module for module in model.modules() if isinstance(module, CHANNELLED)}
    ignored = _answering(model, samples) | (channelled - chosen)
    if chosen <= ignored:
        raise InputError(
            f"technique {name}: every layer makes the model's outputs, whose sizes must stay; "
            "name other modules with only="
        )
    prunable = {p: channels_of(m) for p, m in model.named_modules() if m in chosen - ignored}
    path, fewest = min(prunable.items(), key=lambda item: item[1])
    if kept_of(fewest, keep) < 1:
        raise InputError(
            f"technique {name}: keep={keep:g} of {fewest} channels would remove a layer whole, "
            f"{path}; expected keep={ceil(1e3 / fewest) / 1e3:g} or more, or skip={path}"
        )
    return ignored


def with_channels(
    name: str, model: nn.Module, path: str, kept: int, channels: int, samples: Samples
) -> nn.Module:
    """Return a copy of a model in which one layer, and what depends on it, has fewer channels."""
    made = copy.deepcopy(model)
    ratio = 1 - (kept + 0.5) / channels  # the library rounds what is kept down
    ratios = {made.get_submodule(path): ratio}
    remove(name, made, samples, pruning_ratio=0.0, pruning_ratio_dict=ratios)
    return made


def stuck(name: str, model: nn.Module, samples: Samples, options: Options) -> tuple[str, ...]:
    """Return the layers that can lose no channel: without some the model does not run.

    A forward that holds channel counts does that, such as one that parts them among the heads of
    an attention. Each group of layers is tried by itself.
    """
    paths = {module: path for path, module in model.named_modules()}
    found: dict[str, None] = {}
    for group in groups_of(name, model, samples, ignored_layers(name, model, samples, options)):
        root = group[0].dep.target.module
        channels = channels_of(root)
        fewer = max(1, channels - options.get("round_to", 1))
        if fewer == channels:
            continue
        try:
            made = with_channels(name, model, paths[root], fewer, channels, samples)
            _check_same_kind(name, model, made, samples)
        except InputError:
            makers = (item.dep.target.module for item in group if makes(item))
            found |= {paths[m]: None for m in makers if type(m) in CHANNELLED}
    return tuple(found)


def makes(item: Any) -> bool:
    """Return whether a layer of one of the library's groups makes its channels, or reads them."""
    return "out" in item.dep.handler.__name__


def check_pruned(
    name: str, before: nn.Module, model: nn.Module, samples: Samples, options: Options
) -> None:
    """Raise unless a pruned model still runs and can be written down.

    Raises:
        InputError: It does not, or cannot; says what to leave out, or that there is nothing.
    """
    try:
        _check_same_kind(name, before, model, samples)
    except InputError as error:
        found = stuck(name, before, samples, options)
        if not found:
            raise
        skip = "+".join((*options["skip"], *found))
        raise InputError(f"{error.args[0].rpartition(';')[0]}; add skip={skip}") from error


def _check_same_kind(name: str, before: nn.Module, model: nn.Module, samples: Samples) -> None:
    check_runs(name, model, samples)
    if len([*before.parameters()]) < len([*model.parameters()]):
        raise InputError(f"technique {name}: modules that hold one weight would part; skip them")
    changes(before, model)


def check_runs(name: str, model: nn.Module, samples: Samples) -> None:
    """Raise unless a pruned model still runs.

    Raises:
        InputError: It does not: its forward holds channel counts.
    """
    try:
        with torch.no_grad():
            model.eval()(*samples.example)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise InputError(
            f"technique {name}: after it the model does not run ({one_line(error)}); its forward "
            "may hold channel counts: leave those layers out with skip="
        ) from error


def channels_of(module: Any) -> int:
    """Return how many channels a layer makes."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _sizes(model: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in model.parameters()]


def _answering(model: nn.Module, samples: Samples) -> set[nn.Module]:
    """Return the layers that make the model's outputs, whose channels are classes."""
    graph = capture(model, samples.example)
    made_by = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    modules = dict(model.named_modules())
    found: set[nn.Module] = set()
    seen: set[str] = set()
    waiting = list(graph.outputs)
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or tensor not in made_by:
            continue
        seen.add(tensor)
        node = made_by[tensor]
        module = modules.get(node.module)
        if isinstance(module, CHANNELLED):
            found.add(module)
        else:
            waiting.extend(node.inputs)
    return found


def _taylor(library: Any, model: nn.Module, samples: Samples) -> Any:
    """Leave in every weight the size of the loss's gradient, summed over batches."""
    needs_data(samples, technique="prune:taylor", least=LEAST_SAMPLES)
    sizes = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    with learnable(model):
        for loss in losses(model, samples):
            model.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    sizes[parameter] += parameter.grad.abs()
    for parameter, size in sizes.items():
        parameter.grad = size  # the library takes its absolute value, too
    return library.importance.GroupTaylorImportance()


def _median_distance(group: Any) -> Tensor:
    r"""Return how far each channel's weights lie from all others' of their layer, over the mean.

    .. math:: g(x) = \sum_j \lVert x - F_j \rVert_2 \quad \text{(equations 5 to 7)}

    The library's own measure compares squares of weights, to which F and -F are equal.
    """
    distance = torch.zeros(len(group[0].idxs))
    for item in group:
        module = item.dep.target.module
        if type(module) in CHANNELLED and makes(item):
            rows = _rows(module)
            found = torch.cdist(rows[item.idxs], rows).sum(dim=1)
            distance.scatter_add_(
                0, torch.tensor(item.root_idxs), found / found.mean().clamp_min(_TIE)
            )
    return distance + _TIE * torch.arange(len(distance))


def _rows(module: Any) -> Tensor:
    """Return the weights (C, K) that make each channel; transposed layers have no groups."""
    weight: Tensor = module.weight.detach()
    return weight.movedim(int(getattr(module, "transposed", False)), 0).flatten(1)


def _zeros(library: Any, model: nn.Module, samples: Samples) -> Any:
    """Return a measure: how often what a layer reads from a channel is not 0."""
    needs_data(samples, technique="prune:apoz", least=LEAST_SAMPLES)
    active = _active(model, samples)

    readers = (library.function.prune_conv_in_channels, library.function.prune_linear_in_channels)

    def activity(group: Any) -> Tensor | None:
        share, count = torch.zeros(2, len(group[0].idxs))
        for item in group:
            module = item.dep.target.module
            if item.dep.handler in readers and module in active:
                read = active[module][item.idxs]
                roots = torch.tensor(item.root_idxs)
                share.scatter_add_(0, roots, read)
                count.scatter_add_(0, roots, torch.ones_like(read))
        ties = _TIE * torch.arange(len(share))  # the library removes all equals or none
        return share / count + ties if count.any() else None

    return activity


def _active(model: nn.Module, samples: Samples) -> Mapping[nn.Module, Tensor]:
    """Return for each layer the share of each input channel that is not 0.

    Behind a mean hardly anything is 0: of equal shares the one of the smaller values counts less.
    """
    sums: dict[nn.Module, Tensor] = {}
    places: Counter[nn.Module] = Counter()

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        del made
        x = arguments[0]
        along = -1 if isinstance(module, nn.Linear) else 1
        rest = [dim for dim in range(x.ndim) if dim != along % x.ndim]
        found = torch.stack([(x != 0).double().sum(dim=rest), x.abs().double().sum(dim=rest)])
        sums[module] = sums.get(module, torch.zeros(())) + found
        places[module] += x.numel() // x.shape[along]

    chosen = (module for module in model.modules() if type(module) in CHANNELLED)
    watch(model, dict.fromkeys(chosen, hook), samples.inputs)
    means = {module: found / places[module] for module, found in sums.items()}
    return {
        module: (share + _SMALL * size / size.max().clamp_min(_TIE)).float()
        for module, (share, size) in means.items()
    }


def _technique(
    name: str, does: str, paper: str, importance: Any, *, data: bool = False
) -> Technique:
    return Technique(
        name=name,
        does=f"removes channels {does}",
        paper=paper,
        needs="data" if data else "nothing",
        improves=SMALLER,
        stage="structure",
        apply=pruning(name, importance),
        options=OPTIONS,
    )


PRUNING = (
    _technique(
        "prune:l1", "of small absolute weights",
        "Li, Kadav, Durdanovic, Samet, Graf, ICLR 2017, https://arxiv.org/abs/1608.08710",
        lambda library, model, samples: library.importance.GroupMagnitudeImportance(p=1),
    ),
    _technique(
        "prune:l2", "of small squared weights, over all layers that depend on them",
        "Fang, Ma, Song, Mi, Wang, CVPR 2023, https://arxiv.org/abs/2301.12900",
        lambda library, model, samples: library.importance.GroupMagnitudeImportance(p=2),
    ),
    _technique(
        "prune:fpgm", "near the geometric median of their layer",
        "He, Liu, Wang, Hu, Yang, CVPR 2019, https://arxiv.org/abs/1811.00250",
        lambda library, model, samples: _median_distance,
    ),
    _technique(
        "prune:taylor", "that the loss depends on little, by its gradient",
        "Molchanov, Mallya, Tyree, Frosio, Kautz, CVPR 2019, https://arxiv.org/abs/1906.10771",
        _taylor,
        data=True,
    ),
    _technique(
        "prune:apoz", "whose activations are 0 most often",
        "Hu, Peng, Tai, Tang, 2016, https://arxiv.org/abs/1607.03250",
        _zeros,
        data=True,
    ),
    _technique(
        "prune:random", "drawn at random: what every other way must beat",
        "Mittal, Bhardwaj, Khapra, Ravindran, WACV 2018, https://arxiv.org/abs/1801.10447",
        lambda library, model, samples: library.importance.RandomImportance(),
    ),
)  # fmt: skip
