import math

import pytest
import torch

from isthmus.train.losses import feature_loss, hinton_loss, task_loss


def test_the_task_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    assert float(task_loss(torch.zeros(3, 10), torch.tensor([0, 5, 9]))) == pytest.approx(
        math.log(10)
    )


def test_the_hinton_loss_is_zero_for_equal_outputs_and_matches_a_hand_worked_case():
    logits = torch.randn(4, 7)
    assert float(hinton_loss(logits, logits)) == pytest.approx(0, abs=1e-6)
    # T = 2, teacher (2 ln 3, 0) -> (3/4, 1/4), student (0, 0) -> (1/2, 1/2):
    # 4 * (3/4 ln(3/2) + 1/4 ln(1/2))
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(hinton_loss(student, teacher, temperature=2)) == pytest.approx(expected)


def test_the_feature_loss_is_relative_and_leaves_integers_out():
    target = torch.full((2, 3), 2.0)
    tokens = torch.ones(2, 5, dtype=torch.int64)
    # error 1 everywhere against a mean square of 4, on each of two tensors
    loss = feature_loss((target + 1, target - 1, tokens), (target, target, tokens))
    assert float(loss) == pytest.approx(0.5)
