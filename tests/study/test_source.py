"""The source study from end to end, on digits, with the smallest networks."""

import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from isthmus.data import load_images
from isthmus.data.dataset import DATASETS
from isthmus.errors import InputError, StorageError
from isthmus.files import write_json
from isthmus.models import load_weights, read_weights, resnet
from isthmus.study import cells, source
from isthmus.study.grid import Cell
from isthmus.study.recipes import STUDIES, StudyRecipe, beyond, grid_of
from isthmus.study.records import RECORDS_FILE
from isthmus.study.source import join_study, run_named, run_study
from isthmus.train.images import evaluate_images
from tests.data.layouts import write_cifar100_binary

PLAIN = Cell(
    depth=18, width=4, placement="block", ratio=1, data="digits", recipe="digits", epochs=2
)
TINY = StudyRecipe(
    name="tiny",
    candidates=(PLAIN, replace(PLAIN, recipe="digits-lower-rate")),
    depths=(18,),
    ratios=(1, 2),
    seeds=(1,),
    searched_depths=(18,),
    searched_widths=(2, 4),
    searched_ratios=(1, 2, 4),
)


@contextmanager
def every_part_read(note):
    """Tell of each part of the digits before it is read, whichever function asks for it."""
    read = DATASETS["digits"]

    def watched(part, search):
        note(part)
        return read(part, search)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "digits", watched)
        yield


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study, and every part of a data set that it opened, with whether the choice was stored."""
    folder = tmp_path_factory.mktemp("study")
    opened = []
    with every_part_read(lambda p: opened.append((p, (folder / cells.CHOICE_FILE).is_file()))):
        outcome = run_study(TINY, folder)
    return folder, outcome, opened


def test_no_test_label_is_read_before_the_choice_is_stored(studied):
    _, _, opened = studied
    # One choice, then three cells, each with the test set once.
    assert opened == [("train", False), *[("train", True), ("test", True)] * 3]


@pytest.mark.long
def test_a_test_set_that_cannot_be_read_stops_no_choice_and_no_search(tmp_path, monkeypatch):
    """On real files, so that whatever opens the test set meets the damage."""
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path / "data"))
    write_cifar100_binary(tmp_path / "data" / "cifar-100-binary", num_train=60)
    path = tmp_path / "data" / "cifar-100-binary" / "test.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    plain = replace(PLAIN, width=2, data="cifar100", recipe="small-32")
    recipe = replace(TINY, candidates=(plain,), ratios=(1,), searched_ratios=(1, 2))
    outcome = run_study(recipe, tmp_path, search=1)
    assert outcome.choice.held_out == 6
    (tried,) = outcome.records
    assert tried.cell.judged == "held-out"
    reasons = {failure.reason for failure in outcome.summary.failed}
    expected = f"{path}: found 12,295 bytes, expected records of 3,074; get it again"
    assert (len(outcome.summary.failed), reasons) == (2, {expected})

    path.write_bytes(whole)  # mended, the cells go on from where they were: at their end
    steps = []
    again = run_study(recipe, tmp_path, search=1, report=lambda *step: steps.append(step[0]))
    assert (again.summary.failed, again.summary.finished) == ((), 3)
    assert not [step for step in steps if "loss" in step]
    tested = [each.figures for each in again.records if each.cell.judged == "test"]
    assert all(0 <= each["accuracy"] <= each["superclass"] <= 1 for each in tested)


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
        assert len(figures["losses"]) == PLAIN.epochs


def test_run_again_nothing_is_computed_again(studied):
    folder, outcome, _ = studied
    steps = []
    again = run_study(TINY, folder, report=lambda *step: steps.append(step))
    assert [record.seconds for record in again.records] == [r.seconds for r in outcome.records]
    assert not [step for step in steps if "loss" in step[0]]
    assert (folder / RECORDS_FILE).read_text().count("\n") == 3


def test_what_is_finished_so_far_is_shown_without_training(studied, tmp_path, monkeypatch):
    folder, outcome, _ = studied
    monkeypatch.setitem(STUDIES, "tiny", lambda: TINY)
    shown = run_named("tiny", folder, so_far=True)
    assert (shown.records, shown.choice) == (outcome.records, outcome.choice)
    with pytest.raises(StorageError, match="no such file; create the study first"):
        run_named("tiny", tmp_path, so_far=True)
    assert list(tmp_path.iterdir()) == []


def test_a_study_asked_for_in_another_way_shows_the_difference(studied):
    folder, _, _ = studied
    wider = replace(TINY, candidates=tuple(replace(c, width=8) for c in TINY.candidates))
    with pytest.raises(InputError) as error:
        run_study(wider, folder)
    assert str(error.value) == (
        f"{folder}/choice.json: is of another study: network: stored 'resnet18, width 4, ratio 1',"
        " asked 'resnet18, width 8, ratio 1'; name another folder"
    )
    longer = replace(TINY, candidates=(replace(PLAIN, epochs=PLAIN.epochs + 1),))
    with pytest.raises(
        InputError, match=r"recipes: stored \['digits, 2 epochs', .*\], asked \['dig"
    ):
        run_study(longer, folder)


def test_a_plain_network_leaves_weights_that_take_pixels_as_other_commands_feed_them(studied):
    folder, outcome, _ = studied
    (plain,) = [record for record in outcome.records if record.cell.ratio == 1]
    (path,) = folder.glob(f"cells/*/{cells.WEIGHTS_FILE}")
    network = resnet(18, num_classes=10, in_channels=1, width=4)
    load_weights(network, read_weights(path), where=str(path))
    test = load_images("digits", "test")
    scores = evaluate_images(network.eval(), torch.from_numpy(test.x), torch.from_numpy(test.y))
    assert scores.top1 == pytest.approx(plain.figures["accuracy"], abs=0.05)
    assert scores.top1 > 0.3


@pytest.mark.long
def test_a_search_reads_no_test_label_and_what_it_found_is_tested(studied, tmp_path):
    before, _, _ = studied
    folder = tmp_path / "study"
    shutil.copytree(before, folder)
    judged: list[str] = []
    with every_part_read(judged.append):
        outcome = run_study(TINY, folder, search=2)
    tried = [r for r in outcome.records if r.cell.judged == "held-out"]
    found = [r for r in outcome.records if r.cell.judged == "test" and r.cell.ratio not in (1, 2)]
    found += [r for r in outcome.records if r.cell.judged == "test" and r.cell.width == 2]
    assert len(tried) == 2
    assert {r.cell for r in tried} <= set(
        beyond(TINY, trained=replace(PLAIN, recipe=outcome.choice.best.recipe))
    )
    keys = {replace(r.cell, judged="test").key for r in tried}
    assert 1 <= len(found) <= 2
    assert {r.key for r in found} <= keys
    # Two trainings of the search, then as many as are on the front, each with the test set.
    assert judged == ["train"] * 2 + ["train", "test"] * len(found)
    again = run_study(TINY, folder)
    assert again.records == outcome.records


@pytest.mark.parametrize("name", ["why?", "a%41b", "a?x=1&y#z", "{a} b"])
def test_a_study_keeps_its_database_in_its_own_folder_whatever_that_is_called(
    monkeypatch, tmp_path, name
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "choose", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, tmp_path / name)
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.db")}
    assert made == {f"{name}/study.db"}


def test_there_is_only_so_much_to_search_in(tmp_path):
    # Width 2: block 1, 2, cut 2; width 4: block 4, cut 4, the others being the grid's.
    with pytest.raises(InputError, match="search: found 6, expected at most 5"):
        run_study(TINY, tmp_path, search=6)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="--search: is for who creates the study"):
        run_named("digits", tmp_path, join=True, search=2, storage="sqlite:///none.db")


def test_who_joins_computes_what_the_creator_left_by_the_creators_choice(studied, tmp_path):
    before, outcome, _ = studied
    here, there, url = tmp_path / "here", tmp_path / "there", f"sqlite:///{tmp_path}/shared.db"
    here.mkdir()
    shutil.copy(before / cells.CHOICE_FILE, here)
    plain = replace(TINY, ratios=(1,))

    def stop(step, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plain, here, storage=url, report=stop)
    joined = join_study("tiny", there, storage=url)
    assert (joined.choice, joined.summary.finished) == (outcome.choice, 1)
    assert (there / cells.CHOICE_FILE).read_bytes() == (here / cells.CHOICE_FILE).read_bytes()
    assert run_study(plain, here, storage=url).records == joined.records
    (same,) = [record for record in outcome.records if record.cell.ratio == 1]
    assert joined.records[0].figures == same.figures  # the same seed, the same bits


def test_a_folder_with_another_studys_choice_is_not_joined_from(studied, tmp_path):
    before, outcome, _ = studied
    other = replace(outcome.choice, held_out=1)
    write_json(tmp_path / cells.CHOICE_FILE, other)
    kept = (tmp_path / cells.CHOICE_FILE).read_bytes()
    with pytest.raises(InputError, match=r"choice\.json: is of another study; name another"):
        join_study("tiny", tmp_path, storage=f"sqlite:///{before}/study.db")
    assert (tmp_path / cells.CHOICE_FILE).read_bytes() == kept


def test_a_database_that_cannot_be_used_is_said_before_anything_is_trained(tmp_path):
    steps = []
    for url in ("postgresql://me@127.0.0.1:1/studies", "study.db"):
        with pytest.raises(StorageError):
            run_study(TINY, tmp_path, storage=url, report=lambda *step: steps.append(step))
    assert steps == list(tmp_path.iterdir()) == []


def test_a_ratio_that_leaves_no_channel_fails_its_cells_alone_in_one_line(studied, tmp_path):
    before, outcome, _ = studied
    folder = tmp_path / "study"
    shutil.copytree(before, folder)
    again = run_study(replace(TINY, ratios=(1, 2, 8)), folder)
    assert again.records == outcome.records
    assert {failure.reason for failure in again.summary.failed} == {
        f"ResNet-18 of width 4: ratio 8 leaves {layer} none of 4 channels; expected a ratio of at "
        "most 4, or a larger width"
        for layer in ("layer1.0.conv1", "layer1.narrow")
    }


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_search_goes_beyond_the_grid_and_leaves_every_layer_a_channel(name):
    recipe = STUDIES[name]()
    space = beyond(recipe, trained=recipe.candidates[0])
    grid = {cell.key for cell in grid_of(recipe, trained=recipe.candidates[0])}
    assert len({cell.key for cell in space}) == len(space)
    assert bool(space) == bool(recipe.searched_depths)
    for cell in space:
        assert replace(cell, judged="test").key not in grid
        assert cell.ratio <= cell.width


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_named_study_has_ratio_1_once_and_its_placements_elsewhere(name):
    recipe = STUDIES[name]()
    grid = grid_of(recipe, trained=recipe.candidates[0])
    per_network = 1 + len(recipe.placements) * (len(recipe.ratios) - 1)
    assert len(grid) == per_network * len(recipe.depths) * len(recipe.seeds)
    assert len({cell.key for cell in grid}) == len(grid)
    assert {cell.recipe for cell in recipe.candidates} <= set(cells.RECIPES)


def test_an_unknown_study_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match="there are base, paper, small, depth, digits, transfer"):
        run_named("large", tmp_path)
    with pytest.raises(InputError, match="add --storage"):
        run_named("digits", tmp_path, join=True)
