"""A split model trains like the whole: to the bit, with random numbers in the same order."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from isthmus.errors import CaptureError
from isthmus.graph import capture, cuts
from isthmus.split import split
from tests.nets import NETS, Dropouts, Head, Net, captured, images, residual
from tests.split.plans import plan_at


def four_steps(model: nn.Module, net: Net) -> list[float]:
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step in range(4):
        outputs = tree_leaves(model(*net.inputs(6, seed=step)))
        loss = torch.stack([(y - k).square().mean() for k, y in enumerate(outputs)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_at_every_usable_cut_four_steps_give_the_unsplit_models_losses_and_weights(name):
    torch.manual_seed(0)
    net, x = NETS[name], NETS[name].inputs(3, seed=9)
    model = net.make()
    whole = copy.deepcopy(model)
    usable = [cut.index for cut in cuts(captured(name)) if not cut.obstacle]
    divided = split(model, plan_at(captured(name), *usable))
    torch.testing.assert_close(divided.eval()(*x), whole.eval()(*x), rtol=0, atol=0)

    assert four_steps(divided.train(), net) == four_steps(whole.train(), net)
    expected = whole.state_dict()
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[path]), path
    torch.testing.assert_close(divided.eval()(*x), whole.eval()(*x), rtol=0, atol=0)


def test_dropout_is_drawn_in_training_alone():
    torch.manual_seed(0)
    model, x = Dropouts(), images(3)
    divided = split(model, plan_at(captured("dropouts"), 2, 5))
    assert not torch.equal(divided(x), divided(x))
    divided.eval()
    assert torch.equal(divided(x), divided(x))


def test_one_module_of_a_stage_can_be_held_in_evaluation():
    model = residual()
    whole = copy.deepcopy(model)
    divided = split(model, plan_at(capture(model, (images(),)), 5))
    whole.get_submodule("1.bn1").eval()
    divided.get_submodule("stages.0.1.bn1").eval()
    before = whole.get_buffer("1.bn1.running_mean").clone()
    assert four_steps(divided, NETS["residual"]) == four_steps(whole, NETS["residual"])
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


class Skipped(nn.Module):
    def forward(self, x):
        return x if self.training and torch.rand(()) < 0.5 else x + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), DropPath(), Head(4)), "module '1', op 'new_empty'"),
        (Auxiliary(), "module 'aux', op 'mean'"),
        (nn.Sequential(Skipped(), Head(3)), "^in training: (.*); or train the form of evaluation"),
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
