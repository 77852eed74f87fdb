"""What ideas of hardware would save, on layers counted by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain, settle
from isthmus.compress.savings import (
    Accesses,
    Shape,
    accesses,
    count_savings,
    fft,
    strassen,
    winograd,
)
from isthmus.errors import InputError
from isthmus.graph import capture
from isthmus.models import digits_resnet


def conv(*, kernel=3, stride=1, out=4, groups=1, made=2, read=3, dims=2):
    return Shape(
        made=made, read=read, groups=groups, kernel=(kernel,) * dims, stride=(stride,) * dims,
        dilation=(1,) * dims, out=(out,) * dims,
    )  # fmt: skip


def test_winograd_multiplies_16_times_for_four_results_and_36_times_for_sixteen():
    assert conv().macs == 2 * 3 * 9 * 16
    assert winograd(conv(), 2) == 2 * 3 * 4 * 16  # 2.25 times fewer, as in the paper
    assert winograd(conv(), 4) == 2 * 3 * 1 * 36  # 4 times fewer
    assert winograd(conv(out=5), 4) == 2 * 3 * 4 * 36  # four tiles, three of them mostly empty
    assert winograd(conv(stride=2), 2) is None
    assert winograd(conv(kernel=1), 2) is None


def test_fourier_transforms_are_counted_with_half_of_each_for_real_data():
    # padded 6 x 6, so 8 x 8: n = 64, 6 levels; (3 + 2) maps of 64 * 6 / 4 complex products,
    # then 2 * 3 * 8 * 5 products; three real ones each
    assert fft(conv()) == 3 * (5 * 96 + 240)
    assert fft(conv(kernel=1)) is None


def test_strassen_stops_where_it_saves_nothing():
    assert strassen(2, 2, 2) == 7
    assert strassen(8, 8, 8) == 343
    assert strassen(3, 2, 2) == 12  # 7 * 2 would be more
    assert strassen(1, 100, 100) == 10_000


def test_accesses_of_a_row_by_hand():
    # one channel each, 1-D: 2 weights, 4 inputs, 3 outputs: 6 MACs
    counts = accesses(conv(kernel=2, out=3, made=1, read=1, dims=1))
    assert counts == {
        "none": Accesses(weights=6, inputs=6, sums=9),  # 6 written, 3 read again
        "weight": Accesses(weights=2, inputs=6, sums=9),
        "output": Accesses(weights=6, inputs=6, sums=3),
        "input": Accesses(weights=6, inputs=4, sums=9),
        "row": Accesses(weights=2, inputs=4, sums=3),
    }
    assert counts["none"].total == 21


def by_running(order, shape):
    """Count accesses by walking through all MACs with a register for each kind of data."""
    c, m, k, o = shape.read, shape.made, shape.kernel[0], shape.out[0]
    ranges = {"m": range(m), "c": range(c), "k": range(k), "o": range(o)}
    held: dict[str, Any] = {}
    weights = inputs = sums = 0
    begun = set()
    for place in itertools.product(*(ranges[name] for name in order)):
        at = dict(zip(order, place, strict=True))
        weight = (at["m"], at["c"], at["k"])
        weights += held.get("weight") != weight
        out = (at["m"], at["o"])
        if held.get("output") != out:
            sums += 1 + (out in begun)  # written once for this turn, read again where begun
        begun.add(out)
        inputs += 1
        held = {"weight": weight, "output": out}
    return weights, inputs, sums


def test_accesses_are_those_of_a_walk_through_all_products():
    shape = conv(kernel=3, out=5, made=2, read=3, dims=1)
    counts = accesses(shape)
    weights, inputs, sums = by_running("mcko", shape)
    assert counts["weight"] == Accesses(weights=weights, inputs=inputs, sums=sums)
    weights, inputs, sums = by_running("mock", shape)
    assert counts["output"] == Accesses(weights=weights, inputs=inputs, sums=sums)


def test_zeros_and_repeated_weights_of_a_layer_by_hand():
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 2, bias=False))
    layer: Any = model[1]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [2.0, 3.0, -2.0]]))
    x = torch.tensor([[1.0, -1.0, 2.0], [-1.0, 1.0, -3.0]])  # 2 of 3, then 1 of 3 pass the ReLU
    (found,) = count_savings(model, (x,), (x,))
    assert found.macs == 6
    assert found.repeated == 1 + 3
    assert found.nonzero_inputs == (2 * 2 + 2 * 1) / 2
    assert found.nonzero == ((2 + 2) + (0 + 1)) / 2
    assert found.num_bytes == 4 * (3 + 2 + 6)
    assert found.macs_per_byte == 6 / 44


def test_a_layer_of_integers_moves_integers():
    x = torch.randn(64, 16)
    (step,) = parse_chain(["quantize:int8"])
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)).eval()
    made = settle(apply(model, step, Samples(example=(x[:2],), inputs=(x,))))
    assert [found.num_bytes for found in count_savings(made, (x,))] == [16 + 8 + 128, 8 + 4 + 32]


def test_a_layer_whose_weights_have_4_bits_reads_half_a_byte_for_each():
    (step,) = parse_chain(["quantize:weights,bits=4"])
    samples = Samples(example=(torch.randn(2, 5),), inputs=(torch.randn(64, 5),))
    made = settle(apply(nn.Sequential(nn.Linear(5, 3, bias=False)).eval(), step, samples))
    (found,) = count_savings(made, samples.example)
    assert found.num_bytes == 4 * (5 + 3) + 8


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).mean(0)


def test_a_layer_may_have_its_batch_anywhere():
    x = torch.ones(4, 5, 3)  # samples of 5 steps
    (found,) = count_savings(TimeFirst(), (x,), (x,))
    assert (found.macs, found.inputs, found.nonzero) == (5 * 6, 5 * 3, 5 * 6)
    assert found.num_bytes == 4 * (5 * 3 + 5 * 2 + 6)


def test_padding_is_zeros_that_can_be_skipped():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False))
    x = torch.ones(1, 1, 2, 2)
    (found,) = count_savings(model, (x,), (x,))
    assert found.macs == 9 * 4
    assert found.nonzero_inputs == 4 * 4
    assert found.im2col == 36
    assert found.inputs == 4


def test_a_network_has_the_multiplications_of_its_graph():
    model = digits_resnet().eval()
    x = torch.rand(4, 1, 8, 8)
    found = count_savings(model, (x,), (x,))
    assert sum(layer.macs for layer in found) == capture(model, (x[:2],)).macs
    for layer in found:
        assert layer.strassen <= layer.macs
        assert layer.nonzero is not None
        assert layer.nonzero_inputs is not None
        assert layer.nonzero <= layer.nonzero_inputs <= layer.macs
    with pytest.raises(InputError, match="found no convolution and no linear layer"):
        count_savings(nn.ReLU(), (x,))
