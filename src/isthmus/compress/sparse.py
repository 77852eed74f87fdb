r"""Unstructured and N:M sparsity: single weights become 0 and stay 0.

A score says which (`isthmus.compress.scores`), a schedule when: a share :math:`s_r` of the weights
is kept in round r of R, with training between rounds, and :math:`s_R = s`.

.. code-block:: none

    once       one round: prune, then train on
    iterative  s_r = s^(r/R)
    gradual    s_r = s + (1 - s) (1 - r/R)^3
    cyclical   gradual in half the rounds, then again from all weights
    splicing   gradual; what is 0 learns too, as if it were there, and comes back where it grows
    lottery    iterative; after each round what is kept goes back to the value that it came with

Shapes: C channels that a layer makes, K weights of each.

References:
    Han, Pool, Tran, Dally, NeurIPS 2015, https://arxiv.org/abs/1506.02626 (once, iterative).
    Zhu, Gupta, 2017, https://arxiv.org/abs/1710.01878 (gradual, equation 1).
    Srinivas et al., "Cyclical Pruning for Sparse Neural Networks", 2022,
    https://arxiv.org/abs/2202.01290.
    Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016,
    https://arxiv.org/abs/1608.04493 (splicing; their factors 0.9 and 1.1 between leaving and
    coming back).
    Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, https://arxiv.org/abs/1803.03635;
    Frankle, Dziugaite, Roy, Carbin, ICML 2020, https://arxiv.org/abs/1912.05671 (going back to
    weights of an early epoch, not to random ones).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.scores import SCORES, Layers, Weights
from isthmus.compress.technique import (
    Options,
    Samples,
    Technique,
    Training,
    layers,
    needs_data,
    number,
    useful,
    word,
)
from isthmus.errors import InputError

_PATTERN = "sparse:nm"
SPARSE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Masked(nn.Module):
    """Holds some weights at 0 while the others are trained.

    Args:
        kept: Bool, of the weight's shape.

    Attributes:
        splicing: Whether the others learn too, as if they were there, so that they may come back.
    """

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.splicing = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with 0 where none is kept."""
        masked = torch.where(self.kept, weight, 0.0)
        return weight + (masked - weight).detach() if self.splicing else masked


def mask(layer: nn.Module, kept: Tensor) -> Masked:
    """Hold all other weights of a layer at 0 until the technique is settled; return what does."""
    held = Masked(kept.contiguous())
    parametrize.register_parametrization(layer, "weight", held)
    return held


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
    """Return a layer's weights; where some are held at 0, also what these were."""
    held: Any = layer
    if parametrize.is_parametrized(layer, "weight"):
        return held.parametrizations.weight.original.detach()
    return held.weight.detach()


SCHEDULES = ("once", "iterative", "gradual", "cyclical", "splicing", "lottery")
_ROUNDS = SCHEDULES[1:]
_STAYING = 1.1 / 0.9  # what is kept counts so much more where the rest may come back


def kept_share(schedule: str, keep: float, done: int, rounds: int) -> float:
    """Return the share of weights that a round of a schedule keeps.

    Example:
        >>> [kept_share("cyclical", 0.5, done, 4) for done in (1, 2, 3, 4)]
        [0.5625, 0.5, 0.5625, 0.5]
    """
    if schedule in ("iterative", "lottery"):
        return keep ** (done / rounds)
    cycle = -(-rounds // 2) if schedule == "cyclical" else rounds
    return keep + (1 - keep) * ((rounds - done) % cycle / cycle) ** 3


def sparsify(
    name: str, score: str, model: nn.Module, options: Options, samples: Samples
) -> nn.Module:
    """Keep the weights of the highest score, in the rounds of a schedule.

    Args:
        name: Of the technique, for error messages.
        score: A key of ``SCORES``.
        model: Changed.
        options: ``keep``, ``scope``, ``schedule``, ``rounds``.
        samples: With the training that all schedules but ``once`` need.

    Raises:
        InputError: Data or training are missing, or a layer would be removed whole.
    """
    chosen = layers(model, SPARSE, options, technique=name)
    schedule, training = options["schedule"], samples.training
    if schedule != "once" and training is None:
        raise InputError(
            f"technique {name}: schedule={schedule} trains between its rounds; add --data and "
            "--epochs"
        )
    rounds = options["rounds"] if training and schedule != "once" else 1
    every = {path: _weight(layer) != 0 for path, layer in chosen.items()}  # but for steps before
    held = {path: mask(layer, every[path].clone()) for path, layer in chosen.items()}
    state = model.state_dict().items()
    start = {key: value.clone() for key, value in state if not key.endswith(".kept")}
    for done in range(1, rounds + 1):
        if training and schedule == "lottery":
            training.whole(model, f"round {done}")
        found = _scores(name, score, model, chosen, samples)
        found = {path: _standing(schedule, found[path], held[path].kept) for path in held}
        share = kept_share(schedule, options["keep"], done, rounds)
        for path, kept in _best(name, found, share, options["scope"]).items():
            held[path].kept.copy_(kept & every[path])
        if schedule == "lottery":
            model.load_state_dict(start, strict=False)
        elif training and done < rounds:
            _train_on(model, held, training, f"round {done}", splicing=schedule == "splicing")
    return model


def _train_on(
    model: nn.Module, held: Mapping[str, Masked], training: Training, name: str, *, splicing: bool
) -> None:
    for masked in held.values():
        masked.splicing = splicing
    training.whole(model, name)
    for masked in held.values():
        masked.splicing = False


def _standing(schedule: str, score: Tensor, kept: Tensor) -> Tensor:
    """Return scores with what a schedule says of weights that are 0 already."""
    if schedule == "splicing":
        return torch.where(kept, score * _STAYING, score)
    return score if schedule == "cyclical" else torch.where(kept, score, -1.0)


def _best(name: str, scores: Weights, keep: float, scope: str) -> Weights:
    """Return which weights are kept: of each row, of each layer, or of all layers together."""
    if scope == "model":
        every = largest(torch.cat([score.reshape(-1) for score in scores.values()]), keep)
        parts = every.split([score.numel() for score in scores.values()])
        kept = {p: part.reshape(scores[p].shape) for p, part in zip(scores, parts, strict=True)}
    elif scope == "layer":
        kept = {path: largest(score, keep) for path, score in scores.items()}
    else:
        kept = {path: _best_of_rows(score, keep) for path, score in scores.items()}
    for path, one in kept.items():
        if not one.any():
            raise InputError(
                f"technique {name}: keep={keep:g} would remove {path} whole; keep more, or use "
                "scope=layer"
            )
    return kept


def _best_of_rows(score: Tensor, keep: float) -> Tensor:
    score_CK = score.flatten(1)
    count = max(1, round(keep * score_CK.shape[1]))
    best = score_CK.topk(count, dim=1).indices
    kept = torch.zeros_like(score_CK, dtype=torch.bool).scatter_(1, best, value=True)
    return kept.reshape(score.shape)


def _scores(name: str, score: str, model: nn.Module, chosen: Layers, samples: Samples) -> Weights:
    if score != "magnitude":
        needs_data(samples, technique=name)
    values = {path: _weight(layer) for path, layer in chosen.items()}
    return SCORES[score](model, chosen, values, samples)


def pattern(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Keep the n best of every m weights that read input channels side by side.

    In a convolution these stand at one place of the kernel, the order in which hardware for N:M
    reads them; with fewer than m input channels a group goes on at the next place.
    """
    n, m = options["n"], options["m"]
    chosen = layers(model, SPARSE, options, technique=_PATTERN)
    for path, score in _scores(_PATTERN, options["score"], model, chosen, samples).items():
        side = score.movedim(1, -1)
        kept = n_of_m(side.flatten(1), n, m).reshape(side.shape).movedim(-1, 1)
        mask(chosen[path], kept & (_weight(chosen[path]) != 0))
    return model


def _check_pattern(options: Options) -> None:
    if options["n"] > options["m"]:
        raise InputError(
            f"technique {_PATTERN}: found n={options['n']}, expected at most m={options['m']}"
        )


_IMPROVES = ("parameters", "stored bytes")


def _technique(score: str, does: str, paper: str, scope: str) -> Technique:
    name = f"sparse:{score}"

    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        return sparsify(name, score, model, options, samples)

    return Technique(
        name=name,
        does=does,
        paper=paper,
        needs="nothing" if score == "magnitude" else "data",
        improves=_IMPROVES,
        stage="zeros",
        apply=apply,
        options={
            "keep": number(low=0.001, high=1, default=0.5),
            "scope": word(("row", "layer", "model"), default=scope),
            "schedule": word(SCHEDULES, default="once"),
            "rounds": useful(number(low=2, high=64, default=4, whole=True), schedule=_ROUNDS),
        },
    )


SPARSITY = (
    _technique(
        "magnitude", "sets the smallest weights to 0",
        "Han, Pool, Tran, Dally, NeurIPS 2015, https://arxiv.org/abs/1506.02626",
        "model",
    ),
    _technique(
        "wanda", "sets weights to 0 that are small times the norm of their input",
        "Sun, Liu, Bair, Kolter, ICLR 2024, https://arxiv.org/abs/2306.11695",
        "row",
    ),
    _technique(
        "snip", "sets weights to 0 that are small times the gradient of the loss",
        "Lee, Ajanthan, Torr, ICLR 2019, https://arxiv.org/abs/1810.02340",
        "model",
    ),
    _technique(
        "obd", "sets weights to 0 without which the loss, as a parabola, grows least",
        "LeCun, Denker, Solla, NeurIPS 1989; Theis et al., 2018, https://arxiv.org/abs/1801.05787",
        "model",
    ),
    Technique(
        name=_PATTERN,
        does="keeps n of every m weights",
        paper="Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.04010",
        improves=_IMPROVES,
        stage="zeros",
        apply=pattern,
        options={
            "n": number(low=1, high=32, default=2, whole=True),
            "m": number(low=2, high=32, default=4, whole=True),
            "score": word(tuple(SCORES), default="magnitude"),
        },
        check=_check_pattern,
    ),
)  # fmt: skip
