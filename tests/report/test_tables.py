import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from isthmus.graph import cuts
from isthmus.platform import PRESETS, load_platform
from isthmus.report.fit_tables import fit_result_tables
from isthmus.report.plan_tables import plan_tables
from isthmus.report.tables import (
    demo_tables,
    fit_table,
    platforms_table,
    profile_tables,
    rivals_table,
    run_tables,
    verification_table,
)
from isthmus.run.record import AdaptRecord
from isthmus.train.fitted import FitResult
from isthmus.train.rivals import Rival
from tests.report.examples import FIT, GRAPH, PLAN, RECORD, RIVALS, RUN, VERIFICATION

REPORT = Path("isthmus-demo/report.html")
ALL = {
    "profile": profile_tables(GRAPH, cuts(GRAPH)),
    "platforms": (platforms_table([load_platform(name) for name in PRESETS]),),
    "plan": plan_tables(PLAN),
    "fit": (fit_table(FIT, Path("fitted")),),
    "verification": (verification_table(VERIFICATION, Path("bundle")),),
    "run": run_tables(RUN),
    "demo": demo_tables(RECORD, REPORT),
}


def with_smaller_network(accuracy):
    """The demo's record, with a smaller network that is described as the demo describes it."""
    what = "digits-resnet-small, 89 kB of weights, whole on the near device; the label crosses"
    others = tuple(rival for rival in RIVALS if rival.name != "smaller network")
    small = Rival(name="smaller network", payload_bytes=1, accuracy=accuracy, what=what)
    return replace(RECORD, rivals=(*others, small))


def printed(parts, width=100):
    file = io.StringIO()
    console = Console(width=width, file=file, color_system=None)
    for part in parts:
        console.print(part)
    return file.getvalue()


def words(parts, width=200):
    """What is printed, without the line breaks and runs of blanks."""
    return " ".join(printed(parts, width).split())


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ALL)
def test_no_line_is_longer_than_the_terminal(name, width):
    assert max(len(line.rstrip()) for line in printed(ALL[name], width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ALL)
def test_no_number_is_broken_or_cut_short(name, width):
    text = printed(ALL[name], width)
    for part in ALL[name]:
        for column in part.columns if isinstance(part, Table) else ():
            if column.justify == "right":
                assert all(str(cell) in text for cell in column.cells)


def test_the_tables_load_neither_torch_nor_plotly():
    code = (
        "import sys, isthmus.report.tables; "
        "print({'torch', 'plotly', 'jinja2', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_profile_states_what_crosses_at_every_cut_and_the_totals():
    text = words(ALL["profile"])
    assert "layer1 (conv2d) 590 kMAC 2 k 82 kB 73.7 kB 2,048 61.9 %" in text
    assert "42,266 parameters, 169 kB of weights, 968 kMAC for one sample" in text


def test_the_profile_says_how_many_tensors_cross_together():
    x, y = GRAPH.inputs[0], GRAPH.nodes[0].outputs[0]
    places = (replace(cuts(GRAPH)[1], tensors=(x, y)),)
    assert "4,352 in 2" in words(profile_tables(GRAPH, places))


def test_the_profile_names_what_it_cannot_count():
    strange = replace(GRAPH.nodes[1], op="cdist", macs=None, ops=None)
    graph = replace(GRAPH, nodes=(GRAPH.nodes[0], strange, *GRAPH.nodes[2:]))
    text = words(profile_tables(graph, cuts(graph)))
    assert "relu (cdist) unknown unknown" in text
    assert "Not counted, for want of a cost rule: cdist." in text


def test_the_profile_says_where_no_cut_is_possible_and_why():
    places = list(cuts(GRAPH))
    places[2] = replace(places[2], obstacle="it depends on the batch")
    text = words(profile_tables(GRAPH, places))
    assert "relu (relu) 1.02 k 8.19 kB no cut" in text
    assert "No cut: it depends on the batch" in text


def test_the_platforms_are_listed_with_units():
    text = words(ALL["platforms"])
    assert "mcu-a, mcu-b: mcu 98.3 kB weights 12 MMAC/s int8" in text
    assert "mcu-a - mcu-b 1 Mbit/s, full duplex 300 us" in text
    assert "100 Gbit/s, 4 pins x 25 GHz 20 ns" in text
    assert "chiplet-0-0 and 35 more: chiplet" in text
    assert "chiplet-0-0 - chiplet-0-1 and 59 more" in text


def test_the_plan_begins_with_its_answer():
    assert words(ALL["plan"]).startswith(
        "32 bytes cross from mcu-a to mcu-b for each sample, instead of 2,048."
    )


def test_the_plan_lists_stages_crossings_cost_runner_ups_and_sensitivity():
    text = words(ALL["plan"])
    for expected in (
        "mcu-a input .. layer1 599 kMAC fp32 74.8 kB of 98.3 kB weights 833 ms",
        "mcu-a-mcu-b layer1 bottleneck: ratio=8, bits=4 32 2,048 716 us",
        "Predicted for one sample, best latency: latency 1.35 s, energy 144 mJ",
        "cut after layer2 16 1.35 s 145 mJ +1.1 ms: computing takes 1.1 ms more",
        "all on mcu-a 1 does not fit: mcu-a weights needs 169.1 kB, has 98.3 kB",
        "mcu-a memory (weights) 98.3 kB 169 kB all on mcu-a",
    ):
        assert expected in text


def test_other_plans_whose_energy_nobody_knows_say_so():
    free = [replace(o, predicted=replace(o.predicted, energy_j=0.0)) for o in PLAN.runner_ups]
    text = words(plan_tables(replace(PLAN, runner_ups=tuple(free))))
    assert "cut after layer2 16 1.35 s unknown +1.1 ms" in text


def test_a_plan_on_one_device_says_do_not_split():
    first, second = PLAN.stages
    crossing = replace(
        PLAN.crossings[0], cut=0, after="input", codec="pixels", shapes=((1, 8, 8),),
        payload_bytes=64,
    )  # fmt: skip
    stages = (replace(first, nodes=()), replace(second, nodes=first.nodes + second.nodes))
    text = words(plan_tables(replace(PLAN, split=False, stages=stages, crossings=(crossing,))))
    assert text.startswith(
        "Do not split: mcu-b computes the whole model, and the input crosses as pixels, 64 bytes."
    )
    assert "mcu-a only sends the input" in text
    assert "mcu-b the whole model" in text


def test_names_that_look_like_markup_are_printed_as_they_are():
    crossing = replace(PLAN.crossings[0], after="[bold]layer[/nonsense]")
    assert "[bold]layer[/nonsense]" in words(plan_tables(replace(PLAN, crossings=(crossing,))))


def test_the_fit_and_its_verification_say_what_was_found_and_where_it_stands():
    text = words(ALL["fit"])
    assert "distil 3 0.5 0.2 12 s" in text
    assert "97.5 % through the codecs, 98.1 % without a cut" in text
    assert text.endswith("Written: fitted")
    text = words(ALL["verification"])
    assert "equal predictions 100.0 %" in text
    assert text.endswith("Written: bundle")


def test_the_drop_that_was_measured_stands_beside_the_one_that_was_assumed():
    first = replace(PLAN.crossings[0], origin="post-hoc")
    once = replace(PLAN, crossings=(first,), predicted=replace(PLAN.predicted, drop=0.004))
    text = words([fit_table(replace(FIT, plan=once))])
    assert "Points of accuracy lost: 0.56 measured, 0.40 by the plan." in text
    twice = replace(once, crossings=(first, replace(first, cut=first.cut + 1)))
    text = words([fit_table(replace(FIT, plan=twice))])
    assert "0.56 measured, 0.40 by the plan (assumed: the sum over the crossings)." in text
    assert "0.40 points of accuracy lost (assumed: the sum" in words(plan_tables(twice))
    passed_on = replace(once, crossings=(first, first))  # over two links, and lost once
    assert "assumed" not in words(plan_tables(passed_on))
    assert "Points of accuracy" not in words([fit_table(FIT)])


@pytest.mark.parametrize(
    ("whole", "split", "note"),
    [
        (
            0.1,
            0.981,
            "10.0 % without a cut: hardly better than guessing among 10 outputs (10.0 %);",
        ),
        (
            0.9,
            0.08,
            "8.0 % through the codecs: hardly better than guessing among 10 outputs (10.0 %);",
        ),
        (
            0.1,
            0.11,
            "10.0 % without a cut and 11.0 % through the codecs: hardly better than guessing",
        ),
    ],
)
def test_a_fit_that_only_guesses_says_so(whole, split, note):
    record = replace(FIT, accuracy_whole=whole, accuracy_split=split)
    text = words([fit_table(record, Path("fitted"), num_outputs=10)])
    assert f"Note: {note}" in text
    assert "check the data's scale and labels" in text
    assert text.endswith("Written: fitted")


@pytest.mark.parametrize("num_outputs", [None, 1, 10])
def test_a_fit_that_learned_has_no_note(num_outputs):
    assert "Note" not in words([fit_table(FIT, num_outputs=num_outputs)])


def test_a_run_never_puts_measured_and_predicted_into_one_column():
    heads = [
        " ".join(str(column.header).split())
        for part in ALL["run"]
        if isinstance(part, Table)
        for column in part.columns
    ]
    assert "payload predicted" in heads
    assert "payload measured" in heads
    assert not any("predicted" in head and "measured" in head for head in heads)


def test_a_run_states_bytes_latency_its_parts_and_what_was_emulated():
    text = words(ALL["run"])
    for expected in (
        "bottleneck: ratio=8, bits=4 32 32 48",
        "mcu-a-mcu-b 716 us 731 us",
        "1.58 ms 1.62 ms 2.13 ms",
        "compute 380 us, emulated links 731 us (asked 716 us), codecs 70 us, remainder 439 us",
        "360 requests answered, 0 lost, 0 frames sent again; accuracy 97.2 %",
        "Emulated: devices run at this machine's speed; links are loopback TCP, throttled.",
    ):
        assert expected in text


def test_a_run_at_80_columns_breaks_no_name():
    name = "temperature-sensor-2"
    stages = tuple(replace(stage, device=name) for stage in RUN.stages)
    links = tuple(replace(crossing, link=f"{name}-hub") for crossing in RUN.crossings)
    text = printed(run_tables(replace(RUN, stages=stages, crossings=links)), 80)
    assert text.count(f"{name} ") == 2
    assert text.count(f"{name}-hub ") == 2
    assert "716 us" in text


def test_an_adapted_run_says_that_it_was_full_at_the_widest():
    adapted = AdaptRecord(target_s=0.02, in_time=0.96, requests={"ratio=2,bits=2": 94})
    text, usual = words(run_tables(replace(RUN, adapted=adapted))), words(ALL["run"])
    for said in ("with the pipeline full, at the widest.", "up to 32"):
        assert said in text
        assert said not in usual


def test_a_way_is_compared_on_all_test_samples_however_few_a_run_sent():
    run = replace(RUN, accuracy=0.5, requests=20)
    assert "Isthmus, measured 32 97.5 %" in words([rivals_table(PLAN, FIT, run, RIVALS)])


@pytest.mark.parametrize(("wanted", "said"), [(None, False), (31.5, False), (20.0, True)])
def test_a_fit_that_is_far_from_the_size_that_was_wanted_says_so(wanted, said):
    config = replace(FIT.config, wanted_bytes=wanted, sender="tuned")
    result = FitResult(sender="tuned", accuracy=0.9, payload_bytes=(32.0,))
    coded = replace(PLAN.crossings[0], codec=f"{PLAN.crossings[0].codec}+entropy")
    plan = replace(PLAN, crossings=(coded,))
    text = words(fit_result_tables(replace(FIT, plan=plan, config=config, results=(result,))))
    assert ("20 bytes were wanted, which is not met: more --epochs come nearer." in text) == said


@pytest.mark.parametrize("width", [96, 100])
@pytest.mark.parametrize("accuracy", [0.951, 0.98])
def test_the_demo_fits_on_one_screen(width, accuracy):
    long = "+11.99 ms: computing takes 11.73 ms more (mcu-a +5.867 ms, mcu-b +5.867 ms)"
    other = PLAN.runner_ups[1]
    cut = replace(other, what="cut after layer2.shortcut", reason=long, alike=("layer2.x",))
    plan = replace(PLAN, runner_ups=(cut, cut, *PLAN.runner_ups[1:]))
    record = with_smaller_network(accuracy)
    record = replace(record, fit=replace(record.fit, plan=plan))
    text = printed(demo_tables(record, REPORT), width)
    assert "cut after layer2.shortcut (+1 alike)" in text
    assert len(text.splitlines()) <= 40


def test_the_demo_sets_the_split_beside_every_rival():
    text = words(ALL["demo"])
    for expected in (
        "uncut, fp32 2,048 98.1 % all that is needed after layer1",
        "Isthmus, measured 32 97.5 %",
        "input raw 64 98.1 % does not fit: mcu-b weights needs 169.1 kB, has 98.3 kB",
        "int8 + zlib 287.3 98.1 %",
        "label 1 98.1 % does not fit: mcu-a weights needs 169.1 kB, has 98.3 kB",
        "smaller network 1 95.1 %",
        "two-mcu-spi (energy predicted: 144 mJ) 1.35 s - -",
        "this machine's speed, links emulated 1.58 ms 1.62 ms 2.13 ms",
        "cut after layer2 +1.1 ms",
        str(REPORT),
    ):
        assert expected in text


def test_of_a_chain_the_rivals_stand_beside_the_link_with_most_bytes():
    (crossing,) = PLAN.crossings
    first = replace(crossing, cut=0, after="input", payload_bytes=64.0, codec="pixels")
    first = replace(first, shapes=((1, 8, 8),))
    chain = replace(PLAN, crossings=(first, crossing))
    text = words([rivals_table(chain, FIT, None, RIVALS)])
    assert "predicted 64 97.5 % what is needed after input, through pixels; the link with" in text
    assert "no less accurate: input raw (does not fit), label (does not fit)" in text


def test_the_demo_names_every_rival_that_beats_the_split_and_says_what_that_means():
    text = words(ALL["demo"])
    assert (
        "No more bytes than Isthmus and no less accurate: label (does not fit). Of what fits "
        "two-mcu-spi, nothing does as well with so few bytes." in text
    )
    text = words(demo_tables(with_smaller_network(0.9754), REPORT))
    assert (
        "no less accurate: label (does not fit), smaller network. A smaller network, trained for "
        "mcu-a alone, does as well with 1 byte: where you may retrain, do that." in text
    )
    text = words(demo_tables(with_smaller_network(0.98), REPORT))
    assert "trained for mcu-a alone, does better with 1 byte: where" in text


@pytest.mark.parametrize(
    ("name", "payload", "advice"),
    [
        ("label", 1, "mcu-a with the whole network does as well with 1 byte: where it holds it"),
        ("input png", 20.5, "mcu-b with the whole network does as well with 20.5 bytes: where it"),
        ("int8 + zlib", 30, "The same crossing as int8 + zlib does as well with 30 bytes: spare"),
        ("my own way", 2, "my own way does as well with 2 bytes: do that."),
    ],
)
def test_the_advice_follows_the_cheapest_way_that_does_as_well(name, payload, advice):
    plan = replace(PLAN, runner_ups=())
    way = Rival(name=name, payload_bytes=payload, accuracy=0.9754, what="a way")
    dearer = replace(way, name="another", payload_bytes=31)
    table = rivals_table(plan, FIT, RUN, (dearer, way))
    assert f"no less accurate: another, {name}. {advice}" in words([table])


def test_where_no_way_does_as_well_the_table_says_that():
    worse = tuple(replace(rival, accuracy=0.5) for rival in RIVALS)
    text = words([rivals_table(PLAN, FIT, RUN, worse)])
    assert "None of these ways does as well with so few bytes." in text
    assert "None of these" not in words([rivals_table(PLAN, FIT, RUN, ())])


def test_the_demo_leaves_out_lossy_images_only_where_they_are_larger_than_png():
    assert "input webp" not in words(ALL["demo"])
    smaller = [
        replace(rival, payload_bytes=60) if rival.name == "input webp" else rival
        for rival in RIVALS
    ]
    assert "input webp 60" in words(demo_tables(replace(RECORD, rivals=tuple(smaller)), REPORT))


def test_the_size_of_what_varies_is_predicted_with_its_spread():
    crossings = tuple(
        replace(crossing, payload_bytes_predicted=40.25, payload_spread_bytes=3.5)
        for crossing in RUN.crossings
    )
    assert "40.2 +- 3.5" in words(run_tables(replace(RUN, crossings=crossings)))
    assert "+-" not in words(run_tables(RUN))
