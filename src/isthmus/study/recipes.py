"""Experiments: functions without arguments that return a frozen recipe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from isthmus.models import RATIOS
from isthmus.study.grid import PLACEMENTS, Cell
from isthmus.train import FitConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that one walk along the chain depends on.

    Attributes:
        model: As the command line takes it.
        data: As the command line takes it.
        platform: A preset's name or the path of a platform file.
        objective: latency, throughput or energy.
        codec: What carries inner crossings; None lets the planner choose.
        fit: Epochs, rates and the seed of everything.
        smaller: A smaller network that stands against the split one, or None.
    """

    model: str
    data: str
    platform: str
    objective: str = "latency"
    codec: str | None = None
    fit: FitConfig
    smaller: str | None = None


def demo() -> Recipe:
    """A small ResNet on digits, on two microcontrollers of which neither can hold it.

    The codec was chosen among three of 32 bytes on a fifth of the training set held out, five
    seeds each (`benchmarks/demo_codec.py`); the test set chose nothing.
    """
    return Recipe(
        model="digits-resnet",
        data="digits",
        platform="two-mcu-spi",
        codec="bottleneck:ratio=4,bits=2",
        fit=FitConfig(epochs=12, base_epochs=16),
        smaller="digits-resnet-small",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecipe:
    """A study of narrowed networks.

    Attributes:
        name: What people call it.
        candidates: Ways to train a plain network; the best on held-out images is taken.
        depths: Of the ResNets.
        ratios: Of the narrow layers; 1 is the plain network, which both placements share.
        seeds: Each is a training of its own.
        placements: Of the narrow layers.
        searched_depths: What a search may choose from, beyond the grid.
        searched_widths: As above.
        searched_ratios: As above.
    """

    name: str
    candidates: tuple[Cell, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    seeds: tuple[int, ...]
    placements: tuple[str, ...] = PLACEMENTS
    searched_depths: tuple[int, ...] = ()
    searched_widths: tuple[int, ...] = ()
    searched_ratios: tuple[int, ...] = ()


_plain = partial(Cell, depth=18, placement="block", ratio=1)  # what candidates are tried on


def base() -> StudyRecipe:
    """Plain networks to start from, for an accelerator: ResNet-18 and -50 by long recipes."""
    plain = _plain(width=64, data="cifar100", recipe="standard", epochs=200)
    return StudyRecipe(
        name="base",
        candidates=(plain, replace(plain, recipe="standard-smooth")),
        depths=(18, 50),
        ratios=(1,),
        seeds=(0, 1, 2),
    )


def paper() -> StudyRecipe:
    """The paper's grid, for an accelerator: five networks, six ratios, three seeds, CIFAR-100."""
    plain = _plain(width=64, data="cifar100", epochs=24)
    return StudyRecipe(
        name="paper",
        candidates=(plain, replace(plain, epochs=40)),
        depths=(18, 34, 50, 101, 152),
        ratios=RATIOS,
        seeds=(0, 1, 2),
        searched_depths=(18, 34, 50, 101, 152),
        searched_widths=(32, 48, 64),
        searched_ratios=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    )


def small() -> StudyRecipe:
    """The same for two cores: a quarter of the width, ResNet-18 then -34, eight epochs."""
    plain = _plain(width=16, data="cifar100", recipe="small", epochs=8)
    return StudyRecipe(
        name="small",
        candidates=(plain, replace(plain, recipe="small-lower-rate")),
        depths=(18, 34),
        ratios=(1, 2, 4, 8, 16),
        seeds=(0, 1, 2),
        searched_depths=(18, 34),
        searched_widths=(8, 12, 16, 24),
        searched_ratios=(1, 2, 3, 4, 6, 8, 12, 16),
    )


def depth() -> StudyRecipe:
    """Whether deeper networks resist better, two hours of one core a seed: an eighth of the width.

    The paper's placement at ResNet-18, -34 and -50, three ratios, four epochs, fp32.
    """
    plain = _plain(width=8, data="cifar100", recipe="small-32", epochs=4)
    return StudyRecipe(
        name="depth",
        candidates=(plain, replace(plain, recipe="small-32-lower-rate")),
        depths=(18, 34, 50),
        ratios=(1, 2, 8),
        seeds=(0, 1, 2),
        placements=("block",),
    )


def digits() -> StudyRecipe:
    """The same as ``small`` on digits, to see the whole of it in three minutes."""
    plain = _plain(width=8, data="digits", recipe="digits", epochs=12)
    return StudyRecipe(
        name="digits",
        candidates=(plain, replace(plain, recipe="digits-lower-rate")),
        depths=(18,),
        ratios=(1, 2, 4, 8),
        seeds=(0, 1),
        searched_depths=(18, 34),
        searched_widths=(4, 6, 8, 12),
        searched_ratios=(1, 2, 3, 4, 6, 8),
    )


STUDIES: dict[str, Callable[[], StudyRecipe]] = {
    "base": base,
    "paper": paper,
    "small": small,
    "depth": depth,
    "digits": digits,
}


def grid_of(recipe: StudyRecipe, *, trained: Cell) -> tuple[Cell, ...]:
    """Return the cells of a study, seed by seed and network by network.

    Args:
        recipe: The study.
        trained: Says how all cells are trained: the chosen candidate.

    Returns:
        Ratio 1 once, then every placement at each other ratio.
    """
    places = [("block", 1), *((p, r) for r in recipe.ratios if r > 1 for p in recipe.placements)]
    return tuple(
        replace(trained, depth=depth, placement=placement, ratio=ratio, seed=seed)
        for seed, depth in product(recipe.seeds, recipe.depths)
        for placement, ratio in places
    )


def beyond(recipe: StudyRecipe, *, trained: Cell) -> tuple[Cell, ...]:
    """Return what a search may choose from: networks that the grid does not hold, of one seed.

    Args:
        recipe: The study.
        trained: Says how all cells are trained, as for `grid_of`.

    Returns:
        Cells that are judged on the held-out part: a search chooses, and the test set may not.
    """
    grid = {cell.key for cell in grid_of(recipe, trained=trained)}
    space = product(
        recipe.searched_depths, recipe.searched_widths, recipe.placements, recipe.searched_ratios
    )
    cells = [
        replace(trained, depth=depth, width=width, placement=placement, ratio=ratio,
                seed=recipe.seeds[0])
        for depth, width, placement, ratio in space
        if ratio <= width and (ratio > 1 or placement == "block")
    ]  # fmt: skip
    return tuple(replace(cell, judged="held-out") for cell in cells if cell.key not in grid)
