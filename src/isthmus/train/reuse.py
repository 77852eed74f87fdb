r"""SimKD: learn what the teacher's classifier reads, and take that classifier over.

.. code-block:: none

    teacher  inputs --> blocks --> f_t ------------------> classifier
                                    ~
    student  inputs --> blocks --> f_s --> projector P --> the same classifier

What is minimised is :math:`\| f_t - P f_s \|^2 / \| f_t \|^2`, without labels. The projector is
linear, in place of the paper's three convolutions: so it and the classifier are one linear layer
in the end, :math:`W_t P`, in the place of the student's own.

Shapes: B batch, F features of the student, T of the teacher, K classes.

References:
    Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
    Classifier", CVPR 2022, https://arxiv.org/abs/2203.14001 (equation 3).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.data import few_of
from isthmus.errors import InputError
from isthmus.models.joint import first, kept
from isthmus.train.losses import feature_loss

_STARTING = 1024  # samples from which the projector begins
_RIDGE = 1e-3  # of a feature's mean square


def shared_classifier(model: nn.Module, teacher: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the path of the linear layer that makes the outputs of both.

    Raises:
        InputError: There is none, or not under the same name.
    """
    path = classifier(teacher, inputs)
    if not path or path != classifier(model.eval(), inputs):
        raise InputError(
            "loss simkd: found no linear layer that makes the outputs of both the model and its "
            "teacher, and under the same name; expected hinton"
        )
    return path


class Reuse(nn.Module):
    """A student, and the projector between it and its teacher's classifier.

    Args:
        model: The student.
        teacher: In evaluation; left as it is.
        inputs: Training inputs, one array (N, ...) for each of the model's.

    Raises:
        InputError: Not both end in a linear layer of the same name.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, inputs: Sequence[np.ndarray]) -> None:
        super().__init__()
        start = tuple(map(torch.from_numpy, few_of(inputs, _STARTING)))
        self.path = shared_classifier(model, teacher, start)
        self.model = model
        self._teacher = [teacher]  # not among what is trained
        with torch.no_grad():
            student_BF, teacher_BT = self._features(start)
        head: Any = model.get_submodule(self.path)
        self.projector = nn.Linear(student_BF.shape[1], teacher_BT.shape[1], head.bias is not None)
        self._begin(student_BF.double(), teacher_BT.double())

    def loss(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return how far the projected features of a batch are from the teacher's."""
        student_BF, teacher_BT = self._features(inputs)
        return feature_loss((self.projector(student_BF),), (teacher_BT,))

    @torch.no_grad()
    def finish(self) -> None:
        """Put the projector and the teacher's classifier in place of the student's."""
        head: Any = self.model.get_submodule(self.path)
        theirs: Any = self._teacher[0].get_submodule(self.path)
        head.weight.copy_(theirs.weight @ self.projector.weight)
        if head.bias is not None:
            bias = 0.0 if theirs.bias is None else theirs.bias
            head.bias.copy_(theirs.weight @ self.projector.bias + bias)

    def _features(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return what the classifiers read, of the student (B, F) and of the teacher (B, T)."""
        (teacher,) = self._teacher
        with kept(self.model, (self.path,), read=True) as made:
            self.model(*inputs)
        with torch.no_grad(), kept(teacher, (self.path,), read=True) as there:
            teacher.to(inputs[0].device)(*inputs)
        return made[self.path], there[self.path]

    @torch.no_grad()
    def _begin(self, student_BF: Tensor, teacher_BT: Tensor) -> None:
        """Begin at the least squares."""
        biased = self.projector.bias is not None
        means = [x.mean(0) if biased else torch.zeros_like(x[0]) for x in (student_BF, teacher_BT)]
        x_BF, t_BT = student_BF - means[0], teacher_BT - means[1]
        gram_FF = x_BF.T @ x_BF
        ridge = _RIDGE * gram_FF.diagonal().mean() + 1e-12
        eye_FF = torch.eye(len(gram_FF), dtype=gram_FF.dtype)
        weight_TF = torch.linalg.solve(gram_FF + ridge * eye_FF, x_BF.T @ t_BT).T
        self.projector.weight.copy_(weight_TF)
        if biased:
            self.projector.bias.copy_(means[1] - weight_TF @ means[0])


@torch.no_grad()
def classifier(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the path of the linear layer whose output (B, K) is the model's; empty if none is."""
    paths = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    few = tuple(x[:2] for x in inputs)
    with kept(model, paths) as made:
        output = first(model(*few))
    return next((path for path in paths if made.get(path) is output and output.ndim == 2), "")
