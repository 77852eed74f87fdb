"""The planner's answers, by hand."""

import json
import re
from dataclasses import replace
from itertools import pairwise, product

import pytest

from isthmus.errors import InfeasibleError, InputError
from isthmus.files import from_json, to_json
from isthmus.graph import Graph, Node, Tensor, cuts, fingerprint
from isthmus.plan import METHODS, Limits, Plan, Violation, check, partition
from isthmus.platform import Device, Link, Memory, NodeTimes, Platform, load_platform, path
from isthmus.wire.frames import HEADER_BYTES
from isthmus.wire.spec import parse_codec
from tests.plan.nets import chain, pair, weight

# 64 pixels in, features, 10 scores out: 0.7 MMAC and 157 kB, as the demo's network on the digits.
DIGITS = chain(
    (10_000, 1_000, (16, 8, 8)),
    (150_000, 9_000, (16, 8, 8)),
    (150_000, 20_000, (16, 8, 8)),
    (200_000, 30_000, (32, 4, 4)),
    (100_000, 36_000, (32, 4, 4)),
    (90_000, 60_000, (48,)),
    (480, 2_000, (10,)),
)


def test_a_tiny_input_over_a_slow_link_goes_all_on_the_far_device():
    plan = partition(DIGITS, pair(first=1e6, second=1e9, rate=1_000.0))
    assert not plan.split
    assert [len(stage.nodes) for stage in plan.stages] == [0, 7]
    assert (plan.crossings[0].cut, plan.crossings[0].codec) == (0, "pixels")
    assert plan.crossings[0].payload_bytes == 64
    assert plan.notes[0].startswith("do not split: all on far takes ")


def test_a_large_input_over_a_slow_link_goes_all_on_the_near_device_and_sends_the_label():
    graph = chain((1000, 400, (8, 64, 64)), (1000, 400, (10,)), image=(3, 256, 256))
    plan = partition(graph, pair(first=1e6, second=1e9, rate=1_000.0))
    assert not plan.split
    assert [len(stage.nodes) for stage in plan.stages] == [2, 0]
    assert (plan.crossings[0].codec, plan.crossings[0].payload_bytes) == ("label", 1)
    assert plan.notes[0].startswith("do not split: all on near")


def test_a_network_that_fits_on_neither_device_is_split():
    plan = partition(DIGITS, load_platform("two-mcu-spi"))
    assert plan.split
    assert all(stage.nodes and stage.weight_bytes <= 96 * 1024 for stage in plan.stages)
    unsplit = {rival.what: rival for rival in plan.runner_ups if rival.what.startswith("all on")}
    assert set(unsplit) == {"all on mcu-a", "all on mcu-b"}
    assert not any(rival.fits for rival in unsplit.values())
    reason = "does not fit: mcu-a weights needs 158 kB, has 98.3 kB"
    assert unsplit["all on mcu-a"].reason == reason


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
def test_over_a_radio_the_honest_answer_is_to_send_the_image(objective):
    plan = partition(DIGITS, load_platform("camera-hub"), objective=objective, png_bytes=110.0)
    assert not plan.split
    assert (plan.crossings[0].cut, plan.crossings[0].codec) == (0, "pixels")
    assert plan.notes[0].startswith("do not split: all on hub")
    assert "the best split, cut after layer" in plan.notes[0]


def test_a_png_that_was_measured_smaller_than_the_pixels_wins():
    platform = pair(first=1e9, second=1e9, rate=1_000.0)
    by_bound = partition(chain((1000, 4, (2,)), image=(1, 32, 32)), platform)
    graph = chain((10**9, 4, (2,)), image=(1, 32, 32))
    measured = partition(graph, replace(platform), png_bytes=200.5, cut=0)
    assert by_bound.crossings[0].codec != "png"
    assert measured.crossings[0].codec == "png"
    assert measured.crossings[0].payload_bytes == 200.5
    assert not measured.crossings[0].fixed_rate
    assert check(measured, graph, platform) == ()


def test_latency_interval_and_energy_are_as_worked_out_by_hand():
    graph = chain((3_000, 400, (4, 2, 2)), (5_000, 800, (10,)), image=(1, 4, 4))
    platform = Platform(
        name="hand",
        devices=(
            Device(
                name="a", macs_per_s={"fp32": 1e6}, j_per_mac={"fp32": 2e-9},
                sram_j_per_byte=1e-9, static_w=0.01,
            ),
            Device(name="b", macs_per_s={"fp32": 2e6}, j_per_mac={"fp32": 1e-9}, static_w=0.02),
        ),
        links=(
            Link(
                between=("b", "a"), bytes_per_s=1_000.0, latency_s=0.1, j_per_byte=3e-6,
                overhead_bytes=5, mtu_bytes=20, duplex="half",
            ),
        ),
        input="a",
        output="b",
    )  # fmt: skip
    plan = partition(graph, platform, codec="raw:bits=16", cut=1)
    # The crossing: 16 values of 16 bits, 32 byte. raw has no MACs of its own.
    assert plan.crossings[0].payload_bytes == 32
    frame = 32 + HEADER_BYTES
    medium = frame + 5 * -(-frame // 20)
    assert plan.crossings[0].transfer_s == pytest.approx(0.1 + medium / 1000)
    assert [stage.compute_s for stage in plan.stages] == pytest.approx([0.003, 0.0025])
    latency_s = 0.003 + 0.1 + medium / 1000 + 0.0025
    assert plan.predicted.latency_s == pytest.approx(latency_s)
    assert plan.predicted.interval_s == pytest.approx(medium / 1000)
    # Written on a: 64 byte of output; 32 byte of symbols and 32 of payload in the sender half.
    energy = 3_000 * 2e-9 + 128e-9 + medium * 3e-6 + 5_000 * 1e-9 + 0.03 * latency_s
    assert plan.predicted.energy_j == pytest.approx(energy)
    # Alive at once: the image (64) and the output (64) in the node; output, symbols and payload.
    assert [stage.peak_memory_bytes for stage in plan.stages] == [128, 128]
    assert [stage.weight_bytes for stage in plan.stages] == [400, 800]
    assert [stage.macs for stage in plan.stages] == [3_000, 5_000]


def test_a_skip_crosses_beside_the_main_path_and_a_tied_weight_lies_on_both_devices():
    tied = weight("tied", 4_000)
    x = Tensor(name="x", shape=(4,))
    a, b, c = (Tensor(name=name, shape=(4,)) for name in "abc")
    graph = Graph(
        inputs=(x,),
        nodes=(
            Node(name="n0", op="linear", module="one", inputs=("x",), outputs=(a,),
                 weights=(tied,), macs=16),
            Node(name="n1", op="linear", module="two", inputs=("a",), outputs=(b,),
                 weights=(tied,), macs=16),
            Node(name="n2", op="add", module="", inputs=("a", "b"), outputs=(c,), macs=4),
        ),
        outputs=("c",),
    )  # fmt: skip
    between = partition(graph, pair(), codec="raw", cut=1)
    assert [stage.weight_bytes for stage in between.stages] == [4_000, 4_000]
    after = partition(graph, pair(), codec="raw", cut=2)
    assert after.crossings[0].tensors == ("a", "b")
    assert after.crossings[0].payload_bytes == 32
    assert [stage.weight_bytes for stage in after.stages] == [4_000, 0]


def test_a_node_reaches_its_share_of_the_rate_or_waits_for_memory_or_takes_what_was_measured():
    graph = chain((1_000, 400, (4,)), (100_000, 800, (10,)))
    graph = replace(graph, nodes=tuple(replace(n, read_bytes=900) for n in graph.nodes))
    device = Device(
        name="d", macs_per_s={"fp32": 1e6}, efficiency=((1e3, 0.25), (1e5, 0.5)), start_s=0.5
    )

    def seconds(device):
        platform = Platform(name="one", devices=(device,), links=(), input="d", output="d")
        plan = partition(graph, platform)
        return plan.stages[0].compute_s, plan.notes

    # 1,000 MACs at a quarter of the rate, 100,000 at half of it, and the start.
    assert seconds(device)[0] == pytest.approx(0.5 + 1_000 / 0.25e6 + 100_000 / 0.5e6)
    # The first node moves 900 + 16 byte, the second 900 + 40: 0.0916 s and 0.094 s.
    slow = replace(device, memory_bytes_per_s=1e4)
    assert seconds(slow)[0] == pytest.approx(0.5 + 0.0916 + 0.2)
    table = NodeTimes(
        graph=fingerprint(graph), seconds={"node0": 3.0, "node1": 4.0}, machine="a Pi", whole_s=7.0
    )
    time_s, notes = seconds(replace(slow, node_s=table))
    assert time_s == pytest.approx(0.5 + 7.0)
    assert "times of d are those measured on a Pi" in notes


def test_the_halves_of_a_codec_take_time_of_their_own():
    graph = chain((1_000, 400, (8, 2, 2)), (1_000, 400, (4,)))
    plan = partition(graph, pair(first=1e3, second=1e4), codec="bottleneck:ratio=2", cut=1)
    # 8 channels to 4 at each of 4 places, and the other way round.
    spec = parse_codec("bottleneck:ratio=2", shapes=((8, 2, 2),), dtypes=("float32",))
    assert spec.encoder_macs == 4 * 8 * 4 + 16  # and 16 values that are put on a grid
    assert plan.stages[0].codec_s == pytest.approx(spec.encoder_macs / 1e3)
    assert plan.stages[1].codec_s == pytest.approx(spec.decoder_macs / 1e4)
    assert plan.stages[0].compute_s == pytest.approx((1_000 + spec.encoder_macs) / 1e3)


def row(*rates, link_rate=1e6):
    """Devices in a row with these rates."""
    names = [f"d{k}" for k in range(len(rates))]
    return Platform(
        name="row",
        devices=tuple(
            Device(name=name, macs_per_s={"fp32": rate} if rate else {"int8": 1.0})
            for name, rate in zip(names, rates, strict=True)
        ),
        links=tuple(Link(between=ends, bytes_per_s=link_rate) for ends in pairwise(names)),
        input=names[0],
        output=names[-1],
    )


def test_throughput_evens_out_the_stages_where_latency_takes_the_fastest_device():
    layers = [(1_000_000, 400, (8, 2, 2))] * 4
    platform = row(1e6, 1.1e6)
    fast = partition(chain(*layers), platform)
    even = partition(chain(*layers), platform, objective="throughput")
    assert [len(stage.nodes) for stage in fast.stages] == [0, 4]
    assert [len(stage.nodes) for stage in even.stages] == [2, 2]
    assert even.predicted.interval_s == pytest.approx(2.0, rel=1e-3)
    assert even.predicted.latency_s > fast.predicted.latency_s


def test_a_slow_device_in_the_middle_passes_bytes_on():
    plan = partition(DIGITS, row(1e6, 1e3, 1e9))
    assert [len(stage.nodes) for stage in plan.stages] == [0, 0, 7]
    assert plan.stages[1].compute_s == 0
    assert plan.stages[1].weight_bytes == 0
    assert plan.stages[1].peak_memory_bytes == 64
    assert plan.crossings[0].cut == plan.crossings[1].cut
    assert plan.crossings[0].codec == plan.crossings[1].codec


def test_a_device_without_fp32_can_only_pass_on():
    plan = partition(DIGITS, row(1e6, None, 1e6))
    assert not plan.stages[1].nodes
    with pytest.raises(InfeasibleError, match=r"d\d: fp32 arithmetic needs .* has none; give its"):
        partition(DIGITS, row(None, None))


def camera_of(formats):
    """Return a camera with these rates beside a server; MACs cost energy on both."""
    return Platform(
        name="scene",
        devices=(
            Device(name="cam", macs_per_s=formats, j_per_mac=dict.fromkeys(formats, 1e-9)),
            Device(name="srv", macs_per_s={"fp32": 1e9}, j_per_mac={"fp32": 1e-9}),
        ),
        links=(Link(between=("cam", "srv"), bytes_per_s=1e6, j_per_byte=1e-6),),
        input="cam",
        output="srv",
    )


@pytest.mark.parametrize(
    ("formats", "compute_s"), [({"int8": 6.4e6, "int4": 1e3}, 1e-5), ({}, 0.0)]
)
def test_a_device_without_fp32_can_send_its_image(formats, compute_s):
    platform = camera_of(formats)
    plan = partition(DIGITS, platform)
    assert (plan.crossings[0].cut, plan.crossings[0].codec) == (0, "pixels")
    # 64 pixels are scaled, at the only rate that there is.
    assert plan.stages[0].compute_s == pytest.approx(compute_s)
    assert check(plan, DIGITS, platform) == ()
    assert not any("counted as 0 J" in note for note in plan.notes)
    tokens = replace(DIGITS, inputs=(replace(DIGITS.inputs[0], shape=(5,)),))
    assert partition(tokens, platform).crossings[0].codec == "raw"


def test_a_device_without_fp32_can_take_the_answer():
    platform = camera_of({"int8": 1e6})
    plan = partition(DIGITS, replace(platform, input="srv", output="cam"))
    assert (plan.crossings[0].cut, plan.crossings[0].codec) == (7, "label")
    assert not plan.stages[1].nodes


def test_what_only_passes_or_codes_costs_the_energy_of_the_format_that_there_is():
    pixels, none = (
        partition(DIGITS, camera_of(formats), objective="energy", cut=0).predicted.energy_j
        for formats in ({"int8": 6.4e6}, {})
    )
    assert pixels - none == pytest.approx(64e-9)


def test_one_device_computes_all_and_nothing_crosses():
    plan = partition(DIGITS, row(1e6))
    assert not plan.split
    assert plan.crossings == ()
    assert plan.predicted.latency_s == pytest.approx(DIGITS.macs / 1e6)
    assert plan.notes[0].startswith("nothing to split: all on d0")


def test_devices_off_the_way_are_named():
    platform = row(1e6, 1e6, 1e6)
    plan = partition(DIGITS, replace(platform, output="d1"))
    assert [stage.device for stage in plan.stages] == ["d0", "d1"]
    assert plan.unused == ("d2",)


def list_violations(error: InfeasibleError) -> list[Violation]:
    return [violation for violation in error.violations if isinstance(violation, Violation)]


def test_what_does_not_fit_comes_back_with_numbers_and_a_remedy():
    small = Memory(weights_bytes=50 * 1024, activations_bytes=16 * 1024)
    with pytest.raises(InfeasibleError) as caught:
        partition(DIGITS, pair(memories=(small, small)), codec="raw")
    broken = list_violations(caught.value)
    assert {violation.what for violation in broken} == {"weights"}
    # raw adds no weights, and both devices are over.
    assert sum(violation.need for violation in broken) == 158_000
    text = str(caught.value)
    assert "near: weights needs 60 kB, has 51.2 kB; use a device with >= 59 KiB" in text
    assert "far: weights needs 98 kB, has 51.2 kB; use a device with >= 96 KiB" in text
    assert "\n" not in text


def remedies(graph, platform, **options):
    """Return each broken limit of the nearest plan with its remedy."""
    with pytest.raises(InfeasibleError) as caught:
        partition(graph, platform, **options)
    return {(v.where, v.what): v.remedy for v in list_violations(caught.value)}


def test_a_narrower_codec_is_no_remedy_for_what_the_layers_need():
    wide = chain((1, 400, (8, 32, 32)), (1, 400, (8, 32, 32)), (1, 400, (8,)), (1, 400, (4,)))
    tight = Memory(weights_bytes=500, activations_bytes=1024)
    found = remedies(wide, pair(memories=(tight, tight)), cut=3, codec="bottleneck:ratio=4")
    assert found["near", "activations"] == "use a device with >= 64 KiB for it"
    assert found["near", "weights"].endswith("KiB for it, or one more device on the way")


def test_a_narrower_codec_is_named_where_it_is_possible_and_suffices():
    graph = chain((1, 4, (64, 4, 4)), (1, 4, (4,)))
    # Both layers hold 4,112 bytes at most, and the codec's halves 4,096 and buffers.
    tight = Memory(activations_bytes=4_500.0)
    found = remedies(graph, pair(memories=(tight, Memory())), cut=1, codec="bottleneck:ratio=2")
    assert found == {
        ("near", "activations"): "use a device with >= 7 KiB for it, "
        "or a narrower codec such as bottleneck:ratio=16,bits=8"
    }
    few = chain((1, 4, (8, 12, 12)), (1, 4, (4,)))
    tight = Memory(activations_bytes=4_900.0)
    found = remedies(few, pair(memories=(tight, Memory())), cut=1, codec="bottleneck:ratio=8")
    assert found == {("near", "activations"): "use a device with >= 6 KiB for it"}


def test_a_rate_and_a_codec_that_are_named_for_a_latency_keep_it():
    graph = chain((1_000, 400, (8, 4, 4)), (1_000, 400, (4,)))

    def pairs(rate):
        return pair(rate=rate, latency=0.0)

    limits = Limits(latency_s=0.05)
    broken = remedies(graph, pairs(1e3), codec="uniform:bits=8", cut=1, limits=limits)
    found = re.match(
        r"a rate of (\S+) kB/s on link near-far, or a narrower codec such as (\S+) after",
        broken["plan", "latency"],
    )
    assert found
    for rate, codec in ((float(found[1]) * 1001, "uniform:bits=8"), (1e3, found[2])):
        plan = partition(graph, pairs(rate), codec=codec, cut=1, limits=limits)
        assert plan.predicted.latency_s <= 0.05


def test_the_rate_that_is_named_is_the_least_at_which_any_plan_keeps_the_limit():
    # 10 ms are lost to latency. The near device computes for 61 ms, so that no rate will do, but
    # at 1 kB/s it is nearest: its label takes 15 ms. All on the far one the image has 60 ms.
    graph = chain((60_000, 400, (4, 2, 2)), (1_000, 400, (10,)))
    limits = Limits(latency_s=0.07)

    def at(rate):
        return pair(first=1e6, second=1e9, rate=rate, latency=0.01)

    (remedy,) = remedies(graph, at(1e3), codec="uniform:bits=8", limits=limits).values()
    found = re.search(r"or a rate of (\S+) kB/s on link near-far and then all on far", remedy)
    assert found
    assert float(found[1]) == pytest.approx((64 + HEADER_BYTES) / 60, rel=0.01)
    assert partition(graph, at(float(found[1]) * 1010), limits=limits).predicted.latency_s <= 0.07
    with pytest.raises(InfeasibleError):
        partition(graph, at(float(found[1]) * 990), codec="uniform:bits=8", limits=limits)


def test_limits_that_contradict_each_other_are_one_line_with_a_remedy():
    platform = Platform(
        name="dear",
        devices=(
            Device(name="near", macs_per_s={"fp32": 1e3}, price=1.0),
            Device(name="far", macs_per_s={"fp32": 1e9}, price=9.0),
        ),
        links=(Link(between=("near", "far"), bytes_per_s=125_000.0),),
        input="near",
        output="near",
    )
    seconds, price = Limits(latency_s=1.0), Limits(price=5.0)
    assert partition(DIGITS, platform, limits=seconds).predicted.price == 10
    assert partition(DIGITS, platform, limits=price).predicted.latency_s > 1
    near, far = platform.devices
    free = replace(platform, devices=(near, replace(far, price=0.0)))
    note = "counted as 0 USD, for want of a price: far"
    assert note in partition(DIGITS, free, limits=replace(seconds, price=5.0)).notes
    assert note not in partition(DIGITS, free, limits=seconds).notes
    both = replace(seconds, price=5.0)
    ((what, remedy),) = remedies(DIGITS, platform, limits=both).items()
    assert what == ("plan", "price")
    assert remedy == "allow 10 USD"


def test_over_eight_devices_that_differ_compute_in_the_order_of_the_file_and_alike_ones_in_any():
    def star(rates):
        names = [f"d{k}" for k in range(len(rates))]
        return Platform(
            name="star",
            devices=tuple(
                Device(name=n, macs_per_s={"fp32": r}) for n, r in zip(names, rates, strict=True)
            ),
            links=tuple(Link(between=("d0", name), bytes_per_s=1e6) for name in names[1:]),
            input="d0",
            output="d0",
        )

    note = "devices compute in the order of the file: there are many"
    for rates, exact in (
        ([1e6 + k for k in range(9)], True),  # eight besides the one at both ends
        ([1e6 + k for k in range(10)], False),
        ([1e6] * 12, True),
    ):
        plan = partition(DIGITS, star(rates))
        assert (plan.gap == pytest.approx(0, abs=1e-9)) is exact
        assert (note in plan.notes) is not exact


def test_a_device_that_only_decodes_needs_bytes_and_no_other_device():
    tiny = Memory(shared_bytes=1)
    found = remedies(DIGITS, pair(memories=(Memory(), tiny)), cut=7)
    assert found == {("far", "memory"): "use a device with >= 42 bytes for it"}


def test_cuts_that_differ_in_nothing_but_their_place_are_one_entry():
    free = (0, 0, (16, 8, 8))  # no MACs, as of an activation: alike before and after it
    graph = chain(
        (9_000, 9_000, (16, 8, 8)), free, free, (9_000, 9_000, (32, 4, 4)), (9, 9, (10,))
    )
    graph = replace(graph, nodes=tuple(replace(node, written_bytes=0) for node in graph.nodes))
    plan = partition(graph, pair(), cut=4)
    (rival,) = [rival for rival in plan.runner_ups if rival.cuts == (1,)]
    assert rival.what == "cut after layer0"
    assert rival.alike == ("cut after layer1", "cut after layer2")
    assert not {(2,), (3,)} & {other.cuts for other in plan.runner_ups}
    chosen = partition(graph, pair(), cut=2)
    assert "as good, and as many bytes: cut after layer0, cut after layer2" in chosen.notes
    assert not {(1,), (3,)} & {other.cuts for other in chosen.runner_ups}
    again = from_json(to_json(plan), Plan, where="plan")
    assert again.runner_ups == plan.runner_ups


def test_a_runner_up_says_how_many_bytes_cross_instead():
    graph = chain((1_000, 4, (5, 4, 4)), (1_000, 4, (2, 2)))
    two = partition(graph, pair(first=1e9, second=1e9), codec="uniform:bits=8")
    (rival,) = [rival for rival in two.runner_ups if rival.what == "cut after layer0"]
    assert rival.reason.endswith(": 80 bytes cross instead of 16")
    three = partition(graph, row(1e9, 1e9, 1e9), codec="uniform:bits=8")
    reasons = [rival.reason for rival in three.runner_ups]
    assert any(r.endswith("bytes cross over all links instead of 32") for r in reasons)


def test_the_notes_say_once_what_a_bottleneck_narrows_where_one_might_think_otherwise():
    signal = chain((1_000, 4, (8, 31)), (1_000, 4, (2,)), image=(1, 9, 9))
    plan = partition(signal, row(1e6, 1e3, 1e6), codec="bottleneck:ratio=8", cut=(1, 1))
    note = "bottleneck narrows 31 to 3 along the last dimension of (8, 31)"
    assert plan.notes.count(note) == 1
    odd = chain((1_000, 4, (31, 2, 2)), (1_000, 4, (2,)))
    plan = partition(odd, pair(), codec="bottleneck:ratio=8", cut=1)
    assert "bottleneck narrows 31 to 3 along the first dimension of (31, 2, 2)" in plan.notes
    even = partition(DIGITS, pair(), codec="bottleneck:ratio=8", cut=1)
    whole = partition(signal, pair(), codec="bottleneck:ratio=1", cut=1)
    for plan in (even, whole):
        assert not any("narrows" in note for note in plan.notes)


def test_the_plan_nearest_to_fitting_overflows_by_the_fewest_bytes():
    first = Memory(weights_bytes=65_000, activations_bytes=16 * 1024)
    second = Memory(weights_bytes=90_000, activations_bytes=16 * 1024)
    with pytest.raises(InfeasibleError) as caught:
        partition(DIGITS, pair(memories=(first, second)), codec="raw")
    (violation,) = list_violations(caught.value)
    # After layer3 60 kB lie on the near device and 98 kB on the far one, 8 kB too many.
    assert (violation.where, violation.need, violation.limit) == ("far", 98_000, 90_000)


def test_memory_that_is_shared_holds_weights_and_activations_together():
    exact = 158_000 + 8_192  # both feature maps of a layer alive at once
    for room, fits in ((exact, True), (exact - 1, False)):
        platform = pair(first=1e3, second=1e9, memories=(Memory(), Memory(shared_bytes=room)))
        plan = partition(DIGITS, platform)
        assert (plan.crossings[0].cut == 0) is fits


def test_a_cut_can_be_forced_on_every_link():
    platform = row(1e6, 1e6, 1e6)
    plan = partition(DIGITS, platform, cut=(1, 3), codec="uniform:bits=4")
    assert [crossing.cut for crossing in plan.crossings] == [1, 3]
    assert [len(stage.nodes) for stage in plan.stages] == [1, 2, len(DIGITS.nodes) - 3]
    with pytest.raises(InputError, match="found 1 cuts, expected one for each of 2 links"):
        partition(DIGITS, platform, cut=(1,))


def test_a_cut_can_be_forced_and_the_better_plans_are_runner_ups():
    platform = pair(first=1e6, second=1e9, rate=1_000.0)
    plan = partition(DIGITS, platform, cut=3, codec="uniform:bits=4")
    assert plan.crossings[0].after == "layer2"
    assert plan.crossings[0].codec == "uniform:bits=4"
    assert plan.runner_ups[0].what == "all on far"
    assert plan.runner_ups[0].reason.endswith("better, but another cut was asked for")
    assert plan.sensitivity == ()
    forced_input = partition(DIGITS, pair(first=1e9, second=1e3), cut=0)
    assert not forced_input.split
    assert not any(note.startswith("do not split") for note in forced_input.notes)


def test_of_cuts_that_cost_the_same_the_one_that_ends_an_outer_module_is_taken():
    t = [Tensor(name=f"t{k}", shape=(4, 2, 2)) for k in range(3)]
    nodes = tuple(
        Node(name=f"n{k}", op="op", module=module, inputs=(before,), outputs=(t[k],), macs=macs)
        for k, (module, before, macs) in enumerate(
            [("block.conv", "x", 1_000), ("block.norm", "t0", 0), ("block", "t1", 0)]
        )
    )
    head = Node(name="head", op="op", module="head", inputs=("t2",), outputs=(
        Tensor(name="y", shape=(2, 2)),), macs=1_000_000)  # fmt: skip
    image = Tensor(name="x", shape=(8, 20, 20))
    graph = Graph(inputs=(image,), nodes=(*nodes, head), outputs=("y",))
    plan = partition(graph, pair(first=1e6, second=1e9), codec="raw")
    assert plan.crossings[0].after == "block"


BAD = [
    ({"objective": "speed"}, "no objective 'speed'; there are latency, throughput, energy"),
    ({"method": "magic"}, "no partitioner 'magic'; there are chain"),
    (
        {"codec": "zip:1"},
        "^no codec 'zip'; there are raw, uniform, bottleneck, float, pixels, png, label$",
    ),
    ({"codec": ""}, "^no codec ''; there are raw"),
    ({"codec": "uniform:bits=99"}, "^codec uniform: found bits=99, expected 1 to 8$"),
    (
        {"codec": "uniform:ratio=2"},
        "^codec 'uniform:ratio=2': found option 'ratio=2'; uniform takes",
    ),
    *(
        (
            {"codec": codec},
            f"^codec {codec} is for the input or the output, expected one for a cut inside the "
            "network: raw, uniform, bottleneck, float$",
        )
        for codec in ("pixels", "png", "label")
    ),
    ({"codec": "bottleneck:ratio=64"}, "can carry no cut; .*ratio"),
    ({"cut": 99}, "cut 99: found no such cut, expected 0 to 7"),
    ({"cut": -1}, "cut -1: found no such cut"),
    ({"cut": 1, "codec": "bottleneck:ratio=32"}, "cut 1 cannot be used: .*ratio 32.*another"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        partition(DIGITS, pair(), **arguments)
    assert "\n" not in str(caught.value)


def test_a_cut_with_an_obstacle_is_skipped_counted_and_not_to_be_forced():
    nodes = list(DIGITS.nodes)
    stuck = Tensor(name="t2", shape=(16, 8, 8), batched=False)
    nodes[2] = replace(nodes[2], outputs=(stuck,), macs=None, op="strange_op")
    graph = replace(DIGITS, nodes=tuple(nodes))
    plan = partition(graph, pair())
    assert 3 not in [rival.cuts[0] for rival in plan.runner_ups]
    assert any(note.startswith("1 of 8 cuts cannot be used; 1 of them") for note in plan.notes)
    assert "counted as 0 MACs, for want of a rule: strange_op" in plan.notes
    with pytest.raises(InputError, match="cut 3 cannot be used: dimension 0 of t2"):
        partition(graph, pair(), cut=3)


def test_each_links_break_even_stands_in_the_notes():
    plan = partition(DIGITS, load_platform("camera-hub"))
    camera, (link,) = plan.platform.device("camera"), plan.platform.links
    macs = link.j_per_byte / camera.j_per_mac["fp32"]
    expected = (
        "one byte on camera-hub takes 8 us, as long as 432 fp32 MACs on camera, and 400 nJ, "
        f"as much as {macs:.3g} of them"
    )
    assert expected in plan.notes


def test_a_plan_comes_back_from_its_file():
    plan = partition(DIGITS, load_platform("two-mcu-spi"))
    text = to_json(plan)
    assert from_json(text, Plan, where="plan.json") == plan
    fields = json.loads(text)
    assert next(iter(fields)) == "schema"
    assert fields["schema"] == "isthmus.plan/1"
    expected = {"schema", "objective", "split", "stages", "crossings", "predicted", "violations"}
    assert expected | {"runner_ups"} <= set(fields)
    stage = {"device", "nodes", "macs", "weight_bytes", "peak_memory_bytes", "format", "compute_s"}
    assert stage <= set(fields["stages"][0])
    crossing = {"after", "tensors", "codec", "payload_bytes", "transfer_s"}
    assert crossing <= set(fields["crossings"][0])
    assert {"latency_s", "interval_s", "energy_j", "price", "drop"} == set(fields["predicted"])


def test_a_plan_of_another_model_or_platform_is_refused():
    platform = load_platform("two-mcu-spi")
    plan = partition(DIGITS, platform)
    with pytest.raises(InputError, match="found the devices mcu-a, mcu-b, expected those of"):
        check(plan, DIGITS, load_platform("camera-hub"))
    with pytest.raises(InputError, match="expected a plan of this model"):
        check(plan, replace(DIGITS, nodes=DIGITS.nodes[:3], outputs=("t2",)), platform)
    renamed = replace(DIGITS, nodes=(replace(DIGITS.nodes[0], name="other"), *DIGITS.nodes[1:]))
    with pytest.raises(InputError, match="other operations on mcu-a"):
        check(plan, renamed, platform)


def test_a_plan_is_checked_by_its_stages_and_not_by_its_own_figures():
    roomy = load_platform("two-mcu-spi")
    tight = tuple(
        replace(device, memory=Memory(weights_bytes=1e4, activations_bytes=1e4))
        for device in roomy.devices
    )
    plan = partition(DIGITS, roomy)
    claims = tuple(replace(stage, weight_bytes=0, peak_memory_bytes=0) for stage in plan.stages)
    broken = check(replace(plan, stages=claims), DIGITS, replace(roomy, devices=tight))
    assert {(violation.where, violation.what) for violation in broken} >= {
        ("mcu-a", "weights"),
        ("mcu-b", "weights"),
    }


@pytest.mark.parametrize("method", sorted(METHODS))
class TestEveryMethod:
    def test_stages_hold_every_node_once_and_in_order(self, method):
        for name, objective in product(("two-mcu-spi", "chiplets-4"), ("latency", "throughput")):
            platform = load_platform(name)
            plan = partition(DIGITS, platform, method=method, objective=objective)
            nodes = [node for stage in plan.stages for node in stage.nodes]
            if plan.branched:
                assert sorted(nodes) == sorted(node.name for node in DIGITS.nodes)
                continue
            assert nodes == [node.name for node in DIGITS.nodes]
            devices, links = path(platform)
            assert [stage.device for stage in plan.stages] == [d.name for d in devices]
            assert [crossing.link for crossing in plan.crossings] == [link.name for link in links]

    def test_the_same_question_gets_the_same_plan(self, method):
        platform = load_platform("two-mcu-spi")
        assert partition(DIGITS, platform, method=method) == partition(
            DIGITS, platform, method=method
        )

    def test_what_crosses_is_what_is_alive_at_the_cut(self, method):
        plan = partition(DIGITS, load_platform("two-mcu-spi"), method=method)
        for crossing in plan.crossings:
            cut = cuts(DIGITS)[crossing.cut]
            assert crossing.tensors == tuple(tensor.name for tensor in cut.tensors)
            assert crossing.shapes == tuple(tensor.shape for tensor in cut.tensors)


def test_a_method_of_ones_own_is_checked_as_ours():
    def stubborn(graph, platform, asked):
        roomy = tuple(replace(device, memory=Memory()) for device in platform.devices)
        return METHODS["chain"](graph, replace(platform, devices=roomy), asked)

    with pytest.raises(InfeasibleError, match="mcu-"):
        partition(DIGITS, load_platform("two-mcu-spi"), method=stubborn)


@pytest.mark.parametrize(
    "codec",
    [
        "uniform:bits=8",
        "uniform:bits=4,per=tensor,range=mse",
        "uniform:bits=1,symmetric=1",
        "float",
    ],
)
def test_a_payload_too_large_names_a_bottleneck_whatever_the_grid_was_told(codec):
    with pytest.raises(InfeasibleError, match="a narrower codec such as bottleneck:ratio="):
        partition(DIGITS, pair(), codec=codec, cut=1, limits=Limits(link_bytes=100))


def test_an_operation_that_there_is_not_is_named_in_a_note():
    graph = chain((1_000, 400, (8,)), (1_000, 400, (4,)))
    platform = load_platform("two-mcu-spi")
    lacks = replace(platform.devices[0], unsupported=("gelu", "gleu", graph.nodes[0].op))
    devices = (lacks, *platform.devices[1:])
    notes = partition(graph, replace(platform, devices=devices)).notes
    assert [note for note in notes if "lacks" in note] == [
        "mcu-a lacks 'gleu', which is no operation: see `isthmus profile`"
    ]
