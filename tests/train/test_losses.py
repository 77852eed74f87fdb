import math

import pytest
import torch

from isthmus.train.losses import (
    LABELLED,
    LOSSES,
    MATCHING,
    Answers,
    angle_loss,
    attention_loss,
    boundary_loss,
    decoupled_loss,
    distance_loss,
    feature_loss,
    flow_loss,
    hint_loss,
    hinton_loss,
    mutual_loss,
    selectivity_loss,
    task_loss,
    teacher_free_loss,
)


def answers(seed=0, **changes):
    """Return random answers of both, their features a map and tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    given = {
        "logits": normal(6, 5).requires_grad_(),
        "labels": torch.tensor([0, 1, 2, 3, 4, 0]),
        "teacher": normal(6, 5),
        "features": (normal(6, 3, 4, 4).requires_grad_(), normal(6, 7, 3).requires_grad_()),
        "teacher_features": (normal(6, 3, 4, 4), normal(6, 7, 3)),
    }
    return Answers(**(given | changes))


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_it_is_a_positive_number_that_passes_gradients_to_what_it_reads(self, name):
        given = answers()
        loss = LOSSES[name](given)
        assert loss.shape == ()
        assert loss.item() > 0
        loss.backward()
        read = given.features if name in MATCHING else (given.logits,)
        assert all(x.grad is not None and x.grad.isfinite().all() for x in read)
        assert all(x.grad.abs().sum() > 0 for x in read if x.grad is not None)

    def test_it_is_least_where_the_student_is_the_teacher(self, name):
        given = answers()
        same = answers(logits=given.teacher, features=given.teacher_features)
        label = torch.nn.functional.one_hot(given.labels, 5)
        if name == "task":
            same = answers(logits=label * 50.0)
        if name == "mutual":
            same = answers(logits=label * 50.0, teacher=label * 50.0)
        if name == "teacher-free":
            same = answers(logits=torch.where(label > 0, 0.99, 0.01 / 4).log())
        if name == "boundary":  # beyond the margin
            same = answers(features=tuple(2 * t.sign() for t in given.teacher_features))
        assert LOSSES[name](same).item() == pytest.approx(0, abs=1e-5)

    def test_it_reads_labels_only_where_it_says_so(self, name):
        shuffled = answers(labels=torch.tensor([1, 2, 3, 4, 0, 1]))
        same = LOSSES[name](answers()).item() == LOSSES[name](shuffled).item()
        assert same == (name not in LABELLED)

    def test_one_sample_or_two_alike_have_a_loss_and_a_gradient(self, name):
        x = torch.ones(2, 3, 4, 4)
        for num in (1, 2):
            z, f = torch.zeros(num, 5).requires_grad_(), x[:num].clone().requires_grad_()
            given = answers(
                logits=z,
                labels=torch.zeros(num, dtype=torch.int64),
                teacher=torch.ones(num, 5),
                features=(f,),
                teacher_features=(x[:num] * 2,),
            )
            LOSSES[name](given).backward()
            grad = f.grad if name in MATCHING else z.grad
            assert grad is not None
            assert grad.isfinite().all()


def test_the_task_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    assert float(task_loss(torch.zeros(3, 10), torch.tensor([0, 5, 9]))) == pytest.approx(
        math.log(10)
    )


def test_the_hinton_loss_matches_a_hand_worked_case():
    # T = 2, teacher (2 ln 3, 0) -> (3/4, 1/4), student (0, 0) -> (1/2, 1/2):
    # 4 * (3/4 ln(3/2) + 1/4 ln(1/2))
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(hinton_loss(student, teacher, temperature=2)) == pytest.approx(expected)


def test_the_decoupled_loss_matches_a_hand_worked_case():
    # T = 2, teacher (2 ln 6, 2 ln 3, 0) -> (6, 3, 1) / 10, student alike -> 1/3 each; class 0:
    # binary (0.6, 0.4) against (1/3, 2/3), others (3/4, 1/4) against (1/2, 1/2)
    teacher = torch.tensor([[2 * math.log(6), 2 * math.log(3), 0.0]])
    binary = 0.6 * math.log(0.6 * 3) + 0.4 * math.log(0.4 * 1.5)
    others = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = decoupled_loss(
        torch.zeros(1, 3), teacher, torch.tensor([0]),
        temperature=2, target_weight=3, other_weight=5,
    )  # fmt: skip
    assert float(found) == pytest.approx(4 * (3 * binary + 5 * others))
    # beta = 1 - 0.6 puts them together again
    together = decoupled_loss(
        torch.zeros(1, 3), teacher, torch.tensor([0]), temperature=2, other_weight=0.4
    )
    whole = hinton_loss(torch.zeros(1, 3), teacher, temperature=2)
    assert float(together) == pytest.approx(float(whole), rel=1e-5)


def test_the_feature_loss_is_relative_and_leaves_integers_out():
    target = torch.full((2, 3), 2.0)
    tokens = torch.ones(2, 5, dtype=torch.int64)
    # error 1 everywhere against a mean square of 4, on each of two tensors
    loss = feature_loss((target + 1, target - 1, tokens), (target, target, tokens))
    assert float(loss) == pytest.approx(0.5)


def test_the_attention_loss_matches_a_hand_worked_case_and_leaves_vectors_out():
    # squares over two channels: student (3, 4) / 5, teacher (1, 0): differences -0.4 and 0.8
    student = torch.tensor([[[[math.sqrt(3), 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[-1.0, 0.0]], [[0.0, 0.0]]]])
    vector = torch.ones(1, 4)
    found = attention_loss((student, vector), (teacher, vector * 2), weight=10)
    assert float(found) == pytest.approx(10 / 2 * (0.16 + 0.64) / 2)
    # tokens (B, T, C): the same squares
    tokens = attention_loss((student.flatten(2).mT,), (teacher.flatten(2).mT,), weight=10)
    assert float(tokens) == pytest.approx(float(found))


def test_the_distance_loss_matches_a_hand_worked_case():
    # student 3, 4, 5 apart: in means 3/4, 1, 5/4. Teacher 1, 1, 2 apart: 3/4, 3/4, 3/2.
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    pairs = [0.0, 0.25, 0.25]
    expected = 2 * sum(e**2 / 2 for e in pairs) / 9
    assert float(distance_loss((student,), (teacher,))) == pytest.approx(expected)
    assert float(distance_loss((7 * teacher,), (teacher,))) == pytest.approx(0, abs=1e-6)


def test_the_angle_loss_matches_a_hand_worked_case():
    # student: a right angle at sample 1, cosines 3/5 at 0 and 4/5 at 2. Teacher in a row:
    # 1 at 0, -1 at 1, 1 at 2. i and k change places, and with i = k both have a cosine of 1.
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    expected = 2 * sum(e**2 / 2 for e in (0.4, 1.0, 0.2)) / 27
    assert float(angle_loss((student,), (teacher,))) == pytest.approx(expected, rel=1e-4)


def test_the_hint_loss_matches_a_hand_worked_case_and_takes_any_width():
    # one channel, samples 1 and 2, to be 1 and 1: the best factor is 3 / 5, what is left 0.4, -0.2
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.ones(2, 1)
    assert float(hint_loss((student,), (teacher,))) == pytest.approx(0.1)
    wider = torch.cat([3 * student, -student], dim=1)
    assert float(hint_loss((student,), (wider,))) == pytest.approx(0, abs=1e-6)
    # two samples of two channels could make anything: the regressor is shrunk by 1.1
    assert float(hint_loss((torch.eye(2),), (teacher,))) == pytest.approx((0.1 / 1.1) ** 2)


def test_the_selectivity_loss_matches_a_hand_worked_case():
    # a channel (1, 0) against channels (1, 0) and (0, 1): kernels 1, (1 + 0 + 0 + 1) / 4, 1 / 2
    student = torch.tensor([[[[3.0, 0.0]]]])
    teacher = torch.tensor([[[[5.0, 0.0]], [[0.0, 7.0]]]])
    found = selectivity_loss((student,), (teacher,), weight=10)
    assert float(found) == pytest.approx(10 / 2 * (1 + 0.5 - 2 * 0.5))


def test_the_boundary_loss_matches_a_hand_worked_case():
    student, teacher = torch.tensor([[0.5, 0.5, -2.0]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert float(boundary_loss((student,), (teacher,))) == pytest.approx((0.25 + 2.25) / 3)


def test_the_flow_loss_matches_a_hand_worked_case_and_pools_the_larger_map():
    # student (1, 2) with (3, 1): 5 / 2. Teacher (1, 0) with (2, 5): 2 / 2.
    student = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 0.0, 1.0, 1.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[2.0, -1.0, 5.0, 4.0]]]])
    assert float(flow_loss(student, teacher)) == pytest.approx(1.5**2)


def test_the_teacher_free_loss_matches_a_hand_worked_case():
    found = teacher_free_loss(torch.zeros(1, 2), torch.tensor([1]), correct=0.75, temperature=1)
    assert float(found) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_the_mutual_loss_matches_a_hand_worked_case_and_teaches_both():
    peer = torch.tensor([[math.log(3), 0.0]], requires_grad=True)  # (3/4, 1/4)
    student = torch.zeros(1, 2, requires_grad=True)
    there = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    back = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    found = mutual_loss(student, peer, torch.tensor([1]))
    assert found.item() == pytest.approx(there + back + math.log(4))
    found.backward()
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.5 - 0.75, 0.5 - 0.25])
    assert peer.grad is not None
    assert peer.grad[0, 0].item() == pytest.approx((0.75 - 0.5) + 0.75)


def test_the_feature_loss_bears_half_precision():
    target = torch.full((2, 3), 300.0, dtype=torch.float16)
    assert feature_loss((target + 30,), (target,)) == pytest.approx(0.01, rel=1e-2)
