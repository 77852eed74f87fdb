"""Tensors as they are: floats in their own bits or in 16, integers in their own dtype.

.. code-block:: none

    x --> cast --> [link] --> cast back --> x_hat
"""

import torch
from torch import Tensor, nn

from isthmus.links.halves import Halves
from isthmus.wire import CodecSpec, WireTensor

_FLOAT16_MAX = torch.finfo(torch.float16).max


def raw_halves(spec: CodecSpec, tensor: WireTensor, shape: tuple[int, ...], dtype: str) -> Halves:
    """Carry one tensor of any dtype.

    Args:
        spec: Not needed.
        tensor: Its symbols.
        shape: Not needed: symbols have the tensor's own shape.
        dtype: The tensor's dtype.
    """
    del spec, shape
    restored = tensor.dtype if dtype.startswith("uint") else dtype  # torch has no uint4
    return Halves(sender=RawSender(tensor.dtype), receiver=RawReceiver(restored))


class RawSender(nn.Module):
    """Cast to the wire's dtype.

    Rounding to 16 bits has the gradient of the clamp to what 16 bits can hold. Where integers
    cross that stand for floats, it is these that arrive in training, and that pass.

    Args:
        dtype: Of the symbols.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols; in training, float32 ones in place of float16 and of integers."""
        if self.training and _stands_for_floats(x, self.dtype):
            return x
        if self.dtype != torch.float16 or x.dtype == torch.float16:
            return x.to(self.dtype)
        clamped = x.float().clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
        rounded = clamped.to(torch.float16)
        if self.training:
            return clamped + (rounded.float() - clamped).detach()
        return rounded


class RawReceiver(nn.Module):
    """Cast back.

    Args:
        dtype: Of the tensor.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the tensor."""
        if self.training and _stands_for_floats(symbols, self.dtype):
            return symbols
        return symbols.to(self.dtype)


def _stands_for_floats(x: Tensor, dtype: torch.dtype) -> bool:
    return x.is_floating_point() and not dtype.is_floating_point
