"""Compact blocks by hand, and small networks against the figures of their papers."""

from typing import Any

import pytest
import torch
from torch import nn

from isthmus.compress.savings import count_savings
from isthmus.graph import capture
from isthmus.models import MODELS, resnet
from isthmus.models.blocks import BLOCKS, Adder, Concat, Gate, Shift, Sum, ghost, l1_distances
from isthmus.models.compact import adder_resnet20, shift_resnet20

PUBLISHED = {  # parameters, MACs; of the papers' tables, in as many digits as they give
    "squeezenet": (1.248424e6, None),
    "mobilenet-v1": (4.2e6, 569e6),
    "mobilenet-v2": (3.5e6, 300e6),  # the paper says 3.4
    "shufflenet": (1.866e6, 137e6),  # parameters as of other implementations
    "ghostnet": (5.2e6, 141e6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_small_networks_have_the_parameters_and_macs_of_their_papers(name):
    parameters, macs = PUBLISHED[name]
    model = MODELS[name].make().eval()
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-2)
    if macs is not None:
        found = count_savings(model, (torch.zeros(1, 3, 224, 224),))
        assert sum(layer.macs for layer in found) == pytest.approx(macs, rel=5e-3)


def test_squeezenet_takes_the_operations_of_its_authors():
    """They count 1.72 GFLOPs on 227 pixels, their last convolution with a border of one."""
    found = macs(MODELS["squeezenet"].make(), 3, 227)
    border = 15 * 15 - 13 * 13
    assert 2 * (found + border * 512 * 1000) == pytest.approx(1.72e9, rel=2e-3)


@pytest.mark.parametrize(("expand", "millions"), [(1, 0.03), (3, 0.10), (6, 0.19), (9, 0.28)])
def test_expanded_shifts_have_the_parameters_of_their_paper(expand, millions):
    model = shift_resnet20(10, expand=expand)
    found = sum(p.numel() for p in model.parameters())
    assert found / 1e6 == pytest.approx(millions, abs=0.006)


def test_a_network_of_adders_multiplies_in_its_ends_alone():
    model = MODELS["adder-resnet20"].make()
    assert macs(model, 3, 32) == 1024 * 27 * 16 + 64 * 100
    assert sum(p.numel() for p in adder_resnet20(10).parameters()) == 272_474  # 0.27 million


@pytest.mark.long
def test_octaves_take_seven_sixteenths_of_the_operations_of_three_stages():
    x = (torch.zeros(2, 3, 224, 224),)
    plain = capture(resnet(50, num_classes=1000, stem="imagenet").eval(), x)
    octaves = MODELS["octave-resnet50"].make().eval()
    replaced = [node.macs or 0 for node in plain.nodes if node.module[:6] in STAGES]
    assert capture(octaves, x).macs == plain.macs - sum(replaced) * 9 // 16
    assert sum(p.numel() for p in octaves.parameters()) == 25_557_032  # as of ResNet-50
    assert plain.macs - sum(replaced) * 9 // 16 == pytest.approx(2.4e9, rel=0.04)


STAGES = ("layer1", "layer2", "layer3")


def macs(block, channels, size):
    return capture(block.eval(), (torch.zeros(2, channels, size, size),)).macs


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # of 16 channels to 32 on 8 x 8, where the convolution takes 64 * 9 * 16 * 32
        ("fire", 64 * (16 * 4 + 4 * 16 + 9 * 4 * 16)),
        ("separable", 64 * (9 * 16 + 16 * 32)),
        ("inverted", 64 * (16 * 32 + 9 * 32 + 32 * 32)),
        ("shuffle", 64 * (16 * 8 // 4 + 9 * 8 + 8 * 32 // 4)),
        ("octave", 64 * 9 * 16 * 32 * 7 // 16),  # 1 - 3/4 a (2 - a), a = 1/2
        ("ghost", 64 * (9 * 16 * 16 + 9 * 16)),
        ("shift", 64 * 16 * 32),
        ("adder", 0),
    ],
)
def test_blocks_take_as_many_macs_as_their_papers_say(name, expected):
    assert macs(BLOCKS[name](16, 32, 1), 16, 8) == expected


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_make_the_shape_of_a_convolution(name, stride):
    x = torch.randn(2, 18, 7, 9)
    made = BLOCKS[name](18, 12, stride)(x)
    assert made.shape == nn.Conv2d(18, 12, 3, stride, 1)(x).shape


def test_a_shift_moves_each_ninth_of_the_channels_by_its_place():
    x = torch.zeros(1, 19, 3, 3)
    x[:, :, 1, 1] = torch.arange(1.0, 20.0)
    y = Shift()(x)[0]
    # channels 0 and 1 look up and left, so that what stood in the middle is down and right
    assert y[0, 2, 2] == 1
    assert y[1, 2, 2] == 2
    assert y[8, 1, 1] == 9  # the middle of the nine stays
    assert y[16, 0, 0] == 17
    assert y[18, 1, 1] == 19  # the rest stays


def test_an_adder_is_nearest_where_a_window_equals_the_kernel():
    layer = Adder(1, 1, 1, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        assert layer.bias is not None
        layer.bias.fill_(0.5)
    y = layer(torch.arange(9.0).reshape(1, 1, 3, 3))
    assert y[0, 0, 1, 1] == 0.5
    # in a corner the window is 0 0 0 / 0 0 1 / 0 3 4, the kernel 0 1 2 / 3 4 5 / 6 7 8
    assert y[0, 0, 0, 0] == 0.5 - (0 + 1 + 2 + 3 + 4 + 4 + 6 + 4 + 4)


def test_gradients_of_an_adder_are_those_of_its_paper():
    x = torch.tensor([[[3.0, 0.5]]], requires_grad=True)
    weight = torch.tensor([[1.0, 1.0], [3.5, 0.0]], requires_grad=True)
    y = l1_distances(x, weight)
    assert y.flatten().tolist() == [-2.5, -1.0]
    y.sum().backward()
    assert weight.grad is not None
    assert x.grad is not None
    assert weight.grad.tolist() == [[2.0, -0.5], [-0.5, 0.5]]  # x - w
    assert x.grad.flatten().tolist() == [-1 + 0.5, 0.5 - 0.5]  # w - x, cut to -1..1


def test_layers_side_by_side_are_joined_added_or_multiplied():
    x = torch.tensor([[1.0, -2.0]])
    assert Concat(nn.Identity(), nn.ReLU())(x).tolist() == [[1.0, -2.0, 1.0, 0.0]]
    assert Sum(nn.Identity(), nn.ReLU())(x).tolist() == [[2.0, -2.0]]
    assert Gate(nn.ReLU(), nn.Identity())(x).tolist() == [[1.0, 0.0]]


def test_ghosts_are_made_from_the_first_half_of_the_channels():
    block: Any = ghost(4, 6, kernel=1).eval()
    y = block(torch.randn(1, 4, 5, 5))
    cheap = block[1][1]
    assert torch.allclose(y[:, 3:], cheap(y[:, :3]), atol=1e-6)
