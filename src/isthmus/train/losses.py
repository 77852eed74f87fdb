"""What training minimises. Shapes: B samples, K classes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross entropy of the labels."""
    return F.cross_entropy(logits_BK, labels_B)


def hinton_loss(logits_BK: Tensor, teacher_BK: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Return the distance of softened outputs.

    .. math:: T^2 \; KL(softmax(t / T) \| softmax(z / T))

    Args:
        logits_BK: z, the student's.
        teacher_BK: t, the teacher's.
        temperature: T.

    References:
        Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015,
        https://arxiv.org/abs/1503.02531.
    """
    student = F.log_softmax(logits_BK / temperature, dim=-1)
    teacher = F.log_softmax(teacher_BK / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def feature_loss(features: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """Return the mean squared error relative to the target's mean square, summed over tensors.

    References:
        Matsubara et al., "Head network distillation", IEEE Access 2020: match features across the
        cut first. https://arxiv.org/abs/2011.13102
    """
    pairs = [(x, t) for x, t in zip(features, target, strict=True) if t.is_floating_point()]
    errors = [F.mse_loss(x, t) / t.pow(2).mean().clamp_min(1e-12) for x, t in pairs]
    return torch.stack(errors).sum()
