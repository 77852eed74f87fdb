"""One rounder for all number formats: against ml_dtypes, and on values worked out by hand."""

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain
from isthmus.errors import InputError
from isthmus.export.export import Program, write_program
from isthmus.models.rounding import RoundTo, round_to
from isthmus.wire.formats import FORMATS, Format, find_format


class Each(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


KINDS: dict[str, Any] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e3m4": ml_dtypes.float8_e3m4,
    "fp6-e3m2": ml_dtypes.float6_e3m2fn,
    "fp6-e2m3": ml_dtypes.float6_e2m3fn,
    "fp4-e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3b8": ml_dtypes.float8_e4m3fnuz,
    "e4m3b11": ml_dtypes.float8_e4m3b11fnuz,
    "e5m2b16": ml_dtypes.float8_e5m2fnuz,
}
EVERY = [
    *FORMATS,
    "posit8",
    "posit16e1",
    "log8f3",
    "q3.4",
    "rns15-16-17",
    "e1m2",
    "e8m3",
    "e0m7x4",
]


def rounded(values, name, **options):
    return round_to(torch.tensor([values]), find_format(name), **options)[0].tolist()


@pytest.mark.parametrize("name", KINDS)
def test_every_value_and_every_tie_is_rounded_as_ml_dtypes_does(name):
    form, kind = find_format(name), KINDS[name]
    assert isinstance(form, Format)
    bits = np.arange(2 ** (8 * np.dtype(kind).itemsize)).astype(f"u{np.dtype(kind).itemsize}")
    if form.bits < 8:
        bits = bits[: 2**form.bits]
    theirs = bits.view(kind).astype(np.float32)
    theirs = np.unique(np.abs(theirs[np.isfinite(theirs)]))
    assert np.array_equal(form.magnitudes(), theirs)
    assert form.largest == float(ml_dtypes.finfo(kind).max)
    ties = ((theirs[1:].astype(float) + theirs[:-1]) / 2).astype(np.float32)
    x = np.concatenate([theirs, ties, *(np.nextafter(ties, np.float32(e)) for e in (0, np.inf))])
    x = np.concatenate([x, -x])
    expected = x.astype(kind).astype(np.float32)
    assert np.array_equal(round_to(torch.from_numpy(x[None]), form)[0].numpy(), expected)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_rounded_stays_and_nothing_nearer_was_left_out(name):
    form = find_format(name)
    values = form.magnitudes()
    assert values[0] == 0
    assert (np.diff(values) > 0).all()
    assert np.isfinite(values).all()
    x = torch.randn(4, 3, 70, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1e-3, 1.0, 30.0])[:, None]
    once = round_to(x, form)
    assert torch.equal(round_to(once, form), once)
    assert torch.equal(once[:1], round_to(x[:1], form))  # samples are alone
    assert ((once == 0) | (once.sign() == x.sign())).all()


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # fixed point: steps of 1/16, up to 7 + 15/16, ties to even
        ("q3.4", [0.03125, 0.09375, -1.3, 9.0], [0.0, 0.125, -1.3125, 7.9375]),
        # es 0, as in Gustafson's table of 5 bits: 1/8 1/4 .. 1 5/4 3/2 7/4 2 3 4 8
        ("posit5e0", [0.001, 0.3, 1.1, 2.4, 5.5, 100.0], [0.125, 0.25, 1.0, 2.0, 4.0, 8.0]),
        # es 2: 1 + 1/8 is the next to 1; the pattern 0111111 is 2**24
        ("posit8", [1.05, 1.07, 1e9, -1e-30], [1.0, 1.125, 2.0**24, -(2.0**-24)]),
        # between 2**20 and 2**24 lies the posit of one bit more, 2**22
        ("posit8", [4.1e6, 4.3e6], [2.0**20, 2.0**24]),
        # logarithms by halves: 6 = 2**2.58 and 5 = 2**2.32 are nearest to 2**2.5
        ("log5f1", [8.0, 5.0, 6.0, 0.0], [8.0, 8 * 2**-0.5, 8 * 2**-0.5, 0.0]),
        # 3 * 5 = 15: whole numbers up to 7, times the power of two of the largest
        ("rns3-5", [7.0, 2.4, -3.6, 8.0], [8.0, 2.0, -4.0, 8.0]),
        ("rns3-5", [0.7, 0.24, -0.36], [0.75, 0.25, -0.375]),
        # a sign and 3 bits, 4 values share: largest 7 gives steps of 1, 0.875 those of 1/8
        (
            "e0m3x4",
            [7.0, 0.4, 0.6, -2.5, 0.875, 0.1, 0.05, 0.0],
            [7.0, 0.0, 1.0, -2.0, 0.875, 0.125, 0.0, 0.0],
        ),
        # MX: 6.5 has exponent 2, as 6 of e2m1 has; 0.3 is between 0 and 0.5
        ("mxfp4-e2m1", [6.5, 0.3, 3.4, 1.2], [6.0, 0.5, 3.0, 1.0]),
        # a whole tensor shares: 1 gives steps of 2**-14 at 16 bits
        ("flex16", [1.0, 2.0**-15, 3 * 2.0**-16], [1.0, 0.0, 2.0**-14]),
        ("tf32", [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1e39], [1, 1 + 2**-9, (2 - 2**-10) * 2.0**127]),
        ("dlfloat16", [1 + 2.0**-10, 2.0**40], [1.0, 8573157376.0]),
        # e2m5 goes up to 7.875: with a scale of 16, 100 is 6.25, and 1.3 is 0.08 of steps 1/32
        ("bm8-e2m5", [100.0, 1.3], [100.0, 1.5]),
    ],
)  # fmt: skip
def test_values_worked_out_by_hand(name, values, expected):
    assert rounded(values, name) == pytest.approx(expected, rel=1e-6)


def test_rounding_by_chance_is_right_in_the_mean_and_stays_in_range():
    generator = torch.Generator().manual_seed(0)
    x = torch.full((40_000,), 1.03)
    found = round_to(x, FORMATS["fp8-e4m3"], generator=generator)
    assert set(found.tolist()) == {1.0, 1.125}
    assert found.mean().item() == pytest.approx(1.03, abs=2e-3)
    assert rounded([500.0, -448.0, 0.0], "fp8-e4m3", generator=generator) == [448.0, -448.0, 0.0]


@pytest.mark.parametrize(
    "name", ["e9m2", "e5m14", "e8m3b255", "posit17", "rns4-6", "q0.0", "fp9", "log16f0"]
)
def test_a_format_that_cannot_be_is_refused(name):
    with pytest.raises(InputError, match=f"number format '{name}': expected fp8-e4m3"):
        find_format(name)
    with pytest.raises(InputError, match=f"found name={name}, expected name=fp8-e4m3"):
        parse_chain([f"format,name={name}"])


@pytest.mark.parametrize(
    ("of", "expected"),
    [("weights", 1.5 * 1.3 + 2), ("activations", 1.3 * 1.5 + 2), ("both", 1.5 * 1.5 + 2)],
)
def test_what_a_layer_reads_is_rounded_or_its_weights_or_both(of, expected):
    model: Any = nn.Sequential(nn.Linear(2, 1, bias=False))
    x = torch.tensor([[1.3, 1.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.3, 2.0]]))
        (step,) = parse_chain([f"format,name=e2m1,of={of}"])
        assert apply(model, step, Samples(example=(x,)))(x).item() == pytest.approx(expected)


def test_a_program_rounds_as_torch_does(tmp_path):
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1e-30, 1e-3, 1.0, 1e20]).reshape(-1, 1, 1, 1)
    names = ("mxfp4-e2m1", "posit8")
    model = torch.nn.ModuleList(RoundTo(name) for name in names)
    program = Program(None, Each(model).eval(), None)
    path = tmp_path / "program.onnx"
    write_program(program, (x[:2],), path, device="here")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, Each(model)(x), strict=True))
