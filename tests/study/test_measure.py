import pytest
import torch
from torch import nn

from isthmus.errors import InputError
from isthmus.files import write_json
from isthmus.graph import capture, fingerprint
from isthmus.platform import load_times
from isthmus.study.measure import find_blocks, measure_nodes


class Net(nn.Module):
    """Large enough to be timed: two branches from one stem, some 20 million MACs."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.right = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.left(x) + self.right(x)
        return self.head(y.relu().mean((2, 3)))


def example(batch=2):
    return (torch.rand(batch, 3, 40, 40, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    model = Net()
    graph = capture(model, example())
    return graph, measure_nodes(model, graph, example(), repeats=15, warmup=3)


def test_a_block_is_an_operation_with_macs_and_what_follows_it(measured):
    graph, _ = measured
    ops = [[graph.nodes[k].op for k in block] for block in find_blocks(graph)]
    assert ops == [
        ["conv2d", "relu"],
        ["conv2d", "batch_norm"],
        ["conv2d", "add", "relu", "mean"],
        ["linear"],
    ]


def test_every_node_has_a_time_and_those_with_macs_hold_it(measured):
    graph, times = measured
    assert list(times.seconds) == [node.name for node in graph.nodes]
    convolutions = [node.name for node in graph.nodes if node.op == "conv2d"]
    assert all(times.seconds[name] > 0 for name in convolutions)
    assert all(times.seconds[node.name] == 0 for node in graph.nodes if node.macs == 0)


def test_the_parts_add_up_to_the_whole_roughly_and_a_note_says_how_well(measured):
    _, times = measured
    total = sum(times.seconds.values())
    assert times.whole_s / 5 < total < 5 * times.whole_s
    assert f"{total / times.whole_s:.2f} times that" in times.notes[0]


def test_what_has_most_macs_takes_longest(measured):
    graph, times = measured
    largest = max(graph.nodes, key=lambda node: node.macs or 0)
    assert max(times.seconds, key=times.seconds.__getitem__) == largest.name


def test_a_table_names_its_graph_and_machine_and_comes_back_from_its_file(measured, tmp_path):
    graph, times = measured
    assert times.graph == fingerprint(graph)
    assert "onnxruntime" in times.machine
    write_json(tmp_path / "times.json", times)
    assert load_times(tmp_path / "times.json") == times


def test_a_graph_of_another_model_is_refused(measured):
    graph, _ = measured
    with pytest.raises(InputError, match="capture the model anew"):
        measure_nodes(Net(width=16), graph, example())
    with pytest.raises(InputError, match="repeats: found 0"):
        measure_nodes(Net(), graph, example(), repeats=0)


def test_a_block_that_is_no_program_alone_gets_its_share_by_macs_and_a_note():
    class Dead(nn.Module):
        """Computes what nobody reads: the exporter leaves it out."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 24)
            self.unused = nn.Linear(24, 24)
            self.last = nn.Linear(24, 3)

        def forward(self, x):
            x = self.first(x)
            self.unused(x)
            return self.last(x)

    model, x = Dead(), (torch.rand(2, 8),)
    graph = capture(model, x)
    times = measure_nodes(model, graph, x, repeats=3, warmup=1)
    assert times.notes[-1].endswith("share of the whole by MACs: linear_1")
    share = 24 * 24 / (8 * 24 + 24 * 24 + 24 * 3)
    assert times.seconds["linear_1"] == pytest.approx(share * times.whole_s)


def test_a_batch_of_one_and_integers_and_several_inputs_are_measured():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.head = nn.Linear(12, 3)

        def forward(self, tokens, extra):
            return self.head(torch.cat([self.embed(tokens).mean(1), extra], 1))

    model, x = Tokens(), (torch.randint(16, (1, 5)), torch.rand(1, 4))
    graph = capture(model, x)
    times = measure_nodes(model, graph, x, repeats=3, warmup=1)
    assert sum(map(len, find_blocks(graph))) == len(graph.nodes) == len(times.seconds)
    assert len(times.notes) == 2
