"""An early exit: a linear head on what the first device computes, for when the others are silent.

.. code-block:: none

    inputs --> stage 0 --> mean over positions --> linear --> outputs

The head is fitted to the model's own outputs, without labels: matching them is distillation at a
high temperature (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015,
section 2.1). Least squares with a small ridge has a closed form, so nothing is trained in epochs.

It may also answer where the others are not silent but its answer is sure enough: where the largest
softmax is at least a threshold, which is calibrated on samples that the head was not fitted to
(Teerapittayanon, McDanel, Kung, "BranchyNet", ICPR 2016, https://arxiv.org/abs/1709.01686).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.split import SplitModel
from isthmus.train.fit import predict

_RIDGE = 1e-3  # of a feature's variance


class EarlyExit(nn.Module):
    """The first stage and a linear head on it.

    Args:
        stage: The first device's part of the model.
        head: From F features to K outputs.
    """

    def __init__(self, stage: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.stage = stage
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Return the outputs, (B, K)."""
        return (self.head(pooled(self.stage(*inputs))),)


def pooled(tensors: Sequence[Tensor]) -> Tensor:
    """Return a crossing's features: each channel's mean over its positions, (B, F).

    Tensors of three axes are (B, positions, channels), those of more (B, channels, ...).
    """
    parts = []
    for x in tensors:
        axes = [1] if x.ndim == 3 else list(range(2, x.ndim))
        features = x.float().mean(axes) if axes else x.float()
        parts.append(features.flatten(1))
    return torch.cat(parts, 1)


def fit_exit(split_model: SplitModel, inputs: Sequence[np.ndarray]) -> EarlyExit:
    """Fit an early exit of a split model to that model's outputs.

    Args:
        split_model: Fitted; it is not changed.
        inputs: Training inputs, one array (N, ...) for each of the model's.

    Returns:
        The exit, in eval mode.

    Raises:
        InputError: The model has not one output (N, K).
    """
    split_model.eval()
    stage = split_model.stages[0]
    with torch.no_grad():
        outputs = split_model(*(torch.from_numpy(x[:2]) for x in inputs))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.dtype != torch.float32:
        raise InputError("early exit: expected a model of one fp32 output, a score for each class")
    features_NF = predict(lambda *x: pooled(stage(*x)), inputs).double()
    outputs_NK = predict(split_model, inputs).double()
    mean_F, mean_K = features_NF.mean(0), outputs_NK.mean(0)
    spread_F = features_NF.std(0, correction=0).clamp_min(1e-9)
    scaled_NF = (features_NF - mean_F) / spread_F
    ridge_FF = _RIDGE * len(scaled_NF) * torch.eye(len(mean_F), dtype=torch.float64)
    weight_FK = torch.linalg.solve(
        scaled_NF.T @ scaled_NF + ridge_FF, scaled_NF.T @ (outputs_NK - mean_K)
    )
    weight_KF = (weight_FK / spread_F[:, None]).T
    head = nn.Linear(len(mean_F), len(mean_K))
    with torch.no_grad():
        head.weight.copy_(weight_KF)
        head.bias.copy_(mean_K - weight_KF @ mean_F)
    return EarlyExit(stage, head).eval()


def calibrate_exit(
    early_exit: EarlyExit,
    split_model: SplitModel,
    inputs: Sequence[np.ndarray],
    *,
    share: float | None = None,
    agreement: float | None = None,
) -> float:
    """Return how sure an early exit has to be to answer; see `exit_threshold`.

    Args:
        early_exit: Fitted.
        split_model: Whose answers are right.
        inputs: Samples that the exit was not fitted to, one array (N, ...) for each input.
        share: Of all samples, that are to be answered early.
        agreement: Of the samples answered early, that are to be answered as the model does.
    """
    scores_NK = predict(lambda *x: early_exit(*x)[0], inputs)
    equal_N = scores_NK.argmax(1) == predict(split_model, inputs).argmax(1)
    confidence_N = scores_NK.softmax(1).amax(1)
    return exit_threshold(confidence_N, equal_N, share=share, agreement=agreement)


def exit_threshold(
    confidence_N: Tensor,
    equal_N: Tensor,
    *,
    share: float | None = None,
    agreement: float | None = None,
) -> float:
    """Return the lowest confidence at which the wanted share leaves, or the wanted share is right.

    Args:
        confidence_N: Largest softmax of each sample.
        equal_N: Whether its answer is the model's.
        share: Of all samples, that are to leave; as many more as are as sure as the last.
        agreement: Of those that leave, that are to be right: as many leave as that allows.

    Raises:
        InputError: No sample is so sure that so many are right, or not one of the two was given.

    Example:
        >>> confidence = torch.tensor([0.5, 0.75, 0.875])
        >>> exit_threshold(confidence, torch.tensor([False, True, True]), agreement=0.9)
        0.75
    """
    if (share is None) == (agreement is None):
        raise InputError("early exit: expected a share or an agreement, one of them")
    sure_N, order = confidence_N.sort(descending=True)
    last_N = torch.ones(len(sure_N), dtype=torch.bool)  # of those that are as sure
    last_N[:-1] = sure_N[1:] < sure_N[:-1]
    num_N = torch.arange(1, len(sure_N) + 1)
    if agreement is None:
        assert share is not None
        wanted = num_N >= share * len(sure_N)
        return float(sure_N[wanted][0])
    found = last_N & (equal_N[order].cumsum(0) >= agreement * num_N)
    if not found.any():
        best = float((equal_N[order].cumsum(0) / num_N)[last_N].max())
        raise InputError(
            f"early exit: expected {agreement:.1%} equal answers, found {best:.1%} of those that "
            "are surest; ask for less, or cut later"
        )
    return float(sure_N[found][-1])
