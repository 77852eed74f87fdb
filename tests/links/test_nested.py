"""In training a narrower width is what it will be on the wire."""

import numpy as np
import pytest
import torch

from isthmus.links import make_codec
from isthmus.links.nested import crossed, drawn_widths, same_width, slots
from isthmus.wire import parse_codec
from isthmus.wire.nested import widths

SHAPES = ((12, 5, 3), (7, 6), (9,), (4,))
SPEC = parse_codec(
    "bottleneck:ratio=1,bits=6,nested=1",
    shapes=SHAPES,
    dtypes=("float32", "float32", "float32", "bool"),
)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = make_codec(SPEC).eval()
    codec.calibrate(tensors())
    return codec


def tensors():
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn((8, *shape), generator=generator)
        if dtype == "float32"
        else torch.ones((8, *shape), dtype=torch.bool)
        for shape, dtype in zip(SPEC.shapes, SPEC.dtypes, strict=True)
    )


@pytest.mark.parametrize("width", widths(SPEC), ids=str)
def test_what_training_sees_is_what_arrives(codec, width):
    symbols = codec.sender(tensors())
    there = codec.decompress(codec.compress(tensors(), width=width))
    here = codec.receiver(crossed(SPEC, symbols, same_width(SPEC, width, 8)))
    for a, b in zip(there, here, strict=True):
        assert torch.equal(a, b)


def test_each_sample_has_a_width_of_its_own(codec):
    torch.manual_seed(0)
    drawn = drawn_widths(SPEC, 8)
    assert len(set(drawn.tolist())) > 1
    together = crossed(SPEC, codec.sender(tensors()), drawn)
    for k, place in enumerate(drawn.tolist()):
        alone = crossed(SPEC, codec.sender(tensors()), torch.full((8,), place))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[k], b[k])


def test_gradients_reach_the_channels_that_cross_and_no_others():
    width = next(w for w in widths(SPEC) if (w.ratio, w.bits) == (4, 3))
    symbols = tuple(
        torch.full((2, *t.shape), 30.0, requires_grad=True) for t in SPEC.wire_tensors[:3]
    )
    mask = torch.ones((2, 4), dtype=torch.uint8)
    arrived = crossed(SPEC, (*symbols, mask), same_width(SPEC, width, 2))
    torch.stack([x.sum() for x in arrived[:3]]).sum().backward()
    maps, tokens, vectors = (torch.as_tensor(x.grad) for x in symbols)
    assert torch.equal(maps[:, :3], torch.ones(2, 3, 5, 3))
    assert not maps[:, 3:].any()
    assert torch.equal(tokens[..., :1], torch.ones(2, 7, 1))
    assert not tokens[..., 1:].any()
    assert vectors.sum(dim=1).tolist() == [2, 2]


def test_every_ratio_has_inputs_of_its_own_and_a_constant():
    y_BC = torch.tensor([[3.0, 0, 5, 2], [3, 7, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    assert slots(y_BC, (4, 2, 1), 1).tolist() == [
        [3, 0, 5, 2, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 3, 7, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 3, 1],  # zero everywhere above: as if it had not crossed
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    somewhere = torch.zeros(1, 2, 3, 3)
    somewhere[0, 1, 2, 0] = 1
    assert slots(somewhere, (2, 1), 1)[0, :, 0, 0].tolist() == [0, 0, 1, 0, 0]


def test_before_training_each_ratio_restores_what_crossed_by_least_squares(codec):
    symbols, (x, *_) = codec.sender(tensors()), tensors()
    receiver = codec.receiver.halves[0]
    for ratio in (1, 2, 4):
        width = next(w for w in widths(SPEC) if (w.ratio, w.bits) == (ratio, 6))
        (arrived, *_) = crossed(SPEC, symbols, same_width(SPEC, width, 8))
        error = receiver(arrived) - x
        y_MN = receiver.scale_back(arrived).movedim(1, -1).flatten(0, -2)[:, : 12 // ratio]
        error_MC = error.movedim(1, -1).flatten(0, -2)
        assert error_MC.mean(dim=0).abs().max() < 1e-4
        assert (y_MN.T @ error_MC / len(y_MN)).abs().max() < 1e-4


def test_widths_are_drawn_alike_often():
    torch.manual_seed(0)
    counts = torch.bincount(drawn_widths(SPEC, 4 * len(widths(SPEC))))
    assert counts.tolist() == [4] * len(widths(SPEC))


def test_a_receiver_costs_what_its_layers_for_every_ratio_cost():
    text = "bottleneck:ratio=8,bits=8,nested=1"
    spec = parse_codec(text, shapes=[(128, 4, 4)], dtypes=["float32"])
    inputs = (16 + 1) + (8 + 1) + (4 + 1)  # channels, and a constant, at ratio 8, 16 and 32
    assert spec.decoder_macs == 16 * (16 + inputs * 128)
