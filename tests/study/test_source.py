"""The source study from end to end, on digits, with the smallest networks."""

from dataclasses import replace

import pytest

from isthmus.data import load_images
from isthmus.errors import InputError
from isthmus.study import cells
from isthmus.study.grid import Cell
from isthmus.study.recipes import STUDIES, StudyRecipe, grid_of
from isthmus.study.source import RECORDS_FILE, run_named, run_study

PLAIN = Cell(
    depth=18, width=4, placement="block", ratio=1, data="digits", recipe="digits", epochs=1
)
TINY = StudyRecipe(
    name="tiny",
    candidates=(PLAIN, replace(PLAIN, recipe="digits-lower-rate")),
    depths=(18,),
    ratios=(1, 2),
    seeds=(0,),
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study, and every part of a data set that it opened, with whether the choice was stored."""
    folder = tmp_path_factory.mktemp("study")
    opened = []

    def watched(data, part, **options):
        opened.append((part, (folder / cells.CHOICE_FILE).is_file()))
        return load_images(data, part, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isthmus.study.cells.load_images", watched)
        outcome = run_study(TINY, folder)
    return folder, outcome, opened


def test_no_test_label_is_read_before_the_choice_is_stored(studied):
    _, _, opened = studied
    assert ("train", False) in opened
    assert ("test", True) in opened
    assert ("test", False) not in opened


def test_without_a_choice_no_cell_is_computed(tmp_path):
    with pytest.raises(InputError, match=r"choice\.json: is missing"):
        cells.compute_cell(PLAIN, tmp_path / "cells" / "one", lambda *step: None)


def test_the_best_candidate_on_held_out_images_trains_every_cell(studied):
    _, outcome, _ = studied
    choice = outcome.choice
    assert choice.held_out == 143  # a tenth of 1,437
    assert choice.best.accuracy == max(candidate.accuracy for candidate in choice.candidates)
    assert {record.cell.recipe for record in outcome.records} == {choice.best.recipe}


def test_a_record_says_what_crosses_and_how_much_lies_before_it(studied):
    _, outcome, _ = studied
    found = {(r.cell.placement, r.cell.ratio): r.figures for r in outcome.records}
    assert set(found) == {("block", 1), ("block", 2), ("cut", 2)}
    assert outcome.summary.finished == 3
    # width 4: layer2 makes 8 channels of 4x4 from an 8x8 image
    assert found["block", 1]["bytes"] == 8 * 4 * 4
    assert found["block", 2]["bytes"] == found["block", 1]["bytes"]
    assert found["cut", 2]["bytes"] == found["block", 1]["bytes"] / 2
    for figures in found.values():
        assert [cut["after"] for cut in figures["cuts"]] == ["layer1", "layer2", "layer3"]
        shares = [cut["macs_before_share"] for cut in figures["cuts"]]
        assert shares == sorted(shares)
        assert 0 < shares[0] < shares[-1] < 1
        assert 0 <= figures["accuracy"] <= figures["top5"] <= 1
        assert len(figures["losses"]) == 1


def test_run_again_nothing_is_computed_again(studied):
    folder, outcome, _ = studied
    steps = []
    again = run_study(TINY, folder, report=lambda *step: steps.append(step))
    assert [record.seconds for record in again.records] == [r.seconds for r in outcome.records]
    assert not [step for step in steps if "loss" in step[0]]
    assert (folder / RECORDS_FILE).read_text().count("\n") == 3


def test_a_study_asked_for_in_another_way_shows_the_difference(studied):
    folder, _, _ = studied
    wider = replace(TINY, candidates=tuple(replace(c, width=8) for c in TINY.candidates))
    with pytest.raises(InputError, match="width"):
        run_study(wider, folder)


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_named_study_has_ratio_1_once_and_both_placements_elsewhere(name):
    recipe = STUDIES[name]()
    grid = grid_of(recipe, trained=recipe.candidates[0])
    per_network = 1 + 2 * (len(recipe.ratios) - 1)
    assert len(grid) == per_network * len(recipe.depths) * len(recipe.seeds)
    assert len({cell.key for cell in grid}) == len(grid)
    assert {cell.recipe for cell in recipe.candidates} <= set(cells.RECIPES)


def test_an_unknown_study_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match="there are paper, small, digits, transfer"):
        run_named("large", tmp_path)
    with pytest.raises(InputError, match="add --storage"):
        run_named("digits", tmp_path, join=True)
