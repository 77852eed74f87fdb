"""A split model trains like the whole: to the bit, with random numbers in the same order."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import CaptureError
from isthmus.graph import capture, cuts
from isthmus.split import split
from tests.nets import TRAINED_NETS, Head, Tied, images, residual
from tests.split.plans import plan_at


def four_steps(model: nn.Module) -> list[float]:
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step in range(4):
        loss = F.cross_entropy(model(images(6, seed=step)), torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [*TRAINED_NETS.values(), Tied], ids=[*TRAINED_NETS, "tied"])
def test_four_steps_give_the_unsplit_models_losses_weights_and_statistics(make):
    torch.manual_seed(0)
    model = make()
    whole = copy.deepcopy(model)
    graph = capture(model, (images(),))
    indices = [cut.index for cut in cuts(graph) if not cut.obstacle]
    divided = split(model, plan_at(graph, *indices))

    assert four_steps(divided) == four_steps(whole)
    expected = whole.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    divided.eval()
    whole.eval()
    x = images(3, seed=9)
    assert torch.equal(divided(x), divided(x))
    assert torch.equal(divided(x), whole(x))
    divided.train()
    if not isinstance(model, Tied):  # batch statistics, or dropout
        assert not torch.equal(divided(x), whole(x))


def test_one_module_of_a_stage_can_be_held_in_evaluation():
    model = residual()
    whole = copy.deepcopy(model)
    divided = split(model, plan_at(capture(model, (images(),)), 5))
    whole.get_submodule("1.bn1").eval()
    divided.get_submodule("stages.0.1.bn1").eval()
    before = whole.get_buffer("1.bn1.running_mean").clone()
    assert four_steps(divided) == four_steps(whole)
    assert torch.equal(model.get_buffer("1.bn1.running_mean"), before)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.9) / 0.9


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.aux = nn.Conv2d(3, 4, 1), Head(4), Head(4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.head(x)
        return (y, self.aux(x)) if self.training else y


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([2.0 if self.training else 1.0])


class Scheduled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * 2
        return x + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), DropPath(), Head(4)), "module '1', op 'new_empty'"),
        (Auxiliary(), "module 'aux', op 'mean'"),
        (nn.Sequential(Scheduled(), Head(3)), r"module '0', op 'mul' \(test_training.py:\d+\)"),
        (nn.Sequential(Scaled(), Head(3)), "module '0', op '(lift_fresh_copy|detach_|mul)'"),
    ],
)
def test_what_differs_in_training_is_named_or_trained_in_the_form_of_evaluation(model, message):
    plan = plan_at(capture(model, (images(),)), 1)
    with pytest.raises(CaptureError, match=message):
        split(model, plan)
    divided = split(model, plan, eval_form=True).train()
    torch.testing.assert_close(divided(images()), model.eval()(images()))


def test_the_form_of_evaluation_still_trains_batch_norm_and_dropout():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DropPath(), nn.Dropout(0.5), Head(4)
    )
    graph = capture(model, (images(),))
    divided = split(model, plan_at(graph, 2), eval_form=True).train()
    mean, steps = model.get_buffer("1.running_mean"), model.get_buffer("1.num_batches_tracked")
    before = mean.clone()
    assert not torch.equal(divided(images()), divided(images()))
    assert not torch.equal(before, mean)
    assert steps == 2
    divided.eval()
    assert torch.equal(divided(images()), divided(images()))


def test_a_cut_where_training_needs_two_tensors_for_one_is_refused():
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = F.dropout(y, 0.5) if self.training else y
            return (z + 1) * (y + z)

    model = Twice()
    graph = capture(model, (images(),))
    with pytest.raises(CaptureError, match="with and without dropout"):
        split(model, plan_at(graph, 2))
    whole = copy.deepcopy(model)
    divided = split(model, plan_at(graph, 1))
    torch.manual_seed(0)
    expected = whole(images())
    torch.manual_seed(0)
    assert torch.equal(divided(images()), expected)
