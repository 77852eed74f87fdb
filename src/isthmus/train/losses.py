"""What training minimises, by name. Shapes: B samples, K classes, P positions of a map.

Features are what arrives across the crossings, beside what the whole model has there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.wire.spec import channel_dim

Tensors = tuple[Tensor, ...]

_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a batch came to.

    Attributes:
        logits: The student's outputs (B, K).
        labels: The labels (B,).
        teacher: The teacher's outputs (B, K).
        features: What arrived across all crossings.
        teacher_features: What the teacher has there; empty unless one of ``MATCHING`` is asked
            for.
        temperature: Of softened outputs.
    """

    logits: Tensor
    labels: Tensor
    teacher: Tensor
    features: Tensors = ()
    teacher_features: Tensors = ()
    temperature: float = 4.0


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


def decoupled_loss(
    logits_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    r"""Return the distance of softened outputs, in two parts that weigh by themselves.

    .. math:: T^2 \; (\alpha \; KL(b^t \| b^z) + \beta \; KL(\hat{p}^t \| \hat{p}^z))

    b is how likely the labelled class is against all others together, :math:`\hat{p}` how likely
    each of the others is among these. With :math:`\alpha = 1` and, for each sample,
    :math:`\beta = 1 - b^t_{label}`, it is `hinton_loss`.

    Args:
        logits_BK: z, the student's.
        teacher_BK: t, the teacher's.
        labels_B: Which class is the labelled one.
        temperature: T.
        target_weight: alpha.
        other_weight: beta.

    References:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
        https://arxiv.org/abs/2203.08679.
    """
    is_label_BK = F.one_hot(labels_B, logits_BK.shape[-1]).bool()
    binary, others = [], []  # of the student, of the teacher
    for scores_BK in (logits_BK, teacher_BK):
        log_p_BK = F.log_softmax(scores_BK / temperature, dim=-1)
        label_B = log_p_BK[is_label_BK]
        rest_BK = log_p_BK.masked_fill(is_label_BK, -torch.inf)
        all_others_B = rest_BK.logsumexp(dim=-1)
        binary.append(torch.stack([label_B, all_others_B], dim=-1))
        others.append((log_p_BK - all_others_B[:, None]).masked_fill(is_label_BK, 0.0))
    target = F.kl_div(binary[0], binary[1], reduction="batchmean", log_target=True)
    p_BK = others[1].exp().masked_fill(is_label_BK, 0.0)
    other = (p_BK * (others[1] - others[0])).sum(dim=-1).mean()
    return (target_weight * target + other_weight * other) * temperature**2


def feature_loss(features: Tensors, target: Tensors) -> Tensor:
    """Return the mean squared error relative to the target's mean square, summed over tensors.

    References:
        Matsubara et al., "Head network distillation", IEEE Access 2020: match features across the
        cut first. https://arxiv.org/abs/2011.13102
    """
    pairs = _floats(features, target)
    errors = [F.mse_loss(x, t) / t.pow(2).mean().clamp_min(_TINY) for x, t in pairs]
    return torch.stack(errors).sum()


def attention_loss(features: Tensors, target: Tensors, *, weight: float = 1e3) -> Tensor:
    r"""Return how far apart it is where features are strong, summed over tensors.

    .. math:: \frac{\beta}{2} \; mean_{B,P} \left( \frac{q^z}{\|q^z\|_2}
              - \frac{q^t}{\|q^t\|_2} \right)^2, \quad q_p = \sum_c x_{cp}^2

    Args:
        features: x of the student, (B, C, H, W) or (B, T, C); others have no positions and are
            left out.
        target: x of the teacher.
        weight: beta.

    References:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017,
        https://arxiv.org/abs/1612.03928 (equation 2; in place of the norm of the difference its
        square, as in their code).
    """
    pairs = [(_attention(x), _attention(t)) for x, t in _floats(features, target) if x.ndim > 2]
    return weight / 2 * torch.stack([F.mse_loss(x, t) for x, t in pairs]).sum()


def distance_loss(features: Tensors, target: Tensors) -> Tensor:
    r"""Return how differently samples lie apart, summed over tensors.

    .. math:: mean_{i,j} \; h(d^z_{ij} / \overline{d^z}, d^t_{ij} / \overline{d^t}),
              \quad d_{ij} = \|x_i - x_j\|_2

    h is the Huber loss; the means of d are over pairs of different samples.

    References:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019,
        https://arxiv.org/abs/1904.05068 (equation 4 to 7).
    """
    pairs = ((_distances(x), _distances(t)) for x, t in _floats(features, target))
    errors = [F.huber_loss(_in_means(x_BB), _in_means(t_BB)) for x_BB, t_BB in pairs]
    return torch.stack(errors).sum()


def angle_loss(features: Tensors, target: Tensors) -> Tensor:
    r"""Return how different the triangles between samples are, summed over tensors.

    .. math:: mean_{i,j,k} \; h(\cos \angle^z_{ijk}, \cos \angle^t_{ijk})

    h is the Huber loss; the angle at j lies between the ways to i and to k.

    References:
        Park, Kim, Lu, Cho, CVPR 2019, https://arxiv.org/abs/1904.05068 (equation 8 and 9).
    """
    pairs = ((_cosines(x), _cosines(t)) for x, t in _floats(features, target))
    return torch.stack([F.huber_loss(x_BBB, t_BBB) for x_BBB, t_BBB in pairs]).sum()


def _relational(a: Answers) -> Tensor:
    """Weigh distances and angles as Park et al. do for classifiers."""
    pairs = (a.features, a.teacher_features)
    return 25 * distance_loss(*pairs) + 50 * angle_loss(*pairs)


LOSSES: dict[str, Callable[[Answers], Tensor]] = {
    "task": lambda a: task_loss(a.logits, a.labels),
    "hinton": lambda a: hinton_loss(a.logits, a.teacher, temperature=a.temperature),
    "decoupled": lambda a: decoupled_loss(
        a.logits, a.teacher, a.labels, temperature=a.temperature
    ),
    "feature": lambda a: feature_loss(a.features, a.teacher_features),
    "attention": lambda a: attention_loss(a.features, a.teacher_features),
    "relational": _relational,
}
LABELLED = ("task", "decoupled")  # those that read labels
MATCHING = ("feature", "attention", "relational")  # those that read features


def _floats(features: Tensors, target: Tensors) -> list[tuple[Tensor, Tensor]]:
    return [(x, t) for x, t in zip(features, target, strict=True) if t.is_floating_point()]


def _attention(x: Tensor) -> Tensor:
    """Return the attention (B, P) of a tensor, of length 1."""
    channels = 1 + channel_dim(x.shape[1:])
    return F.normalize(x.float().square().mean(dim=channels).flatten(1), eps=_TINY)


def _distances(x: Tensor) -> Tensor:
    """Return the distances (B, B) of samples."""
    x_BD = x.float().flatten(1)
    return torch.cdist(x_BD, x_BD, compute_mode="donot_use_mm_for_euclid_dist")


def _in_means(d_BB: Tensor) -> Tensor:
    """Return distances as multiples of their mean."""
    num_pairs = max(1, len(d_BB) * (len(d_BB) - 1))
    return d_BB / (d_BB.sum() / num_pairs).clamp_min(_TINY)


def _cosines(x: Tensor) -> Tensor:
    """Return the cosine (B, B, B) at j between i and k, by the law of cosines; 0 if one is j."""
    d_BB = _in_means(_distances(x))
    ij, jk, ik = d_BB[:, :, None], d_BB[None, :, :], d_BB[:, None, :]
    return (ij**2 + jk**2 - ik**2) / (2 * ij * jk).clamp_min(1e-6)
