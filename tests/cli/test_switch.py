"""Model switching by load, from two networks for digits to replies that say which one answered."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from isthmus.data import load_data
from isthmus.models import load_model
from isthmus.train import FitConfig, fit_base
from isthmus.train.fitted import read_fitted
from tests.nets import write_model
from tests.run.services import LONG_S, devices

NET = """
from torch import nn


def make():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )
"""
BURST = 120


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """The current folder: net.py, its trained weights, and a part of the digits."""
    monkeypatch.chdir(tmp_path)
    data = load_data("digits")
    write_model(tmp_path, NET, lambda model: fit_base(model, data, FitConfig(base_epochs=2)))
    x_train, y_train = data.x_train[0][:200], data.y_train[:200]
    part: dict[str, Any] = {"x_test": data.x_test[0][:BURST], "y_test": data.y_test[:BURST]}
    np.savez(tmp_path / "digits.npz", x_train=x_train, y_train=y_train, **part)
    return part["x_test"]


@pytest.mark.long
def test_a_smaller_model_answers_in_a_crowd_and_the_whole_one_where_there_is_none(
    isthmus, digits, tmp_path
):
    pytest.importorskip("torch_pruning")

    def done(*arguments):
        result = isthmus(*arguments)
        assert result.code == 0, result.err
        return result.out

    ours, data = ("--weights", "w.safetensors"), ("--data", "npz:digits.npz", "--epochs", "1")
    shape = ("--input", "1x1x8x8")
    done("compress", "net.py:make", *ours, *shape, "--with", "prune:l1,keep=0.5", "--out", "half")
    planned = ("--cut", "2", "--codec", "uniform:bits=6", "--out", "plan.json")
    done("plan", "net.py:make", "two-mcu-spi", *ours, *shape, *planned)
    done("fit", "net.py:make", "plan.json", *ours, *data, "--out", "fitted")
    smaller = ("--early-model", "half", "--early-exit", "npz:digits.npz")
    verified = json.loads(done("export", "fitted", *smaller, "--out", "bundle", "--json"))
    with torch.no_grad():
        x = torch.from_numpy(digits)
        whole = read_fitted(tmp_path / "fitted").split_model.eval()(x).numpy()
        half = load_model("half")(x).numpy()
    equal = whole.argmax(1) == half.argmax(1)
    assert verified["early_exit_equal"] == pytest.approx(equal.mean(), abs=1 / BURST)
    with devices(tmp_path / "bundle", ("mcu-a", "mcu-b")) as hosts, hosts.client() as client:
        hosts.start("mcu-a", "--switch-at", "4")
        hosts.start("mcu-b")
        alone = [client.ask(each) for each in digits[:10]]
        assert [outputs.early_exit for outputs in alone] == [""] * 10
        crowd = [client.submit(each) for each in digits]
        found = [future.result(LONG_S) for future in crowd]
        after = client.ask(digits[0])
    early = np.array([outputs.early_exit == "mcu-a" for outputs in found])
    assert 0 < early.sum() < BURST
    expected = np.where(early[:, None], half, whole)
    np.testing.assert_allclose(np.stack([y for (y,) in found]), expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(half, whole, rtol=1e-3, atol=1e-4)
    assert after.early_exit == ""
    assert np.array_equal(after[0], alone[0][0])
