from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.data import load_data
from isthmus.errors import InputError
from isthmus.files import write_json
from isthmus.graph import capture, cuts, find_cut, fingerprint
from isthmus.models import reference, resnet
from isthmus.plan import Asked, partition
from isthmus.plan.choices import find_choices
from isthmus.platform import load_platform
from isthmus.study.accuracy import accuracy_table, promising_cuts
from isthmus.study.calibrate import POST_HOC_CODECS, post_hoc_accuracy
from isthmus.study.grid import Cell
from isthmus.study.records import StudyRecord, write_records
from isthmus.study.trained import trained_rows
from isthmus.train import FitConfig, FitRecord, Rung, accuracy, calibrate, split_with_codecs

DATA = load_data("digits")
EXAMPLE = (torch.zeros(2, 1, 8, 8),)


class Net(nn.Module):
    """Random features of digits in two steps, with classes read from them by least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(inplace=True))
        self.head = nn.Linear(16 * 9, 10)

    def features(self, x):
        return self.second(self.first(x)).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        features = net.features(torch.from_numpy(DATA.x_train[0]))
        wanted = nn.functional.one_hot(torch.from_numpy(DATA.y_train), 10).float()
        ridge = features.T @ features + 1e-3 * torch.eye(features.shape[1])
        net.head.weight.copy_(torch.linalg.solve(ridge, features.T @ wanted).T)
        net.head.bias.zero_()
    return net


@pytest.fixture(scope="module")
def graph(model):
    return capture(model, EXAMPLE)


@pytest.fixture(scope="module")
def table(model, graph):
    places = [0, *(find_cut(graph, name).index for name in ("first", "second")), len(graph.nodes)]
    return post_hoc_accuracy(model, graph, DATA, places, samples=400)


@pytest.fixture(scope="module")
def plan(graph):
    cut = find_cut(graph, "first").index
    return partition(graph, load_platform("two-mcu-spi"), codec="uniform:bits=3", cut=cut)


def write_fit(folder, graph, plan, *, whole=0.95, split=0.94, ladder=(), wanted_bytes=None):
    record = FitRecord(
        model=reference("digits-resnet"),
        data="digits",
        plan=plan,
        config=FitConfig(wanted_bytes=wanted_bytes),
        ladder=ladder,
        phases=(),
        accuracy_whole=whole,
        accuracy_split=split,
        rivals=(),
        machine="",
        versions={},
    )
    write_json(folder / "fit.json", record)
    write_json(folder / "graph.json", graph)
    return folder


def test_an_accuracy_is_that_of_the_model_split_there_and_calibrated(model, graph, plan, table):
    order = np.random.default_rng(0).permutation(len(DATA.y_train))
    held, rest = order[:400], order[400:912]
    split_model = split_with_codecs(model, plan, eval_form=True)
    calibrate(split_model, tuple(torch.from_numpy(x[rest]) for x in DATA.x_train))
    by_hand = accuracy(split_model, [x[held] for x in DATA.x_train], DATA.y_train[held])
    assert table.row(plan.crossings[0].cut, "uniform:bits=3").accuracy == by_hand
    assert table.whole == accuracy(model, [x[held] for x in DATA.x_train], DATA.y_train[held])


def test_many_bits_lose_next_to_nothing_and_two_lose_much(graph, table):
    cut = find_cut(graph, "second").index
    assert table.whole > 0.9
    assert table.drop(cut, "uniform:bits=8") < 0.01
    assert table.drop(cut, "uniform:bits=2") > 0.02
    assert table.drop(cut, "uniform:bits=2") > table.drop(cut, "uniform:bits=4")


def test_what_an_entropy_code_takes_is_measured_for_the_plan(graph, table):
    cut = find_cut(graph, "first").index
    row = table.row(cut, "uniform:bits=4+entropy")
    assert 0 < row.payload_bytes < 16 * 8 * 8 / 2
    assert row.payload_spread_bytes > 0
    assert table.row(cut, "uniform:bits=4").payload_bytes is None
    assert row.accuracy == table.row(cut, "uniform:bits=4").accuracy
    places = find_choices(graph, Asked(accuracy=table)).all
    chosen = next(c for c in places if (c.cut.index, c.codec) == (cut, row.codec))
    assert chosen.spec.payload_bytes == row.payload_bytes


def test_every_codec_and_the_default_one_are_measured_inside_and_pixels_at_the_input(graph, table):
    cut = find_cut(graph, "first").index
    alone = {text for text in POST_HOC_CODECS if "joint=1" not in text}  # one tensor crosses here
    assert {row.codec for row in table.at(cut)} == {*alone, "bottleneck:ratio=8,bits=8"}
    assert [row.codec for row in table.at(0)] == ["pixels", "png"]
    assert table.at(len(graph.nodes)) == ()
    assert {(row.samples, row.origin) for row in table.rows} == {(400, "post-hoc")}
    assert table.graph == fingerprint(graph)


def test_the_test_set_chooses_nothing(model, graph):
    other = replace(DATA, x_test=tuple(1 - x for x in DATA.x_test), y_test=DATA.y_test * 0)
    cut = find_cut(graph, "first").index
    tables = [
        post_hoc_accuracy(model, graph, data, [cut], ["uniform:bits=2"], samples=100)
        for data in (DATA, other)
    ]
    assert tables[0] == tables[1]


def test_what_is_measured_at_one_cut_does_not_touch_another_though_the_model_writes_in_place(
    model, graph
):
    tables = [
        post_hoc_accuracy(model, graph, DATA, places, ["uniform:bits=2"], samples=100)
        for places in ([1], [2], [1, 2])
    ]
    assert (*tables[0].rows, *tables[1].rows) == tables[2].rows


def test_a_codec_that_cannot_carry_a_cut_is_left_out_and_an_unknown_one_refused(model, graph):
    cut = find_cut(graph, "first").index
    wide = "bottleneck:ratio=32,bits=8"
    table = post_hoc_accuracy(model, graph, DATA, [cut], [wide], samples=20)
    assert [row.codec for row in table.rows] == ["bottleneck:ratio=8,bits=8"]
    with pytest.raises(InputError, match="no codec 'zip'"):
        post_hoc_accuracy(model, graph, DATA, [cut], ["zip"], samples=20)
    with pytest.raises(InputError, match="cut 99: found no such cut"):
        post_hoc_accuracy(model, graph, DATA, [99], samples=20)


def test_the_promising_cuts_are_the_plans_its_runner_ups_and_ends_of_modules(graph, plan):
    found = promising_cuts(graph, plan)
    inner = {find_cut(graph, name).index for name in ("first", "second")}
    assert inner <= set(found)
    assert {0, plan.crossings[0].cut} <= set(found)
    assert len(graph.nodes) not in found
    assert promising_cuts(graph, plan, most=1) == (0, plan.crossings[0].cut)
    named = {cut for rival in plan.runner_ups for cut in rival.cuts}
    without_plan = set(promising_cuts(graph, replace(plan, crossings=()), most=20))
    assert named - {len(graph.nodes)} <= without_plan
    assert without_plan <= {cut.index for cut in cuts(graph)}


def test_a_fit_fills_the_trained_column(tmp_path, graph, plan):
    (row,) = trained_rows([write_fit(tmp_path / "fit", graph, plan)], graph)
    assert (row.cut, row.codec) == (plan.crossings[0].cut, "uniform:bits=3")
    assert (row.accuracy, row.whole, row.origin) == (0.94, 0.95, "trained")


def test_of_a_fit_with_a_ladder_the_held_out_figures_count(tmp_path, graph, plan):
    rungs = [
        Rung(wanted_bytes=200.0, payload_bytes=size, accuracy=reached, drop=100 * (0.9 - reached))
        for size, reached in ((190.0, 0.89), (150.0, 0.88), (120.0, 0.8))
    ]
    folder = write_fit(tmp_path / "fit", graph, plan, ladder=tuple(rungs), wanted_bytes=150.0)
    (row,) = trained_rows([folder], graph)
    assert row.accuracy == 0.88
    assert row.whole == pytest.approx(0.9)


def study_record(ratio, reached, *, placement="cut", depth=18, seed=0, judged="test"):
    cell = Cell(
        depth=depth, width=4, placement=placement, ratio=ratio, data="cifar100", epochs=8,
        seed=seed, judged=judged,
    )  # fmt: skip
    return StudyRecord(
        key=cell.key, cell=cell, config={}, figures={"accuracy": reached}, machine="",
        versions={}, revision=None, seconds=1.0, attempts=1,
    )  # fmt: skip


def test_a_study_of_the_same_network_fills_the_trained_column(tmp_path):
    network = resnet(18, width=4, num_classes=10).eval()
    graph = capture(network, (torch.zeros(2, 3, 8, 8),))
    records = [
        study_record(1, 0.60, placement="block"),
        study_record(1, 0.62, placement="block", seed=1),
        study_record(4, 0.50),
        study_record(4, 0.52, seed=1),
        study_record(4, 0.40, placement="block"),  # narrows no crossing
        study_record(2, 0.55),
        study_record(2, 0.57, judged="held-out"),
        study_record(1, 0.58, judged="held-out"),
        study_record(4, 0.99, depth=34),  # another network
    ]
    write_records(tmp_path / "records.jsonl", records)
    rows = trained_rows([tmp_path], graph)
    stages = [find_cut(graph, f"layer{k}").index for k in (1, 2, 3)]
    found = {(row.cut, row.codec): (row.accuracy, row.whole) for row in rows}
    assert found == {
        (cut, f"bottleneck:ratio={ratio},bits=8"): pytest.approx(figures)
        for cut in stages
        for ratio, figures in ((4, (0.51, 0.61)), (2, (0.57, 0.58)))  # held-out where there is
    }
    table = accuracy_table(network, graph, load_platform("two-mcu-spi"), None, fits=[tmp_path])
    assert table.drop(stages[1], "bottleneck:ratio=4,bits=8") == pytest.approx(0.1)
    codecs = {c.codec for c in find_choices(graph, Asked(accuracy=table)).all}
    assert "bottleneck:ratio=4,bits=8" in codecs


def test_a_study_of_another_network_is_refused(tmp_path, graph):
    write_records(tmp_path / "records.jsonl", [study_record(4, 0.5)])
    with pytest.raises(InputError, match="found a study of resnet18 of width 4, expected one of"):
        trained_rows([tmp_path], graph)


def test_a_fit_of_another_model_or_of_two_lossy_crossings_is_refused(tmp_path, graph, plan):
    other = capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), EXAMPLE)
    with pytest.raises(InputError, match="of another model"):
        trained_rows([write_fit(tmp_path / "fit", other, plan)], graph)
    second = replace(plan.crossings[0], cut=5)
    twice = replace(plan, crossings=(*plan.crossings, second))
    with pytest.raises(InputError, match="2 crossings that lose something"):
        trained_rows([write_fit(tmp_path / "fit", graph, twice)], graph)


def test_a_table_prefers_what_was_trained_and_measures_the_rest(tmp_path, model, graph, plan):
    fit = write_fit(tmp_path / "fit", graph, plan)
    cut = plan.crossings[0].cut
    platform = load_platform("two-mcu-spi")
    table = accuracy_table(model, graph, platform, DATA, cut=cut, fits=[fit])
    origins = {row.codec: row.origin for row in table.at(cut)}
    assert origins["uniform:bits=3"] == "trained"
    assert table.drop(cut, "uniform:bits=3") == pytest.approx(0.01)
    assert origins["uniform:bits=4"] == "post-hoc"
    table.check(fingerprint(graph))


def test_without_data_a_table_holds_the_fits_alone(tmp_path, model, graph, plan):
    fit = write_fit(tmp_path / "fit", graph, plan)
    platform = load_platform("two-mcu-spi")
    table = accuracy_table(model, graph, platform, None, fits=[fit])
    assert (table.whole, len(table.rows)) == (0.95, 1)
    with pytest.raises(InputError, match="give data, or fits"):
        accuracy_table(model, graph, platform, None)


def test_a_platform_on_which_nothing_fits_is_measured_for_too(tmp_path, model, graph):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "schema: isthmus.platform/1\n"
        "name: tiny\n"
        "devices:\n"
        "  a: {memory: 10 byte, compute: {fp32: 1 MMAC/s}}\n"
        "  b: {memory: 10 byte, compute: {fp32: 1 MMAC/s}}\n"
        "links: [{between: [a, b], bandwidth: 1 Mbit/s}]\n"
        "input: a\n"
        "output: b\n"
    )
    small = replace(DATA, x_train=tuple(x[:60] for x in DATA.x_train), y_train=DATA.y_train[:60])
    table = accuracy_table(model, graph, load_platform(path), small, codec="uniform:bits=4")
    assert {row.codec for row in table.rows if row.cut} >= {"uniform:bits=4"}
