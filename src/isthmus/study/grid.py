"""What a study computes: cells, each under its key, and the grid that they make."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pydantic_core import to_jsonable_python

from isthmus.errors import InputError

SCHEMA = "isthmus.study/1"
Placement = Literal["block", "cut"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

# What every cell's figures have to hold, as numbers, and which way is better in a search.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "bytes": "minimize",
}

# Within one study these are the same for every cell that is added later; the others may grow.
_FIXED = ("width", "data", "recipe", "epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training of one narrowed network, and what tells it from every other.

    Attributes:
        depth: Of the ResNet: 18, 34, 50, 101 or 152.
        width: Channels after the stem.
        placement: Where the narrow layers stand, ``block`` or ``cut``.
        ratio: Channels before / channels in the narrow layer.
        data: As the command line takes it.
        recipe: Name of the training recipe; what it says is in the grid's config.
        epochs: Passes over the training set.
        seed: Of everything that is drawn.
        judged: What its accuracy is of: ``test`` (trained on the whole training set), or
            ``held-out`` (trained on nine tenths of it and judged on the last, as a search does).

    Raises:
        InputError: A number is too small, or the placement is unknown.

    Example:
        >>> Cell(depth=18, width=16, placement="cut", ratio=8, data="cifar100", epochs=8).key
        'resnet18/w16/cut/r8/cifar100/fast/e8/s0'
    """

    depth: int
    width: int
    placement: str
    ratio: int
    data: str
    recipe: str = "fast"
    epochs: int
    seed: int = 0
    judged: Literal["test", "held-out"] = "test"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "ratio", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"cell: {name}: found {getattr(self, name)}, expected 1 or more")
        if self.placement not in PLACEMENTS:
            known = ", ".join(PLACEMENTS)
            raise InputError(f"cell: placement: found {self.placement!r}, expected {known}")

    @property
    def key(self) -> str:
        """The cell in one word; two cells have the same key only if they are equal."""
        network = f"resnet{self.depth}/w{self.width}/{self.placement}/r{self.ratio}"
        judged = "" if self.judged == "test" else f"/{self.judged}"
        return f"{network}/{self.data}/{self.recipe}/e{self.epochs}/s{self.seed}{judged}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A study as it is asked for.

    Attributes:
        name: Of the study.
        cells: Each is computed once.
        config: All else that the figures depend on, e.g. the recipe that the cells name; stored
            with the study, which refuses another one later. Whatever JSON holds, and dataclasses.
        candidates: What a search may choose from once the cells are taken.
        search: How many candidates it tries.

    Raises:
        InputError: Cells are missing or have one key, or there is nothing to search in.
    """

    name: str
    cells: tuple[Cell, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Cell, ...] = ()
    search: int = 0

    def __post_init__(self) -> None:
        keys = [cell.key for cell in self.cells]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if not keys or twice:
            found = f"found {twice[0]} twice" if twice else "found none"
            raise InputError(f"grid {self.name}: cells: {found}, expected each once")
        free = len({cell.key for cell in self.candidates} - set(keys))
        if not 0 <= self.search <= free:
            raise InputError(
                f"grid {self.name}: search: found {self.search}, expected at most {free}, the "
                "candidates that are no cells"
            )


def stored_config(grid: Grid) -> dict[str, Any]:
    """Return what a study keeps of its grid, as JSON: all but cells that may still be added."""
    return {
        "schema": SCHEMA,
        "cells": {name: sorted({getattr(cell, name) for cell in grid.cells}) for name in _FIXED},
        "config": to_jsonable_python(grid.config),
        "objectives": [{"figure": each, "direction": way} for each, way in OBJECTIVES.items()],
        "search": {
            "cells": grid.search,
            "candidates": [asdict(cell) for cell in grid.candidates],
        },
    }


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Name every entry in which two configs differ; a search may be added, and grow.

    Example:
        >>> differences({"recipe": {"rate": 0.1}}, {"recipe": {"rate": 0.2}, "bits": 8})
        ('bits: stored nothing, asked 8', 'recipe.rate: stored 0.1, asked 0.2')
    """
    old, new = (
        flat({name: each[name] for name in each if name != "search"}) for each in (stored, asked)
    )
    return tuple(
        f"{name}: stored {_shown(old, name)}, asked {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if (name in old) != (name in new) or old.get(name) != new.get(name)
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what nested mappings hold under dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(config: Mapping[str, Any], name: str) -> str:
    if name not in config:
        return "nothing"
    text = repr(config[name])
    return text if len(text) <= 60 else f"{text[:57]}..."
