"""What training minimises, by name. Shapes: B samples, K classes, P positions of a map.

Features are what arrives across the crossings, beside what the whole model has there; or what the
blocks of a compressed model make, beside what those of the model make that it came from. With that
model as the teacher, of the same size, ``hinton`` is what Furlanello et al. call born-again
networks (ICML 2018, https://arxiv.org/abs/1805.04770).
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
        features: What arrived across all crossings, or left all blocks.
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
    return torch.stack([_relative(x, t) for x, t in pairs]).sum()


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


def hint_loss(features: Tensors, target: Tensors) -> Tensor:
    r"""Return how far what is linear in the features is from the target, summed over tensors.

    .. math:: \min_r \; mean (t - x r)^2 / mean \; t^2

    Widths may differ. The regressor r (channels of x, of t) is the best one for the batch, a
    shrunk one where the batch has no more places than channels; by that the gradient of x is the
    one that r as a constant has. The paper trains a regressor instead.

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR
        2015, https://arxiv.org/abs/1412.6550 (equation 3).
    """
    errors = []
    for x, t in _floats(features, target):
        x_NC, t_NC = (_maps(tensor).mT.flatten(0, 1) for tensor in (x, t))
        with torch.no_grad():
            x64_NC = x_NC.double()
            gram_CC = x64_NC.mT @ x64_NC
            share = 1e-9 if len(x_NC) > len(gram_CC) else 0.1  # else all t were linear in x
            ridge = share * gram_CC.diagonal().mean() + _TINY
            gram_CC += ridge * torch.eye(len(gram_CC), device=x.device, dtype=torch.float64)
            regressor = torch.linalg.solve(gram_CC, x64_NC.mT @ t_NC.double()).float()
        errors.append(_relative(x_NC @ regressor, t_NC))
    return torch.stack(errors).sum()


def selectivity_loss(features: Tensors, target: Tensors, *, weight: float = 50.0) -> Tensor:
    r"""Return how differently the channels choose positions, summed over tensors.

    .. math:: \frac{\beta}{2} \left( mean_{ij} (\hat{z}_i^T \hat{z}_j)^2
              + mean_{ij} (\hat{t}_i^T \hat{t}_j)^2 - 2 \; mean_{ij} (\hat{z}_i^T \hat{t}_j)^2
              \right)

    :math:`\hat{x}_i` is channel i over its positions, of length 1: the squared maximum mean
    discrepancy of channels, with a polynomial kernel. Widths may differ.

    Args:
        features: x of the student, (B, C, H, W) or (B, T, C); others are left out.
        target: x of the teacher.
        weight: beta.

    References:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        2017, https://arxiv.org/abs/1707.01219 (equation 6, kernel with d = 2, c = 0).
    """
    pairs = ((x, t) for x, t in _floats(features, target) if x.ndim > 2)
    errors = []
    for pair in pairs:
        x, t = (F.normalize(_maps(tensor), dim=2, eps=_TINY) for tensor in pair)
        kernels = [(a @ b.mT).square().mean() for a, b in ((x, x), (t, t), (x, t))]
        errors.append(kernels[0] + kernels[1] - 2 * kernels[2])
    return weight / 2 * torch.stack(errors).sum()


def boundary_loss(features: Tensors, target: Tensors, *, margin: float = 1.0) -> Tensor:
    r"""Return how far the student is from being active just where the teacher is.

    .. math:: mean \; \begin{cases} max(0, \mu - z)^2 & t > 0 \\ max(0, \mu + z)^2 & else
              \end{cases}

    It is 0 where all of z lie on the right side by the margin. Behind a ReLU, where z cannot be
    negative, each 0 of the teacher costs :math:`\mu^2` at least.

    Args:
        features: z of the student.
        target: t of the teacher.
        margin: mu.

    References:
        Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons", AAAI 2019, https://arxiv.org/abs/1811.03233 (equation 5).
    """
    errors = [
        (margin - torch.where(t > 0, x.float(), -x.float())).clamp_min(0).square().mean()
        for x, t in _floats(features, target)
    ]
    return torch.stack(errors).sum()


def flow_loss(features: Tensors, target: Tensors) -> Tensor:
    r"""Return how differently channels of one tensor go with those of the next.

    .. math:: mean (G^z - G^t)^2 / mean (G^t)^2, \quad G_{ij} = mean_p \; a_{ip} b_{jp}

    a and b are two tensors in a row, the larger one max-pooled to the positions of the other; one
    that is alone goes with itself.

    Args:
        features: Of the student, (B, C, H, W) or (B, T, C); others are left out.
        target: Of the teacher.

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017 (FSP matrices,
        equation 1 and 2, the error relative to the teacher's).
    """
    pairs = [(x, t) for x, t in _floats(features, target) if x.ndim > 2]
    zipped = list(zip(pairs, pairs[1:] or pairs, strict=False))
    errors = [_relative(_flow(a[0], b[0]), _flow(a[1], b[1])) for a, b in zipped]
    return torch.stack(errors).sum()


def teacher_free_loss(
    logits_BK: Tensor, labels_B: Tensor, *, correct: float = 0.99, temperature: float = 20.0
) -> Tensor:
    """Return `hinton_loss` with a teacher made by hand.

    It says the labelled class with a probability, and all others alike.

    Args:
        logits_BK: The student's.
        labels_B: The labels.
        correct: Of the labelled class.
        temperature: Of both.

    References:
        Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing
        Regularization", CVPR 2020, https://arxiv.org/abs/1909.11723 (Tf-KD, regularization).
    """
    others = (1 - correct) / max(1, logits_BK.shape[-1] - 1)
    is_label_BK = F.one_hot(labels_B, logits_BK.shape[-1]).bool()
    made_BK = torch.where(is_label_BK, correct, others).to(logits_BK.dtype).log()
    return hinton_loss(logits_BK, made_BK, temperature=temperature)


def mutual_loss(logits_BK: Tensor, peer_BK: Tensor, labels_B: Tensor) -> Tensor:
    r"""Return what two networks that learn together each have to learn, summed.

    .. math:: KL(p^t \| p^z) + KL(p^z \| p^t) + H(y, p^t)

    Of the first two terms the left side is a constant. Beside it stands `task_loss` for z.

    Args:
        logits_BK: z, those of one.
        peer_BK: t, those of the other, with gradients.
        labels_B: y.

    References:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018,
        https://arxiv.org/abs/1706.00384 (equation 6 and 7).
    """
    both = (
        hinton_loss(logits_BK, peer_BK.detach(), temperature=1),
        hinton_loss(peer_BK, logits_BK.detach(), temperature=1),
        task_loss(peer_BK, labels_B),
    )
    return torch.stack(both).sum()


LOSSES: dict[str, Callable[[Answers], Tensor]] = {
    "task": lambda a: task_loss(a.logits, a.labels),
    "hinton": lambda a: hinton_loss(a.logits, a.teacher, temperature=a.temperature),
    "decoupled": lambda a: decoupled_loss(
        a.logits, a.teacher, a.labels, temperature=a.temperature
    ),
    "feature": lambda a: feature_loss(a.features, a.teacher_features),
    "attention": lambda a: attention_loss(a.features, a.teacher_features),
    "relational": _relational,
    "fitnets": lambda a: hint_loss(a.features, a.teacher_features),
    "nst": lambda a: selectivity_loss(a.features, a.teacher_features),
    "boundary": lambda a: boundary_loss(a.features, a.teacher_features),
    "flow": lambda a: flow_loss(a.features, a.teacher_features),
    "teacher-free": lambda a: teacher_free_loss(a.logits, a.labels),
    "mutual": lambda a: mutual_loss(a.logits, a.teacher, a.labels),
    "simkd": lambda a: feature_loss(a.features, a.teacher_features),
}
LABELLED = ("task", "decoupled", "teacher-free", "mutual")  # those that read labels
MATCHING = ("feature", "attention", "relational", "fitnets", "nst", "boundary", "flow", "simkd")
"""Those that read features; of ``simkd`` see `isthmus.train.reuse`."""
EQUAL = ("feature", "boundary", "flow")  # of these, those that need the teacher's channels
PLACED = ("attention", "nst", "flow")  # of these, those that need positions


def _floats(features: Tensors, target: Tensors) -> list[tuple[Tensor, Tensor]]:
    return [(x, t) for x, t in zip(features, target, strict=True) if t.is_floating_point()]


def _relative(x: Tensor, t: Tensor) -> Tensor:
    x, t = x.float(), t.float()
    return F.mse_loss(x, t) / t.pow(2).mean().clamp_min(_TINY)


def _maps(x: Tensor) -> Tensor:
    """Return a tensor as channels and positions, (B, C, P)."""
    channels = 1 + channel_dim(x.shape[1:])
    return x.float().movedim(channels, 1).reshape(len(x), x.shape[channels], -1)


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """Return how the channels of a go with those of b, (B, C of a, C of b)."""
    if a.ndim == b.ndim == 4:
        size = tuple(map(min, a.shape[2:], b.shape[2:]))
        a, b = (F.adaptive_max_pool2d(x, size) for x in (a, b))
    a, b = _maps(a), _maps(b)
    places = min(a.shape[2], b.shape[2])
    a, b = (F.adaptive_max_pool1d(x, places) if x.shape[2] > places else x for x in (a, b))
    return a @ b.mT / places


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
