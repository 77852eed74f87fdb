"""Small networks that the tests share, one for each way in which networks are wired."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.graph import Graph, capture


def write_model(
    folder: Path, source: str, prepare: Callable[[nn.Module], object] = lambda model: None
) -> None:
    """Write net.py, and as w.safetensors the weights of what its ``make`` returns.

    Args:
        folder: Where to.
        source: Of net.py.
        prepare: Trains the model first.
    """
    (folder / "net.py").write_text(source)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    torch.manual_seed(0)
    model: nn.Module = namespace["make"]()
    prepare(model)
    save_file(model.state_dict(), folder / "w.safetensors")


def images(batch: int = 2, *, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Net:
    """A model to make and the shape of one sample of each input, which are tokens if so said."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8),)
    tokens: int | None = None  # how many there are

    def inputs(self, batch: int = 2, *, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens is not None:
            sizes = [(batch, *shape) for shape in self.shapes]
            return tuple(torch.randint(self.tokens, size, generator=generator) for size in sizes)
        return tuple(torch.rand(batch, *shape, generator=generator) for shape in self.shapes)


def student() -> nn.Module:
    """Take what `tests/contracts/test_techniques.py` does, with layers that are no plain data."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def student_stage() -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.SiLU())


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


class Dense(nn.Module):
    """A block whose layers read all before them, a transition, and another block (DenseNet)."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.ModuleList([self.layer(8 + growth * k, growth) for k in range(3)])
        self.transition = nn.Sequential(self.layer(20, 10, kernel=1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList([self.layer(10 + growth * k, growth) for k in range(2)])
        self.head = Head(18)

    @staticmethod
    def layer(before: int, after: int, kernel: int = 3) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.block1:
            features.append(layer(torch.cat(features, 1)))
        features = [self.transition(torch.cat(features, 1))]
        for layer in self.block2:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; with a skip where the shape allows (MobileNetV2)."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        wide = 3 * before
        self.skips = before == after and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skips else self.layers(x)


def inverted_residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        InvertedResidual(8, 8),
        InvertedResidual(8, 12, stride=2),
        nn.Dropout(0.2),
        Head(12),
    )


class Shuffled(nn.Module):
    """Half of the channels pass, half are filtered, and both are mixed (ShuffleNetV2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1, groups=half)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, filtered = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(filtered)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


def shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Shuffled(8), nn.ChannelShuffle(4), Shuffled(8), Head(8)
    )


class Branches(nn.Module):
    """Four branches of different reach and resolution, all alive at once (Inception)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.wide = nn.Sequential(
            nn.Conv2d(8, 4, 1),
            nn.SiLU(),
            nn.Conv2d(4, 4, (1, 5), padding=(0, 2)),
            nn.Conv2d(4, 4, (5, 1), padding=(2, 0)),
        )
        self.pooled = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.GELU())
        self.head = Head(28)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.narrow(x), self.middle(x), self.wide(x), self.pooled(x)]
        branches[-1] = F.interpolate(branches[-1], scale_factor=2)
        return self.head(torch.cat([x, *branches], 1))


class UNet(nn.Module):
    """Down and up again, with long skips; one class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = self.twice(3, 6)
        self.down1, self.down2 = self.twice(6, 12), self.twice(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(12, 6, 1)
        self.merge2, self.merge1 = self.twice(24, 12), self.twice(12, 6)
        self.leave = nn.Conv2d(6, 2, 1)

    @staticmethod
    def twice(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.1),
            nn.Conv2d(after, after, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        full = self.enter(x)
        half = self.down1(F.max_pool2d(full, 2))
        quarter = self.down2(F.max_pool2d(half, 2))
        x = self.merge2(torch.cat([half, self.up2(quarter)], 1))
        x = F.interpolate(self.up1(x), scale_factor=2, mode="bilinear")
        return self.leave(self.merge1(torch.cat([full, x], 1)))


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
        return self.out(y.transpose(1, 2).contiguous().view(batch, tokens, dim))


class Windows(nn.Module):
    """Attention inside windows, which stand in the batch, with a learned bias of positions."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 2, stride=2)
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.randn(7, 2))
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        batch, dim, rows, columns = x.shape
        windows = x.view(batch, dim, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 3, 5, 1)
        y = self.attend(self.norm(windows.contiguous().view(-1, 4, dim)))
        return self.head(x.flatten(2).mean(2) + y.view(batch, -1, dim).mean(1))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.view(x.shape[0], 4, 2, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, 2)
        )
        places = torch.arange(4)
        bias = self.bias[(places[:, None] - places).view(-1) + 3].view(4, 4, 2).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous()[None])
        return self.out(y.transpose(1, 2).contiguous().view(x.shape[0], 4, -1))


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


class Decoder(nn.Module):
    """A decoder-only transformer: tokens, rotary positions, a causal mask, tied embeddings."""

    def __init__(self, vocabulary: int = 32, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.norms = nn.ModuleList([nn.RMSNorm(dim) for _ in range(5)])
        self.qkv = nn.ModuleList([nn.Linear(dim, 3 * dim, bias=False) for _ in range(2)])
        self.gate_up = nn.ModuleList([nn.Linear(dim, 4 * dim, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(2 * dim, dim, bias=False) for _ in range(2)])
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.embed(tokens))
        for k in range(2):
            x = x + self.attend(self.qkv[k](self.norms[2 * k](x)))
            gate, up = self.gate_up[k](self.norms[2 * k + 1](x)).chunk(2, -1)
            x = x + self.drop(self.down[k](F.silu(gate) * up))
        return self.head(self.norms[-1](x))

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        angles = torch.arange(q.shape[2])[:, None] / 100 ** (torch.arange(4) / 4)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2))) * turn).flatten(
                3
            )
            for part in (q, k)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    """Two layers of GRU over a window, with dropout between them, and an LSTM both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 16, num_layers=2, dropout=0.3, batch_first=True)
        self.norm = nn.InstanceNorm1d(5, affine=True, track_running_stats=True)
        self.lstm = nn.LSTM(16, 8, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        y, _ = self.lstm(self.norm(y))
        return self.fc(y[:, -1])


def signal() -> nn.Module:
    """A network of 1-D convolutions, dilated ones too (keyword spotting, wearables)."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, dilation=2),
        nn.GroupNorm(3, 12),
        nn.ELU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 12, 3, groups=12),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def video() -> nn.Module:
    """A network of 3-D convolutions."""
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, (1, 3, 3)),
        nn.Dropout3d(0.2),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Sensors(nn.Module):
    """Two inputs that meet, and two outputs, one of them made early."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.motion = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.both = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.kind, self.place = Head(8), nn.Linear(32, 2)

    def forward(self, image: Tensor, motion: Tensor) -> dict[str, Tensor]:
        x = self.image(image)
        seen = self.kind(x)
        x = self.both(x * self.motion(motion)[:, :, None, None])
        return {"place": self.place(x.flatten(1)), "kind": seen}


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


NETS: dict[str, Net] = {
    "chain": Net(chain),
    "residual": Net(residual),
    "dense": Net(Dense),
    "inverted residual": Net(inverted_residual),
    "shuffle": Net(shuffle),
    "branches": Net(Branches),
    "u-net": Net(UNet),
    "attention": Net(Attention),
    "windows": Net(Windows),
    "multi-head": Net(MultiHead),
    "decoder": Net(Decoder, ((12,),), tokens=32),
    "recurrent": Net(Recurrent, ((5, 6),)),
    "signal": Net(signal, ((2, 32),)),
    "video": Net(video, ((1, 4, 8, 8),)),
    "sensors": Net(Sensors, ((3, 8, 8), (6,))),
    "tied": Net(Tied),
    "dropouts": Net(Dropouts),
}


@cache
def captured(name: str) -> Graph:
    """Capture one of `NETS`, once for all tests."""
    torch.manual_seed(0)
    return capture(NETS[name].make(), NETS[name].inputs())
