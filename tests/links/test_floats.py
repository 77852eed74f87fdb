from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isthmus.links import make_codec
from isthmus.links.floats import FloatReceiver, FloatSender
from isthmus.wire import parse_codec
from isthmus.wire.formats import CROSSING

ml_dtypes = pytest.importorskip("ml_dtypes")

KINDS = {
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "mxfp6-e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6-e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4-e2m1": ml_dtypes.float4_e2m1fn,
}
EVERY = pytest.mark.parametrize("name", CROSSING)
KNOWN = pytest.mark.parametrize("name", KINDS)
BLOCKS = pytest.mark.parametrize("name", [name for name in CROSSING if CROSSING[name].block])


def make(name, size):
    return make_codec(parse_codec(f"float:format={name}", shapes=[(size,)], dtypes=["float32"]))


def encode(name, x):
    """Return the patterns of values by themselves, without a block around them."""
    wide = CROSSING[name].bits == 16
    sender = FloatSender(CROSSING[name], "uint16" if wide else "uint8").eval()
    return sender(torch.from_numpy(x)).numpy()


def decode(name, patterns):
    return FloatReceiver(CROSSING[name], "float32")(torch.from_numpy(patterns)).numpy()


def assert_as_ml_dtypes(name, x):
    largest = np.float32(CROSSING[name].largest)
    expected = (x + np.float32(0)).clip(-largest, largest).astype(KINDS[name])  # no -0
    found = encode(name, x)
    np.testing.assert_array_equal(found, expected.view(found.dtype))
    np.testing.assert_array_equal(decode(name, found), expected.astype(np.float32))


@KNOWN
@given(x=arrays("f4", 64, elements=st.floats(width=32, allow_nan=False)))
def test_any_value_is_rounded_as_ml_dtypes_does(name, x):
    assert_as_ml_dtypes(name, x)


@KNOWN
def test_every_number_and_every_tie_is_rounded_as_ml_dtypes_does(name):
    form = CROSSING[name]
    numbers = decode(name, np.arange(2 ** (form.bits - 1), dtype=f"u{-(-form.bits // 8)}"))
    numbers = np.unique(numbers)
    ties = numbers[:-1] + (numbers[1:] - numbers[:-1]) / 2
    near = [np.nextafter(ties, np.float32(end)) for end in (0, np.inf)]
    x = np.concatenate((numbers, ties, *near))
    assert_as_ml_dtypes(name, np.concatenate((x, -x[x > 0])))


@KNOWN
def test_the_largest_number_is_that_of_ml_dtypes(name):
    assert CROSSING[name].largest == float(ml_dtypes.finfo(KINDS[name]).max)


@EVERY
def test_any_pattern_stands_for_a_finite_number(name):
    form = CROSSING[name]
    values = decode(name, np.arange(2**form.bits, dtype=f"u{-(-form.bits // 8)}"))
    assert np.isfinite(values).all()
    assert np.abs(values).max() == form.largest


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2", "fp16", "bf16"])
def test_what_is_too_large_becomes_the_largest_value(name):
    (restored,) = make(name, 2).eval()((torch.tensor([[torch.inf, -torch.inf]]),))
    assert restored.tolist() == [[CROSSING[name].largest, -CROSSING[name].largest]]


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2", "fp16", "bf16"])
def test_a_gradient_passes_as_1_but_for_what_is_clipped(name):
    x = torch.tensor([[1.3, -1.999, 0.0, 1e-6, -100.0, torch.inf]], requires_grad=True)
    make(name, 6).train()((x,))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1, 1, 1, 0]]


def test_a_gradient_passes_as_1_at_every_size_that_a_format_has():
    x = torch.tensor([[5.0, -1e5, 1e17, -1e38, 1e-30, -1e-38, 1e-44]], requires_grad=True)
    (1e3 * make("bf16", 7).train()((x,))[0]).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1e3] * 7]


def test_16_bits_go_as_numpy_writes_them():
    x = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    (half,) = make("fp16", 50).eval().compress((x,))
    assert half == x.numpy().astype("<f2").tobytes()
    (brain,) = make("bf16", 50).eval().compress((x,))
    assert brain == x.bfloat16().float().numpy().view("<u2").reshape(50, 2)[:, 1].tobytes()


@BLOCKS
@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_a_block_is_scaled_as_the_specification_says(name, scale):
    form = CROSSING[name]
    x = scale * torch.randn(2, 70, generator=torch.Generator().manual_seed(0))
    patterns, codes = make(name, 70).eval().sender((x,))
    scales = codes.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    for sample, found, of_blocks in zip(x.numpy(), patterns.numpy(), scales, strict=True):
        for block, start in enumerate(range(0, 70, 32)):
            values = sample[start : start + 32]
            exponent = np.floor(np.log2(np.abs(values).max())) - np.floor(np.log2(form.largest))
            assert of_blocks[block] == 2.0**exponent
            scaled = (values / of_blocks[block]).clip(-form.largest, form.largest)
            if name == "mxint8":
                expected = np.rint(scaled * 64).astype(np.int8).view(np.uint8)
            else:
                expected = encode(name, scaled)
            np.testing.assert_array_equal(found[start : start + 32], expected)


@BLOCKS
def test_blocks_bear_zeros_infinities_and_the_smallest_values(name):
    x = torch.zeros(1, 64)
    x[0, 32:] = torch.tensor([3e38, -3e38, 1e-45, 0.0] * 8)
    (restored,) = make(name, 64).eval()((x,))
    assert torch.equal(restored[:, :32], x[:, :32])
    assert restored[0, 32].item() == pytest.approx(3e38, rel=0.3)
    x[0, 32:34] = torch.tensor([inf, -inf])
    (restored,) = make(name, 64).eval()((x,))
    assert restored[0, 32] == -restored[0, 33]
    assert 2e38 < restored[0, 32] < inf
    tiny = torch.full((1, 32), 1e-45)
    assert (make(name, 32).eval()((tiny,))[0].abs() < 1e-37).all()


@BLOCKS
def test_the_gradient_passes_a_block_as_1_where_nothing_is_clipped(name):
    x = torch.linspace(-1, 1, 40)[None].requires_grad_()
    make(name, 40).train()((x,))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1] * 40]
