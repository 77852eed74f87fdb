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
from isthmus.report.findings import fronts_of, lines_of, missing, rows_of, slope_of
from isthmus.report.labels import apart
from isthmus.report.paper import paper_figures
from isthmus.report.study import study_page, study_tables, transfer_tables, write_study
from isthmus.study.transfer import claims
from tests.report.studies import CHOICE, MACHINE, READINGS, RECORDS, reading, record

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>|&{{ 7*7 }}'
FIGURES = {
    f"{name}.{kind}"
    for name in ("accuracy_ratio", "accuracy_bytes", "transfer_layers")
    for kind in ("png", "svg")
}
TABLES = {
    f"{name}.{kind}" for name in ("accuracy", "summary", "transfer") for kind in ("csv", "md")
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
    write_study(path, title="Study small", records=RECORDS, choice=CHOICE, readings=READINGS)
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
    assert two.verdict == "In 1 of 2"
    assert "1.00 points more than r = 1 (within the spread of the seeds)" in two.lines[0]
    crosses = found["Does placement block reduce what crosses?"]
    assert crosses.verdict == "No, in none of 2"
    assert crosses.lines[:2] == (
        "ResNet-18, block: 16,384 / 8,192 / 4,096 at r = 1, the same at r = 8",
        "ResNet-18, cut: 16,384 / 8,192 / 4,096 at r = 1, 2,048 / 1,024 / 512 at r = 8",
    )
    costs = found["What does placement cut cost in accuracy at the same r?"]
    # ResNet-18: 0.5, 1, 7 points; ResNet-34: 3, 2, 8; together 21.5 of 6
    assert costs.verdict == "3.58 points less than placement block, mean of 6"
    assert costs.lines[0] == "ResNet-18: r = 2: -0.50*, r = 4: -1.00*, r = 8: -7.00 points"


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


def test_a_question_without_data_is_not_asked():
    assert not said(())
    one = said(rows_of([record(18, "block", ratio, 0.5) for ratio in (1, 2)]))
    assert list(one) == [
        "Does accuracy fall with the ratio r?",
        "Does placement block reduce what crosses?",
    ]
    falls = one["Does accuracy fall with the ratio r?"]
    assert falls.verdict == "No"
    assert falls.lines[0].startswith("ResNet-18, block: +0.00 points for each doubling")
    assert "no spread is known" in falls.note


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
    assert lacks[-1] == "1 of 48 trainings of the grid that was begun"
    assert missing([record(18, "cut", 8, 0.5)])[-1] == "seeds: 1 of 3"


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
    text = ours(study_page(title=HOSTILE, records=records, choice=choice, readings=readings))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert" in text


def test_hostile_names_keep_the_figures_and_tables_whole(tmp_path):
    records = [record(18, "cut", ratio, 0.5, data=f"${HOSTILE}") for ratio in (1, 8)]
    records.append(record(18, "cut", 1, 0.5))
    readings = [replace(each, layer=f"{each.layer}$|{HOSTILE}") for each in READINGS]
    write_study(tmp_path, title="x", records=records, choice=None, readings=readings)
    assert "<script>alert" not in (tmp_path / "accuracy_bytes.svg").read_text()
    lines = (tmp_path / "transfer.md").read_text().split("\n\n")[1].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_the_figures_for_print_are_images_and_the_same_every_time(folder):
    rows = rows_of(RECORDS)
    again = paper_figures(rows, fronts_of(rows)[:2], READINGS, cut="layer2")
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
    write_study(tmp_path / "wires", title="x", records=(), choice=None, readings=READINGS)
    names = {path.name for path in (tmp_path / "wires").iterdir()}
    assert names == {"study.html", "transfer.csv", "transfer.md", "transfer_layers.png",
                     "transfer_layers.svg"}  # fmt: skip
    write_study(tmp_path / "cells", title="x", records=RECORDS[:1], choice=None)
    names = {path.name for path in (tmp_path / "cells").iterdir()}
    assert not {name for name in names if name.startswith("transfer")}
    assert 'id="transfer_layers"' not in (tmp_path / "cells" / "study.html").read_text()


def test_the_terminal_gets_a_row_for_each_ratio_and_the_balanced_points():
    console = Console(width=120, record=True, file=io.StringIO())
    for part in (*study_tables(RECORDS), *transfer_tables(READINGS)[:1]):
        console.print(part)
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    assert [
        "ResNet-18", "cut", "8", "3", "47.00", "\u00b1", "1.00", "2/4/8", "2,048/1,024/512",
        "50%",
    ] in rows  # fmt: skip
    assert "ResNet-18 cut r=4 (55.00 % at 2,048 B) is the knee" in text
    assert "87.5 % less, holds" in text
    assert study_tables(()) == ()
    assert transfer_tables(()) == ()


def test_labels_move_no_farther_than_they_must():
    assert apart([1.0, 5.0, 9.0], gap=2.0) == [1.0, 5.0, 9.0]
    assert apart([4.0, 4.0, 4.0], gap=1.0) == [3.0, 4.0, 5.0]
    assert apart([], gap=1.0) == []
