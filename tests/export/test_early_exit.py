"""An early exit from its fit to an answer of the first device alone, in its own process."""

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.bundle import read_bundle
from isthmus.compress import parse_chain
from isthmus.errors import InputError
from isthmus.export import export
from isthmus.graph import capture
from isthmus.models import load_model, reference
from isthmus.models.compressed import ExitRule
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.run.early import load_exit
from isthmus.split import split
from isthmus.study import compress_model
from isthmus.train import calibrate, calibrate_exit, fit_exit, split_with_codecs
from isthmus.train.exits import exit_threshold, smaller_exit
from tests.nets import NETS
from tests.run.services import devices


def network(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def fitted(model, example, codec="uniform:bits=8"):
    plan = partition(capture(model, example), load_platform("two-mcu-spi"), codec=codec, cut=2)
    split_model = split_with_codecs(model, plan)
    calibrate(split_model, example)
    return split_model.eval(), plan


def test_an_exit_finds_what_is_linear_in_the_means_of_the_channels():
    model, example = network(), (torch.rand(200, 3, 8, 8) ** 4,)
    split_model, _ = fitted(model, example, "raw")
    early_exit = fit_exit(split_model, [example[0].numpy()])
    others = torch.rand(50, 3, 8, 8) ** 4
    with torch.no_grad():
        (found,), expected = early_exit(others), model(others)
    spread = expected.std(0)
    assert ((found - expected).abs() / spread).max() < 0.05


def test_it_is_written_verified_and_answers_in_the_place_of_a_device_that_is_away(tmp_path):
    model, example = network(), (torch.rand(200, 3, 8, 8) ** 4,)
    split_model, plan = fitted(model, example)
    early_exit = fit_exit(split_model, [example[0].numpy()])
    samples = [example[0][:50].numpy()]
    verification = export(
        split_model, plan, tmp_path / "bundle", samples=samples, early_exit=early_exit
    )
    assert verification.early_exit_equal is not None
    assert verification.early_exit_equal > 0.8
    assert read_bundle(tmp_path / "bundle").early_exit == "mcu-a/exit.onnx"
    with devices(tmp_path / "bundle", ("mcu-a", "mcu-b")) as hosts, hosts.client() as client:
        hosts.start("mcu-a")
        client.about()
        outputs = client.ask(samples[0][0], deadline_s=2.0)
        assert outputs.early_exit == "mcu-a"
        with torch.no_grad():
            (expected,) = early_exit(example[0][:1])
        np.testing.assert_allclose(outputs[0], expected[0].numpy(), rtol=1e-4, atol=1e-5)


NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
"""


def test_a_smaller_model_may_answer_in_its_place(tmp_path):
    model, example = network(), (torch.rand(40, 3, 8, 8),)
    split_model, plan = fitted(model, example)
    (tmp_path / "net.py").write_text(NET)
    source = reference(f"{tmp_path / 'net.py'}:make")
    steps = parse_chain(["sparse:magnitude,keep=0.9"])
    compress_model(
        model, source, steps, (example[0][:2],), tmp_path / "small", inputs=("1x3x8x8",)
    )
    samples = [example[0].numpy()]
    smaller = smaller_exit(str(tmp_path / "small"), split_model, samples)
    found = export(
        split_model, plan, tmp_path / "bundle", samples=samples, early_exit=smaller,
        exit_confidence=calibrate_exit(smaller, split_model, samples, ExitRule("share", 0.5)),
    )  # fmt: skip
    assert found.early_exit_share == pytest.approx(0.5, abs=0.1)
    bundle = read_bundle(tmp_path / "bundle")
    early_exit = load_exit(tmp_path / "bundle", bundle)
    assert early_exit is not None
    (scores,) = early_exit.program(samples)
    with torch.no_grad():
        expected = load_model(str(tmp_path / "small"))(*example).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    few = example[0][:, :2]
    other, _ = fitted(network(channels=2), (few,))
    with pytest.raises(InputError, match="does not take the inputs"):
        smaller_exit(str(tmp_path / "small"), other, [few.numpy()])
    with pytest.raises(InputError, match="expected a folder that `isthmus compress` made"):
        smaller_exit(str(tmp_path), split_model, samples)


def test_a_bundle_without_one_says_so(tmp_path):
    model, example = network(), (torch.rand(8, 3, 8, 8),)
    split_model, plan = fitted(model, example)
    verification = export(split_model, plan, tmp_path / "b", samples=[example[0].numpy()])
    assert verification.early_exit_equal is None
    assert read_bundle(tmp_path / "b").early_exit is None


def test_a_model_of_several_outputs_has_none():
    model, example = NETS["sensors"].make().eval(), NETS["sensors"].inputs()
    plan = partition(capture(model, example), load_platform("two-mcu-spi"), codec="raw", cut=2)
    with pytest.raises(InputError, match="early exit: expected a model of one fp32 output"):
        fit_exit(split(model, plan), [x.numpy() for x in example])


def scores(labels, confidence):
    """Return scores of three classes whose softmax has these at these labels."""
    rest = torch.log((1 - torch.tensor(confidence)) / 2)
    rows = rest[:, None].expand(-1, 3).clone()
    rows[range(len(labels)), labels] = torch.log(torch.tensor(confidence))
    return rows


SURE = [0.9, 0.6, 0.8, 0.7, 0.7]
EARLY = scores([1, 1, 1, 1, 1], SURE)


def test_a_threshold_lets_the_wanted_share_leave_or_as_many_as_are_equal():
    whole = scores([1, 0, 1, 1, 0], [0.5] * 5)
    assert exit_threshold(EARLY, whole, ExitRule("share", 0.4)) == pytest.approx(0.8)
    # the third of five is as sure as the fourth: both leave
    assert exit_threshold(EARLY, whole, ExitRule("share", 0.6)) == pytest.approx(0.7)
    assert exit_threshold(EARLY, whole, ExitRule("share", 1.0)) == pytest.approx(0.6)
    # 2 of 2 are equal at 0.8, 3 of 4 at 0.7, 3 of 5 at 0.6
    assert exit_threshold(EARLY, whole, ExitRule("agreement", 0.76)) == pytest.approx(0.8)
    assert exit_threshold(EARLY, whole, ExitRule("agreement", 0.75)) == pytest.approx(0.7)
    alike = scores([1] * 4, [0.5] * 4)
    with pytest.raises(InputError, match=r"expected 90.0% equal answers, found 75.0% of those"):
        exit_threshold(alike, scores([1, 1, 1, 0], [0.5] * 4), ExitRule("agreement", 0.9))


def test_a_threshold_lets_as_many_leave_as_lose_no_more_accuracy():
    whole, right = scores([0, 0, 0, 2, 1], [0.5] * 5), torch.tensor([1, 0, 0, 2, 1])
    # the exit alone is right at 0.9, the model alone at 0.8, at one 0.7 of two, and at 0.6: of 5
    # samples one more is right, then as many as ever, one less, two less
    for drop, least in ((0, 0.8), (19, 0.8), (20, 0.7), (39, 0.7), (40, 0.6)):
        assert exit_threshold(EARLY, whole, ExitRule("drop", drop), right) == pytest.approx(least)
    zeros = torch.zeros(5, dtype=torch.long)
    with pytest.raises(InputError, match=r"a loss of 5 points at most, found 20 points by those"):
        exit_threshold(EARLY, scores(zeros.tolist(), [0.5] * 5), ExitRule("drop", 5), zeros)
    with pytest.raises(InputError, match="no labels, of which a drop is counted"):
        exit_threshold(EARLY, whole, ExitRule("drop", 5))


def test_an_exit_that_is_calibrated_is_surer_where_it_leaves(tmp_path):
    model, example = network(), (torch.rand(400, 3, 8, 8) ** 4,)
    split_model, plan = fitted(model, example)
    early_exit = fit_exit(split_model, [example[0][:200].numpy()])
    least = calibrate_exit(
        early_exit, split_model, [example[0][200:].numpy()], ExitRule("share", 0.5)
    )
    x = torch.rand(100, 3, 8, 8) ** 4
    with torch.no_grad():
        labels = split_model(x).argmax(1).numpy()
    found = export(
        split_model, plan, tmp_path / "bundle", samples=[x.numpy()], labels=labels,
        early_exit=early_exit, exit_confidence=least,
    )  # fmt: skip
    assert read_bundle(tmp_path / "bundle").exit_confidence == least
    assert found.early_exit_share == pytest.approx(0.5, abs=0.2)
    assert found.early_exit_sure_equal is not None
    assert found.early_exit_equal is not None
    assert found.early_exit_sure_equal >= found.early_exit_equal
    assert found.early_exit_share is not None
    lost = 100 * found.early_exit_share * (1 - found.early_exit_sure_equal)
    assert found.early_exit_drop == pytest.approx(lost)
