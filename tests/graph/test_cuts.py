"""Crossings worked out by hand."""

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.graph import Graph, Node, capture, cuts, find_cut, live_bytes
from isthmus.graph import Tensor as GraphTensor
from tests.nets import NETS, captured, images


class DenseBlock(nn.Module):
    """Every convolution reads all tensors before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3 + 2 * k, 2, 1) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(torch.cat([x, a], 1))
        c = self.c(torch.cat([x, a, b], 1))
        return torch.cat([x, a, b, c], 1)


def crossing(graph: Graph, after: str) -> list[str]:
    return [tensor.name for tensor in find_cut(graph, after).tensors]


def test_a_cut_inside_a_residual_block_carries_both_tensors():
    graph = captured("residual")
    assert crossing(graph, "1") == ["relu__1"]
    assert crossing(graph, "2.conv1") == ["relu__1", "conv2d_3"]
    assert crossing(graph, "2.bn2") == ["relu__1", "batch_norm_3"]
    assert crossing(graph, "2") == ["relu__3"]
    assert find_cut(graph, "2.bn2").num_bytes == 2 * 8 * 8 * 8 * 4


def test_a_cut_inside_a_dense_block_carries_all_that_came_before():
    graph = capture(DenseBlock(), (images(),))
    assert crossing(graph, "input") == ["x"]
    assert crossing(graph, "a") == ["x", "conv2d"]
    assert crossing(graph, "cat") == ["x", "conv2d", "cat"]
    assert crossing(graph, "b") == ["x", "conv2d", "conv2d_1"]
    assert crossing(graph, "c") == ["x", "conv2d", "conv2d_1", "conv2d_2"]
    assert crossing(graph, "cat_2") == ["cat_2"]


def test_a_module_used_twice_ends_after_its_second_use():
    graph = captured("tied")
    places = [cut.after for cut in cuts(graph)]
    first, second = (k for k, node in enumerate(graph.nodes) if node.module == "block.2")
    assert places[first + 1] == graph.nodes[first].name
    assert places[second + 1] == "block"
    assert find_cut(graph, "block").index == second + 1
    assert crossing(graph, "block") == ["tanh_1"]


@pytest.mark.parametrize("name", NETS)
def test_every_cut_has_a_place_of_its_own_that_finds_it(name):
    graph = captured(name)
    places = [cut.after for cut in cuts(graph)]
    assert len(set(places)) == len(places) == len(graph.nodes) + 1
    assert [find_cut(graph, place).index for place in places] == list(range(len(places)))
    assert [t.name for t in cuts(graph)[0].tensors] == [t.name for t in graph.inputs]
    assert {t.name for t in cuts(graph)[-1].tensors} == {*graph.outputs}


def test_an_output_made_early_stays_alive_to_the_end():
    class Early(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x * 2
            return (y + 1).relu(), y, x

    graph = capture(Early(), (torch.zeros(1, 4),))
    assert [t.name for t in cuts(graph)[-1].tensors] == ["x", "mul", "relu"]


def test_a_tensor_whose_batch_is_elsewhere_is_an_obstacle():
    graph = captured("multi-head")
    assert find_cut(graph, "transpose_1").obstacle == (
        "dimension 0 of transpose_1 is not the batch"
    )
    assert not find_cut(graph, "first").obstacle


def test_an_unknown_place_lists_near_ones():
    graph = captured("residual")
    with pytest.raises(InputError, match=r"no module or node '1.bn3'.*1\.bn1"):
        find_cut(graph, "1.bn3")


def made(name: str, size: int) -> GraphTensor:
    return GraphTensor(name=name, shape=(size,))


def node(name: str, size: int, *inputs: str, module: str = "") -> Node:
    return Node(name=name, op="op", module=module, inputs=inputs, outputs=(made(name, size),))


def test_live_bytes_count_what_is_read_made_and_still_needed():
    graph = Graph(
        inputs=(made("x", 1),),
        nodes=(
            node("a", 10, "x"),
            node("b", 100, "a"),
            node("c", 1000, "b"),
            node("d", 10000, "a", "c"),
        ),
        outputs=("d", "b"),
    )
    assert live_bytes(graph) == (4 * 11, 4 * 110, 4 * 1110, 4 * 11110)


def test_a_name_that_means_a_module_and_another_node_means_the_module():
    graph = Graph(
        inputs=(made("x", 1),),
        nodes=(
            node("first", 1, "x", module="relu.inner"),
            node("relu", 1, "first"),
            node("input", 1, "relu"),
        ),
        outputs=("input",),
    )
    assert [cut.after for cut in cuts(graph)] == ["input", "relu", "relu()", "input()"]
    assert [find_cut(graph, place).index for place in ("input", "relu", "relu()")] == [0, 1, 2]
    assert find_cut(graph, "relu.inner").index == 1
