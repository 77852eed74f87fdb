"""Networks of several answers that are trained all at once; shapes: B batch, K classes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import InputError


class Joint(nn.Module, ABC):
    """A network that gives several answers while it is trained, and its best one otherwise.

    Attributes:
        teaching: Whether the others learn what the best answer says, in place of what it learns.
        weight: How much the loss of each of the others counts.
    """

    teaching: bool
    weight: float

    @abstractmethod
    def answers(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return answers (B, K), the best one first."""

    @abstractmethod
    def settled(self) -> nn.Module:
        """Return the network without what only training needs."""


@contextmanager
def kept(
    model: nn.Module, paths: Sequence[str], *, read: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield a mapping that holds, after a model was called, what some of its modules returned.

    Args:
        model: The model.
        paths: Of the modules.
        read: Keep what they read first instead.
    """
    made: dict[str, Any] = {}

    def keep(path: str, _: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        made[path] = inputs[0] if read else output

    modules = {path: model.get_submodule(path) for path in paths}
    hooks = [m.register_forward_hook(partial(keep, path)) for path, m in modules.items()]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def pooled(tensors: Sequence[Tensor]) -> Tensor:
    """Return features of tensors: each channel's mean over its positions, (B, F).

    Tensors of three axes are (B, positions, channels), those of more (B, channels, ...).
    """
    parts = []
    for x in tensors:
        axes = [1] if x.ndim == 3 else list(range(2, x.ndim))
        features = x.float().mean(axes) if axes else x.float()
        parts.append(features.flatten(1))
    return torch.cat(parts, 1)


def first(output: Any) -> Tensor:
    """Return the output itself, or the first of several.

    Raises:
        InputError: It is neither.
    """
    scores = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(scores, Tensor):
        raise InputError(
            f"the model returns a {type(output).__name__}, expected class scores (B, K), or a "
            "tuple that begins with them; put it into a module that returns them"
        )
    return scores
