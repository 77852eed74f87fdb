from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from isthmus.errors import InputError
from isthmus.study.grid import PLACEMENTS, Cell, Grid, differences, stored_config
from tests.study.computes import grid

numbers = st.integers(min_value=1, max_value=200)
cells = st.builds(
    Cell,
    depth=numbers,
    width=numbers,
    placement=st.sampled_from(PLACEMENTS),
    ratio=numbers,
    data=st.sampled_from(["cifar100", "digits"]),
    recipe=st.sampled_from(["fast", "paper"]),
    epochs=numbers,
    seed=st.integers(min_value=0, max_value=9),
)


@given(cells)
def test_a_cell_survives_json(cell):
    kind = TypeAdapter(Cell)
    assert kind.validate_json(kind.dump_json(cell)) == cell


@given(cells, cells)
def test_two_cells_share_a_key_only_if_they_are_equal(one, other):
    assert (one.key == other.key) == (one == other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0}, "ratio: found 0, expected 1 or more"),
        ({"placement": "end"}, "placement: found 'end', expected block, cut"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(grid().cells[0], **change)


def test_a_grid_that_cannot_be_computed_is_refused():
    cell = grid().cells[0]
    with pytest.raises(InputError, match="found none, expected each once"):
        Grid(name="empty", cells=())
    with pytest.raises(InputError, match=r"found resnet18/.* twice, expected each once"):
        Grid(name="double", cells=(cell, cell))
    with pytest.raises(InputError, match="search: found 1, expected at most 0"):
        Grid(name="nothing left", cells=(cell,), candidates=(cell,), search=1)


def test_a_config_of_dataclasses_is_stored_as_json():
    @dataclass(frozen=True)
    class Recipe:
        rates: tuple[float, ...]

    stored = stored_config(grid(config={"recipe": Recipe((0.1, 0.2))}))
    assert stored["config"] == {"recipe": {"rates": [0.1, 0.2]}}


def test_more_seeds_ratios_or_networks_are_the_same_study_but_more_epochs_are_not():
    small = grid()
    more = [replace(small.cells[0], seed=1), replace(small.cells[0], depth=34)]
    assert stored_config(grid(cells=(*small.cells, *more))) == stored_config(small)
    searched = grid(candidates=grid(6).cells, search=2)
    assert differences(stored_config(small), stored_config(searched)) == ()
    longer = grid(cells=tuple(replace(cell, epochs=8) for cell in small.cells))
    assert differences(stored_config(small), stored_config(longer)) == (
        "cells.epochs: stored [6], asked [8]",
    )
