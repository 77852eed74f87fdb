import json

import pytest
import torch

from isthmus.data import load_data
from isthmus.errors import CaptureError, InputError, StateError
from isthmus.files import write_bytes
from isthmus.models import reference
from isthmus.progress import silent
from isthmus.study.evaluate import fit_plan
from isthmus.study.state import kept_state
from isthmus.train import FitConfig, read_fitted

NET = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(256, 3)

    def forward(self, x):
        x = self.inner(self.first(x).relu()).relu()
        return self.head(self.inner(x).relu().flatten(1))

def make():
    return Tied()
"""
DATA = """
import numpy as np

def make():
    rng = np.random.default_rng(0)
    def half(n):
        y = rng.integers(0, 3, n)
        return (rng.normal(size=(n, 8, 4, 4)) * 0.1 + y[:, None, None, None]).astype("f4"), y
    (x_train, y_train), (x_test, y_test) = half(64), half(40)
    return dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
"""


@pytest.fixture
def fitted(tmp_path):
    from isthmus.graph import capture
    from isthmus.models import load_model
    from isthmus.plan import partition
    from isthmus.platform import load_platform

    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "data.py").write_text(DATA)
    model = load_model(f"{tmp_path / 'net.py'}:make")
    graph = capture(model, (torch.zeros(2, 8, 4, 4),))
    plan = partition(graph, load_platform("two-mcu-spi"), codec="bottleneck:ratio=4,bits=4", cut=4)
    record = fit_plan(
        f"{tmp_path / 'net.py'}:make",
        plan,
        load_data(f"{tmp_path / 'data.py'}:make"),
        tmp_path / "fitted",
        weights=None,
        config=FitConfig(epochs=2, base_epochs=2, batch_size=16),
    )
    return tmp_path, record


def test_a_fit_comes_back_with_the_same_accuracy_and_leaves_nothing_else(fitted):
    folder, record = fitted
    back = read_fitted(folder / "fitted")
    assert back.record == record
    assert back.record.model == reference(f"{folder / 'net.py'}:make")
    from isthmus.train import accuracy

    data = load_data(record.data)
    assert accuracy(back.split_model, data.x_test, data.y_test) == record.accuracy_split
    assert sorted(p.name for p in (folder / "fitted").iterdir()) == [
        "fit.json",
        "graph.json",
        "samples.npz",
        "weights.safetensors",
    ]
    assert not [p for p in folder.iterdir() if p.name.startswith(".fitted")]


def test_tied_weights_stay_one_after_loading(fitted):
    folder, _ = fitted
    back = read_fitted(folder / "fitted")
    names = [name for name, _ in back.split_model.stages.named_parameters() if "inner" in name]
    assert len(names) == 2  # weight and bias, once, though both stages use them


def test_a_changed_model_or_another_schema_is_refused(fitted):
    folder, _ = fitted
    path = folder / "fitted" / "fit.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema": "isthmus.fit/9"}))
    with pytest.raises(InputError, match=r"found schema 'isthmus\.fit/9', expected"):
        read_fitted(folder / "fitted")
    path.write_text(json.dumps(content))
    (folder / "net.py").write_text(NET + "\n")
    with pytest.raises(InputError, match="has changed since"):
        read_fitted(folder / "fitted")


def test_weights_that_are_not_those_of_the_fit_are_refused(fitted):
    path = fitted[0] / "fitted" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40  # of an exponent
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.safetensors: is not what the fit wrote"):
        read_fitted(fitted[0] / "fitted")


def test_a_folder_that_is_not_ours_is_left_alone(fitted):
    folder, record = fitted
    precious = folder / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no fit\.json"):
        fit_plan(
            f"{folder / 'net.py'}:make",
            record.plan,
            load_data(record.data),
            precious,
            weights=None,
            config=FitConfig(epochs=1),
        )
    assert (precious / "thesis.txt").read_text() == "mine"


def test_other_data_under_the_same_name_do_not_go_on_from_the_old_ones(fitted):
    folder, record = fitted
    content = (folder / "data.py").read_text()
    seen = []

    def stop(step, done, total):
        seen.append((step.partition(",")[0], done))
        if step.startswith("base") and done == 2 and stopping:
            raise KeyboardInterrupt

    def fit():
        fit_plan(
            record.model.text,
            record.plan,
            load_data(record.data),
            folder / "again",
            weights=None,
            config=FitConfig(epochs=1, base_epochs=3, batch_size=16),
            report=stop,
        )

    stopping = True
    with pytest.raises(KeyboardInterrupt):
        fit()
    stopping = False
    (folder / "data.py").write_text(content.replace("default_rng(0)", "default_rng(1)"))
    seen.clear()
    fit()
    assert [done for step, done in seen if step == "base"] == [1, 2, 3]


def test_a_plan_for_another_model_is_refused_before_anything_is_trained(fitted):
    folder, record = fitted
    (folder / "net.py").write_text(NET.replace("self.inner(x).relu()", "self.inner(x)"))
    seen = []
    with pytest.raises(InputError, match="not for this model"):
        fit_plan(
            f"{folder / 'net.py'}:make",
            record.plan,
            load_data(record.data),
            folder / "again",
            weights=None,
            config=FitConfig(epochs=1, base_epochs=1),
            report=lambda *step: seen.append(step),
        )
    assert seen == []
    assert not [path for path in folder.iterdir() if "again" in path.name]


def test_data_of_another_shape_than_planned_are_refused(fitted):
    folder, record = fitted
    data = (folder / "data.py").read_text()
    (folder / "data.py").write_text(data.replace("(n, 8, 4, 4)", "(n, 8, 5, 5)"))
    with pytest.raises(InputError, match="the plan was made for"):
        fit_plan(
            record.model.text,
            record.plan,
            load_data(record.data),
            folder / "again",
            weights=None,
            config=FitConfig(epochs=1),
        )


def test_a_model_that_differs_in_training_is_fitted_in_eval_form_where_the_user_says_so(fitted):
    folder, record = fitted
    noisy = NET.replace(
        "x = self.inner(self.first(x).relu()).relu()",
        "x = self.inner(self.first(x).relu()).relu()\n"
        "        if self.training:\n"
        "            x = x * 0.5",
    )
    (folder / "noisy.py").write_text(noisy)

    def fit(**config):
        return fit_plan(
            f"{folder / 'noisy.py'}:make",
            record.plan,
            load_data(record.data),
            folder / "noisy",
            weights=None,
            config=FitConfig(epochs=1, base_epochs=1, batch_size=16, **config),
        )

    with pytest.raises(CaptureError, match="--eval-form"):
        fit()
    assert fit(eval_form=True).config.eval_form
    assert read_fitted(folder / "noisy").record.config.eval_form


def test_a_fit_says_what_an_entropy_coded_crossing_takes_and_plans_with_it(tmp_path):
    from isthmus.graph import capture
    from isthmus.models import load_model
    from isthmus.plan import check, partition
    from isthmus.platform import load_platform

    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "data.py").write_text(DATA)
    source = f"{tmp_path / 'net.py'}:make"
    graph = capture(load_model(source), (torch.zeros(2, 8, 4, 4),))
    platform = load_platform("two-pi-ethernet")
    plan = partition(graph, platform, codec="bottleneck:ratio=2,bits=8+entropy", cut=4)
    record = fit_plan(
        source,
        plan,
        load_data(f"{tmp_path / 'data.py'}:make"),
        tmp_path / "fitted",
        weights=None,
        config=FitConfig(epochs=2, base_epochs=2, batch_size=16, wanted_bytes=40),
    )
    assert [result.sender for result in record.results] == ["frozen", "tuned"]
    (crossing,) = record.plan.crossings
    (bound,) = plan.crossings
    assert crossing.payload_bytes < bound.payload_bytes
    assert crossing.payload_bytes == pytest.approx(record.results[1].payload_bytes[0], rel=0.2)
    saved_s = bound.transfer_s - crossing.transfer_s
    assert saved_s > 0
    assert record.plan.predicted.latency_s == pytest.approx(plan.predicted.latency_s - saved_s)
    assert check(record.plan, graph, platform) == ()
    assert read_fitted(tmp_path / "fitted").record.plan == record.plan


def test_sizes_of_fixed_rate_change_no_plan(fitted):
    from isthmus.plan import with_payloads

    loaded = read_fitted(fitted[0] / "fitted")
    assert with_payloads(loaded.record.plan, loaded.graph, [1.0]) is loaded.record.plan


def test_what_was_trained_is_kept_when_the_disk_is_full_and_not_when_the_user_erred(tmp_path):
    def leave(error):
        with kept_state(tmp_path / "out", "asked", silent) as progress:
            assert progress.checkpoints is not None
            (progress.checkpoints / "state.ckpt").write_bytes(b"an epoch")
            raise error

    with pytest.raises(StateError):
        leave(StateError("state.ckpt: cannot be written (No space left on device)"))
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["state.ckpt"]
    with pytest.raises(InputError), kept_state(tmp_path / "out", "asked", silent):
        write_bytes(tmp_path, b"what was trained")  # refused as by a full disk
    assert [file.name for file in folder.iterdir()] == ["state.ckpt"]
    with pytest.raises(MemoryError):
        leave(MemoryError)
    assert [file.name for file in folder.iterdir()] == ["state.ckpt"]
    with pytest.raises(InputError):
        leave(InputError("loss: found foo"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(MemoryError), kept_state(tmp_path / "out", "asked", silent):
        raise MemoryError
    assert not list(tmp_path.iterdir())
