"""Tensors that cross together share a narrow layer, where they can."""

import pytest
import torch

from isthmus.errors import InputError
from isthmus.links import make_codec
from isthmus.wire import codec_text, parse_codec

TEXT = "bottleneck:ratio=2,bits=8,joint=1"


def spec_of(text=TEXT, shapes=((8, 6, 6), (4, 6, 6)), dtypes=None):
    return parse_codec(text, shapes=shapes, dtypes=dtypes or ["float32"] * len(shapes))


def crossing(num=64):
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(num, 8, 6, 6, generator=generator)
    return x_BCHW, x_BCHW[:, :4] + x_BCHW[:, 4:]


def error(text):
    codec = make_codec(spec_of(text))
    codec.calibrate(crossing())
    pairs = zip(codec.eval()(crossing()), crossing(), strict=True)
    return sum((a - b).square().mean().item() for a, b in pairs)


def test_what_the_tensors_have_in_common_crosses_once():
    apart = TEXT.replace(",joint=1", "")
    assert spec_of(TEXT).payload_bytes == spec_of(apart).payload_bytes
    assert error(TEXT) < error(apart) / 2


def test_the_costs_are_those_of_one_tensor_of_all_channels():
    joint, one = spec_of(), spec_of(shapes=((12, 6, 6),))
    assert joint.wire_tensors == one.wire_tensors
    for figure in ("encoder_macs", "decoder_macs", "encoder_weight_bytes", "payload_bytes"):
        assert getattr(joint, figure) == getattr(one, figure)
    codec = make_codec(joint)
    parameters = sum(p.numel() for p in codec.parameters())
    assert joint.encoder_weight_bytes + joint.decoder_weight_bytes == 4 * (
        parameters + 6
    )  # a step on both sides


def test_what_is_no_float_goes_as_it_is_and_all_come_back_in_their_places():
    shapes, dtypes = ((3,), (5,), (2,), (7,)), ("bool", "float32", "int64", "float32")
    codec = make_codec(spec_of("bottleneck:ratio=1,bits=8,joint=1", shapes, dtypes))
    tensors = (
        torch.ones(6, 3, dtype=torch.bool),
        torch.randn(6, 5),
        torch.arange(12).reshape(6, 2),
        torch.randn(6, 7),
    )
    codec.calibrate(tensors)
    found = codec.eval().decompress(codec.compress(tensors))
    assert [x.shape for x in found] == [x.shape for x in tensors]
    assert [x.dtype for x in found] == [x.dtype for x in tensors]
    assert torch.equal(found[0], tensors[0])
    assert torch.equal(found[2], tensors[2])
    torch.testing.assert_close(found[3], tensors[3], atol=0.1, rtol=0)


def test_one_tensor_alone_is_carried_as_without_it():
    assert spec_of(shapes=((8, 6, 6),)).carried == (((8, 6, 6), "float32"),)
    assert codec_text(spec_of()) == TEXT


@pytest.mark.parametrize("shapes", [((8, 6, 6), (8, 3, 3)), ((8, 6, 6), (8,))])
def test_other_places_cannot_be_joined(shapes):
    with pytest.raises(InputError, match="joint=1, expected floats that differ in channels alone"):
        spec_of(shapes=shapes)
