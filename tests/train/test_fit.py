from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isthmus.data import from_arrays
from isthmus.errors import InputError
from isthmus.graph import capture
from isthmus.links import Codec
from isthmus.models import load_weights
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.train import (
    FitConfig,
    Progress,
    accuracy,
    check_fits,
    fit_base,
    fit_crossings,
    split_with_codecs,
)
from isthmus.train.loop import one_cycle


def blobs(num=96, seed=0):
    """Three classes of 8-channel 4x4 maps that a small network tells apart."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(3, 8, 1, 1))

    def half(n):
        y = rng.integers(0, 3, n)
        x = centres[y] + 0.3 * rng.normal(size=(n, 8, 4, 4))
        return x.astype(np.float32), y

    (x_train, y_train), (x_test, y_test) = half(num), half(60)
    return from_arrays(
        {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}, name="blobs"
    )


def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3),
    ).eval()


def plan_of(model, codec="bottleneck:ratio=8,bits=4", *, platform="two-mcu-spi"):
    graph = capture(model, (torch.zeros(2, 8, 4, 4, dtype=next(model.parameters()).dtype),))
    cut = next(i + 1 for i, node in enumerate(graph.nodes) if node.op == "relu")
    return partition(graph, load_platform(platform), codec=codec, cut=cut)


def weights_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_base_training_learns_and_the_same_seed_gives_the_same_bits():
    data = blobs()
    config = FitConfig(base_epochs=3, batch_size=16, seed=5)
    first, second = net(), net()
    before = accuracy(first, data.x_test, data.y_test)
    (record,) = fit_base(first, data, config)
    (again,) = fit_base(second, data, config)
    assert accuracy(first, data.x_test, data.y_test) > max(before, 0.9)
    assert record.losses == again.losses
    assert len(record.losses) == 3
    assert record.losses[-1] < record.losses[0]
    expected = weights_of(first)
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(second).items())
    assert not first.training


def test_training_that_ends_nowhere_says_so():
    data = blobs()
    far = replace(data, x_train=(data.x_train[0] * np.float32(1e37),))
    with pytest.raises(InputError, match=r"^base, epoch 1: found a loss of (nan|inf), expected"):
        fit_base(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), far, FitConfig(base_epochs=3))


def test_every_epoch_has_an_order_of_its_own():
    data, orders = blobs(), []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            if self.training:
                orders.append(x[:, 0, 0, 0].tolist())
            return self.net(x)

    fit_base(Watched(), data, FitConfig(base_epochs=2, batch_size=96))
    assert len(orders) == 2
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_no_base_epochs_leave_the_weights_as_they_came():
    model = net()
    before = weights_of(model)
    assert fit_base(model, blobs(), FitConfig()) == ()
    assert all(torch.equal(v, before[k]) for k, v in weights_of(model).items())


def test_crossings_are_calibrated_then_matched_then_distilled():
    data, model, lines = blobs(), net(), []
    fit_base(model, data, FitConfig(base_epochs=4, batch_size=16))
    whole = accuracy(model, data.x_test, data.y_test)
    split_model = split_with_codecs(model, plan_of(model))
    records = fit_crossings(
        split_model,
        data,
        FitConfig(epochs=4, batch_size=16),
        progress=Progress(report=lambda *report: lines.append(report)),
    )
    assert [record.phase for record in records] == ["features", "receiver", "whole"]
    assert [record.epochs for record in records] == [1, 4, 4]
    assert records[1].losses[-1] < records[1].losses[0]
    assert accuracy(split_model, data.x_test, data.y_test) >= whole - 0.05
    assert [done for step, done, total in lines if step.startswith("whole, loss")] == [1, 2, 3, 4]
    assert not split_model.training


@pytest.mark.parametrize(
    "text", ["uniform:bits=6", "uniform:bits=4,per=vector", "float:format=mxfp6-e3m2"]
)
def test_what_is_entropy_coded_is_counted_last_and_kept_with_the_weights(text):
    data, model = blobs(), net()
    plan = plan_of(model, codec=f"{text}+entropy")
    split_model = split_with_codecs(model, plan)
    records = fit_crossings(split_model, data, FitConfig(epochs=1, batch_size=16))
    assert [record.phase for record in records][-2:] == ["receiver", "whole"]
    again = split_with_codecs(net(), plan)
    load_weights(again, split_model.state_dict(), where="here")
    codec, other = split_model.codecs[0], again.codecs[0]
    assert isinstance(codec, Codec)
    assert isinstance(other, Codec)
    assert codec.spec.payload_bytes < codec.spec.max_payload_bytes
    assert other.spec == codec.spec
    assert [t.to_bytes() for t in other.tables] == [t.to_bytes() for t in codec.tables]


def test_a_lossless_plan_needs_no_training_and_changes_no_weight():
    data, model = blobs(), net()
    before = weights_of(model)
    split_model = split_with_codecs(model, plan_of(model, "raw"))
    assert fit_crossings(split_model, data, FitConfig(epochs=1)) == ()
    assert all(torch.equal(v, before[k]) for k, v in weights_of(model).items())


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_bits(tmp_path):
    data = blobs()
    config = FitConfig(base_epochs=4, batch_size=16)
    whole = net()
    fit_base(whole, data, config)

    class StopError(Exception):
        pass

    def interrupt(step, done, total):
        if done == 3:
            raise StopError

    broken = net()
    with pytest.raises(StopError):
        fit_base(broken, data, config, progress=Progress(report=interrupt, checkpoints=tmp_path))
    resumed, lines = net(), []
    (record,) = fit_base(
        resumed,
        data,
        config,
        progress=Progress(report=lambda *report: lines.append(report), checkpoints=tmp_path),
    )
    assert [done for _, done, _ in lines] == [3, 4]
    assert len(record.losses) == 4
    expected = weights_of(whole)
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(resumed).items())
    # and once more, now that it is done: nothing is left to do
    lines.clear()
    done = net()
    fit_base(
        done,
        data,
        config,
        progress=Progress(report=lambda *report: lines.append(report), checkpoints=tmp_path),
    )
    assert lines == []
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(done).items())


def test_data_of_another_shape_or_with_more_classes_is_refused():
    data = blobs()
    with pytest.raises(InputError, match=r"output is \(2, 4, 4\), expected a score for each of"):
        check_fits(nn.Conv2d(8, 2, 1), data)
    one = replace(data, y_train=0 * data.y_train, y_test=0 * data.y_test)
    with pytest.raises(InputError, match=r"output is \(1,\), expected .*two classes"):
        check_fits(nn.Sequential(nn.Flatten(), nn.Linear(128, 1)), one)
    with pytest.raises(InputError, match="labels up to 2"):
        check_fits(nn.Sequential(nn.Flatten(), nn.Linear(128, 2)), data)
    with pytest.raises(InputError, match="does not take its samples of 8x4x4"):
        check_fits(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), data)

    class Named(nn.Module):
        def forward(self, x):
            return {"scores": x.flatten(1)}

    with pytest.raises(InputError, match="returns a dict, expected class scores"):
        check_fits(Named(), data)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))

    class Drawing(nn.Module):
        def forward(self, x):
            return F.dropout(linear(x), 0.5)

    class Mixing(nn.Module):
        def forward(self, x):
            return linear(x) - linear(x).mean(0)

    with pytest.raises(InputError, match=r"same samples differently.*self\.training"):
        check_fits(Drawing(), data)
    with pytest.raises(InputError, match="a sample differently in another batch"):
        check_fits(Mixing(), data)
    with torch.no_grad():
        list(linear.parameters())[-1][1] = torch.nan
    with pytest.raises(InputError, match="the model answers NaN"):
        check_fits(linear, data)
    tokens = np.array([[0], [1], [2], [99]])
    words = from_arrays(
        {"x_train": tokens, "y_train": [0, 1, 0, 1], "x_test": tokens, "y_test": [0, 1, 0, 1]},
        name="words",
    )
    with pytest.raises(InputError, match="index out of range"):
        check_fits(nn.Sequential(nn.Embedding(5, 2), nn.Flatten()), words)
    with pytest.raises(InputError, match="expected 1 or more"):
        FitConfig(epochs=0)


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_the_rate_rises_and_falls_in_however_few_steps(num_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = one_cycle(optimizer, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) > 0.09
    assert all(rate >= 0 for rate in rates)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"seed": -1}, {"seed": 10**16}, {"wanted_bytes": float("inf")}],
)
def test_numbers_that_training_cannot_take_are_named(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong)).removeprefix('wanted_')}: found "):
        FitConfig(**wrong)
