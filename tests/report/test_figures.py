from dataclasses import replace

import pytest

from isthmus.graph import cuts
from isthmus.platform import Memory
from isthmus.report.figures import (
    accuracy_figure,
    bytes_figure,
    memory_figure,
    prediction_figure,
    timeline_figure,
)
from tests.report.examples import FIT, GRAPH, PLAN, RIVALS, RUN


def traces(figure):
    return {trace.name or k: trace for k, trace in enumerate(figure.chart.data)}


def test_the_bytes_of_every_cut_are_drawn_and_the_plan_is_marked():
    figure = bytes_figure(GRAPH, PLAN)
    drawn = traces(figure)
    assert drawn[0].y == tuple(cut.num_bytes for cut in cuts(GRAPH))
    assert drawn[1].y[3] == pytest.approx(61.87, abs=0.01)
    assert (drawn[2].x, drawn[2].y) == ((3, 3), (2048, 32))
    assert figure.title == (
        "How much is alive at each cut: from 256 to 4,096 bytes; the plan sends 32"
    )


def test_a_profile_needs_no_plan():
    assert len(bytes_figure(GRAPH).chart.data) == 2


def test_every_rival_is_a_point_of_bytes_and_accuracy():
    figure = accuracy_figure(PLAN, FIT, RUN, RIVALS)
    points = {(trace.x[0], round(trace.y[0], 1)) for trace in figure.chart.data}
    assert points == {
        (2048, 98.1), (32, 97.5), *((r.payload_bytes, round(100 * r.accuracy, 1)) for r in RIVALS)
    }  # fmt: skip
    assert figure.title == "32 bytes instead of 2,048, for 0.6 points of accuracy less"


def test_a_gain_of_accuracy_is_said_as_one():
    better = replace(FIT, accuracy_split=FIT.accuracy_whole + 0.0176)
    figure = accuracy_figure(PLAN, better, None, ())
    assert figure.title.endswith("for 1.8 points of accuracy more")


def test_of_several_links_the_one_with_most_bytes_on_the_wire_counts():
    (crossing,), (measured,) = PLAN.crossings, RUN.crossings
    first = replace(crossing, cut=0, after="input", payload_bytes=64.0, codec="pixels")
    plan = replace(PLAN, crossings=(first, crossing))
    both = (replace(measured, payload_bytes_measured=64.0), measured)
    run = replace(RUN, stages=(*RUN.stages, RUN.stages[-1]), crossings=both)
    for found in (None, run):
        figure = accuracy_figure(plan, FIT, found, ())
        assert figure.title.startswith("64 bytes on the link with most instead of 2,048")


def test_without_a_run_the_accuracy_is_that_of_the_fit():
    figure = accuracy_figure(PLAN, FIT, None, ())
    assert figure.chart.data[1].y == (97.54,)


def test_the_timeline_begins_each_stretch_where_the_last_one_ends():
    bars = [
        (base, base + length)
        for trace in timeline_figure(RUN).chart.data
        for base, length in zip(trace.base, trace.x, strict=True)
    ]
    bars.sort()
    assert bars[0][0] == 0
    assert bars[-1][1] == pytest.approx(1e3 * RUN.latency_s.p50)
    assert [end for _, end in bars[:-1]] == pytest.approx([begin for begin, _ in bars[1:]])


def test_the_timeline_says_what_takes_longest():
    assert timeline_figure(RUN).title == "The emulated links take 45 % of the 1.62 ms of a request"
    assert "emulated" in timeline_figure(RUN).chart.layout.xaxis.title.text


def test_predicted_and_measured_are_traces_of_their_own():
    figure = prediction_figure(RUN)
    assert [(trace.x, trace.y) for trace in figure.chart.data] == [
        (("predicted",), (32,)),
        (("measured",), (32,)),
        (("predicted",), (0.000716,)),
        (("measured",), (0.000731,)),
        (("predicted",), (0.00158,)),
        (("measured",), (0.00162,)),
    ]
    assert figure.title == "Payload as predicted, to the byte; latency 2.5 % over prediction"


def test_a_payload_off_its_prediction_is_said_so():
    crossing = replace(RUN.crossings[0], payload_bytes_measured=33.0)
    title = prediction_figure(replace(RUN, crossings=(crossing,))).title
    assert title.startswith("Payload not quite as predicted")


def test_memory_is_drawn_as_a_share_of_the_limit_beside_the_whole_model():
    figure = memory_figure(PLAN, GRAPH)
    assert figure is not None
    drawn = traces(figure)
    assert drawn["this plan"].x[0] == pytest.approx(100 * 74_848 / 98_304)
    assert drawn["the whole model on this device"].x[0] == pytest.approx(100 * 169_064 / 98_304)
    assert figure.title == "Each stage fits its device; no device could hold the whole model"


def test_without_a_limit_there_is_no_picture_of_memory():
    devices = tuple(replace(device, memory=Memory()) for device in PLAN.platform.devices)
    assert memory_figure(replace(PLAN, platform=replace(PLAN.platform, devices=devices))) is None
