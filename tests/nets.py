"""Small networks that the tests share: images (B, 3, 8, 8) to logits (B, 10)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=None)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += x
        return self.act(y)


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), ResidualBlock(8), ResidualBlock(8), Head(8)
    )


class Branches(nn.Module):
    """Two branches of different resolution, whose tensors are all alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.right = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.GELU())
        self.head = Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = self.left(x), self.right(x)
        right = F.interpolate(right, scale_factor=2)
        return self.head(torch.cat([x, left, right], 1))


class Attention(nn.Module):
    """A transformer block on patches: class token, positions, dropout inside the attention."""

    def __init__(self, dim: int = 24, heads: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.patch = nn.Conv2d(3, dim, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 32, dim) / 10)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim)
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position[:, : x.shape[1]]
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(0, 3, 2, 1, 4).unbind(2)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(y.transpose(1, 2).reshape(batch, tokens, dim))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.Conv2d(16, 32, 1),
        Head(32),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "residual": residual,
    "two-branch": Branches,
    "attention": Attention,
    "depthwise": depthwise,
}


class Dropouts(nn.Module):
    """Dropout as a module, as a function and in place, on channels and on elements."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.drop1 = nn.Dropout2d(0.3)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.drop2 = nn.Dropout(0.2, inplace=True)
        self.act = nn.RReLU()
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop2(self.conv2(self.drop1(self.conv1(x))))
        return self.head(F.dropout(self.act(x), 0.1, self.training))


class Recurrent(nn.Module):
    """Two layers of GRU with dropout between them; rows of pixels are the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 16, num_layers=2, dropout=0.3, batch_first=True)
        self.norm = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
        self.lstm = nn.LSTM(16, 12, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x.transpose(1, 2).flatten(2))
        y, _ = self.lstm(self.norm(y))
        return self.fc(y[:, -1])


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` with and without the attention map, which draw dropout apart."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, stride=2)
        self.first = nn.MultiheadAttention(12, 2, dropout=0.2, batch_first=True)
        self.second = nn.MultiheadAttention(12, 3, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.first(x, x, x, need_weights=False)[0]
        y, weights = self.second(x, x, x, need_weights=True)
        return self.head((x + y + weights @ x).mean(1))


TRAINED_NETS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": residual,
    "dropout": Dropouts,
    "recurrent": Recurrent,
    "attention dropout": Attention,
    "multi-head attention": MultiHead,
}


class Tied(nn.Module):
    """One weight at both ends, and one block (with running statistics) used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(24, 10)
        self.enter = nn.Linear(10, 10)
        self.block = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Tanh())
        self.leave = nn.Linear(10, 10)
        self.leave.weight = self.enter.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.stem(x.mean(2).flatten(1)))
        x = self.block(self.block(x))
        return self.leave(x)


def images(batch: int = 2, *, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
