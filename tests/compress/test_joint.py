"""Networks of several answers that are trained at once: widths and exits, on small cases."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.compress import Samples, apply, check_chain, figures, parse_chain, settle
from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.graph import capture
from isthmus.models.compressed import ExitRule
from isthmus.train import FitConfig, accuracy, measure_exits, tune
from tests.nets import NETS

pytest.importorskip("torch_pruning")


def made(model, example, *texts):
    for step in parse_chain(texts):
        model = apply(model, step, Samples(example=example))
    return model


def slimmable(name, widths="0.25+0.5"):
    torch.manual_seed(0)
    net = NETS[name]
    slim: Any = made(net.make(), net.inputs(), f"prune:slimmable,widths={widths}")
    return slim, net.inputs(8)


@pytest.mark.parametrize("name", ["residual", pytest.param("dense", marks=pytest.mark.slow)])
def test_the_network_that_is_cut_out_answers_to_the_bit_as_the_slimmable_one(name):
    slim, inputs = slimmable(name)
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.05)
    for _ in range(2):  # so that norms of different widths have seen different things
        sum(x.square().mean() for x in slim.train().answers(*inputs)).backward()
        optimizer.step()
    whole: Any = settle(slim.eval())
    for width in (0.25, 0.5):
        narrow: Any = made(copy.deepcopy(whole), inputs, f"prune:width,width={width}")
        with torch.no_grad():
            assert torch.equal(narrow(*inputs), slim.at(width, *inputs))
            assert not torch.equal(narrow(*inputs), whole(*inputs))
        assert figures(narrow, inputs).macs < figures(whole, inputs).macs
    widest: Any = made(copy.deepcopy(whole), inputs, "prune:width,width=1")
    with torch.no_grad():
        assert torch.equal(widest(*inputs), whole(*inputs))


def test_a_layer_under_two_names_is_slimmable():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.again, self.norm = self.mix, nn.BatchNorm1d(8)

        def forward(self, x):
            return self.head(self.again(self.mix(self.norm(self.first(x)).relu()).relu()).relu())

    x = torch.rand(4, 3)
    slim: Any = made(Again().eval(), (x,), "prune:slimmable,widths=0.5")
    narrow: Any = slim.cut(0.5)
    assert torch.equal(narrow(x), slim.at(0.5, x))
    assert narrow.again.weight.shape == (4, 4)


def test_a_width_has_the_first_channels_and_a_norm_of_its_own():
    model: Any = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1))
        model[3].weight.copy_(torch.arange(32.0).reshape(2, 16))
    x = torch.rand(4, 1, 2, 2)
    slim: Any = made(model, (x,), "prune:slimmable,widths=0.5")
    with torch.no_grad():
        slim.model[1][0].weight.copy_(torch.tensor([5.0, 6.0]))
    narrow: Any = slim.cut(0.5)
    assert narrow[0].weight.flatten().tolist() == [1.0, 2.0]
    assert narrow[1].weight.tolist() == [5.0, 6.0]
    assert narrow[3].weight.tolist() == [[*range(8)], [*range(16, 24)]]  # 4 places of 2 channels
    assert slim.model[1][1].weight.tolist() == [1.0] * 4


def test_a_step_trains_the_widest_the_narrowest_and_two_others():
    slim, inputs = slimmable("residual", "0.2+0.4+0.6+0.8")
    slim.train().answers(*inputs)
    norms = [m for m in slim.modules() if type(m).__name__ == "Switchable"]
    for norm in norms:
        seen = [int(each.num_batches_tracked) for each in norm]
        assert seen[0] == seen[-1] == 1
        assert sum(seen) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune:width", "expected a model of prune:slimmable"),
        ("prune:slimmable,widths=0.5+1", "found widths=0.5\\+1, expected widths=shares between"),
        ("prune:slimmable,widths=0.01", "expected keep=0.125 or more"),
        ("exits,only=0+fc", "no module 'fc'"),
        ("exits,only=3", "found no map or sequence behind 3"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(text, message):
    net = NETS["residual"]
    with pytest.raises(InputError, match=message):
        made(net.make(), net.inputs(), text)


def test_widths_that_do_not_fit_each_other_are_refused():
    slim, inputs = slimmable("residual")
    with pytest.raises(InputError, match=r"found width=0.3, expected width=0.25 or width=0.5 or"):
        made(settle(slim), inputs, "prune:width,width=0.3")
    with pytest.raises(InputError, match="give the only= and skip= with which it was made"):
        made(settle(slim), inputs, "prune:width,width=0.5,skip=1")
    with pytest.raises(InputError, match="is slimmable already"):
        made(settle(slim), inputs, "prune:slimmable")
    samples = Samples(example=inputs)
    for text, message in [
        ("prune:slimmable,widths=0.5 prune:width,width=0.25", "expected width=0.5 or width=1"),
        ("prune:width,width=0.25 prune:width,width=0.5", "expected a model of prune:slimmable"),
    ]:
        network = slim.model if text.startswith("prune:width") else NETS["residual"].make()
        with pytest.raises(InputError, match=message):
            check_chain(network, parse_chain(text.split()), samples)
    check_chain(slim.model, parse_chain(["prune:width,width=0.25"]), samples)


def bars(num=384):
    """Return images of a horizontal or vertical bar, or both or none, at random places."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, num)
    x = rng.normal(scale=0.3, size=(num, 1, 8, 8)).astype(np.float32)
    for image, label in zip(x[:, 0], y, strict=True):
        if label & 1:
            image[rng.integers(8)] += 1
        if label & 2:
            image[:, rng.integers(8)] += 1
    return Dataset(name="bars", x_train=(x,), y_train=y, x_test=(x[:128],), y_test=y[:128])


def network():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 2), (2, 8), (8, 16)):
        layers += [nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()
        )]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def trained(model, data):
    config = FitConfig(epochs=12, batch_size=32, losses=("task",), finetune_rate=0.01)
    tune(model, network().eval(), data, config)
    return settle(model)


@pytest.mark.slow
def test_the_narrow_network_of_joint_training_is_worth_more_than_a_cut():
    data = bars()
    example = (torch.from_numpy(data.x_train[0][:2]),)
    narrow = []
    for texts in (["prune:slimmable,widths=0.5"], []):
        model = trained(made(network(), example, *texts), data)
        if texts:
            narrow.append(made(model, example, "prune:width,width=0.5"))
        else:
            narrow.append(made(model, example, "prune:slimmable,widths=0.5").cut(0.5))
    found, cut = (accuracy(m.eval(), data.x_test, data.y_test) for m in narrow)
    assert found > 0.8
    assert found > cut + 0.1


@pytest.mark.slow
def test_exits_are_worth_more_where_the_network_was_trained_with_them():
    data = bars()
    example = (torch.from_numpy(data.x_train[0][:2]),)
    found = []
    for texts in (["exits,only=0+1"], []):
        model = trained(made(network(), example, *texts), data)
        found.append(measure_exits(model, ("0", "1"), data, ExitRule("share", 0.5)))
    joint, alone = found
    assert joint[0].accuracy > alone[0].accuracy
    assert all(0.3 < each.share < 0.7 for each in joint)
    # the mean of what leaves and of what does not, 4 weights for each of 2 channels in the head
    graph = capture(model, example)
    first = 2 * 9 * 64
    macs = joint[0].share * first + (1 - joint[0].share) * graph.macs + 8
    assert joint[0].macs == pytest.approx(macs, abs=1)
    assert joint[0].macs < joint[1].macs < graph.macs
