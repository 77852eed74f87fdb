"""Sums of integers: which are rounded, where, and what a runtime makes of them."""

from collections import Counter
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain, settle
from isthmus.export.export import Program, write_program
from isthmus.graph import capture, find_cut
from isthmus.models.layers import Integer, OutputGrid


class Block(nn.Module):
    """Two convolutions and what came, with one ReLU for both places."""

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(8, 8, 1) if narrow else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.conv2(self.act(self.conv1(x)))
        y += self.shortcut(x)
        return self.act(y)


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x):
        return x + self.offset


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(self.block(x))


def net(*middle):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip


def images(num=32):
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rounded(model, text="quantize:int8"):
    (step,) = parse_chain([text])
    return apply(model, step, Samples(example=(images(2),), inputs=(images(),)))


def grids(model):
    return {
        path.removesuffix(".output_grid")
        for path, module in settle(model).named_modules()
        if isinstance(module, OutputGrid)
    }


@pytest.mark.parametrize(
    ("middle", "text", "expected"),
    [
        ([Block(), Block()], "quantize:int8", {"2", "3"}),
        ([Block(), Block()], "quantize:int8,skip=3", {"2"}),
        (
            [Block(), Block()],
            "quantize:int8,skip=2.conv2",
            set(),
        ),  # and so the next skip is floats
        # the first sum is read by layers alone, each of which rounds it
        ([Block(), Block(narrow=True)], "quantize:int8", {"3"}),
        ([Offset(), Block()], "quantize:int8", set()),
        ([Twice()], "quantize:int8", set()),  # what is called twice has no grid of its own
        ([nn.Sequential(Block(), Block())], "quantize:int8", {"2.0", "2.1"}),
    ],
)
def test_a_sum_of_integers_is_rounded_once_where_a_module_returns_it(middle, text, expected):
    assert grids(rounded(net(*middle), text)) == expected


def test_what_the_model_returns_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(), Block()).eval()
    assert grids(rounded(model)) == {"1"}


def test_a_layer_reads_the_integers_of_the_sum_and_those_cross_a_cut():
    model: Any = settle(rounded(net(Block(), Block())))
    inputs = {path: m.inputs for path, m in model.named_modules() if isinstance(m, Integer)}
    assert not inputs["3.conv1"]
    assert sum(inputs.values()) == len(inputs) - 1
    graph = capture(model, (images(2),))
    (crossing,) = find_cut(graph, "2").tensors
    assert (crossing.held, crossing.num_bytes) == ("uint8", 8 * 64)
    x = images()
    with torch.no_grad():
        levels = model[2](model[1](model[0](x))) / model[2].output_grid.scale
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_layers_that_read_one_tensor_still_round_it_alike_when_trained():
    model = rounded(net(Block(), Block(narrow=True))).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    made: Any = settle(model.eval())
    assert made[3].conv1.input_scale == made[3].shortcut.input_scale
    fresh: Any = settle(rounded(net(Block(), Block(narrow=True))))
    assert made[3].conv1.input_scale != fresh[3].conv1.input_scale
    assert made[3].output_grid.scale != fresh[3].output_grid.scale


def test_biases_are_whole_steps_of_what_a_layer_adds_up():
    made: Any = settle(rounded(net(Block(), Block())))
    layers: Any = {path: m for path, m in made.named_modules() if isinstance(m, Integer)}
    assert not layers["3.conv1"].inputs  # it reads the integers of the sum before
    for path, layer in layers.items():
        step = layer.input_scale if layer.inputs else made[2].output_grid.scale
        level = layer.layer.bias / (step * layer.scale)
        assert level.abs().max() > 10, path
        assert torch.allclose(level, level.round(), atol=0.01), path


def test_a_runtime_computes_convolutions_and_sums_in_integers(tmp_path):
    model = settle(rounded(net(Block(narrow=True), Block(), Block(narrow=True))))
    path = tmp_path / "program" / "program.onnx"
    write_program(Program(None, model, None), (images(2),), path, device="here")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (made["QLinearConv"], made["QLinearAdd"]) == (9, 3)
    assert not {"Conv", "FusedConv", "Add", "Relu"} & set(made)
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    with torch.no_grad():
        expected = model(images())
    off = (torch.from_numpy(found) - expected).abs().amax(dim=1) / expected.abs().max()
    assert off.median() < 0.02
    assert off.max() < 0.05
