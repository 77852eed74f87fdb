"""MACs agree with torch's own counter of floating point operations, which counts two for each."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isthmus.graph import capture
from tests.nets import NETS, images


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


COUNTED = {
    **{name: (make, images()) for name, make in NETS.items()},
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2), torch.rand(2, 4, 16)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, groups=2), torch.rand(2, 2, 5, 6, 7)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        torch.rand(2, 4, 5, 5),
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), torch.rand(2, 4, 5)),
    "products": (Products, torch.rand(2, 4, 6)),
    "attend": (Attend, torch.rand(2, 4, 6)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_half_of_torchs_flops(name):
    make, x = COUNTED[name]
    model = make().eval()
    with (
        sdpa_kernel(SDPBackend.MATH),  # torch's counter knows no other attention on a CPU
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(x)
    assert 2 * capture(model, (x,)).macs * x.shape[0] == counter.get_total_flops()


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
    assert [(node.op, node.macs) for node in graph.nodes] == [("cdist", None), ("mul", 0)]
