"""A chain of techniques that are tuned, from Python."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from isthmus.compress import Samples, parse_chain
from isthmus.data import Dataset
from isthmus.errors import InputError, IsthmusError
from isthmus.models import load_model, reference
from isthmus.study import compress_model
from isthmus.study.compress import _training, run_steps
from isthmus.train import FitConfig, Progress, agreement, fit_base, tune
from isthmus.train.losses import LOSSES

NET = """
from torch import nn


def make():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3),
    )
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return reference(f"{tmp_path / 'net.py'}:make")


def blobs(num=96):
    """Return images whose mean tells their class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, num)
    x = (rng.normal(size=(num, 1, 6, 6)) + 2 * y[:, None, None, None]).astype(np.float32)
    return Dataset(name="blobs", x_train=(x,), y_train=y, x_test=(x[:32],), y_test=y[:32])


class Asking:
    """Compresses the same model every time, and keeps what it was told."""

    def __init__(self, source, folder, *texts, config):
        self.source, self.folder, self.texts, self.config = source, folder, texts, config
        self.lines: list[tuple[str, int]] = []

    def __call__(self, out, *, stop=None, data=None):
        def report(step, done, total):
            self.lines.append((step.partition(",")[0], done))
            if self.lines[-1] == stop:
                raise KeyboardInterrupt

        self.lines.clear()
        torch.manual_seed(0)
        model = load_model(self.source)
        return compress_model(
            model,
            self.source,
            parse_chain(self.texts),
            (torch.zeros(1, 1, 6, 6),),
            self.folder / out,
            inputs=("1x1x6x6",),
            data=data or blobs(),
            config=self.config,
            report=report,
        )


def test_interrupted_tuning_goes_on_and_ends_with_the_same_bits(source, tmp_path):
    config = FitConfig(base_epochs=1, epochs=2, batch_size=16)
    texts = ("sparse:magnitude,keep=0.5,schedule=lottery,rounds=2", "share:kmeans,bits=3")
    asking = Asking(source, tmp_path, *texts, config=config)
    whole = asking("whole")
    with pytest.raises(KeyboardInterrupt):
        asking("stopped", stop=("tune 2 share:kmeans", 2))
    assert len(list(tmp_path.glob(".stopped.*"))) == 1
    again = asking("stopped")
    tuned = [line for line in asking.lines if line[0].startswith(("base", "tune"))]
    assert tuned == [("tune 2 share:kmeans", 2)]
    assert again.weights_sha256 == whole.weights_sha256
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "stopped" / "compressed.json").read_text())["data"] == "blobs"


def test_what_cannot_be_leaves_no_state(source, tmp_path):
    config = FitConfig(base_epochs=1, epochs=1)
    asking = Asking(source, tmp_path, "fold", "sparse:magnitude,only=1", config=config)
    with pytest.raises(InputError, match="found no layer for it"):
        asking("made")
    assert asking.lines
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("texts", "losses", "message"),
    [
        (["sparse:magnitude,only=tail"], "task", "no module 'tail'"),
        (["fold", "sparse:magnitude,skip=tail"], "task", "no module 'tail'"),
        (["fold", "quantize:mixed,link=1KiB,cut=2+tail"], "task", "no module or node 'tail' to"),
        (["prune:netadapt,resource=crossing,cut=tail"], "task", "no module or node 'tail' to cut"),
        (["fold", "exits,only=0+5"], "task", "found no map or sequence behind 5"),
        (["fold", "prune:width"], "task", "expected a model of prune:slimmable"),
        (["prune:slimmable,widths=0.5"], "task", "found no batch norm, of which each width"),
        (["exits,drop=5,agreement=0.9"], "task", "found agreement= and drop=, expected one of"),
        (["exits"], "simkd", "exits trains several answers; expected hinton"),
        (["fold", "share:kmeans"], "simkd", "classifier 7, which share:kmeans changes itself;"),
    ],
)
def test_what_shows_to_be_wrong_is_refused_before_anything_is_trained(
    source, tmp_path, texts, losses, message
):
    config = FitConfig(base_epochs=1, epochs=1, losses=(losses,))
    asking = Asking(source, tmp_path, *texts, config=config)
    with pytest.raises(InputError, match=message):
        asking("made")
    assert asking.lines == []


def test_a_model_without_weights_is_not_trained_on_samples_without_labels(source):
    bare = replace(blobs(), y_train=np.full(96, -1))
    with pytest.raises(InputError, match="no labels to train on, but the model came without weig"):
        fit_base(load_model(source), bare, FitConfig(base_epochs=1))


@pytest.mark.parametrize("text", ["fold", "exits,only=0+2", "prune:l1,keep=1"])
def test_a_model_that_comes_out_as_it_went_in_is_not_written(source, tmp_path, text):
    if text.startswith("prune"):
        pytest.importorskip("torch_pruning")
    with pytest.raises(InputError, match=f"--with {re.escape(text)}: left the model as"):
        Asking(source, tmp_path, text, config=None)("made")
    assert not (tmp_path / "made").exists()


def test_a_model_that_cannot_be_made_again_is_refused_before_it_is_trained(source, tmp_path):
    own = """
class Own(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.gain = net, float(torch.randn(()))

    def forward(self, x):
        return self.gain * self.net(x)
"""
    net = NET.replace("from torch", "import torch\nfrom torch").replace(
        "def make", own + "\n\ndef make"
    )
    net = net.replace("return nn.Sequential(", "return Own(nn.Sequential(").replace(
        "3),\n    )", "3),\n    ))"
    )
    (tmp_path / "net.py").write_text(net)
    config = FitConfig(epochs=1)
    asking = Asking(reference(source.text), tmp_path, "share:kmeans,bits=4", config=config)
    with pytest.raises(InputError, match="make: once loaded the model gives other outputs"):
        asking("made")
    assert not asking.lines
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_a_folder_that_would_answer_otherwise_is_not_put_in_place(source, tmp_path, monkeypatch):
    def loaded(model):
        made = load_model(model)
        if isinstance(model, str):  # the folder that was written
            torch.nn.init.zeros_(made.get_parameter("7.weight"))
        return made

    monkeypatch.setattr("isthmus.study.compress.load_model", loaded)
    asking = Asking(source, tmp_path, "prune:l1,keep=0.5", config=None)
    with pytest.raises(InputError, match="made: once loaded the model gives other outputs"):
        asking("made")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_exits_by_a_drop_of_accuracy_lose_no_more_of_it_and_need_labels(source, tmp_path):
    config = FitConfig(base_epochs=3, epochs=3, batch_size=16)
    asking = Asking(source, tmp_path, "exits,only=0+2,drop=4", config=config)
    found = asking("made")
    share = Asking(source, tmp_path, "exits,only=0+2,share=1", config=config)("all")
    assert found.after.accuracy is not None
    for some, every in zip(found.exits, share.exits, strict=True):
        assert some.accuracy_with > found.after.accuracy - 0.1  # of 32 samples, after 19 others
        assert every.accuracy_with <= some.accuracy_with
        assert every.share > 0.9  # of other samples than it was calibrated by
    bare = replace(blobs(), y_train=np.full(96, -1))
    with pytest.raises(InputError, match="blobs: found no labels, of which exits,drop= counts"):
        asking("bare", data=bare)


def test_a_later_step_may_name_what_an_earlier_one_puts_in_a_layers_place(source, tmp_path):
    steps = ("lowrank:svd,energy=0.5,only=5", "sparse:magnitude,only=5.0")
    facts = Asking(source, tmp_path, *steps, config=None)("made")
    assert [step.split(",")[0] for step in facts.techniques] == ["lowrank:svd", "sparse:magnitude"]


def test_a_loss_that_reuses_a_classifier_leaves_it_to_no_other_step(source, tmp_path):
    config = FitConfig(epochs=1, losses=("simkd",), batch_size=16)
    for step in ("share:kmeans,skip=7", "quantize:ternary"):  # that keeps the first and the last
        Asking(source, tmp_path, step, config=config)("made")
    (tmp_path / "net.py").write_text(
        NET.replace("nn.Linear(16, 3),", "nn.Linear(16, 3), nn.ReLU(),")
    )
    relu = reference(f"{tmp_path / 'net.py'}:make")
    with pytest.raises(InputError, match="no linear layer that makes the outputs of both"):
        Asking(relu, tmp_path, "fold", config=config)("other")


def test_blocks_of_a_network_with_exits_are_compared_with_its_teachers(source, tmp_path):
    config = FitConfig(base_epochs=1, epochs=1, losses=("task", "boundary"), batch_size=16)
    asking = Asking(source, tmp_path, "exits,only=0+2", config=config)
    assert [each.path for each in asking("made").exits] == ["0", "2"]


def test_blocks_are_compared_with_those_of_a_wider_teacher(source, tmp_path):
    pytest.importorskip("torch_pruning")
    losses = ("task", "fitnets", "nst", "attention", "relational")
    config = FitConfig(base_epochs=3, epochs=3, losses=losses, batch_size=16)
    facts = Asking(source, tmp_path, "prune:l1,keep=0.5", config=config)("made")
    assert facts.after.macs < facts.before.macs / 2
    assert facts.after.accuracy is not None
    assert facts.after.accuracy > 0.5
    config = FitConfig(epochs=1, losses=("boundary",))
    with pytest.raises(
        InputError, match=r"boundary: found \(4, 4, 4\) after 0, .*\(8, 4, 4\); exp"
    ):
        Asking(source, tmp_path, "prune:l1,keep=0.5", config=config)("made")


def test_in_mutual_learning_a_copy_of_the_teacher_learns_too(source):
    torch.manual_seed(0)
    model, teacher = load_model(source), load_model(source)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    config = FitConfig(epochs=4, batch_size=16, losses=("task", "mutual"))
    record = tune(model, teacher, blobs(), config)
    # of two peers without weights the cross entropies alone begin at 2 ln 3
    assert record.losses[-1] < 0.9 * record.losses[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_loss_of_what_a_fixed_teacher_says_teaches_no_peer(monkeypatch):
    peers = []
    copied = copy.deepcopy

    def noted(module):
        peers.append(copied(module))
        return peers[-1]

    monkeypatch.setattr(copy, "deepcopy", noted)
    monkeypatch.setitem(LOSSES, "mutual", lambda a: 0.0 * (a.teacher.sum() + a.logits.sum()))
    model, teacher = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)) for _ in "ab"
    )
    for network in (model, teacher):
        network(torch.from_numpy(blobs().x_train[0][:2]))
    config = FitConfig(epochs=1, losses=("mutual", "hinton"))
    tune(model, teacher, blobs(), config)
    peer = next(each for each in peers if isinstance(each, torch.nn.Module))
    for learned, before in zip(peer.parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(learned, before, atol=1e-4)


class Always(torch.nn.Module):
    """Gives every sample one label, but those whose mean is over 3 another."""

    def __init__(self, usual, bright):
        super().__init__()
        self.usual, self.bright = usual, bright

    def forward(self, x):
        bright = x.flatten(1).mean(dim=1) > 3
        return torch.eye(3)[torch.where(bright, self.bright, self.usual)]


def test_agreement_counts_equal_labels_above_chance():
    data, teacher = blobs(), Always(0, 1)
    bright = float((data.x_train[0].mean(axis=(1, 2, 3)) > 3).mean())
    assert 0.1 < bright < 0.9
    usual = 1 - bright  # the share of equal labels, and of those by chance usual**2
    for model, same in (
        (Always(0, 1), 1.0), (Always(0, 2), usual / (1 + usual)), (Always(1, 2), 0.0),
        (Always(0, 0), 0.0),  # says what is most often right, and knows nothing
    ):  # fmt: skip
        assert agreement(model, teacher, data) == pytest.approx(same)
    assert (
        agreement(teacher, Always(2, 2), data) == agreement(Always(2, 2), Always(2, 2), data) == 0
    )


def test_norms_are_kept_where_a_chain_changes_nothing_and_learned_where_all_is_lost():
    torch.manual_seed(0)
    norm, last = torch.nn.BatchNorm2d(4), torch.nn.Linear(64, 3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), norm, torch.nn.ReLU(), torch.nn.Flatten(), last
    )
    config = FitConfig(epochs=1, batch_size=16, losses=("hinton",))
    for places, kept in ((0, True), (1, False)):
        teacher = copy.deepcopy(net)
        assert agreement(teacher, teacher, blobs()) == 1
        last.weight.data = last.weight.data.roll(places, dims=0)
        last.bias.data = last.bias.data.roll(places)
        _training("", teacher, blobs(), config, Progress()).whole(net, "now")
        assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(4)) == kept


def test_a_chain_that_changes_nothing_is_tuned_at_a_tenth_of_the_rate(source):
    torch.manual_seed(0)
    model, wanted, data = load_model(source), load_model(source), blobs()
    wanted.load_state_dict(model.state_dict())
    config = FitConfig(epochs=1, batch_size=16, losses=("task",), finetune_rate=1e-2)
    steps = parse_chain(["sparse:magnitude,keep=1"])
    samples = Samples(example=(torch.zeros(2, 1, 6, 6),))
    made = run_steps(model, steps, samples, data, config).state_dict()
    tune(wanted, model, data, replace(config, finetune_rate=1e-3))
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(made[key], value)


def test_the_teachers_classifier_is_taken_over_with_what_leads_to_it(source):
    torch.manual_seed(0)
    teacher, model = load_model(source), load_model(source)
    model.load_state_dict(teacher.state_dict())
    model.get_submodule("7").reset_parameters()  # type: ignore[operator]
    (x,) = blobs().x_train
    tune(model, teacher, blobs(), FitConfig(epochs=1, batch_size=16, losses=("simkd",)))
    with torch.no_grad():
        found, wanted = (m(torch.from_numpy(x)) for m in (model, teacher))
    assert torch.allclose(found, wanted, atol=0.05 * wanted.abs().max().item())
    other = torch.nn.Sequential(*list(model.children())[:5], torch.nn.Linear(32, 3))
    with pytest.raises(InputError, match="found no linear layer that makes the outputs of both"):
        tune(other, teacher, blobs(), FitConfig(epochs=1, losses=("simkd",)))
    with pytest.raises(InputError, match="simkd beside others"):
        FitConfig(losses=("task", "simkd"))


def test_simkd_brings_a_pruned_network_nearer_to_what_its_teacher_reads(source, tmp_path):
    pytest.importorskip("torch_pruning")
    config = FitConfig(base_epochs=3, epochs=6, losses=("simkd",), batch_size=16)
    facts = Asking(source, tmp_path, "prune:l1,keep=0.5", config=config)("made")
    assert facts.after.macs < facts.before.macs / 2
    assert facts.after.accuracy is not None
    assert facts.before.accuracy is not None
    assert facts.after.accuracy > facts.before.accuracy - 0.15


@pytest.mark.slow
def test_netadapt_tunes_each_try_on_samples_that_do_not_judge_it(source, tmp_path):
    pytest.importorskip("torch_pruning")
    text = "prune:netadapt,resource=weights,keep=0.85,step=0.1,short=64,only=0+2"
    asking = Asking(source, tmp_path, text, config=FitConfig(base_epochs=1, epochs=1))
    whole = asking("whole")
    assert whole.after.weight_bytes <= 0.85 * whole.before.weight_bytes
    with pytest.raises(KeyboardInterrupt):
        asking("stopped", stop=("tune 1 prune:netadapt", 1))
    assert list(tmp_path.glob(".stopped.*/tune 1 prune:netadapt step 1.txt"))
    assert asking("stopped").weights_sha256 == whole.weights_sha256


def test_what_a_model_is_made_from_is_not_written_over(source, tmp_path):
    first = Asking(source, tmp_path, "prune:l1,keep=0.5", config=None)
    first("first")
    for folder in ("first", "second"):
        again = Asking(
            reference(str(tmp_path / folder)), tmp_path, "prune:l1,keep=0.5", config=None
        )
        for out in ("first", folder):
            with pytest.raises(InputError, match="is what the model is made from; name another"):
                again(out)
        again("second" if folder == "first" else "third")
    load_model(reference(str(tmp_path / "third")))


def test_frozen_models_are_not_tuned(source, tmp_path):
    model = load_model(source).requires_grad_(requires_grad=False)
    with pytest.raises(InputError, match=r"^--epochs: found no weight that learns"):
        compress_model(
            model,
            source,
            parse_chain(["sparse:magnitude"]),
            (torch.zeros(1, 1, 6, 6),),
            tmp_path / "out",
            inputs=("1x1x6x6",),
            data=blobs(),
            config=FitConfig(epochs=1),
        )


STUDENTS = """
import torch
from torch import nn


class Few(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 16, num_classes)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def few():
    return Few()


def more():
    return Few(5)


class Made(Few):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        return self.of(super().forward(x))


def whole():
    return Made(torch.Tensor.long)


def nothing():
    return Made(lambda x: x * torch.nan)


def frozen():
    return Few().requires_grad_(False)


class Forgets(Few):
    def __init__(self):
        super().__init__()
        self.register_buffer("gain", 5 * torch.randn(()), persistent=False)

    def forward(self, x):
        return self.gain * super().forward(x)


def forgets():
    return Forgets()


def leaves():
    raise SystemExit(3)


class Turns(Few):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


def turns():
    return Turns()


class Normed(Few):
    def __init__(self, **how):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, **how)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def normed():
    return Normed()


def mixes():
    return Normed(track_running_stats=False)


def bend():
    return nn.GELU()


def wide():
    return nn.Conv2d(3, 8, 1)


def stage():
    return nn.Conv2d(8, 8, 3, groups=4)
"""


@pytest.fixture
def students(tmp_path):
    (tmp_path / "students.py").write_text(STUDENTS)
    return f"replace:network,name={tmp_path / 'students.py'}"


def test_another_network_learns_from_the_model_in_whose_place_it_stands(
    source, students, tmp_path
):
    config = FitConfig(base_epochs=12, epochs=12, batch_size=16)
    asking = Asking(source, tmp_path, f"{students}:few", "quantize:int8", config=config)
    facts = asking("made")
    assert [network.path for network in facts.networks] == [""]
    assert facts.networks[0].model == reference(f"{tmp_path / 'students.py'}:few")
    assert facts.before.accuracy == 1
    assert facts.after.accuracy > 0.8
    loaded = load_model(str(tmp_path / "made"))
    assert type(loaded).__name__ == "Few"
    kinds = [(change.path, change.layer.kind) for change in facts.changes]
    assert kinds == [("conv", "integer"), ("head", "integer")]


def test_a_folder_with_another_network_is_compressed_further(source, students, tmp_path):
    config = FitConfig(base_epochs=1, epochs=1)
    Asking(source, tmp_path, f"{students}:few", config=config)("made")
    again = Asking(reference(str(tmp_path / "made")), tmp_path, "quantize:weights", config=None)
    assert again("smaller").networks == ()
    assert type(load_model(str(tmp_path / "smaller"))).__name__ == "Few"
    over = Asking(source, tmp_path, f"replace:network,name={tmp_path / 'made'}", config=None)
    with pytest.raises(InputError, match="is what the model is made from"):
        over("made")


def test_a_network_may_stand_in_place_of_one_module(source, students, tmp_path):
    facts = Asking(source, tmp_path, f"{students}:stage,only=2", config=None)("made")
    assert [network.path for network in facts.networks] == ["2"]
    assert load_model(str(tmp_path / "made")).get_parameter("2.weight").shape == (8, 2, 3, 3)


def test_a_network_whose_file_has_changed_is_not_loaded(source, students, tmp_path):
    Asking(source, tmp_path, f"{students}:few", config=None)("made")
    (tmp_path / "students.py").write_text(STUDENTS.replace("tanh", "relu"))
    with pytest.raises(InputError, match=r"students.py: has changed since"):
        load_model(str(tmp_path / "made"))


def test_weights_of_another_network_learn_where_those_of_the_same_name_were_frozen(students):
    model = load_model(f"{students.partition('=')[2]}:few")
    model.get_parameter("conv.weight").requires_grad = False
    (step,) = parse_chain([f"{students}:few"])
    example = (torch.zeros(2, 1, 6, 6),)
    made = run_steps(model, [step], Samples(example=example))
    assert all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (":few,skip=0", r"found name=.*:few, only=, skip=0; expected name= with a model"),
        (":few,only=0+2", r"only=0\+2, skip=; .* one module in only= or none"),
        (":few,only=tail", r"found no module 'tail'"),
        (":less", r"less"),
        (":more", r"found outputs \(2, 5\) of float32, expected the model's outputs \(2, 3\)"),
        (":whole", r"found outputs \(2, 3\) of int64, expected the model's .* of float32"),
        (":nothing", r"found outputs \(2, 3\) of float32, NaN among them"),
        (":wide", r"cannot stand in place of the model \("),
        (":stage,only=0", r"cannot stand in place of 0 \("),
        (":frozen", r"found no weight that learns"),
        (":forgets", r"once loaded the model gives other outputs"),
        (":leaves", r"leaves failed when run \(.*SystemExit: 3\)"),
        (":turns", r"depends on the values of a tensor, which cannot be traced"),
        (":mixes", r"answers a sample differently in another batch"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_trained(
    source, students, tmp_path, how, said
):
    config = FitConfig(base_epochs=1, epochs=1)
    with pytest.raises(IsthmusError, match=said):
        Asking(source, tmp_path, students + how, config=config)("made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "students.py"]


def test_a_loss_that_compares_blocks_by_name_is_refused_before_anything_is_trained(
    source, students, tmp_path
):
    for loss, said in (("fitnets", "of a name that both"), ("simkd", "under the same name")):
        config = FitConfig(base_epochs=1, epochs=1, losses=(loss,))
        asking = Asking(source, tmp_path, f"{students}:few", config=config)
        with pytest.raises(InputError, match=said):
            asking("made")
        assert not asking.lines


def test_a_network_without_weights_in_place_of_a_module_is_a_change(source, students, tmp_path):
    Asking(source, tmp_path, f"{students}:bend,only=1", config=None)("made")
    assert isinstance(load_model(str(tmp_path / "made")).get_submodule("1"), torch.nn.GELU)


def test_a_named_network_that_nothing_trains_is_refused(source, tmp_path):
    asking = Asking(source, tmp_path, "replace:network,name=digits-resnet", config=None)
    asking.source = reference("digits-resnet-small")
    with pytest.raises(InputError, match="digits-resnet has random weights here; add --data"):
        compress_model(
            load_model(asking.source),
            asking.source,
            parse_chain(asking.texts),
            (torch.zeros(1, 1, 8, 8),),
            tmp_path / "made",
            inputs=("1x1x8x8",),
        )


def test_a_frozen_or_compressed_teacher_teaches_another_network(source, students, tmp_path):
    Asking(source, tmp_path, "prune:l1,keep=0.5", config=None)("pruned")
    teacher = load_model(str(tmp_path / "pruned")).requires_grad_(False)
    ref = reference(str(tmp_path / "pruned"))
    compress_model(
        teacher,
        ref,
        parse_chain([f"{students}:few"]),
        (torch.zeros(1, 1, 6, 6),),
        tmp_path / "made",
        inputs=("1x1x6x6",),
        data=blobs(),
        config=FitConfig(epochs=1),
    )
    made = reference(str(tmp_path / "made"))
    Asking(made, tmp_path, "prune:l1,keep=0.5", "quantize:int8", config=None)("smaller")
    again = reference(str(tmp_path / "smaller"))
    with pytest.raises(InputError, match="both choose the values of weights"):
        Asking(again, tmp_path, "share:kmeans", config=None)("more")
    over = Asking(source, tmp_path, f"replace:network,name={again.text}", "fold", config=None)
    with pytest.raises(InputError, match="fold after quantize:int8: may undo it"):
        over("more")
    with pytest.raises(InputError, match="pruned: is what the model is made from"):
        Asking(again, tmp_path, "sparse:magnitude", config=None)("pruned")


def test_another_network_begins_alike_whether_its_teacher_was_trained_in_this_sitting(
    source, students, tmp_path
):
    config = FitConfig(base_epochs=1, epochs=2)
    asking = Asking(source, tmp_path, f"{students}:few", config=config)
    whole = asking("whole")
    with pytest.raises(KeyboardInterrupt):
        asking("stopped", stop=(f"{students}:few".partition(",")[0], 1))
    assert asking("stopped").weights_sha256 == whole.weights_sha256


def test_what_comes_after_another_network_names_its_modules(source, students, tmp_path):
    config = FitConfig(base_epochs=1, epochs=1)
    Asking(source, tmp_path, f"{students}:few", "sparse:magnitude,only=conv", config=config)("a")
    with pytest.raises(InputError, match="found no module '5'"):
        Asking(source, tmp_path, f"{students}:few", "sparse:magnitude,only=5", config=config)("b")
    with pytest.raises(InputError, match="put replace:network first"):
        parse_chain(["prune:l1", f"{students}:few"])
    with pytest.raises(InputError, match=r"few after .*few: takes its place; leave one out"):
        parse_chain([f"{students}:few", f"{students}:few"])


def test_an_exit_behind_a_norm_is_measured_where_the_norm_is_folded(source, students, tmp_path):
    texts = (f"{students}:normed", "exits,only=conv+norm", "quantize:int8")
    config = FitConfig(base_epochs=1, epochs=1)
    found = Asking(source, tmp_path, *texts, config=config)("made").exits
    assert [each.path for each in found] == ["conv", "norm"]
    assert found[0] == replace(found[1], path="conv")  # nothing is left between them
