"""Stages in integers: predicted in the device's own format, and crossing as what they hold."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain, settle
from isthmus.export.export import export
from isthmus.graph import capture, cuts, find_cut, live_bytes
from isthmus.links import make_codec
from isthmus.plan import Limits, partition
from isthmus.plan.check import check
from isthmus.platform import Device, Link, Platform, load_platform
from isthmus.split import split
from isthmus.wire import parse_codec
from tests.nets import chain, images, residual

EXAMPLE = (images(),)
RATES = {"int8": 8e6, "fp32": 1e6}


def quantized(model, text="quantize:int8"):
    (step,) = parse_chain([text])
    samples = Samples(example=EXAMPLE, inputs=(images(32, seed=1),))
    return settle(apply(copy.deepcopy(model.eval()), step, samples))


@pytest.fixture(scope="module")
def integers():
    torch.manual_seed(0)
    return quantized(chain())


def alone(**figures):
    device = Device(name="a", **figures)
    return Platform(name="one", devices=(device,), links=(), input="a", output="a")


def pair(bytes_per_s=1e6):
    devices = tuple(
        Device(name=name, macs_per_s=RATES, formats=("int8", "fp32")) for name in ("a", "b")
    )
    link = Link(between=("a", "b"), bytes_per_s=bytes_per_s)
    return Platform(name="two", devices=devices, links=(link,), input="a", output="b")


def test_a_stage_in_integers_takes_a_quarter_of_the_memory(integers):
    floats, held = capture(chain(), EXAMPLE), capture(integers, EXAMPLE)
    # the first ReLU reads and makes 8 maps of 8 x 8, of 4 bytes or of 1
    assert (max(live_bytes(floats)), max(live_bytes(held))) == (4096, 1024)
    weights, channels = 3 * 8 * 9 + 8 * 16 * 9 + 64 * 10, 8 + 16 + 10
    assert floats.weight_bytes == 4 * (weights + channels)
    # a byte for each weight, biases and scales of 4; five roundings have a scale and a zero each
    assert held.weight_bytes == weights + 8 * channels + 5 * (4 + 1)


def test_a_stage_in_integers_is_predicted_at_their_rate(integers):
    graph = capture(integers, EXAMPLE)
    plan = partition(graph, alone(macs_per_s=RATES, formats=("int8", "fp32")))
    # all but the rounding of the input, which is 10 operations for each of 3 x 8 x 8 floats
    first = 10 * 3 * 8 * 8
    assert graph.nodes[0].ops == first
    rest = graph.macs + graph.ops - first
    assert plan.predicted.latency_s == pytest.approx(first / 1e6 + rest / 8e6)
    assert [node.format for node in graph.nodes] == ["fp32"] + ["int8"] * (len(graph.nodes) - 1)
    assert plan.stages[0].format == "int8"
    one = alone(macs_per_s=RATES, formats=("int8", "fp32"), j_per_mac={"int8": 1.0, "fp32": 20.0})
    assert partition(graph, one).predicted.energy_j == pytest.approx(20 * first + rest)


def test_a_device_without_integers_computes_in_the_next_wider_format_and_the_plan_says_so(
    integers,
):
    graph = capture(integers, EXAMPLE)
    plan = partition(graph, alone(macs_per_s={"fp32": 1e6}))
    assert plan.predicted.latency_s == pytest.approx((graph.macs + graph.ops) / 1e6)
    assert plan.stages[0].format == "fp32"
    assert "a has no rate in int8: predicted in fp32 there" in plan.notes
    assert plan.stages[0].weight_bytes == graph.weight_bytes


def test_a_preset_runs_the_compressed_model_faster_in_less_memory(integers):
    boards = load_platform("two-mcu-spi")
    whole, small = (
        partition(capture(model, EXAMPLE), boards) for model in (chain().eval(), integers)
    )
    assert small.stages[0].peak_memory_bytes * 4 == whole.stages[0].peak_memory_bytes
    # its int8 is 12 / 0.72 times as fast; rounding takes the rest
    assert whole.predicted.latency_s / 12 < small.predicted.latency_s
    assert small.predicted.latency_s < whole.predicted.latency_s / 6


@pytest.mark.parametrize("after", ["1", "round_to_int8_2"])
def test_what_leaves_as_integers_crosses_as_these(integers, after):
    graph = capture(integers, EXAMPLE)
    cut = next(cut for cut in cuts(graph) if cut.after == after)
    plan = partition(graph, pair(), cut=cut.index, codec="raw")
    (crossing,) = plan.crossings
    assert crossing.dtypes == ("uint8",)
    assert crossing.payload_bytes == cut.tensors[0].num_elements
    assert check(plan, graph, plan.platform, limits=Limits(link_bytes=512)) == ()
    spec = parse_codec("raw", shapes=crossing.shapes, dtypes=crossing.dtypes)
    codec = make_codec(spec)
    parts = split(integers, plan, [codec]).eval()
    x = images(4, seed=2)
    with torch.no_grad():
        leaving = parts.stages[0](x)
        payloads = codec.compress(leaving)
        arrived = parts.stages[1](*codec.decompress(payloads))[0]
        assert torch.equal(arrived, integers(x))
    assert {len(payload) for payload in payloads} == {crossing.payload_bytes}
    x.requires_grad_()
    parts.train()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_integers_on_the_link_are_what_the_program_emits(integers, tmp_path):
    plan = partition(capture(integers, EXAMPLE), pair(), cut=5, codec="raw")
    (crossing,) = plan.crossings
    spec = parse_codec("raw", shapes=crossing.shapes, dtypes=crossing.dtypes)
    parts = split(integers, plan, [make_codec(spec)]).eval()
    found = export(parts, plan, tmp_path / "bundle", samples=[images(8, seed=3).numpy()])
    assert found.payload_bytes == (8 * 4 * 4,)
    assert found.equal_predictions == 1.0


def test_a_narrow_codec_can_still_carry_what_is_held_in_integers(integers):
    graph = capture(integers, EXAMPLE)
    plan = partition(graph, pair(), cut=5, codec="bottleneck:ratio=2,bits=4")
    assert plan.crossings[0].dtypes == ("float32",)
    free = partition(graph, pair(bytes_per_s=1e4), limits=Limits(link_bytes=100), cut=5)
    assert free.crossings[0].codec.startswith("bottleneck")


def sums(graph):
    return [node for node in graph.nodes if node.op.strip("_") == "add"]


def test_a_sum_with_what_is_in_floats_stays_in_floats():
    graph = capture(quantized(residual(), "quantize:int8,skip=1"), EXAMPLE)
    assert [(node.format, node.outputs[0].held) for node in sums(graph)] == [("fp32", "")] * 2


def test_a_sum_of_integers_is_predicted_as_one_crosses_as_one_and_is_exported_equal(tmp_path):
    torch.manual_seed(0)
    model = quantized(residual())
    graph = capture(model, EXAMPLE)
    assert [(node.format, node.outputs[0].held) for node in sums(graph)] == [("int8", "uint8")] * 2
    plan = partition(graph, pair(), cut=find_cut(graph, "1").index, codec="raw")
    (crossing,) = plan.crossings
    assert (crossing.dtypes, crossing.payload_bytes) == (("uint8",), 8 * 8 * 8)
    spec = parse_codec("raw", shapes=crossing.shapes, dtypes=crossing.dtypes)
    parts = split(model, plan, [make_codec(spec)]).eval()
    x = images(4, seed=2)
    with torch.no_grad():
        assert torch.equal(parts(x), model(x))
    found = export(parts, plan, tmp_path / "bundle", samples=[images(8, seed=3).numpy()])
    assert found.payload_bytes == (512,)
    assert found.equal_predictions == 1.0


def test_weights_of_few_bits_count_packed_and_compute_in_floats():
    model = quantized(nn.Sequential(nn.Conv2d(3, 5, 3)), "quantize:weights,bits=4")
    (node,) = capture(model, EXAMPLE).nodes
    sizes = {weight.name.rpartition(".")[2]: weight.num_bytes for weight in node.weights}
    assert sizes == {"weight": 68, "scale": 20, "bias": 20}  # 135 weights of half a byte
    assert node.format == "fp32"


def test_a_plan_of_another_format_is_refused(integers):
    graph = capture(integers, EXAMPLE)
    plan = partition(graph, pair(), cut=5, codec="raw")
    (crossing,) = plan.crossings
    other = replace(plan, crossings=(replace(crossing, dtypes=("uint4",)),))
    with pytest.raises(Exception, match="plan sends 'max_pool2d' as uint4"):
        split(integers, other)
