"""Low rank: a layer becomes two or three smaller ones, of ranks that keep most of its energy.

How much, an option says: a share of the energy, or the parameters that may be left, for which the
share is found that all layers can keep alike.

Shapes: O channels that a layer makes, I channels that it reads, R ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.compress.technique import Apply, Options, Samples, Technique, layers, number
from isthmus.errors import InputError
from isthmus.models.compressed import replaced

_HALVINGS = 20
_UNSURE = 1e-5  # share of energy by which two ways to singular values may differ


def rank_of(singular_R: Tensor, energy: float) -> int:
    """Return the least rank whose singular values hold a share of the sum of all squares.

    Example:
        >>> rank_of(torch.tensor([3.0, 2.0, 1.0]), 0.9)  # 9 + 4 of 14
        2
    """
    held = singular_R.double().square().cumsum(0)
    return int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1


def svd_linear(layer: nn.Linear, energy: float) -> nn.Sequential:
    r"""Return two layers that multiply to the best approximation of one.

    .. math:: W \approx U_R S_R V_R^T

    References:
        Denton, Zaremba, Bruna, LeCun, Fergus, NeurIPS 2014, https://arxiv.org/abs/1404.0736.
    """
    read_RI, made_OR = _halves(layer.weight.detach(), energy)
    first = nn.Linear(layer.in_features, len(read_RI), bias=False)
    second = nn.Linear(len(read_RI), layer.out_features, bias=layer.bias is not None)
    _fill(first, read_RI)
    _fill(second, made_OR, bias=layer.bias)
    return nn.Sequential(first, second)


def _halves(weight_OI: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    left, singular, right = torch.linalg.svd(weight_OI, full_matrices=False)
    rank = rank_of(singular, energy)
    root_R = singular[:rank].sqrt()
    return root_R[:, None] * right[:rank], left[:, :rank] * root_R


def tucker_conv(layer: Any, energy: float) -> nn.Sequential:
    r"""Return a narrowing, a small and a widening convolution for one of any kernel.

    .. math:: K \approx G \times_O U_O \times_I U_I, \quad G = K \times_O U_O^T \times_I U_I^T

    :math:`U_O` and :math:`U_I` are the left singular vectors of K unfolded along O and I. A
    kernel of one place needs no small one: there it is `svd_linear`.

    References:
        Kim, Park, Yoo, Choi, Yang, Shin, ICLR 2016, https://arxiv.org/abs/1511.06530.
    """
    kind, kernel = type(layer), layer.weight.detach()
    one = (1,) * (kernel.ndim - 2)
    if all(size == 1 for size in layer.kernel_size):
        return _pointwise(layer, energy)
    out_OR, made = _vectors(kernel.flatten(1), energy)
    in_IR, read = _vectors(kernel.transpose(0, 1).flatten(1), energy)
    core = torch.einsum("oi...,or,is->rs...", kernel, out_OR, in_IR)
    narrow = kind(layer.in_channels, read, 1, bias=False)
    small = kind(
        read,
        made,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    )
    widen = kind(made, layer.out_channels, 1, bias=layer.bias is not None)
    _fill(narrow, in_IR.T.reshape(*in_IR.T.shape, *one))
    _fill(small, core)
    _fill(widen, out_OR.reshape(*out_OR.shape, *one), bias=layer.bias)
    return nn.Sequential(narrow, small, widen)


def _pointwise(layer: Any, energy: float) -> nn.Sequential:
    kind, one = type(layer), (1,) * (layer.weight.ndim - 2)
    read_RI, made_OR = _halves(layer.weight.detach().flatten(1), energy)
    narrow = kind(
        layer.in_channels,
        len(read_RI),
        1,
        stride=layer.stride,
        padding=layer.padding,
        padding_mode=layer.padding_mode,
        bias=False,
    )
    widen = kind(len(read_RI), layer.out_channels, 1, bias=layer.bias is not None)
    _fill(narrow, read_RI.reshape(*read_RI.shape, *one))
    _fill(widen, made_OR.reshape(*made_OR.shape, *one), bias=layer.bias)
    return nn.Sequential(narrow, widen)


def _vectors(unfolded: Tensor, energy: float) -> tuple[Tensor, int]:
    left, singular, _ = torch.linalg.svd(unfolded, full_matrices=False)
    rank = rank_of(singular, energy)
    return left[:, :rank], rank


def _fill(layer: nn.Module, weight: Tensor, *, bias: Tensor | None = None) -> None:
    with torch.no_grad():
        layer.get_parameter("weight").copy_(weight)
        if bias is not None:
            layer.get_parameter("bias").copy_(bias)


def affordable(chosen: Sequence[nn.Module], keep: float, energy: float) -> float:
    """Return the largest share of energy, up to one, with which parameters are within a budget.

    Args:
        chosen: Layers; of each the smaller of its two forms counts.
        keep: Share of their parameters that may be left.
        energy: The most to return.

    Returns:
        The share; 0 where rank 1 is too much.
    """
    spectra = [_spectra(layer) for layer in chosen]
    budget = keep * sum(map(_count, chosen))

    def within(share: float) -> bool:
        pairs = zip(chosen, spectra, strict=True)
        return (
            sum(min(_count(layer), _factored_count(layer, s, share)) for layer, s in pairs)
            <= budget
        )

    low, high = 0.0, energy
    if within(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low * (1 - _UNSURE)


def _spectra(layer: Any) -> tuple[Tensor, ...]:
    """Return the singular values that ranks are chosen by: of both unfoldings of a kernel."""
    kernel = layer.weight.detach()
    sides = [kernel.flatten(1)]
    if kernel[0, 0].numel() > 1:
        sides.append(kernel.transpose(0, 1).flatten(1))
    return tuple(torch.linalg.svdvals(side) for side in sides)


def _factored_count(layer: Any, spectra: tuple[Tensor, ...], energy: float) -> int:
    """Return how many parameters the layers in place of one have."""
    made, read = layer.weight.shape[:2]
    ranks = [rank_of(singular, energy) for singular in spectra]
    bias = 0 if layer.bias is None else made
    if len(ranks) == 1:
        return ranks[0] * (made + read) + bias
    places = layer.weight[0, 0].numel()
    return made * ranks[0] + ranks[0] * ranks[1] * places + ranks[1] * read + bias


def _factored(
    name: str, kinds: tuple[type[nn.Module], ...], factor: Callable[[Any, float], nn.Sequential]
) -> Apply:
    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        del samples
        chosen = {
            path: layer
            for path, layer in layers(model, kinds, options, technique=name).items()
            if getattr(layer, "groups", 1) == 1
        }
        if not chosen:
            raise InputError(
                f"technique {name}: found only convolutions of groups, expected one without; name "
                "other modules with only=, or leave it out"
            )
        energy, smaller = options["energy"], 0
        if options["keep"] < 1:
            energy = affordable(list(chosen.values()), options["keep"], energy)
        if not energy:
            raise InputError(
                f"technique {name}: keep={options['keep']:g} of the parameters is less than "
                "rank 1 takes; keep more"
            )
        for path, layer in chosen.items():
            made = factor(layer, energy).train(layer.training)
            if _count(made) < _count(layer):
                model = replaced(model, path, made, where=name)
                smaller += 1
        if not smaller:
            raise InputError(
                f"technique {name}: energy={energy:g} needs ranks at which no layer "
                "gets smaller; give less energy, or leave it out"
            )
        return model

    return apply


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _technique(kind: str, does: str, paper: str, apply: Any) -> Technique:
    return Technique(
        name=f"lowrank:{kind}",
        does=does,
        paper=paper,
        improves=("parameters", "macs", "weight bytes", "stored bytes"),
        stage="structure",
        apply=apply,
        options={
            "energy": number(low=0.01, high=1, default=0.9),
            "keep": number(low=0.001, high=1, default=1),
        },
    )


FACTORS = (
    _technique(
        "svd", "splits linear layers in two of lower rank",
        "Denton et al., NeurIPS 2014, https://arxiv.org/abs/1404.0736",
        _factored("lowrank:svd", (nn.Linear,), svd_linear),
    ),
    _technique(
        "tucker", "splits convolutions in three of lower rank (Tucker-2)",
        "Kim et al., ICLR 2016, https://arxiv.org/abs/1511.06530",
        _factored("lowrank:tucker", (nn.Conv1d, nn.Conv2d, nn.Conv3d), tucker_conv),
    ),
)  # fmt: skip
