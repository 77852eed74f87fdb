"""An early exit: a linear head on what the first device computes, for when the others are silent.

.. code-block:: none

    inputs --> stage 0 --> mean over positions --> linear --> outputs

The head is fitted to the model's own outputs, without labels: matching them is distillation at a
high temperature (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015,
section 2.1). Least squares with a small ridge has a closed form, so nothing is trained in epochs.
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
