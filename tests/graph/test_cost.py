"""MACs agree with torch's own counter of floating point operations, which counts two for each.

Other operations and bytes are worked out by hand.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isthmus.graph import capture
from tests.nets import NETS, captured


class Products(nn.Module):
    """Every way to multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(6, 5))
        self.b = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.w  # (B, 4, 5)
        y = torch.baddbmm(y, x, self.w.expand(x.shape[0], 6, 5))
        y = torch.bmm(y.transpose(1, 2), y)  # (B, 5, 5)
        y = y + torch.einsum("btc,btd->bcd", x[..., :5], x[..., :5])
        rows = torch.addmm(self.b, x[:, 0], self.w) + torch.mm(x[:, 1], self.w)
        rows = rows + torch.einsum("bi,ij->bj", x[:, 2], self.w)
        return y + rows.unsqueeze(1)


class Attend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x.view(x.shape[0], 2, 4, 3)
        return F.scaled_dot_product_attention(q, q[:, :, :2], q[:, :, :2, :1])


COUNTED: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    **{
        name: (net.make, net.inputs())
        for name, net in NETS.items()
        if name != "recurrent"  # torch's counter does not know the LSTM of a CPU
    },
    "conv1d": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2),
        (torch.rand(2, 4, 16),),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, groups=2), (torch.rand(2, 2, 5, 6, 7),)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        (torch.rand(2, 4, 5, 5),),
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (torch.rand(2, 4, 5),)),
    "products": (Products, (torch.rand(2, 4, 6),)),
    "attend": (Attend, (torch.rand(2, 4, 6),)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_half_of_torchs_flops(name):
    make, inputs = COUNTED[name]
    model = make().eval()
    with (
        sdpa_kernel(SDPBackend.MATH),  # torch's counter knows no other attention on a CPU
        FlopCounterMode(display=False) as counter,
    ):
        model(*inputs)
    graph = captured(name) if name in NETS else capture(model, inputs)
    assert 2 * graph.macs * len(inputs[0]) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.GRU(5, 7, batch_first=True), 3 * (5 * 7 + 7 * 7)),
        (nn.LSTM(5, 7, num_layers=2, batch_first=True), 4 * (5 * 7 + 3 * 7 * 7)),
        (nn.LSTM(5, 7, proj_size=3, batch_first=True), 4 * (5 * 7 + 3 * 7) + 7 * 3),
        (nn.RNN(5, 7, bidirectional=True, batch_first=True), 2 * (5 * 7 + 7 * 7)),
    ],
)
def test_a_recurrent_net_multiplies_by_each_matrix_at_each_step(layer, macs):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    assert capture(Last(), (torch.zeros(2, 4, 5),)).macs == 4 * macs


def test_an_operation_without_a_rule_is_unknown_and_not_free():
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x) * 2

    graph = capture(Distances(), (torch.zeros(2, 4, 5),))
    assert [(node.op, node.macs, node.ops) for node in graph.nodes] == [
        ("cdist", None, None),
        ("mul", 0, 16),
    ]
    assert graph.unknown_ops == ("cdist",)
    assert (graph.nodes[0].read_bytes, graph.nodes[0].written_bytes) == (4 * 20, 4 * 16)


def test_an_operation_on_constants_without_a_rule_is_named_by_its_own_name():
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.rand(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = torch.cdist(x * 2, x).exp()
            return x @ torch.cdist(self.places, self.places)

    graph = capture(Placed(), (torch.zeros(2, 4, 5),))
    block, product = graph.nodes
    assert graph.unknown_ops == ("cdist",)
    assert (block.ops, block.unknown) == (20 + 4 * 16, ("cdist",))  # what is known counts
    assert (product.op, product.macs, product.unknown) == ("matmul", 4 * 4 * 4, ("cdist",))


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


LOWER = torch.ones(4, 4, dtype=torch.bool).tril()
OPS = {  # of x (B, 2, 4, 4): 32 elements for one sample
    "sum": (lambda x: x + x, 32),
    "compared": (lambda x: x.clamp(0, 1), 2 * 32),
    "root": (lambda x: x.sqrt(), 4 * 32),
    "in place": (lambda x: (x * 2).sigmoid_(), 32 + 4 * 32),
    "activation": (lambda x: F.gelu(x), 8 * 32),
    "softmax": (lambda x: x.softmax(-1), 8 * 32),
    "mean": (lambda x: x.mean((2, 3)), 32),
    "variance": (lambda x: x.var((2, 3)), 4 * 32),
    "max pooling": (lambda x: F.max_pool2d(x, 3, 1), 9 * 8),
    "average pooling": (lambda x: F.avg_pool2d(x, (1, 2)), 2 * 16),
    "adaptive pooling": (lambda x: F.adaptive_avg_pool2d(x, 2), 32),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 9 * 128),
    "antialiased": (
        lambda x: F.interpolate(x, size=(8, 2), mode="bilinear", antialias=True),
        9 * 32 * 2,  # its window is twice as wide, as it halves one side
    ),
    "antialiased, larger": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
        35 * 128,
    ),
    "sorting": (lambda x: x.sort(-1)[0], 32 * 2),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 9 * 32),
    "masked attention": (lambda x: F.scaled_dot_product_attention(x, x, x, LOWER), 10 * 32),
    "a sum over an index": (lambda x: torch.einsum("bcij->bci", x), 32),
    "one for two": (lambda x: torch.cosine_similarity(x, x, -1), 6 * 32),
    "moved": (lambda x: torch.cat([x, x.roll(1, 1)], 1), 0),
}


@pytest.mark.parametrize("name", OPS)
def test_other_operations_are_counted_by_the_conventions(name):
    function, ops = OPS[name]
    assert capture(Call(function), (torch.rand(2, 2, 4, 4),)).ops == ops


@pytest.mark.parametrize(
    ("layer", "ops"),
    [
        (nn.Conv2d(2, 3, 3), 3 * 4),
        (nn.Conv2d(2, 3, 3, bias=False), 0),
        (nn.ConvTranspose2d(2, 3, 3), 3 * 36),
        (nn.Linear(4, 5), 40),
        (nn.BatchNorm2d(2), 2 * 32),
        (nn.BatchNorm2d(2, track_running_stats=False), 7 * 32),
        (nn.GroupNorm(2, 2), 7 * 32),
        (nn.LayerNorm(4), 7 * 32),
        (nn.RMSNorm(4), 4 * 32),
        (nn.Dropout(0.5), 0),
        (nn.ReLU6(), 2 * 32),
    ],
)
def test_layers_add_their_bias_and_normalize(layer, ops):
    assert capture(layer, (torch.rand(2, 2, 4, 4),)).ops == ops


def test_a_recurrent_unit_takes_eight_operations_for_each_gate():
    layer = nn.LSTM(5, 7, num_layers=2, proj_size=3, batch_first=True)
    assert capture(Call(lambda x: layer(x)[0]), (torch.zeros(2, 4, 5),)).ops == 8 * 4 * 2 * 4 * 7


def test_bytes_are_read_and_written_once_and_views_move_none():
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 2)
            self.table = nn.Embedding(1000, 8)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)  # (B, 3, 8)
            x = x.transpose(1, 2).flatten(1).view(x.shape[0], 3, 8)  # flatten copies
            return self.linear(x).transpose(1, 2)

    nodes = capture(Moves(), (torch.zeros(2, 3, dtype=torch.int64),)).nodes
    assert [(n.op, n.read_bytes, n.written_bytes) for n in nodes] == [
        ("embedding", 3 * 8 + 96, 96),
        ("transpose", 0, 0),
        ("flatten", 96, 96),
        ("view", 0, 0),
        ("linear", 96 + 4 * 18, 24),
        ("transpose", 0, 0),
    ]
    assert [n.macs for n in nodes] == [0, 0, 0, 0, 48, 0]


def test_a_block_without_gradients_costs_the_sum_of_its_operations():
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return (x * 2).exp()

    (node,) = capture(Frozen(), (torch.zeros(2, 4),)).nodes
    assert (node.ops, node.read_bytes, node.written_bytes) == (4 + 4 * 4, 32, 32)
