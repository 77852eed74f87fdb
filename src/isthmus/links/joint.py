"""All float tensors of a crossing as one, so that they share a narrow layer.

Two tensors at the same positions (a skip and the main path) have much in common; the principal
axes of both together carry it once.
"""

import torch
from torch import Tensor, nn

from isthmus.wire import CodecSpec
from isthmus.wire.spec import FLOATS, channel_dim, num_channels

Tensors = tuple[Tensor, ...]


class Join(nn.Module):
    """Lay the channels of the floats side by side; the other tensors follow.

    Args:
        spec: Of a joint codec.
    """

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.floats = tuple(dtype in FLOATS for dtype in spec.dtypes)
        shapes = [
            shape for shape, is_float in zip(spec.shapes, self.floats, strict=True) if is_float
        ]
        self.dim = 1 + channel_dim(shapes[0])
        self.sizes = [num_channels(shape) for shape in shapes]

    def forward(self, tensors: Tensors) -> Tensors:
        """Return what ``spec.carried`` says."""
        pairs = list(zip(tensors, self.floats, strict=True))
        joined = torch.cat([x for x, is_float in pairs if is_float], dim=self.dim)
        return (joined, *(x for x, is_float in pairs if not is_float))


class Part(nn.Module):
    """Undo a `Join`.

    Args:
        join: What was done.
    """

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.floats, self.dim, self.sizes = join.floats, join.dim, join.sizes

    def forward(self, tensors: Tensors) -> Tensors:
        """Return the tensors of the crossing."""
        joined, *others = tensors
        parts, rest = iter(joined.split(self.sizes, dim=self.dim)), iter(others)
        return tuple(next(parts if is_float else rest) for is_float in self.floats)
