"""All techniques by name, and a chain of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from isthmus.compress.exits import EXITING, EXITS, exit_paths
from isthmus.compress.factor import FACTORS
from isthmus.compress.formats import FORMATTING
from isthmus.compress.integer import INTEGERS, settled
from isthmus.compress.lasso import LASSO
from isthmus.compress.mixed import MIXED
from isthmus.compress.netadapt import NETADAPT
from isthmus.compress.prune import CHANNELLED, PRUNING
from isthmus.compress.replace import NETWORK, REPLACEMENTS
from isthmus.compress.share import SHARING
from isthmus.compress.slim import (
    SLIMMABLE,
    SLIMMING,
    WIDTH,
    norms_of,
    widths_after,
    widths_of,
)
from isthmus.compress.sparse import SPARSITY
from isthmus.compress.technique import (
    STAGES,
    Options,
    Samples,
    Technique,
    check_names,
    inside_a_layer,
    may_change,
    parse_options,
)
from isthmus.errors import InputError
from isthmus.graph import capture, find_cut
from isthmus.models.joint import Joint

TECHNIQUES: Mapping[str, Technique] = {
    technique.name: technique
    for technique in (
        *PRUNING,
        *LASSO,
        NETADAPT,
        *SLIMMING,
        *FACTORS,
        *REPLACEMENTS,
        *SPARSITY,
        *SHARING,
        *INTEGERS,
        *MIXED,
        *FORMATTING,
        EXITING,
    )
}

_REMOVES_ZEROS = ("quantize:binary",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A technique with its options.

    Attributes:
        text: As people wrote it.
        technique: Which.
        options: All of them.
    """

    text: str
    technique: Technique
    options: Options


def parse_chain(texts: Sequence[str]) -> tuple[Step, ...]:
    """Read what ``--with`` was given, in order.

    Args:
        texts: Each a technique's name, then options: ``prune:l1,keep=0.5``.

    Returns:
        The steps.

    Raises:
        InputError: No such technique or option, or an order that undoes a step before.

    Example:
        >>> [step.options["keep"] for step in parse_chain(["prune:l1,keep=0.25"])]
        [0.25]
    """
    steps: list[Step] = []
    for text in texts:
        name, *options = text.split(",")
        if name not in TECHNIQUES:
            raise InputError(f"no technique {name!r}; there are {', '.join(TECHNIQUES)}")
        technique = TECHNIQUES[name]
        for before in steps:
            _check_order(before.technique, technique)
        if steps and steps[-1].technique.name == SLIMMABLE and name != WIDTH:
            raise InputError(
                f"{name} after {SLIMMABLE}: would go on with the widest alone; put it last, or "
                f"{WIDTH} between them"
            )
        step = Step(text=text, technique=technique, options=parse_options(technique, options))
        if steps and name == NETWORK and not step.options["only"]:
            raise InputError(f"{text} after {steps[-1].text}: takes its place; leave one out")
        steps.append(step)
    return tuple(steps)


def _check_order(before: Technique, after: Technique) -> None:
    first, second = STAGES.index(before.stage), STAGES.index(after.stage)
    if before.stage == after.stage == "values":
        raise InputError(
            f"{after.name} after {before.name}: both choose the values of weights; leave one out"
        )
    if second < first or after.name == NETWORK != before.name:
        raise InputError(f"{after.name} after {before.name}: may undo it; put {after.name} first")
    if before.stage == "zeros" and after.name in _REMOVES_ZEROS:
        raise InputError(
            f"{after.name} after {before.name}: has no value for a weight of 0; leave one out, or "
            "use quantize:ternary"
        )


def check_chain(model: nn.Module, steps: Sequence[Step], samples: Samples) -> nn.Module:
    """Find what is wrong with a chain for a model before any of it is applied, or trained.

    What a later step names may be inside of what an earlier one puts in place of a layer; that
    shows only there.

    Args:
        model: In evaluation; left as it is.
        steps: The chain.
        samples: Its example is run.

    Returns:
        The model, or a copy with other networks where steps put these.

    Raises:
        InputError: A step names a module, a cut, a width or another network that there is not or
            that is not for this model, or exits behind what makes no map.
    """
    widths = widths_of(model)
    _check_weights(model)
    for number, step in enumerate(steps):
        name, options = step.technique.name, step.options
        check_names(model, options, technique=name, changed=number > 0)
        if name == NETWORK:
            model = step.technique.apply(copy.deepcopy(model), options, samples)
            _check_weights(model)
            widths = widths_of(model)
        if name == SLIMMABLE:
            norms_of(model)
        if name in (SLIMMABLE, WIDTH):
            widths = widths_after(name, options, widths)
        if name == EXITS and {*options["only"]} <= {path for path, _ in model.named_modules()}:
            exit_paths(model, options, samples)
        if name not in (EXITS, SLIMMABLE, WIDTH, NETWORK):
            _check_tied(model, options, technique=name)
        asked = options.get("cut", ())
        for cut in filter(None, (asked,) if isinstance(asked, str) else asked):
            if not inside_a_layer(model, cut):
                find_cut(capture(model, samples.example), cut)
    return model


def _check_weights(model: nn.Module) -> None:
    """Raise where weights are made of others at every call, or are no float32."""
    for path, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        made = isinstance(module, CHANNELLED) and "weight" not in own
        if made or parametrize.is_parametrized(module):
            raise InputError(
                f"{path or 'model'}: its weights come out of others at every call, as those of "
                "weight_norm, spectral_norm or torch.nn.utils.prune do; make them plain first, by "
                "torch.nn.utils.remove_weight_norm, remove_spectral_norm, prune.remove or "
                "parametrize.remove_parametrizations"
            )
    for path, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise InputError(
                f"{path}: found weights of {str(parameter.dtype)[6:]}, expected float32: cast the "
                "model (model.float()) first"
            )


def _check_tied(model: nn.Module, options: Options, *, technique: str) -> None:
    """Raise where two modules hold one weight that a technique would change in one of them."""
    owners: dict[nn.Parameter, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(path)
    for paths in owners.values():
        if len(paths) > 1 and any(may_change(path, options) for path in paths):
            raise InputError(
                f"technique {technique}: {' and '.join(paths)} hold one weight, and would part; "
                f"leave them out, skip={'+'.join(paths)}"
            )


def apply(model: nn.Module, step: Step, samples: Samples) -> nn.Module:
    """Apply one step.

    Args:
        model: In evaluation; it is changed.
        step: The technique and its options.
        samples: What it may look at.

    Returns:
        The model, which may be another object. It can be trained: what the technique asks of its
        weights holds. `settle` ends that.

    Raises:
        InputError: The technique is not for this model, or these options.
    """
    new = step.technique.name == NETWORK  # its weights may have the names of others
    frozen = {path for path, p in model.named_parameters() if not p.requires_grad and not new}
    made = step.technique.apply(model.eval(), step.options, samples).eval()
    for path in frozen & {path for path, _ in made.named_parameters()}:
        made.get_parameter(path).requires_grad = False
    return made


def settle(model: nn.Module) -> nn.Module:
    """Make what a technique asks of the weights their values; return the model."""
    model = settled(model.settled() if isinstance(model, Joint) else model)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            with torch.no_grad():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
