"""Unstructured and N:M sparsity: single weights become 0 and stay 0.

Shapes: C channels that a layer makes, K weights of each.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.technique import (
    Number,
    Options,
    Samples,
    Technique,
    Word,
    layers,
    needs_data,
)
from isthmus.errors import InputError

SPARSE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Masked(nn.Module):
    """Holds some weights at 0 while the others are trained.

    Args:
        kept: Bool, of the weight's shape.
    """

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with 0 where none is kept."""
        return torch.where(self.kept, weight, 0.0)


def mask(layer: nn.Module, kept: Tensor) -> None:
    """Hold all other weights of a layer at 0 until the technique is settled."""
    parametrize.register_parametrization(layer, "weight", Masked(kept.contiguous()))


def largest(score: Tensor, keep: float) -> Tensor:
    """Return which entries are the largest, as many as a share of them says, and at least one."""
    count = max(1, round(keep * score.numel()))
    kept = torch.zeros(score.numel(), dtype=torch.bool)
    kept[score.reshape(-1).topk(count).indices] = True
    return kept.reshape(score.shape)


def n_of_m(score_CK: Tensor, n: int, m: int) -> Tensor:
    """Return which are the n largest of every m that lie side by side.

    A rest of fewer than m keeps its n largest too.

    Example:
        >>> n_of_m(torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0, 4.0]]), 2, 4).int().tolist()
        [[1, 0, 1, 0, 1, 1]]
    """
    channels, width = score_CK.shape
    padded = torch.full((channels, -(-width // m) * m), -torch.inf)
    padded[:, :width] = score_CK
    groups = padded.reshape(channels, -1, m)
    best = groups.topk(n, dim=-1).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, value=True)
    return kept.reshape(channels, -1)[:, :width]


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach()


def magnitude(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Keep the largest weights, of each layer or of all together."""
    del samples
    chosen = layers(model, SPARSE, options, technique="sparse:magnitude")
    sizes = {path: _weight(layer).abs() for path, layer in chosen.items()}
    if options["scope"] == "layer":
        kept = {path: largest(size, options["keep"]) for path, size in sizes.items()}
    else:
        every = largest(torch.cat([s.reshape(-1) for s in sizes.values()]), options["keep"])
        parts = every.split([size.numel() for size in sizes.values()])
        kept = {p: part.reshape(sizes[p].shape) for p, part in zip(sizes, parts, strict=True)}
    for path, layer in chosen.items():
        if not kept[path].any():
            raise InputError(
                f"technique sparse:magnitude: keep={options['keep']:g} would remove {path} whole; "
                "keep more, or use scope=layer"
            )
        mask(layer, kept[path])
    return model


def pattern(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Keep the n largest of every m weights that read input channels side by side.

    In a convolution these stand at one place of the kernel, the order in which hardware for N:M
    reads them; with fewer than m input channels a group goes on at the next place.
    """
    del samples
    n, m = options["n"], options["m"]
    if n > m:
        raise InputError(f"technique sparse:nm: found n={n}, expected at most m={m}")
    for layer in layers(model, SPARSE, options, technique="sparse:nm").values():
        size = _weight(layer).abs().movedim(1, -1)
        mask(layer, n_of_m(size.flatten(1), n, m).reshape(size.shape).movedim(-1, 1))
    return model


def wanda(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Keep the weights that are large times the norm of what they multiply, in each channel."""
    name = "sparse:wanda"
    needs_data(samples, technique=name)
    chosen = layers(model, SPARSE, options, technique=name)
    norms = _input_norms(model, chosen, samples)
    for path, layer in chosen.items():
        weight = _weight(layer)
        groups = getattr(layer, "groups", 1)
        norm = norms[path].reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        score = weight.abs() * norm.reshape(*norm.shape, *[1] * (weight.ndim - 2))
        rows = score.flatten(1)
        count = max(1, round(options["keep"] * rows.shape[1]))
        best = rows.topk(count, dim=1).indices
        kept = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, best, value=True)
        mask(layer, kept.reshape(weight.shape))
    return model


def _input_norms(
    model: nn.Module, chosen: dict[str, nn.Module], samples: Samples
) -> dict[str, Tensor]:
    """Return the L2 norm of each input channel of each layer, over all samples and places."""
    squares = {path: torch.zeros(()) for path in chosen}
    hooks = []
    for path, layer in chosen.items():

        def hook(module: nn.Module, arguments: tuple[Tensor, ...], path: str = path) -> None:
            x = arguments[0].detach().float()
            along = x.ndim - 1 if isinstance(module, nn.Linear) else 1
            rest = [dim for dim in range(x.ndim) if dim != along]
            squares[path] = squares[path] + x.square().sum(dim=rest)

        hooks.append(layer.register_forward_pre_hook(hook))
    with torch.no_grad():
        for start in range(0, len(samples.inputs[0]), 128):
            model.eval()(*(x[start : start + 128] for x in samples.inputs))
    for handle in hooks:
        handle.remove()
    return {path: square.sqrt() for path, square in squares.items()}


_IMPROVES = ("parameters", "stored bytes")
_KEEP = Number(low=0.001, high=1, default=0.5)

SPARSITY = (
    Technique(
        name="sparse:magnitude",
        does="sets the smallest weights to 0",
        paper="Han, Pool, Tran, Dally, NeurIPS 2015, https://arxiv.org/abs/1506.02626",
        level="model",
        needs="nothing",
        improves=_IMPROVES,
        stage="zeros",
        apply=magnitude,
        options={"keep": _KEEP, "scope": Word(words=("layer", "model"), default="model")},
    ),
    Technique(
        name="sparse:nm",
        does="keeps n of every m weights",
        paper="Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.04010",
        level="model",
        needs="nothing",
        improves=_IMPROVES,
        stage="zeros",
        apply=pattern,
        options={
            "n": Number(low=1, high=32, default=2, whole=True),
            "m": Number(low=2, high=32, default=4, whole=True),
        },
    ),
    Technique(
        name="sparse:wanda",
        does="sets weights to 0 that are small times the norm of their input",
        paper="Sun, Liu, Bair, Kolter, ICLR 2024, https://arxiv.org/abs/2306.11695",
        level="model",
        needs="data",
        improves=_IMPROVES,
        stage="zeros",
        apply=wanda,
        options={"keep": _KEEP},
    ),
)
