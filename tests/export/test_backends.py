"""Stages for every backend: as data for torch, and all of them in one chain."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from isthmus.backends import load_program
from isthmus.backends.torch import OPERATORS
from isthmus.bundle import read_bundle
from isthmus.errors import CaptureError
from isthmus.export import export
from isthmus.export.export import Program, write_program
from isthmus.graph import capture
from isthmus.links import make_codec
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.run import start_workers
from isthmus.train import calibrate, split_with_codecs
from isthmus.wire import parse_codec
from isthmus.wire.formats import CROSSING
from tests.nets import NETS

MIXED = """
schema: isthmus.platform/1
name: mixed
devices:
  a: {compute: {fp32: 1 MMAC/s}, backend: BACKEND_A}
  b: {compute: {fp32: 1 MMAC/s}, backend: BACKEND_B, threads: 2}
  c: {compute: {fp32: 1 GMAC/s}, backend: BACKEND_C}
links:
  - {between: [a, b], bandwidth: 1 Gbit/s}
  - {between: [b, c], bandwidth: 1 Gbit/s}
input: a
output: c
"""
LIBRARIES = {"onnxruntime", "openvino", "torch"}
QUICK = ("residual", "attention", "decoder")
# The programs of the other formats are those of these but for constants.
DISTINCT = ("fp8-e4m3", "fp4-e2m1", "bf16", "dlfloat16", "mxfp8-e4m3", "mxfp4-e2m1")
NOT_ALLOWED = ("dropouts",)  # RReLU draws lots in training


class Plain(nn.Module):
    """A model as one stage."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return tuple(tree_leaves(self.model(*inputs)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=() if each in QUICK else pytest.mark.slow)
        for each in NETS
        if each not in NOT_ALLOWED
    ],
)
def test_a_network_as_data_computes_what_it_does_as_code(tmp_path, name):
    torch.manual_seed(0)
    model, inputs = NETS[name].make().eval(), NETS[name].inputs()
    path = tmp_path / "x" / "program.safetensors"
    write_program(Program(None, Plain(model), None), inputs, path, device="x")
    program = load_program(path, backend="torch")
    with torch.no_grad():
        for batch in (2, 1):
            found = program([x[:batch].numpy() for x in inputs])
            expected = tree_leaves(model(*(x[:batch] for x in inputs)))
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_an_operation_that_is_not_allowed_is_named(tmp_path):
    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(CaptureError, match=r"stage on x: .*torch takes no aten\.rand") as error:
        write_program(
            Program(None, Random(), None),
            (torch.zeros(2, 3),),
            tmp_path / "x" / "program.safetensors",
            device="x",
        )
    assert "\n" not in str(error.value)


def test_the_operators_that_are_allowed_write_to_nothing_and_draw_no_lots():
    for name in OPERATORS:
        _, packet, overload = name.split(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        assert not operator._schema.is_mutable, name
        assert torch.Tag.nondeterministic_seeded not in operator.tags, name
        texts = {each.name for each in operator._schema.arguments if "str" in str(each.type)}
        assert texts <= {"approximate", "rounding_mode"}, name  # no names of files


class Empty(nn.Module):
    """A stage that only passes on."""

    def forward(self, *inputs):
        return inputs


@pytest.fixture(
    scope="module",
    params=[
        "uniform:bits=8",
        "uniform:bits=4,per=vector",
        "bottleneck:ratio=2,bits=8",
        "bottleneck:ratio=2,stride=2,hidden=8,bits=8",
        *(
            pytest.param(
                f"float:format={name}", marks=() if name in DISTINCT else pytest.mark.slow
            )
            for name in CROSSING
        ),
    ],
)
def sender(request, tmp_path_factory):
    """A codec's sending half as a program: what it takes, and what it sends in torch."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8).relu() * 2.0 ** torch.randint(-12, 12, (4, 16, 1, 1))
    carrier = make_codec(parse_codec(request.param, shapes=[(16, 8, 8)], dtypes=["float32"]))
    carrier.calibrate((x,))
    path = tmp_path_factory.mktemp("sender") / "x" / "program.onnx"
    write_program(Program(None, Empty(), carrier).eval(), (x[:2],), path, device="x")
    with torch.no_grad():
        return request.param, path, x.numpy(), [wanted.numpy() for wanted in carrier.sender((x,))]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_codec_sends_the_same_symbols_on_every_backend(sender, backend):
    pytest.importorskip(backend)
    codec, path, x, wanted = sender
    found = load_program(path, backend=backend)([x])
    for ours, theirs in zip(found, wanted, strict=True):
        apart = abs(ours.astype(np.int64) - theirs.astype(np.int64))
        assert apart.max() <= (not codec.startswith("float"))  # else a value on an edge
        assert np.count_nonzero(apart) <= 0.001 * apart.size


@pytest.mark.parametrize(
    "backends",
    [
        ("onnxruntime", "openvino", "torch"),
        pytest.param(("torch", "onnxruntime", "openvino"), marks=pytest.mark.slow),
        pytest.param(("openvino", "torch", "onnxruntime"), marks=pytest.mark.slow),
    ],
)
def test_a_chain_of_several_backends_computes_what_the_whole_network_does(tmp_path, backends):
    pytest.importorskip("openvino")
    text = MIXED
    for name, backend in zip("ABC", backends, strict=True):
        text = text.replace(f"BACKEND_{name}", backend)
    (tmp_path / "mixed.yaml").write_text(text)
    platform = load_platform(tmp_path / "mixed.yaml")
    torch.manual_seed(0)
    model, example = NETS["chain"].make().eval(), (torch.rand(8, 3, 8, 8),)
    graph = capture(model, example)
    plan = partition(graph, platform, codec="raw", cut=(1, 4))
    split_model = split_with_codecs(model, plan)
    calibrate(split_model, example)
    verification = export(split_model, plan, tmp_path / "bundle", samples=[example[0].numpy()])
    assert verification.largest_difference < 1e-5
    entries = read_bundle(tmp_path / "bundle").devices
    assert tuple(entry.backend for entry in entries) == backends
    assert [entry.threads for entry in entries] == [1, 2, 1]
    with start_workers(tmp_path / "bundle") as workers, torch.no_grad():
        for x, expected in zip(example[0], model(*example), strict=True):
            outputs = workers.ask([x.numpy()])
            assert outputs is not None
            np.testing.assert_allclose(outputs[0], expected.numpy(), rtol=1e-5, atol=1e-5)
        for status, backend in zip(workers.statuses(), backends, strict=True):
            assert set(status.modules) & LIBRARIES == {backend}
