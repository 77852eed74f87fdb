"""Stages by integers alone: hand-worked steps, whole networks, and what is none."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from isthmus.backends import load_program
from isthmus.compress import Samples, apply, parse_chain, settle
from isthmus.errors import CaptureError, InputError
from isthmus.export.export import Program, write_program
from isthmus.export.integers import (
    STEPS,
    Step,
    Steps,
    fixed_point,
    read_integers,
    run_integers,
    write_integers,
)
from isthmus.export.lower import lower
from isthmus.models.blocks import Sum


@given(st.lists(st.floats(2**-20, 2**20), min_size=1, max_size=4), st.integers(1, 2))
def test_a_multiplier_and_a_shift_are_a_scale_to_31_bits(scales, terms):
    scale = np.array([scales] * terms) * np.arange(1, terms + 1)[:, None]
    multiplier, shift = fixed_point(scale)
    assert (multiplier.dtype.name, shift.dtype.name) == ("int32", "int8")
    found = multiplier / 2.0**shift
    assert (np.abs(found - scale) <= scale.max(axis=0) * 2.0**-30).all()


def test_sums_come_to_the_next_grid_rounded_half_up_and_cut_to_its_ends():
    multiplier, shift = fixed_point(np.array([[0.25, 2.0]]))
    assert multiplier.tolist() == [[1 << 30, 1 << 30]]
    assert shift.tolist() == [32, 29]
    made = STEPS["normalize"](
        np.array([[10, 3], [-10, 90], [9, -1]]),
        multiplier=multiplier, shift=shift, axis=(1,), limits=(-2, 100),
    )  # fmt: skip
    assert made.tolist() == [[3, 6], [-2, 100], [2, -2]]  # 2.5, -2.5, 2.25
    made = STEPS["normalize"](
        np.array([[10]]), np.array([[4]]),
        multiplier=np.array([[1], [3]]), shift=np.array([2]), axis=(1,), limits=(0, 255),
    )  # fmt: skip
    assert made.tolist() == [[6]]  # (10 + 12) / 4 = 5.5


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)),
        nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2),
        nn.Conv3d(2, 2, 2, groups=2),
    ],
)
def test_a_layer_adds_up_what_torch_does(conv):
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, conv.weight.shape, dtype=np.int8)
    bias = rng.integers(-1000, 1000, len(weight), dtype=np.int32)
    x = rng.integers(-128, 128, (2, conv.in_channels, 7, 6, 5)[: weight.ndim])
    made = STEPS["conv"](
        x, weight=weight, bias=bias, stride=conv.stride, padding=conv.padding * 2,
        dilation=conv.dilation, groups=(conv.groups,),
    )  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight))
        conv.bias.copy_(torch.from_numpy(bias))
        expected = conv.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_array_equal(made, expected)


def assert_computed_alike(model, path, x, **within):
    """Assert that ONNX Runtime, and integers alone, compute of x what the model does."""
    with torch.no_grad():
        expected = model(x).numpy()
    (by_runtime,) = load_program(path, backend="onnxruntime")([x.numpy()])
    (found,) = run_integers(*lower(path), [x.numpy()])
    np.testing.assert_allclose(by_runtime, expected, **within)
    np.testing.assert_allclose(found, expected, **within)


def block(channels=8):
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(Sum(nn.Identity(), nn.Sequential(nn.ReLU(), conv)), nn.ReLU())


def skips():
    return block(), block(), nn.AdaptiveAvgPool2d(1)


def pools():
    return nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AvgPool2d(4)


def depths():
    depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    return depth, nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1)


def stage(*middle):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *middle]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()


def images(num=32, seed=1):
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def rounded(model, text="quantize:int8", x=None):
    """Return a model of integers."""
    (step,) = parse_chain([text])
    samples = Samples(example=(images(2),), inputs=(images() if x is None else x,))
    return settle(apply(model, step, samples)).eval()


def written(model, path):
    write_program(Program(None, model, None).eval(), (images(2),), path, device="near")
    return path


FEW_BITS = "quantize:memory,flash=1KiB,ram=1KiB"


@pytest.mark.long
@pytest.mark.parametrize(
    ("middle", "step"),
    [
        (skips, "quantize:int8"),
        (pools, "quantize:int8"),
        (depths, "quantize:int8"),
        (depths, FEW_BITS),
    ],
)
def test_a_network_by_integers_alone_is_the_network(middle, step, tmp_path):
    torch.manual_seed(0)
    model = rounded(stage(*middle()), step)
    program, tensors = lower(written(model, tmp_path / "program.onnx"))
    write_integers(tmp_path / "near.safetensors", program, tensors)
    program, tensors = read_integers(tmp_path / "near.safetensors")
    floats = [tensor for name, tensor in tensors.items() if tensor.dtype.kind == "f"]
    kinds = [each.kind for each in program.steps]
    assert kinds.count("quantize") == kinds.count("restore") == 1
    assert len(floats) == 2  # what comes in, what leaves
    assert all(tensor.dtype.itemsize <= 4 for tensor in tensors.values())

    x = images(64, seed=2)
    (found,) = run_integers(program, tensors, [x.numpy()])
    (by_runtime,) = load_program(tmp_path / "program.onnx", backend="onnxruntime")([x.numpy()])
    with torch.no_grad():
        expected = model(x).numpy()
    spread = expected.max() - expected.min()
    for made in (found, by_runtime):  # a step of a grid may fall either way
        assert np.abs(made - expected).max() < 0.05 * spread
        assert np.abs(made - expected).mean() < 0.005 * spread


def test_weights_and_inputs_at_their_ends_are_added_up_in_more_than_16_bits(tmp_path):
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 4)
    with torch.no_grad():
        for layer in layers:
            layer.weight.fill_(1.0).view(-1)[::7] = 0.9
    model = nn.Sequential(layers[0], nn.Flatten(), layers[1])
    model = rounded(model, x=torch.ones(32, 3, 8, 8))
    path = written(model, tmp_path / "program.onnx")
    assert_computed_alike(model, path, torch.ones(2, 3, 8, 8), rtol=0.01)


def test_a_layer_that_is_called_twice_is_computed_in_integers_both_times(tmp_path):
    torch.manual_seed(0)
    again = nn.Conv2d(8, 8, 3, padding=1)
    model = rounded(stage(again, nn.ReLU(), again, nn.AvgPool2d(8))[:-1].append(nn.Linear(8, 4)))
    path = written(model, tmp_path / "program.onnx")
    assert_computed_alike(model, path, images(64, seed=2), atol=0.02)


def test_what_is_computed_in_floats_is_named(tmp_path):
    with pytest.raises(CaptureError, match="Conv getitem is not computed in integers"):
        lower(written(stage(nn.AdaptiveAvgPool2d(1)), tmp_path / "floats.onnx"))
    model = rounded(stage(nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)))
    with pytest.raises(CaptureError, match="Sigmoid"):
        lower(written(model, tmp_path / "sigmoid.onnx"))


@pytest.mark.parametrize("ends", [{"min": 0.1}, {"max": 0.1}])
def test_values_bounded_on_one_side_are_named(ends, tmp_path):
    class Bound(nn.Module):
        def forward(self, x):
            return x.clamp(**ends)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Bound(), nn.Flatten(), nn.Linear(288, 4)).eval()
    with pytest.raises(CaptureError, match="Clip clamp is not computed in integers"):
        lower(written(rounded(model), tmp_path / "program.onnx"))


def test_a_view_that_makes_another_batch_is_named(tmp_path):
    middle = nn.Flatten(), nn.Unflatten(1, (8, 64)), nn.Flatten(0, 1), nn.Linear(64, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle).eval()
    with pytest.raises(CaptureError, match="Reshape view_2 is not computed in integers"):
        lower(written(rounded(model), tmp_path / "program.onnx"))


def test_sums_beyond_32_bits_are_refused(tmp_path):
    layer = nn.Linear(192, 1)
    with torch.no_grad():
        layer.bias.fill_(1e9)
    with pytest.raises(CaptureError, match="expected what 32 bits hold"):
        lower(written(rounded(nn.Sequential(nn.Flatten(), layer)), tmp_path / "program.onnx"))


@pytest.mark.parametrize(
    ("kind", "options", "tensors"),
    [
        ("linear", {}, {}),
        ("linear", {}, {"y.weight": np.zeros((2, 5), np.int8), "y.bias": np.zeros(2, np.int32)}),
        ("reshape", {"shape": (7,)}, {}),
        (
            "sum_pool",
            {"kernel": (2,), "stride": (1,), "padding": (1 << 60, 0), "dilation": (1,)},
            {},
        ),
        ("sum", {"axes": (9,), "keep": (1,)}, {}),
        ("clamp", {"limits": ()}, {}),
    ],
)
def test_a_step_that_does_not_fit_is_one_line(kind, options, tensors):
    step = Step(kind=kind, reads=("x",), makes="y", options=options)
    program = Steps(inputs=("x",), steps=(step,), outputs=("y",))
    with pytest.raises(InputError, match="step y: cannot be done"):
        run_integers(program, tensors, [np.zeros((1, 2, 3), np.int64)])


def test_a_file_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "near.safetensors"
    program = Steps(inputs=("x",), steps=(Step(kind="jump", reads=("x",), makes="y"),), outputs=())
    write_integers(path, program, {})
    with pytest.raises(InputError, match="found step 'jump', expected quantize"):
        read_integers(path)
    path.write_bytes(b"none")
    with pytest.raises(InputError, match="found no program of integers"):
        read_integers(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(InputError, match="not JSON"):
        read_integers(path)
