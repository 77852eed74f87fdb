"""What a technique is, and how people write one: ``prune:slimming,keep=0.5``."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import InputError, few
from isthmus.models.joint import first
from isthmus.models.layers import Integer
from isthmus.units import parse_quantity
from isthmus.wire.formats import EXAMPLES, FORMATS, find_format

T = TypeVar("T")
Level = Literal["model", "arithmetic", "implementation"]
Need = Literal["nothing", "data", "training"]
Stage = Literal["structure", "zeros", "values"]
STAGES: tuple[Stage, ...] = ("structure", "zeros", "values")

Hook = Callable[[nn.Module, Any, Any], None]  # a module, what it read and what it made
Options = Mapping[str, Any]
_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a technique that goes step by step may train a model between its steps, in place.

    Attributes:
        whole: Trains it as after a technique, under a name. What a function returns, given after
            the name, is added to what is minimised.
        short: Trains it on so many samples, none of them among those that it is judged by.
        kept: Returns what an interrupted sitting found under a name, or finds and keeps it.
    """

    whole: Callable[..., None]
    short: Callable[[nn.Module, int], None]
    kept: Callable[[str, Callable[[], str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a technique may look at.

    Attributes:
        example: Inputs of two samples, one tensor for each input of the model.
        inputs: Training inputs (N, ...); empty where no data were given.
        labels: Their labels (N,); what the model itself says where they have none.
        training: How to train between steps; None where nothing is trained.
    """

    example: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    training: Training | None = None


Apply = Callable[[nn.Module, Options, Samples], nn.Module]


@dataclass(frozen=True, slots=True)
class Option:
    """What a text may set.

    Attributes:
        default: What it is where the text is silent.
        expected: What it may be, in words.
        read: Returns the value that a text says, or None where it says none.
        where: Values of other options, without which this one is of no use.
    """

    default: Any
    expected: str
    read: Callable[[str], Any]
    where: Mapping[str, Collection[Any]] = field(default_factory=dict)


def useful(option: Option, **where: Collection[Any]) -> Option:
    """Return an option that is refused unless other options have one of these values."""
    return replace(option, where=where)


def number(*, low: float, high: float, default: float, whole: bool = False) -> Option:
    """Return an option that is a number between two, these included."""

    def read(text: str) -> float | None:
        value = _read(int if whole else float, text)
        return value if value is not None and low <= value <= high else None

    return Option(default, f"{low:g} to {high:g}", read)


def word(words: tuple[str, ...], *, default: str) -> Option:
    """Return an option that is one of some words."""
    return Option(default, " or ".join(words), lambda text: text if text in words else None)


def names() -> Option:
    """Return an option that is any names of modules, with ``+`` between them."""
    expected = "names of modules with + between them"
    return Option((), expected, lambda text: tuple(text.split("+")) if text else None)


def format_name() -> Option:
    """Return an option that is the name of a number format."""
    expected = f"{', '.join(FORMATS)}, or like {EXAMPLES}"
    return Option("fp8-e4m3", expected, lambda text: text if _read(find_format, text) else None)


def described(expected: str) -> Option:
    """Return an option that is any text, said in words."""
    return Option("", expected, lambda text: text or None)


def shares(*default: float) -> Option:
    """Return an option that is several shares, read in order, with ``+`` between them."""

    def read(text: str) -> tuple[float, ...] | None:
        found = {_read(float, each) or 0 for each in text.split("+")}
        return tuple(sorted(found)) if all(0 < share < 1 for share in found) else None

    return Option(default, "shares between 0 and 1 with + between them", read)


def size() -> Option:
    """Return an option that is a number of bytes, without limit where the text is silent."""

    def read(text: str) -> float | None:
        value = _read(lambda said: parse_quantity(said, "byte"), text)
        return value if value is not None and value > 0 else None

    return Option(inf, "a size such as 64KiB", read)


def _read(read: Callable[[str], T], text: str) -> T | None:
    try:
        return read(text)
    except (ValueError, InputError):
        return None


ENDS: Mapping[str, Option] = {"ends": word(("keep", "round"), default="keep")}
_WHERE: Mapping[str, Option] = {"only": names(), "skip": names()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One way to make a model smaller.

    Attributes:
        name: As people write it.
        does: What it does, in a few words.
        paper: Where it comes from.
        level: Where the survey of Lee et al. places it.
        needs: What it has to be given; ``"training"`` is best spent after it.
        improves: Which figures should get better: parameters, macs, weight bytes, stored bytes,
            activation bytes, time, energy.
        stage: What it changes. A chain goes from structure to zeros to values.
        options: What a text may set, beside ``only`` and ``skip``.
        apply: Changes a model, which is its own to change, and returns it.
        check: Raises an `InputError` where options contradict each other, whatever the model.
    """

    name: str
    does: str
    paper: str
    level: Level = "model"
    needs: Need = "nothing"
    improves: tuple[str, ...]
    stage: Stage
    apply: Apply
    options: Mapping[str, Option] = field(default_factory=dict)
    check: Callable[[Options], None] = lambda options: None

    @property
    def all_options(self) -> Mapping[str, Option]:
        """Every option that a text may set."""
        return {**self.options, **_WHERE}


def parse_options(technique: Technique, texts: Sequence[str]) -> Options:
    """Read ``keep=0.5`` and ``round_to=8``.

    Args:
        technique: Says what there is.
        texts: What follows the technique's name, between commas.

    Returns:
        Every option with its value.

    Raises:
        InputError: No such option, a value out of bounds, or values that contradict each other.
    """
    known = technique.all_options
    values: dict[str, Any] = {name: option.default for name, option in known.items()}
    set_: set[str] = set()
    for item in texts:
        name, _, written = item.partition("=")
        if name not in known:
            raise InputError(
                f"technique {technique.name}: found option {item!r}; it takes {', '.join(known)}"
            )
        value = known[name].read(written)
        if name in set_:
            raise InputError(f"technique {technique.name}: found {name}= twice, expected it once")
        set_.add(name)
        if value is None:
            raise InputError(
                f"technique {technique.name}: found {item}, expected {name}={known[name].expected}"
            )
        values[name] = value
    for name in sorted(set_):
        for other, useful in known[name].where.items():
            if values[other] not in useful:
                raise InputError(
                    f"technique {technique.name}: found {name}=, of no use with "
                    f"{other}={values[other]}; leave it out"
                )
    technique.check(values)
    return values


def layers(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], options: Options, *, technique: str
) -> dict[str, nn.Module]:
    """Return the layers that a technique is to change, by path.

    Args:
        model: The model.
        kinds: Types of layers, exactly.
        options: ``only`` and ``skip``: paths of modules inside of which layers are, or are not.
        technique: Names it in error messages.

    Raises:
        InputError: There are none, or a path is of no module.
    """
    check_names(model, options, technique=technique)
    emptied = {module.layer for module in model.modules() if isinstance(module, Integer)}
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) in kinds and may_change(path, options) and module not in emptied
    }
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"technique {technique}: found no layer for it, expected one of {names}"
            f"{', but for layers of integers' if emptied else ''}; leave it out or name other "
            "modules with only="
        )
    return found


def check_names(
    model: nn.Module, options: Options, *, technique: str, changed: bool = False
) -> None:
    """Raise unless what ``only`` and ``skip`` name are modules.

    Args:
        model: The model.
        options: Of the technique.
        technique: Names it in error messages.
        changed: Whether earlier steps may put modules in place of its layers first.

    Raises:
        InputError: One is none.
    """
    modules = dict(model.named_modules())
    for name in (*options["only"], *options["skip"]):
        if name not in modules and not (changed and inside_a_layer(model, name)):
            raise InputError(
                f"technique {technique}: found no module {name!r}; "
                f"there are {few([*filter(None, modules)], most=8)}"
            )


def inside_a_layer(model: nn.Module, name: str) -> bool:
    """Return whether a module of that name could be inside of what replaces a layer."""
    parts = name.split(".")
    outer = {"", *(".".join(parts[:depth]) for depth in range(1, len(parts)))}
    return any(path in outer and not any(m.children()) for path, m in model.named_modules())


def without_ends(chosen: dict[str, nn.Module], options: Options) -> dict[str, nn.Module]:
    """Return layers without the first and the last, where ``ends`` keeps these and others are."""
    if options["ends"] == "round" or len(chosen) < 3:
        return chosen
    return dict(list(chosen.items())[1:-1])


def may_change(path: str, options: Options) -> bool:
    """Return whether ``only`` and ``skip`` let a technique change what lies at a path."""
    only = not options["only"] or _inside(path, options["only"])
    return only and not _inside(path, options["skip"])


def _inside(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def needs_data(samples: Samples, *, technique: str, least: int = 1) -> None:
    """Raise unless there are as many samples as a technique needs.

    Raises:
        InputError: There are fewer.
    """
    found = len(samples.inputs[0]) if samples.inputs else 0
    if found < least:
        raise InputError(
            f"technique {technique}: found {found} training samples, expected {least} or more; "
            f"{'bring more' if found else 'add'} --data"
        )


@contextmanager
def learnable(model: nn.Module) -> Iterator[None]:
    """Let gradients reach all weights, also those that a user froze."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = False


def losses(model: nn.Module, samples: Samples, *, batch_size: int = 128) -> Iterator[Tensor]:
    """Yield of each batch of the samples the cross entropy of their labels, summed."""
    assert samples.labels is not None
    for start in range(0, len(samples.labels), batch_size):
        batch = slice(start, start + batch_size)
        scores = first(model.eval()(*(x[batch] for x in samples.inputs)))
        yield F.cross_entropy(scores, samples.labels[batch], reduction="sum")


def observed(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], *, most: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return values that arrive at modules and that leave them, flat, drawn evenly.

    Of tensors of one size the same places are drawn: who reads the same sees the same.

    Args:
        model: Run in evaluation.
        modules: Which; each takes one tensor and returns one.
        inputs: Of the model (N, ...).
        most: Values to keep for each module.
    """
    paths = {module: path for path, module in modules.items()}
    arriving: dict[str, list[Tensor]] = {}
    leaving: dict[str, list[Tensor]] = {}
    batches = range(0, len(inputs[0]), _BATCH)

    def some(x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1)
        share = max(1, most // len(batches))
        if len(flat) > share:
            generator = torch.Generator().manual_seed(0)
            flat = flat[torch.randint(len(flat), (share,), generator=generator)]
        return flat.float()

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        arriving.setdefault(paths[module], []).append(some(arguments[0]))
        leaving.setdefault(paths[module], []).append(some(made))

    watch(model, dict.fromkeys(paths, keep), inputs)
    before, after = (
        {path: torch.cat(x) for path, x in side.items()} for side in (arriving, leaving)
    )
    return before, after


@torch.no_grad()
def watch(
    model: nn.Module,
    hooks: Mapping[nn.Module, Hook],
    inputs: Sequence[Tensor],
    *,
    batch_size: int = _BATCH,
) -> None:
    """Run a model in evaluation on inputs (N, ...), and tell hooks what modules read and made."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        for start in range(0, len(inputs[0]), batch_size):
            model.eval()(*(x[start : start + batch_size] for x in inputs))
    finally:
        for handle in handles:
            handle.remove()
