"""Structured pruning on cases worked out by hand."""

import copy

import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, parse_chain
from isthmus.errors import InputError

pytest.importorskip("torch_pruning")


def net(groups=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False, groups=groups), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def samples(num=32):
    x = torch.rand(num, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    return Samples(example=(x[:2],), inputs=(x,), labels=torch.arange(num) % 3)


def pruned(model, text):
    (step,) = parse_chain([text])
    return apply(copy.deepcopy(model), step, samples())


def test_l1_keeps_the_channels_of_the_largest_weights_and_what_reads_them():
    model = net()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([5.0, 1, 4, 2]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1))
        model[3].weight.copy_(torch.arange(32.0).reshape(8, 4, 1, 1) / 1000)
        model[1].running_mean.copy_(torch.arange(4.0))
    made = pruned(model, "prune:l1,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [5.0, 4.0]
    assert made[1].running_mean.tolist() == [0.0, 2.0]
    assert torch.equal(made[3].weight, model[3].weight[:, [0, 2]])
    assert made[3].out_channels == 8


def test_slimming_keeps_what_batch_norm_scales_most():
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 3.0, 0.2, 2.0]))
    made = pruned(model, "prune:slimming,keep=0.5,only=0")
    assert made[1].weight.tolist() == [3.0, 2.0]


def test_fpgm_removes_the_channel_that_lies_amid_the_others():
    model = net()
    with torch.no_grad():  # three far apart, one at their centre
        rows = [[9.0, 0.0], [0.0, 9.0], [3.0, 3.0], [0.1, 0.1]]
        model[0].weight.copy_(torch.tensor(rows).reshape(4, 2, 1, 1))
        model[3].weight.fill_(1.0)
    made = pruned(model, "prune:fpgm,keep=0.75,only=0")
    assert torch.equal(made[0].weight, model[0].weight[[0, 1, 3]])


def test_apoz_removes_the_channels_that_are_zero_most_often():
    model = net()
    with torch.no_grad():  # inputs are positive: channels 1 and 3 are never active
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
        model[0].weight.copy_(signs * torch.tensor([1.0, 9.0, 2.0, 8.0]).reshape(4, 1, 1, 1))
    made = pruned(model, "prune:apoz,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [1.0, 2.0]


def test_taylor_removes_the_channels_without_influence_on_the_loss():
    model = net()
    with torch.no_grad():  # nothing reads channels 0 and 2
        model[3].weight[:, [0, 2]] = 0
        model[0].weight.copy_(torch.tensor([9.0, 1, 9, 1]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1))
    made = pruned(model, "prune:taylor,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [1.0, 1.0]
    assert all(parameter.grad is None for parameter in made.parameters())


def test_channels_are_rounded_and_the_classes_stay():
    made = pruned(net(), "prune:l2,keep=0.7,round_to=4")
    assert [made[k].out_channels for k in (0, 3)] == [4, 4]
    assert made[7].out_features == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prune:l1,keep=0.1",
            r"of 4 channels would remove a layer whole; expected keep=0\.25",
        ),
        ("prune:l1,keep=0.5,only=7", "every layer makes the model's outputs"),
        ("prune:l1,keep=0.9,round_to=1,only=0", None),
        ("prune:l1,keep=1.5", "found keep=1.5, expected keep=0.001 to 1"),
        ("prune:l1,keep=half", "found keep=half"),
        ("prune:l1,only=1", "found no layer for it"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(text, message):
    if message is None:
        assert pruned(net(), text)[0].out_channels == 3
        return
    with pytest.raises(InputError, match=message):
        pruned(net(), text)


def test_data_are_asked_for():
    (step,) = parse_chain(["prune:taylor"])
    with pytest.raises(InputError, match=r"found 0 training samples, expected 16 .* --data"):
        apply(net(), step, Samples(example=samples().example))


class Reshaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).reshape(-1, 4, 4, 4).mean(3).reshape(-1, 16))


def test_a_forward_that_holds_channel_counts_is_refused():
    with pytest.raises(InputError, match=r"prune:l1: .*skip="):
        pruned(Reshaping(), "prune:l1")
