import numpy as np
import pytest
import torch

from isthmus.links import make_codec
from isthmus.links.floats import FORMATS
from isthmus.wire import parse_codec

EVERY = pytest.mark.parametrize("name", FORMATS)


def make(name, size):
    return make_codec(parse_codec(f"float:format={name}", shapes=[(size,)], dtypes=["float32"]))


def values(form):
    """Return values of every size, both signs, ties between neighbours among them; no -0."""
    generator = np.random.default_rng(0)
    spread = generator.standard_normal(20_000) * 2.0 ** generator.integers(-22, 17, 20_000)
    ties = np.arange(1, 4096) * 2.0 ** (-form.bias - form.mantissa)
    x = np.concatenate([spread, ties, -ties, 64 * ties, [0.0]]).astype(np.float32)
    return x.clip(-form.largest, form.largest)


@EVERY
def test_symbols_and_values_are_those_of_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = {"fp8-e4m3": ml_dtypes.float8_e4m3fn, "fp8-e5m2": ml_dtypes.float8_e5m2}[name]
    x = values(FORMATS[name])
    codec = make(name, len(x)).eval()
    (symbols,) = codec.sender((torch.from_numpy(x)[None],))
    expected = x.astype(kind)
    np.testing.assert_array_equal(symbols[0].numpy(), expected.view(np.uint8))
    (restored,) = codec.receiver((symbols,))
    np.testing.assert_array_equal(restored[0].numpy(), expected.astype(np.float32))


@EVERY
def test_what_is_too_large_becomes_the_largest_value(name):
    (restored,) = make(name, 2).eval()((torch.tensor([[1e9, -1e9]]),))
    assert restored.tolist() == [[FORMATS[name].largest, -FORMATS[name].largest]]


@EVERY
def test_a_gradient_passes_as_1_but_for_what_is_clipped(name):
    x = torch.tensor([[1.3, -1.3, 0.0, 1e-6, -100.0, 1e9]], requires_grad=True)
    make(name, 6).train()((x,))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1, 1, 1, 0]]
