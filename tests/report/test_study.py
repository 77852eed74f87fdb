import csv
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image
from plotly.offline import get_plotlyjs
from rich.console import Console

from isthmus.errors import InputError
from isthmus.report.answers import answers, headline, saving
from isthmus.report.findings import divided, fronts_of, lines_of, missing, rows_of, slope_of
from isthmus.report.labels import apart
from isthmus.report.paper import paper_figures
from isthmus.report.study import study_page, study_tables, transfer_tables, write_study
from isthmus.study.transfer import claims
from tests.report.studies import CHOICE, MACHINE, READINGS, RECORDS, TRANSFER, reading, record

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>|&{{ 7*7 }}'
FIGURES = {
    f"{name}.{kind}"
    for name in ("accuracy_ratio", "accuracy_bytes", "transfer_layers")
    for kind in ("png", "svg")
}
TABLES = {
    f"{name}.{kind}"
    for name in ("accuracy", "summary", "front", "transfer")
    for kind in ("csv", "md")
}


def ours(text):
    """The page without plotly's own source."""
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def said(rows, readings=()):
    return {answer.question: answer for answer in answers(rows, readings)}


def rows_in(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    write_study(path, title="Study small", records=RECORDS, choice=CHOICE, transfer=TRANSFER)
    return path


@pytest.fixture(scope="module")
def page(folder):
    return ours((folder / "study.html").read_text())


def test_every_table_figure_and_the_page_are_written(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"study.html", "front.json", *TABLES, *FIGURES}


def test_mean_and_spread_are_those_of_the_seeds():
    # 0.59, 0.60, 0.61: mean 0.60; (0.01^2 + 0 + 0.01^2) / (3 - 1) = 0.0001, its root 0.01
    row = rows_of(RECORDS)[0]
    assert (row.network, row.placement, row.ratio) == ("ResNet-18", "block", 1)
    assert row.accuracies == (0.59, 0.60, 0.61)
    assert row.mean == pytest.approx(0.60)
    assert row.spread == pytest.approx(0.01)


def test_one_seed_has_no_spread():
    assert rows_of(RECORDS[:1])[0].spread is None


def test_networks_that_differ_in_more_than_depth_are_told_apart():
    rows = rows_of([record(18, "cut", 1, 0.5), record(18, "cut", 1, 0.9, data="cifar10")])
    assert [row.network for row in rows] == ["ResNet-18, data cifar10", "ResNet-18, data cifar100"]


def test_a_record_without_accuracy_is_refused_by_its_key():
    odd = replace(RECORDS[0], figures={"bytes": 1})
    with pytest.raises(InputError, match=r"resnet18/.*found no figure 'accuracy'"):
        rows_of([odd])


def test_the_slope_is_in_points_for_each_doubling_with_its_error():
    # Means 60, 58, 56, 54 at 0, 1, 2, 3 doublings: 2 points each. The squares of the distances
    # from 1.5 doublings sum to 5, each mean has an error of 1 / sqrt 3: 1 / sqrt(3 * 5) = 0.258.
    slope = slope_of(lines_of(rows_of(RECORDS))["ResNet-18", "block"])
    assert slope.points == pytest.approx(-2.0)
    assert slope.error == pytest.approx(0.2582, abs=1e-4)


def test_the_summary_holds_each_cut_with_accuracy_bytes_and_depth(folder):
    table = rows_in(folder / "summary.csv")
    assert len(table) == 2 * 2 * 4 * 3
    (row,) = [
        row
        for row in table
        if (row["network"], row["placement"], row["ratio"], row["cut_after"])
        == ("ResNet-18", "cut", "8", "layer2")
    ]
    assert float(row["accuracy_mean"]) == pytest.approx(0.47)
    assert float(row["accuracy_spread"]) == pytest.approx(0.01)
    assert (row["wire_channels"], row["int8_bytes"], row["fp32_bytes"]) == ("4", "1024", "4096")
    assert (row["seeds"], row["macs_before_share"]) == ("3", "0.5")
    assert len(rows_in(folder / "accuracy.csv")) == len(RECORDS)


def test_the_front_is_stored_with_its_reference_and_both_balanced_points(folder):
    stored = json.loads((folder / "front.json").read_text())
    assert (stored["schema"], stored["compared_cut"]) == ("isthmus.front/1", "layer2")
    first = stored["networks"][0]
    assert [point["num_bytes"] for point in first["front"][:3]] == [1024, 2048, 4096]
    assert first["reference"]["num_bytes"] == 16384
    # 0.60 from 8192 up, 0.575 from 4096, 0.55 from 2048, 0.47 from 1024, a halving each
    assert first["hypervolume"] == pytest.approx(0.60 + 0.575 + 0.55 + 0.47)
    assert [balanced["rule"] for balanced in first["balanced"]] == ["least bytes", "knee"]
    assert first["balanced"][1]["point"]["name"] == "ResNet-18 cut r=4"
    assert "farthest above the chord" in first["balanced"][1]["why"]
    names = [each["network"] for each in stored["networks"]]
    assert names == ["ResNet-18", "ResNet-34", "All networks"]


def test_the_points_of_every_front_are_a_table_that_marks_the_balanced_ones(folder):
    table = [row for row in rows_in(folder / "front.csv") if row["network"] == "ResNet-18"]
    assert len(table) == 8
    on = {row["point"]: row["int8_bytes"] for row in table if row["on_front"] == "yes"}
    cut = {f"ResNet-18 cut r={r}": str(8192 // r) for r in (1, 2, 4, 8)}
    assert on == {"ResNet-18 block r=1": "8192", **cut}  # of r = 1 there are two records here
    balanced = {row["point"]: row["balanced"] for row in table if row["balanced"]}
    assert balanced["ResNet-18 cut r=4"] == "knee"
    assert sorted(balanced.values()) == ["knee", "least bytes"]
    lines = (folder / "front.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows_in(folder / "front.csv"))


def test_the_transfer_table_says_what_each_layer_saves(folder):
    table = rows_in(folder / "transfer.csv")
    saved = {
        (row["placement"], row["meter"]): row["saved_share"]
        for row in table
        if (row["layer"], row["ratio"]) == ("layer2.1", "8")
    }
    assert float(saved["block", "shape"]) == 0
    assert float(saved["cut", "shape"]) == 0.875
    assert float(saved["block", "shape inside"]) == 0.875
    assert (
        "* block, wire, layer2.1: 401,424 to 401,424 bytes" in (folder / "transfer.md").read_text()
    )


def test_a_layer_that_reads_nothing_at_ratio_1_has_no_saving(folder):
    stems = [
        row
        for row in rows_in(folder / "transfer.csv")
        if (row["layer"], row["meter"]) == ("stem", "memory")
    ]
    assert {row["saved_share"] for row in stems} == {""}


def test_the_questions_of_the_study_are_answered_with_figures():
    found = said(rows_of(RECORDS), READINGS)
    falls = found["Does accuracy fall with the ratio r?"]
    assert falls.verdict == "Yes, in all 4"
    assert falls.lines[0] == (
        "ResNet-18, block: -2.00 \u00b1 0.26 points for each doubling of r; "
        "60.00 \u00b1 1.00 % at r = 1, 54.00 \u00b1 1.00 % at r = 8"
    )
    assert falls.lines[2].endswith("it rises in 1 of 3 steps")
    deeper = found["Do deeper networks resist better?"]
    assert deeper.verdict == "Placement block: yes; placement cut: yes"
    two = found["Is r = 2 best for ResNet-34 and ResNet-50?"]
    assert two.verdict == "No in 1, not clear in 1"
    assert two.lines[0] == (
        "ResNet-34, block: best of r = 1, 2, 4, 8 is r = 2 (63.00 \u00b1 1.00 %); r = 2 has 1.00 "
        "points more than r = 1 (within the spread of the seeds)"
    )
    assert two.note == "Not run: ResNet-50."
    crosses = found["Does placement block reduce what crosses?"]
    assert crosses.verdict == "No, in none of 2"
    assert crosses.lines[:2] == (
        "ResNet-18, block: 16,384 / 8,192 / 4,096 at r = 1, the same at r = 8",
        "ResNet-18, cut: 16,384 / 8,192 / 4,096 at r = 1, 2,048 / 1,024 / 512 at r = 8",
    )
    costs = found["What does placement cut cost in accuracy at the same r?"]
    # ResNet-18: 0.5, 1, 7 points; ResNet-34: 3, 2, 8; together 21.5 of 6
    assert costs.verdict == "3.58 points less than placement block, mean of 6"
    assert costs.lines[:2] == (
        "ResNet-18, against block: r = 2: -0.50*, r = 4: -1.00*, r = 8: -7.00 points",
        "ResNet-18, against r = 1: r = 2: -2.50, r = 4: -5.00, r = 8: -13.00 points",
    )
    assert "What is not answered here?" not in found
    better = [record(18, place, 2, mean) for place, mean in (("block", 0.5), ("cut", 0.6))]
    (costs,) = [a for a in answers(rows_of(better)) if a.question.startswith("What does")]
    assert costs.verdict.startswith("Nothing: 10.00 points more than placement block, mean of 1")


def test_a_claim_holds_by_the_meter_that_says_so():
    claim = next(iter(said((), READINGS).values()))
    assert claim.verdict == "Placement block: by shape inside; placement cut: by shape, wire"
    assert "memory: 45.0 % of its 840 readings are not positive" in claim.lines


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1000, 300, "70.0 % less, holds"),
        (1000, 401, "59.9 % less, does not hold"),
        (1000, 1500, "50.0 % more, does not hold"),
        (1000, -100, "reads less than nothing, says nothing"),
        (0, 500, "reads nothing at r = 1, says nothing"),
        (-8, 500, "reads less than nothing at r = 1, says nothing"),
    ],
)
def test_a_meter_is_quoted_as_it_reads(before, after, words):
    layers = [
        reading("block", ratio, f"layer{k}", "memory", median)
        for ratio, median in ((1, before), (8, after))
        for k in range(5)
    ]
    (claim,) = claims(layers)
    assert saving(claim).endswith(words)


ONE_SEED = tuple(each for each in RECORDS if each.cell.seed == 0)


def test_a_study_of_one_seed_and_one_network_answers_what_it_can_and_says_what_is_open():
    assert not said(())
    # As a study leaves them: the plain network once, as placement block.
    records = [
        each
        for each in ONE_SEED
        if each.cell.depth == 18 and (each.cell.placement, each.cell.ratio) != ("cut", 1)
    ]
    found = said(rows_of(records))
    doubt = "(one seed, so no spread is known)"
    falls = found["Does accuracy fall with the ratio r?"]
    assert falls.verdict == f"Yes, in all 2 {doubt}"
    # 59, 56.5, 54, 46 at 0 to 3 doublings: (-1.5 * 59 - 0.5 * 56.5 + 0.5 * 54 + 1.5 * 46) / 5
    assert falls.lines[1] == (
        "ResNet-18, cut: -4.15 points for each doubling of r; 59.00 % at r = 1, 46.00 % at r = 8"
    )
    assert "a small difference says nothing" in falls.note
    crosses = found["Does placement block reduce what crosses?"]
    assert crosses.verdict == "No"
    assert crosses.lines[1].endswith("at r = 1, 2,048 / 1,024 / 512 at r = 8")
    costs = found["What does placement cut cost in accuracy at the same r?"]
    assert costs.verdict == f"2.83 points less than placement block, mean of 3 {doubt}"
    left = found["What is not answered here?"]
    assert left.verdict == "2 of 5 questions"
    assert left.lines == (
        "Do deeper networks resist better? It takes two depths that share two ratios.",
        "Is r = 2 best for ResNet-34 and ResNet-50? It takes one of them at r = 1 and r = 2.",
    )
    assert headline(rows_of(records)).endswith(f"at 7.00 points less accuracy {doubt}")
    assert list(said(rows_of(records[:1]))) == ["What is not answered here?"]


def test_deeper_networks_are_compared_over_the_ratios_that_both_have():
    begun = [each for each in ONE_SEED if each.cell.depth == 18 or each.cell.ratio <= 2]
    deeper = said(rows_of(begun))["Do deeper networks resist better?"]
    # block: 60 to 58 against 62 to 63; cut: 60 to 57.5 against 62 to 60
    assert deeper.verdict == (
        "Placement block: yes; placement cut: yes (one seed, so no spread is known)"
    )
    assert deeper.lines[0] == (
        "block: ResNet-18 -2.00, ResNet-34 +1.00 points for each doubling (r = 1, 2)"
    )


def test_the_spread_of_rows_with_several_seeds_serves_those_with_one():
    rows = rows_of([*RECORDS, record(50, "block", 1, 0.7)])
    assert rows[-1].spread is None
    assert rows[-1].error == pytest.approx(0.01)
    assert rows[0].error == pytest.approx(0.01 / 3**0.5)
    assert rows_of(ONE_SEED)[0].error is None


def test_a_change_within_the_spread_is_no_answer():
    level = [
        record(18, "block", ratio, 0.5 + 0.01 * seed, seed=seed)
        for ratio in (1, 2)
        for seed in (0, 1)
    ]
    falls = said(rows_of(level))["Does accuracy fall with the ratio r?"]
    assert falls.verdict == "Not clear, within the spread of the seeds"
    assert falls.lines[0].startswith(
        "ResNet-18, block: +0.00 \u00b1 0.71 points for each doubling of r (within the spread"
    )


def test_a_network_of_few_layers_makes_no_claim(tmp_path):
    few = tuple(reading("block", r, f"layer{k}", "shape", 8) for r in (1, 8) for k in range(4))
    assert claims(few) == claims(()) == ()
    assert transfer_tables(few) == ()
    short = replace(TRANSFER, readings=few)
    write_study(tmp_path, title="x", records=(), choice=None, transfer=short)
    assert "Nothing is finished yet" in (tmp_path / "study.html").read_text()


def searched():
    """The grid's records with those of a search: three networks tried, the two best tested."""
    tried = [
        (record(18, "cut", 3, accuracy, width=width), judged)
        for width, held, test in ((8, 0.50, 0.48), (12, 0.40, None), (24, 0.66, 0.64))
        for accuracy, judged in ((held, "held-out"), (test, "test"))
        if accuracy is not None
    ]
    cells = [replace(each.cell, judged=judged) for each, judged in tried]
    found = [
        replace(each, cell=cell, key=cell.key)
        for (each, _), cell in zip(tried, cells, strict=True)
    ]
    return (*RECORDS, *found)


def test_what_a_search_found_joins_the_front_but_not_the_answers_on_the_grid(tmp_path):
    grid, pairs = divided(searched())
    assert grid == RECORDS
    assert [pair.tested is not None for pair in pairs] == [True, False, True]
    write_study(tmp_path, title="x", records=searched(), choice=CHOICE)
    stored = json.loads((tmp_path / "front.json").read_text())["networks"]
    both = stored[-1]
    assert both["network"] == "The grid and the search"
    assert "ResNet-18, width 24 cut r=3" in [point["name"] for point in both["front"]]
    assert len(stored[0]["points"]) == 8
    assert both["hypervolume"] > stored[2]["hypervolume"]
    text = ours((tmp_path / "study.html").read_text())
    assert "The 3 networks that the search tried" in text
    assert 'id="accuracy_search"' in text
    assert f"<h1>{headline(rows_of(RECORDS))}</h1>" in text
    lines = rows_in(tmp_path / "accuracy.csv")
    assert [line["judged"] for line in lines].count("held-out") == 3
    assert len(rows_in(tmp_path / "summary.csv")) == 2 * 2 * 4 * 3


def test_the_terminal_marks_what_the_search_tested():
    rows = [line.split() for line in printed(study_tables(searched())).splitlines()]
    assert ["ResNet-18", "8", "cut", "3", "50.00", "48.00", "1,280"] in rows
    assert ["ResNet-18", "12", "cut", "3", "40.00", "2,048"] in rows


def test_the_page_opens_with_the_finding(page):
    assert headline(rows_of(RECORDS)) == (
        "At r = 8, placement cut sends 12.5 % of the bytes that placement block sends, at "
        "7.50 points less accuracy"
    )
    assert f"<h1>{headline(rows_of(RECORDS))}</h1>" in page


def test_the_page_says_how_it_was_made_and_what_was_not_run(page):
    for expected in (
        "chosen on 5,000 images of the training set of cifar100 that were held out",
        "batch_size 128, augmentation.border reflection",
        "networks: ResNet 50, 101, 152",
        "ratios: 16, 32",
        "0, 1, 2",
        MACHINE,
        "torch 2.13.0",
        "0123abc",
    ):
        assert expected in page


def test_what_is_missing_from_the_grid_is_counted():
    lacks = missing(RECORDS[:-1])
    assert lacks[-1] == "1 of 42 trainings of the grid that was begun"
    assert missing([record(18, "cut", 8, 0.5)])[-1] == "seeds: 1 of 3"
    shared = [each for each in RECORDS if (each.cell.placement, each.cell.ratio) != ("cut", 1)]
    assert missing(shared) == ("networks: ResNet 50, 101, 152", "ratios: 16, 32")


def test_records_of_two_machines_are_told_apart():
    text = ours(
        study_page(
            title="two",
            records=[record(18, "cut", 1, 0.5), record(18, "cut", 2, 0.5, machine="Another")],
            choice=None,
        )
    )
    assert f"{MACHINE} (1 of 2)" in text
    assert "Another (1 of 2)" in text


def test_the_page_loads_nothing_and_forbids_it(page):
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://", page)


def test_hostile_names_stay_text():
    records = [
        replace(each, machine=HOSTILE, revision=HOSTILE, versions={HOSTILE: HOSTILE})
        for each in (record(18, "cut", ratio, 0.5, data=HOSTILE) for ratio in (1, 8))
    ]
    readings = [replace(each, layer=f"{each.layer}{HOSTILE}") for each in READINGS]
    choice = replace(CHOICE, data=HOSTILE, network=HOSTILE)
    text = ours(
        study_page(
            title=HOSTILE,
            records=records,
            choice=choice,
            transfer=replace(TRANSFER, readings=tuple(readings)),
        )
    )
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert" in text


def test_hostile_names_keep_the_figures_and_tables_whole(tmp_path):
    records = [record(18, "cut", ratio, 0.5, data=f"${HOSTILE}") for ratio in (1, 8)]
    records.append(record(18, "cut", 1, 0.5))
    readings = [replace(each, layer=f"{each.layer}$|{HOSTILE}") for each in READINGS]
    write_study(
        tmp_path,
        title="x",
        records=records,
        choice=None,
        transfer=replace(TRANSFER, readings=tuple(readings)),
    )
    assert "<script>alert" not in (tmp_path / "accuracy_bytes.svg").read_text()
    lines = (tmp_path / "transfer.md").read_text().split("\n\n")[1].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_the_figures_for_print_are_images_and_the_same_every_time(folder):
    rows = rows_of(RECORDS)
    again = paper_figures(rows, fronts_of(rows)[:2], READINGS)
    assert set(again) == FIGURES
    for name, content in again.items():
        assert (folder / name).read_bytes() == content
        if name.endswith("png"):
            with Image.open(io.BytesIO(content)) as image:
                image.verify()
                assert min(image.size) > 400
        else:
            assert content.startswith(b"<?xml")
            assert content.rstrip().endswith(b"</svg>")


def test_what_is_not_there_leaves_no_file(tmp_path):
    write_study(tmp_path / "none", title="x", records=(), choice=None)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["study.html"]
    assert "Nothing is finished yet" in (tmp_path / "none" / "study.html").read_text()
    write_study(tmp_path / "wires", title="x", records=(), choice=None, transfer=TRANSFER)
    names = {path.name for path in (tmp_path / "wires").iterdir()}
    assert names == {"study.html", "transfer.csv", "transfer.md", "transfer_layers.png",
                     "transfer_layers.svg"}  # fmt: skip
    write_study(tmp_path / "cells", title="x", records=RECORDS[:1], choice=None)
    names = {path.name for path in (tmp_path / "cells").iterdir()}
    assert not {name for name in names if name.startswith("transfer")}
    assert 'id="transfer_layers"' not in (tmp_path / "cells" / "study.html").read_text()


def printed(parts, *, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_the_terminal_gets_a_row_for_each_ratio_and_the_balanced_points():
    text = printed(study_tables(RECORDS))
    rows = [line.split() for line in text.splitlines()]
    assert [
        "ResNet-18", "cut", "8", "3", "47.00", "\u00b1", "1.00", "2/4/8", "2,048/1,024/512",
        "50%",
    ] in rows  # fmt: skip
    assert "ResNet-18 cut r=4 (55.00 % at 2,048 B) is the knee" in text
    # 0.60 + 0.575 + 0.55 + 0.47, a halving each
    assert "ResNet-18: the front covers 2.19 (accuracy times halvings of 16,384" in text
    assert study_tables(()) == ()


def test_the_terminal_gets_what_each_meter_says_and_no_row_for_every_reading():
    text = printed(transfer_tables(READINGS), width=120)
    assert "87.5 % less, holds" in text
    assert "memory: 45.0 % of its 840 readings are not positive" in text
    assert len(text.splitlines()) < 20
    assert transfer_tables(()) == ()


def test_labels_move_no_farther_than_they_must():
    assert apart([1.0, 5.0, 9.0], gap=2.0) == [1.0, 5.0, 9.0]
    assert apart([4.0, 4.0, 4.0], gap=1.0) == [3.0, 4.0, 5.0]
    assert apart([], gap=1.0) == []
