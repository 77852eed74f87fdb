"""What every technique promises, over the whole table."""

import copy
import hashlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.backends import load_program
from isthmus.compress import TECHNIQUES, Samples, Training, apply, figures, parse_chain, settle
from isthmus.compress.technique import STAGES
from isthmus.errors import InputError
from isthmus.export.export import Program, write_program
from isthmus.graph import capture
from isthmus.models import Compressed, load_model, reference
from isthmus.models.compressed import changes, pack_weights, write_compressed
from isthmus.models.load import load_with
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.split import split
from isthmus.study.compress import networks_of
from tests.nets import __file__ as nets

pytest.importorskip("torch_pruning")

NET = """
import torch
from torch import nn


def make():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(16)

        def forward(self, x):
            return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.near, self.far = Block(), Block()
            self.fc = nn.Linear(64, 32)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            x = self.far(self.near(self.stem(x)))
            x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
            return self.head(torch.relu(self.fc(x)))

    return Net()
"""
STRENGTHS = {
    "prune:netadapt": ",keep=0.7,step=0.2",
    "lowrank:svd": ",energy=0.5",
    "lowrank:tucker": ",energy=0.5",
    "quantize:memory": ",flash=40KiB,ram=16KiB",
    "quantize:mixed": ",flash=40KiB,ram=16KiB",
    "format": ",name=mxfp6-e2m3,of=both",
    "replace:network": f",name={nets}:student",
}
OF_A_STAGE = {
    "lowrank:svd": ",energy=0.5,only=fc",
    "replace:network": f",name={nets}:student_stage,only=far",
}
BEFORE = {"prune:width": "prune:slimmable,widths=0.25+0.5"}  # what has to come first

QUICK = (
    "prune:l1",
    "lowrank:tucker",
    "sparse:nm",
    "replace:network",
    "share:kmeans",
    "quantize:int8",
)
EVERY = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TECHNIQUES],
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("source") / "net.py"
    file.write_text(NET)
    return reference(f"{file}:make")


@pytest.fixture(scope="module")
def model(source):
    torch.manual_seed(0)
    made = load_model(source)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return made


def samples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, 6, 6, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    return Samples(example=(x[:2],), inputs=(x,), labels=labels)


def tuned(model, name, penalty=None):
    """Train a model for a step, as techniques may that go step by step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model.train()(*samples().inputs), samples().labels)
    (loss + (penalty() if penalty else 0.0)).backward()
    optimizer.step()
    model.eval()


def applied(model, text):
    """Apply a technique, and what has to come before it, to a copy of a model."""
    name = text.partition(",")[0]
    given = samples()
    if name == "prune:group-lasso":
        training = Training(whole=tuned, short=lambda *_: None, kept=lambda _, find: find())
        given = replace(given, training=training)
    made = copy.deepcopy(model)
    if name in BEFORE:
        where = "".join(text.partition(",only=")[1:])
        (step,) = parse_chain([BEFORE[name] + where])
        made = settle(apply(made, step, given))
    (step,) = parse_chain([text])
    return apply(made, step, given)


@cache
def compressed(model, text):
    return settle(applied(model, text))


@cache
def cost(model):
    return figures(model, samples().example)


def same(first, second):
    with torch.no_grad():
        return torch.equal(first(*samples().inputs), second(*samples().inputs))


@EVERY
class TestEveryTechnique:
    def test_says_what_it_is(self, name):
        technique = TECHNIQUES[name]
        assert technique.name == name
        assert technique.does
        assert "http" in technique.paper
        assert technique.improves
        assert technique.stage in STAGES

    def test_keeps_the_shape_of_the_outputs_and_the_model_that_it_was_given(self, name, model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        made = compressed(model, name + STRENGTHS.get(name, ""))
        with torch.no_grad():
            assert made(*samples().inputs).shape == (32, 10)
            assert made(*samples().inputs).isfinite().all()
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_makes_smaller_what_it_says(self, name, model):
        made = compressed(model, name + STRENGTHS.get(name, ""))
        before, after = cost(model), cost(made)
        fields = {"macs": "macs", "parameters": "parameters", "weight bytes": "weight_bytes"}
        fields |= {"stored bytes": "stored_bytes", "activation bytes": "activation_bytes"}
        for improved in set(TECHNIQUES[name].improves) & set(fields):
            assert getattr(after, fields[improved]) < getattr(before, fields[improved]), improved

    def test_holds_while_it_is_trained(self, name, model):
        text = name + STRENGTHS.get(name, "")
        made = applied(model, text).train()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
        losses = []
        for _ in range(8):
            loss = nn.functional.cross_entropy(made(*samples().inputs), samples().labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        untrained = cost(compressed(model, text))
        trained = cost(settle(made.eval()))
        assert trained.parameters <= untrained.parameters * 1.1
        assert trained.stored_bytes <= untrained.stored_bytes * 1.1

    def test_settles_to_what_it_was(self, name, model):
        made = applied(model, name + STRENGTHS.get(name, ""))
        with torch.no_grad():
            before = made(*samples().inputs)
            after = settle(made)(*samples().inputs)
        assert torch.allclose(before, after, atol=1e-4 * before.abs().max().item())

    def test_is_saved_and_loaded(self, name, model, source, tmp_path):
        made = compressed(model, name + STRENGTHS.get(name, ""))
        weights = pack_weights(made)
        networks = networks_of(parse_chain([name + STRENGTHS.get(name, "")]))
        found = load_with(source, networks, where="")
        facts = Compressed(
            source=source,
            techniques=(name,),
            inputs=("1x3x6x6",),
            networks=networks,
            changes=changes(found, made),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            before=cost(made),
            after=cost(made),
        )
        write_compressed(tmp_path / "made", facts, weights, check=lambda folder: None)
        assert same(load_model(str(tmp_path / "made")), made)

    def test_is_exported_equal(self, name, model, tmp_path):
        made = compressed(model, name + STRENGTHS.get(name, ""))
        path = tmp_path / "program" / "program.onnx"
        write_program(Program(None, made, None), samples().example, path, device="here")
        (x,) = samples().inputs
        (found,) = load_program(path, backend="onnxruntime")([x.numpy()])
        with torch.no_grad():
            expected = made(x).numpy()
        off = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
        assert np.median(off) < 1e-5  # a value on the edge of two steps may round either way
        assert off.max() < 0.05

    def test_works_on_one_stage_of_a_split_model(self, name, model):
        how = OF_A_STAGE.get(name, f"{STRENGTHS.get(name, '')},only=far")
        made = compressed(model, name + how)
        graph = capture(made, samples().example)
        cut = (
            next(
                k
                for k, node in enumerate(graph.nodes, start=1)
                if node.module.startswith("near.bn2")
            )
            if name not in ("fold",)
            else 4
        )
        small = name != "replace:adder"  # which holds every window of its input at once
        platform = load_platform("two-mcu-spi" if small else "camera-hub")
        plan = partition(graph, platform, cut=cut, codec="raw")
        with torch.no_grad():
            whole, parts = made(*samples().inputs), split(made, plan)(*samples().inputs)
        assert torch.allclose(whole, parts, atol=1e-5)
        near = {k: v for k, v in model.near.state_dict().items() if not k.startswith("bn2")}
        if not name.startswith("prune"):  # pruning reaches what a layer depends on
            kept = made.near.state_dict()
            assert all(torch.equal(kept[key], value) for key, value in near.items())

    def test_refuses_an_option_that_it_does_not_have(self, name):
        with pytest.raises(InputError, match=f"{name}: found option 'depth=3'; it takes"):
            parse_chain([f"{name},depth=3"])

    def test_refuses_a_module_that_is_not_there(self, name, model):
        with pytest.raises(InputError, match="found no module 'tail'"):
            compressed(model, f"{name}{STRENGTHS.get(name, '')},only=tail")
