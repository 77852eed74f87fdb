"""Bits for each layer and tensor: by hand, against brute force, and within limits for real."""

import copy
import random
from itertools import product
from math import inf

import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain, settle
from isthmus.compress.mixed import WIDTHS, Limit, cut_bits, least_loss
from isthmus.errors import InputError
from isthmus.export.export import export
from isthmus.graph import capture, find_cut, live_bytes
from isthmus.links import make_codec
from isthmus.models.layers import Integer
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.split import split
from isthmus.wire import parse_codec
from tests.nets import chain, images, residual


def made(model, text):
    (step,) = parse_chain([text])
    samples = Samples(example=(images(),), inputs=(images(32, seed=1),))
    return settle(apply(copy.deepcopy(model.eval()), step, samples))


def flash(room, *sizes):
    return Limit(what="flash", room=room, sizes=sizes)


def ram(room, *sizes):
    return Limit(what="ram", room=room, sizes=sizes)


def test_weights_are_cut_where_their_share_is_largest():
    assert cut_bits([flash(150, 100, 50)]) == (8, 8)
    assert cut_bits([flash(149, 100, 50)]) == (4, 8)  # 50 + 50
    assert cut_bits([flash(99, 100, 50)]) == (2, 8)  # of equal shares the first: 25 + 50
    assert cut_bits([flash(74, 100, 50)]) == (2, 4)  # the first has no more to give: 25 + 25
    # 96 of 196 is within 5 % of 100 of 196, and comes first
    assert cut_bits([flash(195, 96, 100)]) == (4, 8)


def test_tensors_are_cut_where_two_do_not_fit_at_once():
    # layer 1 reads 40 and makes 80; layer 2 reads these and makes 20
    assert cut_bits([ram(80, 40, 80, 0), ram(100, 0, 80, 20)]) == (8, 4, 8)
    assert cut_bits([ram(200, 40, 80, 0), ram(50, 0, 80, 20)]) == (8, 4, 4)  # 40 + 20 is too much
    with pytest.raises(InputError, match=r"ram has room for 24 bytes of .*, expected 25"):
        cut_bits([ram(24, 0, 80, 20)])
    with pytest.raises(InputError, match=r"for -2 bytes of .*, expected 25 .* allow 27 bytes"):
        cut_bits([ram(24, 0, 80, 20), ram(-2, 0, 80, 20), ram(24, 0, 80, 20)])


def test_the_bits_of_least_loss_are_those_of_brute_force():
    draw = random.Random(0)
    for _ in range(20):
        losses = [[0.0, *sorted(draw.random() for _ in WIDTHS[1:])] for _ in range(5)]
        losses[0][-1] = 1e12  # beside which all others are nothing
        sizes = [[draw.randrange(1, 100) for _ in range(5)] for _ in range(2)]
        limits = [flash(0.5 * sum(sizes[0]), *sizes[0]), ram(0.6 * sum(sizes[1]), *sizes[1])]
        fitting = [
            bits
            for bits in product(WIDTHS, repeat=5)
            if all(limit.need(bits) <= limit.room for limit in limits)
        ]

        def loss(bits, losses=losses):
            return sum(row[WIDTHS.index(b)] for row, b in zip(losses, bits, strict=True))

        found = least_loss(limits, losses)
        assert found in fitting
        assert loss(found) == pytest.approx(min(map(loss, fitting)))


@pytest.mark.parametrize("name", ["quantize:memory", "quantize:mixed"])
def test_a_plan_finds_the_model_within_the_limits(name):
    torch.manual_seed(0)
    graph = capture(made(chain(), f"{name},flash=1500byte,ram=900byte"), (images(),))
    # at 8 bits it takes 2305 and 1024 bytes; 2008 of the weights can be cut
    assert graph.weight_bytes <= 1500
    assert max(live_bytes(graph)) <= 900
    later = [n for n in graph.nodes if n.name != "round_to_int8"]
    assert {tensor.held for node in later for tensor in node.outputs} - {"uint8"}


def test_what_meets_a_skip_in_floats_is_cut_to_the_room_that_is_left():
    model = made(residual(), "quantize:memory,ram=4400byte,skip=1")
    # the last sum takes 2048 bytes of the skip, 2048 of its own, and 512 integers
    assert max(live_bytes(capture(model, (images(),)))) == 2 * 2048 + 256
    bits = {path: m.output_bits for path, m in model.named_modules() if isinstance(m, Integer)}
    assert {path for path, found in bits.items() if found == 4} == {"0", "2.conv2"}


def test_a_skip_of_integers_takes_the_room_of_integers():
    for limit, found in (("ram=1536byte", 3 * 512), ("ram=1535byte", 2 * 512 + 256)):
        model = made(residual(), f"quantize:memory,{limit}")  # two terms and their sum
        assert max(live_bytes(capture(model, (images(),)))) == found


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.near, self.far = nn.Conv2d(8, 1, 3), nn.Conv2d(8, 1, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.near(x) + self.far(x)


def test_layers_that_read_one_tensor_round_it_alike():
    model = made(Fork(), "quantize:memory,ram=900byte")
    assert model.near.input_bits == model.far.input_bits == 4
    assert max(live_bytes(capture(model, (images(),)))) <= 900


def test_integers_of_four_bits_cross_two_a_byte_and_are_exported_equal(tmp_path):
    torch.manual_seed(0)
    model = made(chain(), "quantize:memory,ram=1000byte,flash=1200byte")
    graph = capture(model, (images(),))
    cut = next(k for k, node in enumerate(graph.nodes, 1) if node.outputs[0].held == "uint4")
    plan = partition(graph, load_platform("two-mcu-spi"), cut=cut, codec="raw")
    (crossing,) = plan.crossings
    assert crossing.dtypes == ("uint4",)
    spec = parse_codec("raw", shapes=crossing.shapes, dtypes=crossing.dtypes)
    codec, x = make_codec(spec).eval(), images(4, seed=2)
    near, far = split(model, plan, [codec]).eval().stages
    with torch.no_grad():
        payloads = codec.compress(near(x))
        assert torch.equal(far(*codec.decompress(payloads))[0], model(x))
    assert 2 * len(payloads[0]) == graph.nodes[cut - 1].outputs[0].num_elements
    parts = split(model, plan, [codec]).eval()
    found = export(parts, plan, tmp_path / "bundle", samples=[images(8, seed=3).numpy()])
    assert found.payload_bytes == (len(payloads[0]),)
    assert found.equal_predictions == 1.0


@pytest.mark.parametrize(
    "name", ["quantize:memory", pytest.param("quantize:mixed", marks=pytest.mark.slow)]
)
def test_what_crosses_a_link_is_within_its_limit_and_the_rest_keeps_its_bits(name):
    torch.manual_seed(0)
    before, after = (
        capture(made(chain(), f"{name},{limit}"), (images(),))
        for limit in ("flash=1MiB", "link=70byte,cut=2")  # 8 x 4 x 4 values cross
    )
    assert find_cut(before, "2").num_bytes == 128
    assert find_cut(after, "2").num_bytes == 64
    assert after.weight_bytes == before.weight_bytes
    with pytest.raises(InputError, match=r"link has room for 30 bytes of .*, expected 32 or more"):
        made(chain(), f"{name},link=30byte,cut=2")
    with pytest.raises(InputError, match=r"found link= alone, .*; add such as cut=layer1"):
        parse_chain(["prune:l1", f"{name},link=30byte"])
    with pytest.raises(InputError, match=r"found cut= alone, .*; add such as link=2KiB"):
        parse_chain([f"{name},cut=layer1"])


class Skip(nn.Module):
    """A skip around a layer, whose input is rounded for it and read by the sum as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.thin, self.head = nn.Conv2d(8, 4, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        h = (h + self.wide(self.thin(h).relu())).relu()
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("name", ["quantize:memory", "quantize:mixed"])
def test_a_limit_holds_where_a_skip_reads_what_a_layer_rounds(name):
    torch.manual_seed(0)
    model = made(Skip(), f"{name},link=500byte,cut=thin")
    assert find_cut(capture(model, (images(),)), "thin").num_bytes <= 500  # of 768 in 8 bits


def test_a_limit_is_needed_and_has_to_be_possible():
    with pytest.raises(InputError, match="found no limit; give flash=64KiB or ram=16KiB"):
        parse_chain(["quantize:memory"])
    with pytest.raises(InputError, match=r"flash has room for .* expected 502 or more"):
        made(chain(), "quantize:mixed,flash=400byte")
    with pytest.raises(InputError, match="expected flash=a size such as 64KiB"):
        parse_chain(["quantize:mixed,flash=64"])
    assert parse_chain(["quantize:mixed,flash=64KiB"])[0].options["ram"] == inf
