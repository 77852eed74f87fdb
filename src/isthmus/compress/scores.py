"""What single weights are worth: the measures by which they become 0 or stay.

Shapes: C channels that a layer makes, K weights of each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.technique import Samples, learnable, losses, watch

Layers = Mapping[str, nn.Module]  # by path
Weights = Mapping[str, Tensor]  # of layers, by path, and whatever has their shapes


def magnitude(model: nn.Module, chosen: Layers, values: Weights, samples: Samples) -> Weights:
    """Return :math:`|w|`.

    References:
        Han, Pool, Tran, Dally, NeurIPS 2015, https://arxiv.org/abs/1506.02626.
    """
    del model, chosen, samples
    return {path: value.abs() for path, value in values.items()}


def wanda(model: nn.Module, chosen: Layers, values: Weights, samples: Samples) -> Weights:
    r"""Return :math:`|w_{ck}| \; \|x_k\|_2`, x being what the weight multiplies.

    References:
        Sun, Liu, Bair, Kolter, ICLR 2024, https://arxiv.org/abs/2306.11695 (equation 1).
    """
    found = {}
    for path, norms in _input_norms(model, chosen, samples).items():
        value = values[path]
        groups = getattr(chosen[path], "groups", 1)
        norm = norms.expand(groups * value.shape[1])  # of a layer that forward does not call: 0
        norm = norm.reshape(groups, -1).repeat_interleave(len(value) // groups, dim=0)
        found[path] = value.abs() * norm.reshape(*norm.shape, *[1] * (value.ndim - 2))
    return found


def snip(model: nn.Module, chosen: Layers, values: Weights, samples: Samples) -> Weights:
    r"""Return :math:`|w \; \partial L / \partial w|`: how the loss depends on it being there.

    References:
        Lee, Ajanthan, Torr, "SNIP", ICLR 2019, https://arxiv.org/abs/1810.02340 (equation 6, not
        normalized).
    """
    total = _summed_gradients(model, chosen, values, samples, batch_size=128)
    return {path: (values[path] * gradient).abs() for path, gradient in total.items()}


def brain_damage(model: nn.Module, chosen: Layers, values: Weights, samples: Samples) -> Weights:
    r"""Return :math:`h w^2 / 2`: what the loss gains without it, h being its second derivative.

    h is that of Fisher, :math:`\sum_n (\partial L_n / \partial w)^2`, which the second derivative
    equals where the model's probabilities are right.

    References:
        LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989 (equation 5).
        Theis, Korshunova, Tejani, Huszar, 2018, https://arxiv.org/abs/1801.05787 (Fisher's).
    """
    total = _summed_gradients(model, chosen, values, samples, batch_size=1, power=2)
    return {path: values[path].square() * h / 2 for path, h in total.items()}


def _summed_gradients(
    model: nn.Module,
    chosen: Layers,
    values: Weights,
    samples: Samples,
    *,
    batch_size: int,
    power: int = 1,
) -> Weights:
    """Sum over all batches a power of the gradients of weights, also of those held at 0."""
    total = {path: torch.zeros_like(value) for path, value in values.items()}
    with learnable(model), parametrize.cached():
        weights: Any = {path: layer.weight for path, layer in chosen.items()}
        for loss in losses(model, samples, batch_size=batch_size):
            found: Any = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for path, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    total[path] += gradient**power
    return total


def _input_norms(model: nn.Module, chosen: Layers, samples: Samples) -> Weights:
    """Return the L2 norm of each input channel of each layer, over all samples and places."""
    squares = dict.fromkeys(chosen.values(), torch.zeros(()))

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        del made
        x = arguments[0].float()
        along = x.ndim - 1 if isinstance(module, nn.Linear) else 1
        rest = [dim for dim in range(x.ndim) if dim != along]
        squares[module] = squares[module] + x.square().sum(dim=rest)

    watch(model, dict.fromkeys(squares, hook), samples.inputs)
    return {path: squares[layer].sqrt() for path, layer in chosen.items()}


SCORES: Mapping[str, Callable[[nn.Module, Layers, Weights, Samples], Weights]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "snip": snip,
    "obd": brain_damage,
}
"""What says which weights to keep: of each weight a number, 0 or more."""
