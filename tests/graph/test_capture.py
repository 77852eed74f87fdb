"""What capture writes down, and what it refuses."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import CaptureError, InputError
from isthmus.graph import Graph, Node, capture, fingerprint
from isthmus.graph import Tensor as GraphTensor
from isthmus.models.resnet import resnet
from isthmus.models.small import digits_resnet
from tests.nets import NETS, Attention, Recurrent, Tied, captured, images


def nodes_by_name(graph: Graph):
    return {node.name: node for node in graph.nodes}


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"),
    [(18, 11_220_132, 555_468_800), (50, 23_705_252, 1_298_014_208)],
)
def test_resnets_have_the_published_parameters_and_macs(depth, parameters, macs):
    graph = capture(resnet(depth), (torch.zeros(1, 3, 32, 32),))
    assert (graph.num_parameters, graph.macs) == (parameters, macs)


def test_the_digits_network_is_small():
    graph = capture(digits_resnet(), (torch.zeros(1, 1, 8, 8),))
    assert 38_000 < graph.num_parameters < 40_000


def test_an_imagenet_stem_quarters_the_resolution():
    graph = capture(resnet(18, width=8, stem="imagenet"), (torch.zeros(1, 3, 64, 64),))
    layer1 = [node for node in graph.nodes if node.module.startswith("layer1")]
    assert layer1[-1].outputs[0].shape == (8, 16, 16)


def test_a_resnet_of_unknown_depth_lists_the_known_ones():
    with pytest.raises(InputError, match="there are 18, 34, 50, 101, 152"):
        resnet(19)


def test_a_node_tells_operation_module_weights_and_shape():
    graph = capture(digits_resnet(), (torch.zeros(1, 1, 8, 8),))
    node = nodes_by_name(graph)["conv2d_1"]
    assert (node.op, node.module) == ("conv2d", "layer1.conv1")
    assert [weight.name for weight in node.weights] == ["layer1.conv1.weight"]
    assert node.weight_bytes == 16 * 16 * 9 * 4
    assert node.outputs[0].shape == (16, 8, 8)
    assert node.output_bytes == 16 * 8 * 8 * 4


def test_counters_of_batch_norm_are_no_weights():
    graph = capture(digits_resnet(), (torch.zeros(1, 1, 8, 8),))
    names = [weight.name for weight in graph.weights]
    assert "stem.1.running_mean" in names
    assert not any("num_batches_tracked" in name for name in names)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_figures_are_for_one_sample_whatever_the_example(batch):
    torch.manual_seed(0)
    model = Attention()
    assert capture(model, (images(batch),)) == capture(model, (images(2),))


def test_capture_leaves_modes_weights_and_random_numbers_alone():
    model = Recurrent()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    capture(model, (torch.zeros(2, 5, 6),))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_tied_weights_and_a_module_used_twice_count_once():
    model = Tied()
    graph = capture(model, (images(),))
    assert graph.num_parameters == sum(p.numel() for p in model.parameters())
    readers = [
        node.name for node in graph.nodes if "enter.weight" in {w.name for w in node.weights}
    ]
    assert len(readers) == 2
    assert [node.module for node in graph.nodes].count("block.0") == 2


def test_several_results_are_several_tensors_of_one_node():
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = x.chunk(2, 1)
            return b, a

    graph = capture(Halves(), (torch.zeros(1, 4),))
    (node,) = graph.nodes
    first, second = (tensor.name for tensor in node.outputs)
    assert graph.outputs == (second, first)


def test_what_depends_on_no_input_is_no_node_but_its_weights_and_macs_count():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.position = nn.Parameter(torch.zeros(1, 9, 4))
            self.down = nn.Parameter(torch.zeros(4, 2))
            self.up = nn.Parameter(torch.zeros(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            mask = torch.zeros(x.shape[1], x.shape[1])
            mask[:, 0] = 1
            return F.linear(mask @ (x + self.position[:, : x.shape[1]]), self.down @ self.up)

    nodes = nodes_by_name(capture(Mixed(), (torch.zeros(1, 3, 4),)))
    assert list(nodes) == ["cat", "add", "matmul", "linear"]
    assert [w.name for w in nodes["cat"].weights] == ["token"]
    assert [w.name for w in nodes["add"].weights] == ["position"]
    assert [w.name for w in nodes["linear"].weights] == ["down", "up"]
    assert nodes["linear"].macs == 4 * 4 * 4 + 4 * 2 * 4


def test_random_numbers_drawn_in_forward_are_made_once():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape[0], 4)

    assert [node.op for node in capture(Noise(), (torch.zeros(1, 4),)).nodes] == ["randn", "add"]


def test_a_tensor_is_batched_only_where_dimension_0_alone_is_the_batch():
    tensors = captured("multi-head").tensors()
    assert not tensors["transpose_1"].batched  # (tokens, B, channels)
    assert not tensors["view"].batched  # (tokens, B * heads, channels)
    assert not tensors["transpose_3"].batched  # (B * heads, tokens, channels)
    assert tensors["view_3"].batched
    assert tensors["view_3"].shape == (2, 16, 6)
    gru = next(node for node in captured("recurrent").nodes if node.op == "gru")
    assert [tensor.batched for tensor in gru.outputs] == [True, False]


def test_several_inputs_share_the_batch_and_may_be_of_any_dtype():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)

        def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
            return {"sum": x + self.embed(ids), "x": x}

    graph = capture(Two(), (torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)))
    assert [(t.name, t.shape, t.dtype) for t in graph.inputs] == [
        ("x", (4,), "float32"),
        ("ids", (), "int64"),
    ]
    assert graph.outputs == ("add", "x")


def test_a_block_without_gradients_is_one_node_with_its_macs():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x).relu()
            return self.b(x)

    assert [node.macs for node in capture(Frozen(), (torch.zeros(1, 4),)).nodes] == [32, 16]


def test_a_fingerprint_tells_graphs_apart_and_is_the_same_in_every_run():
    x, y = GraphTensor(name="x", shape=(3,)), GraphTensor(name="y", shape=(3,))
    node = Node(name="y", op="relu", module="", inputs=("x",), outputs=(y,))
    graph = Graph(inputs=(x,), nodes=(node,), outputs=("y",))
    assert fingerprint(graph) == "7be9d7e0d1748c85"
    for other in (
        replace(graph, outputs=("x",)),
        replace(graph, inputs=(replace(x, shape=(4,)),)),
        replace(graph, nodes=(replace(node, op="gelu"),)),
        replace(graph, nodes=(replace(node, macs=None),)),
    ):
        assert fingerprint(other) != fingerprint(graph)
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    first, again = (fingerprint(capture(layers, (torch.zeros(n, 4),))) for n in (1, 3))
    assert first == again


@pytest.mark.parametrize("name", NETS)
def test_the_shared_networks_are_small_and_every_operation_is_counted(name):
    graph = captured(name)
    assert graph.num_parameters < 50_000
    assert not graph.unknown_ops
    assert None not in [node.ops for node in graph.nodes]


class Steered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Selected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum() + x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, -1)


class Rewritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = x[:, 1]
        return y


class Counting(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


class Constant(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.ones(x.shape[0], 1)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * 2, None


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Steered(),
            r"module '0' \(test_capture.py:\d+: if x.sum.*values of a tensor.*torch.where",
        ),
        (Selected(), "module '0'.*depends on the values of a tensor"),
        (FixedBatch(), r"fixes the batch size.*x\.shape\[0\]"),
        (Rewritten(), r"module '0', op 'copy_' \(test_capture.py:\d+\).*compute a new tensor"),
        (Counting(), r"module '0', op 'add_'.*writes to '0.calls'"),
        (Constant(), "output 1 of the model is 'ones', which depends on no input"),
        (Nothing(), "output 1 of the model is a NoneType"),
        (Broken(), r"module '0' \(test_capture.py:\d+: return x @.*torch.export fails with"),
    ],
)
def test_a_model_that_cannot_be_captured_is_told_where_and_what_to_try(model, message, capfd):
    with pytest.raises(CaptureError, match=message) as caught:
        capture(nn.Sequential(model), (torch.zeros(4, 4),))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 4), "expected a tuple of tensors"),
        ((), "expected dimension 0"),
        ((torch.zeros(()),), "expected dimension 0"),
        ((torch.zeros(2, 4), torch.zeros(3, 4)), "of one size"),
    ],
)
def test_an_example_must_be_a_tuple_of_batches(example, message):
    with pytest.raises(InputError, match=message):
        capture(nn.Linear(4, 4), example)


@dataclass
class Scores:
    scores: Tensor


class Named(nn.Module):
    def forward(self, x: Tensor) -> Scores:
        return Scores(x * 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), r"^the model's own forward: torch.export fails with RuntimeError"),
        (nn.Sequential(nn.Linear(3, 2)), r"^module '0': torch.export fails with RuntimeError"),
        (nn.ReLU(inplace=True), r"^the model's own forward, op 'relu_': writes to an input"),
        (Named(), r"returns a Scores, expected tensors; return a tuple or a dict"),
        (nn.DataParallel(nn.ReLU()), r"is a DataParallel, .*; give model\.module$"),
        (nn.ReLU(), r"is a OptimizedModule, .*; give model\._orig_mod, as it was before"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_captured_is_the_users_and_never_a_line_of_ours(model, message):
    if "Optimized" in message:
        model = torch.compile(model)
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model, (torch.zeros(2, 4),))
    assert "trace.py" not in str(caught.value)


def test_an_interruption_that_torch_loses_while_it_clears_up_is_none_of_the_models_faults():
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                raise KeyboardInterrupt
            finally:
                raise AssertionError("Trying to pop empty mode stack")

    with pytest.raises(KeyboardInterrupt):
        capture(Interrupted(), (torch.zeros(1, 4),))


def test_a_write_to_what_the_caller_gave_is_refused():
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, :2].mul_(2)
            return x

    with pytest.raises(CaptureError, match=r"'mul_' .*: writes to an input of the model in place"):
        capture(Scaled(), (torch.zeros(1, 4),))


def test_an_operation_in_place_gives_later_readers_its_result():
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y.relu_()
            return y + z

    add = capture(InPlace(), (torch.zeros(1, 4),)).nodes[-1]
    assert add.inputs == ("relu_",)
