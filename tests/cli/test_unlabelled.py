"""A fit from inputs without labels: the whole model is the only teacher."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from isthmus.data import load_data
from isthmus.train import FitConfig, fit_base
from tests.nets import write_model

NET = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a trained network, and digits with labels, with wrong ones, and without."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_data("digits")
    write_model(folder, NET, lambda model: fit_base(model, data, FitConfig(base_epochs=6)))
    x: dict[str, Any] = {"x_train": data.x_train[0], "x_test": data.x_test[0]}
    wrong = np.random.default_rng(0).permutation(data.y_train)
    np.savez(folder / "right.npz", **x, y_train=data.y_train, y_test=data.y_test)
    np.savez(folder / "wrong.npz", **x, y_train=wrong, y_test=data.y_test)
    np.savez(folder / "bare.npz", **x)
    return folder


@pytest.fixture
def digits(trained, tmp_path, monkeypatch, isthmus):
    """The same in a folder of its own, with a plan."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    isthmus(
        "plan", "net.py:make", "two-pi-ethernet", "--weights", "w.safetensors", "--input",
        "1x1x8x8", "--cut", "3", "--codec", "bottleneck:ratio=8,bits=3", "--out", "plan.json",
    )  # fmt: skip
    return tmp_path


def fit(isthmus, data, *options):
    result = isthmus(
        "fit", "net.py:make", "plan.json", "--weights", "w.safetensors", "--data", f"npz:{data}",
        "--epochs", "3", "--json", "--out", data.removesuffix(".npz"), *options,
    )  # fmt: skip
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.long
def test_a_fit_without_labels_is_about_as_accurate_as_one_with_them(digits, isthmus):
    labelled = fit(isthmus, "right.npz")
    unlabelled = fit(isthmus, "wrong.npz", "--unlabelled")
    assert labelled["config"]["losses"] == ["task", "hinton"]
    assert unlabelled["config"]["losses"] == ["hinton"]
    assert labelled["accuracy_whole"] == unlabelled["accuracy_whole"] > 0.95
    assert unlabelled["accuracy_split"] == pytest.approx(labelled["accuracy_split"], abs=0.015)

    bare = fit(isthmus, "bare.npz", "--unlabelled")
    assert (labelled["judge"], unlabelled["judge"]) == ("labels", "labels")
    assert (bare["judge"], bare["accuracy_whole"]) == ("whole model", 1)
    assert [p["losses"] for p in bare["phases"]] == [p["losses"] for p in unlabelled["phases"]]
    assert bare["accuracy_split"] > 0.95
    said = isthmus("report", "bare", "--out", "report.html")
    assert said.code == 0, said.err
    assert "agreement with the whole model" in (digits / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no y_train, y_test (found x_test, x_train)"),
        (
            ("--unlabelled", "--loss", "decoupled,task"),
            "npz:bare.npz: found no labels to train on, but the loss decoupled, task reads them",
        ),
        (("--unlabelled",), "found no labels to train on, but the model came without weights"),
    ],
)
def test_what_needs_labels_is_refused_without_them(digits, isthmus, options, message):
    weights = () if options == ("--unlabelled",) else ("--weights", "w.safetensors")
    result = isthmus(
        "fit", "net.py:make", "plan.json", *weights, "--data", "npz:bare.npz", "--epochs", "1",
        *options,
    )  # fmt: skip
    assert result.code == 1
    assert message in result.err.replace("\n", " ")
    assert not (digits / "fitted").exists()
