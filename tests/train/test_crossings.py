from copy import deepcopy
from dataclasses import replace
from functools import cache
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.data import from_arrays
from isthmus.errors import InputError
from isthmus.graph import capture, cuts
from isthmus.links import Codec
from isthmus.links.density import Density
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.progress import silent
from isthmus.train import (
    Augmentation,
    FitConfig,
    accuracy,
    climb_down,
    enough,
    fill_tables,
    fit_base,
    fit_crossings,
    payload_bytes,
    split_with_codecs,
)
from isthmus.train.crossings import begin, tune_receiver
from isthmus.train.ladder import Rung, check_sizes
from isthmus.train.loop import Batches, Progress
from isthmus.train.sizes import NUM_COUNTED, some_samples
from isthmus.train.views import make_views
from tests.train.test_fit import blobs, net, weights_of
from tests.train.test_fit import plan_of as plan_on_boards

CODED = "bottleneck:ratio=2,bits=8+entropy"


def plan_of(model, codec="bottleneck:ratio=8,bits=4"):
    return plan_on_boards(model, codec, platform="two-pi-ethernet")


@cache
def base(num):
    data, model = blobs(num), net()
    fit_base(model, data, FitConfig(base_epochs=4, batch_size=16))
    return data, model


def trained(num=256):
    """Return data, and a model of the caller's own that was trained on them once."""
    data, model = base(num)
    torch.manual_seed(4)  # what is drawn from here on is the same, trained just now or before
    return data, deepcopy(model)


@pytest.mark.parametrize("epochs", [2, pytest.param(14, marks=pytest.mark.long)])
def test_training_ends_at_the_bytes_that_were_wanted_or_below_where_fewer_will_do(epochs):
    sizes = {}
    for wanted in (8.0, 100.0):
        data, model = trained()
        split_model = split_with_codecs(model, plan_of(model, CODED))
        config = FitConfig(epochs=epochs, batch_size=16, wanted_bytes=wanted)
        fit_crossings(split_model, data, config)
        (sizes[wanted],) = payload_bytes(split_model, data.x_test)
        assert sizes[wanted] < 1.03 * wanted
    assert 6 < sizes[8.0] < sizes[100.0]


def test_both_results_are_judged_and_the_one_that_was_asked_for_is_kept():
    kept = {}
    for sender in ("frozen", "tuned"):
        data, model = trained()
        before = weights_of(model)
        split_model = split_with_codecs(model, plan_of(model))
        judged: dict[str, dict[str, torch.Tensor]] = {}

        def judge(sender, split_model=split_model, judged=judged):
            assert not split_model.training
            judged[sender] = weights_of(split_model)

        fit_crossings(
            split_model, data, FitConfig(epochs=2, batch_size=16, sender=sender), judge=judge
        )
        assert list(judged) == ["frozen", "tuned"]
        kept = weights_of(split_model)
        assert all(torch.equal(kept[name], judged[sender][name]) for name in kept)
        front = [name for name in before if name.split(".")[0] in ("0", "1")]
        assert front
        stage = {name: v for name, v in judged["frozen"].items() if name.startswith("stages.0.")}
        same = [any(torch.equal(v, before[name]) for v in stage.values()) for name in front]
        assert all(same), "the sender's network, its norms too, stays as it came"
        moved = [n for n in stage if not torch.equal(stage[n], judged["tuned"][n])]
        assert moved


def test_the_teacher_answers_for_the_images_that_the_receiver_is_shown(monkeypatch):
    monkeypatch.setattr("isthmus.train.crossings.make_views", lambda *args, **options: None)
    losses: list[float] = []
    for augmentation in (None, Augmentation(padding=2, flip=True)):
        data, model = trained()
        parts = split_with_codecs(model, plan_of(model, "uniform:bits=8"))
        config = FitConfig(epochs=1, batch_size=16, augmentation=augmentation, losses=("hinton",))
        receiver, _ = fit_crossings(parts, data, config)
        losses += receiver.losses
    # nothing is lost at 8 bits: of each image the student says what the teacher does
    assert losses[1] == pytest.approx(losses[0], rel=1)


def test_a_fit_with_entropy_code_repeats_to_the_bit():
    found = []
    for _ in range(2):
        data, model = trained()
        split_model = split_with_codecs(model, plan_of(model, CODED))
        fit_crossings(split_model, data, FitConfig(epochs=2, batch_size=16, wanted_bytes=20))
        found.append(weights_of(split_model))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_a_fit_interrupted_in_any_phase_goes_on_and_ends_with_the_same_bits(tmp_path):
    def fit(folder, report=silent):
        data, model = trained(128)
        split_model = split_with_codecs(model, plan_of(model, CODED))
        config = FitConfig(epochs=2, batch_size=16, wanted_bytes=20)
        fit_crossings(
            split_model, data, config, progress=Progress(report=report, checkpoints=folder)
        )
        return weights_of(split_model)

    stopped = []

    def stop(step, done, total):
        phase = step.partition(",")[0]
        if phase not in stopped:
            stopped.append(phase)
            raise KeyboardInterrupt

    expected = fit(tmp_path / "whole")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "stopped", stop)
    assert stopped == ["features", "receiver", "whole"]
    found = fit(tmp_path / "stopped", stop)
    assert all(torch.equal(v, expected[k]) for k, v in found.items())


@pytest.mark.long
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_layers_compute_in_the_precision_that_was_asked_for_and_weights_stay_floats(precision):
    data, model = trained()
    split_model = split_with_codecs(model, plan_of(model, CODED))
    seen = set()

    def watch(module, inputs, output):
        if module.training:
            seen.add(output.dtype)

    for module in split_model.codecs.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(watch)
    config = FitConfig(epochs=6, batch_size=16, wanted_bytes=20, precision=precision)
    fit_crossings(split_model, data, config)
    assert seen == {torch.float32 if precision == "32-true" else torch.bfloat16}
    assert {v.dtype for v in split_model.state_dict().values() if v.is_floating_point()} == {
        torch.float32
    }
    assert accuracy(split_model, data.x_test, data.y_test) > 0.9


def test_the_tables_of_a_fit_are_those_of_its_symbols():
    data, model = trained()
    split_model = split_with_codecs(model, plan_of(model, CODED))
    fit_crossings(split_model, data, FitConfig(epochs=2, batch_size=16))
    (codec,) = split_model.codecs
    assert isinstance(codec, Codec)
    assert codec.tables
    assert not codec.spec.fixed_rate
    (measured,) = payload_bytes(split_model, data.x_test)
    assert codec.spec.payload_bytes == pytest.approx(measured, rel=0.2)
    assert accuracy(split_model, data.x_test, data.y_test) > 0.9


def test_a_density_takes_the_bits_of_an_even_spread():
    density = Density((3, 2, 2), bits=4)
    symbols = torch.randint(16, (400, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    density.calibrate(symbols)
    optimizer = torch.optim.Adam(density.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        density(symbols.float()).mean().backward()
        optimizer.step()
    assert density(symbols.float()).mean().item() / 12 == pytest.approx(log2(16), abs=0.2)


def test_the_probabilities_of_a_density_sum_to_one():
    density = Density((1,), bits=3)
    density.calibrate(torch.randint(8, (50, 1), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        total = sum(2 ** -float(density(torch.full((1, 1), float(s)))) for s in range(8))
    assert total == pytest.approx(1, abs=1e-4)


def test_views_hold_the_samples_first_and_then_what_may_happen_to_them():
    x = np.random.default_rng(0).normal(size=(10, 3, 6, 6)).astype(np.float32)
    views = make_views(
        lambda x_BCHW: (2 * x_BCHW,),
        lambda x_BCHW: x_BCHW.flatten(1)[:, :4],
        (x,),
        Augmentation(padding=1, border="reflection"),
        seed=0,
    )
    assert views is not None
    assert views.num_views == 4
    (tensor,) = views.tensors
    assert tensor.shape == (40, 3, 6, 6)
    assert torch.allclose(tensor[:10].float(), 2 * torch.from_numpy(x), atol=1e-2)
    assert not torch.equal(tensor[10:20], tensor[:10])
    assert torch.allclose(views.targets, tensor.float().flatten(1)[:, :4], atol=1e-2)


def test_values_beyond_sixteen_bits_are_not_kept_as_views():
    x = np.full((4, 1, 2, 2), 1e6, np.float32)
    assert make_views(lambda t: (t,), lambda t: t.flatten(1), (x,), None, seed=0) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_making_views_takes_little_more_memory_than_they_do():
    x = np.zeros((12_000, 1, 64, 64), np.float32)

    def memory(which):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    views = make_views(lambda t: (t,), lambda t: t[:, :, 0, :2].flatten(1), (x,), None, seed=0)
    assert views is not None
    kept = sum(t.numel() * t.itemsize for t in views.tensors)
    assert memory("VmHWM") - before < 1.5 * kept


def test_an_epoch_over_views_meets_every_sample_once():
    inputs, targets = torch.arange(24)[:, None].float(), torch.arange(24)[:, None].float()
    batches = Batches((inputs,), torch.arange(8), targets, batch_size=4, seed=0, views=3)
    met, drawn = [], []
    for (x,), labels, target in batches:
        assert torch.equal(x, target)
        assert torch.equal(x[:, 0].long() % 8, labels)
        met += labels.tolist()
        drawn += (x[:, 0].long() // 8).tolist()
    assert sorted(met) == list(range(8))
    assert len(set(drawn)) > 1


def test_a_ladder_goes_down_until_it_costs_too_much_and_reads_no_test_image():
    data, model = trained(512)
    poisoned = replace(data, x_test=(np.full_like(data.x_test[0], np.nan),))

    def make_split():
        _, again = trained(512)
        return split_with_codecs(again, plan_of(again, CODED))

    rungs = climb_down(
        make_split,
        model,
        poisoned,
        FitConfig(epochs=4, batch_size=16),
        drop=5,
        progress=Progress(),
    )
    sizes = [rung.wanted_bytes for rung in rungs]
    assert sizes == sorted(sizes, reverse=True)
    assert all(rung.drop <= 5 for rung in rungs[1:-1])
    assert enough(rungs, drop=5) in [rung.payload_bytes for rung in rungs]


@pytest.mark.long
def test_an_interrupted_ladder_goes_on_and_finds_the_same_rungs(tmp_path):
    data, model = trained(256)

    def climb(folder, report=silent):
        _, again = trained(256)
        return climb_down(
            lambda: split_with_codecs(again, plan_of(again, CODED)),
            model,
            data,
            FitConfig(epochs=4, batch_size=16),
            drop=5,
            progress=Progress(report=report, checkpoints=folder),
        )

    def stop(step, done, total):
        if done == 2:
            raise KeyboardInterrupt

    whole = climb(tmp_path / "whole")
    assert len(whole) > 2
    with pytest.raises(KeyboardInterrupt):
        climb(tmp_path / "stopped", stop)
    first = tmp_path / "stopped" / "ladder-0" / "receiver" / "state.ckpt"
    written = first.stat().st_mtime_ns
    assert climb(tmp_path / "stopped") == whole
    assert first.stat().st_mtime_ns == written


def test_a_network_of_volumes_is_fitted():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    graph = capture(model, (torch.zeros(2, 1, 4, 4, 4),))
    cut = next(i + 1 for i, node in enumerate(graph.nodes) if node.op == "relu")
    plan = partition(graph, load_platform("two-pi-ethernet"), codec="uniform:bits=4", cut=cut)
    rng = np.random.default_rng(0)
    x, y = rng.random((32, 1, 4, 4, 4), np.float32), rng.integers(0, 3, 32)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    data = from_arrays(arrays, name="volumes")
    assert fit_crossings(split_with_codecs(model, plan), data, FitConfig(epochs=1))


def test_data_sorted_by_class_are_calibrated_on_as_well_as_others():
    data, model = trained(2048)
    order = data.y_train.argsort(kind="stable")
    by_class = replace(data, x_train=(data.x_train[0][order],), y_train=data.y_train[order])
    split_model = split_with_codecs(model, plan_of(model, "uniform:bits=4+entropy"))
    begin(split_model, by_class, FitConfig(), progress=Progress())
    fill_tables(split_model, some_samples(split_model, by_class, NUM_COUNTED))
    (codec,) = (codec for codec in split_model.codecs if isinstance(codec, Codec))
    (real,) = payload_bytes(split_model, data.x_test)
    assert codec.spec.payload_bytes == pytest.approx(real, rel=0.03)
    whole = accuracy(model, data.x_test, data.y_test)
    assert accuracy(split_model, data.x_test, data.y_test) == pytest.approx(whole, abs=0.02)


def test_the_fewest_bytes_within_the_drop_are_enough():
    rungs = tuple(
        Rung(wanted_bytes=size, payload_bytes=size, accuracy=0.9, drop=drop)
        for size, drop in ((64.0, 0.1), (45.0, 0.4), (32.0, 1.2))
    )
    assert enough(rungs, drop=0.5) == 45
    assert enough(rungs, drop=0.01) == 64


def test_sizes_that_training_does_not_change_are_refused():
    data, model = trained(64)
    size, frozen = FitConfig(wanted_bytes=9), FitConfig(wanted_bytes=9, sender="frozen")
    sent = split_with_codecs(model, plan_of(model, "uniform:bits=4+entropy"))
    check_sizes(sent, data, size)
    check_sizes(split_with_codecs(model, plan_of(model, CODED)), data, frozen)
    with pytest.raises(InputError, match="stays as it came, and so what uniform sends"):
        check_sizes(sent, data, frozen)


def test_a_ladder_needs_a_sample_to_hold_out():
    data, model = trained(64)
    one = replace(data, x_train=(data.x_train[0][:1],), y_train=data.y_train[:1])
    pieces = split_with_codecs(model, plan_of(model, CODED))
    with pytest.raises(InputError, match="found 1 training sample, expected 2 or more"):
        check_sizes(pieces, one, FitConfig(drop=1))


def test_weights_too_short_to_train_are_refused_and_cross_as_they_are():
    data, model = trained(64)
    halves = replace(data, x_train=(data.x_train[0].astype(np.float16),))
    plain, learned = (plan_of(model.half(), codec) for codec in ("raw", "bottleneck"))
    assert fit_crossings(split_with_codecs(model, plain), halves, FitConfig()) == ()
    with pytest.raises(InputError, match=r"weights are float16.*float32"):
        fit_crossings(split_with_codecs(model, learned), halves, FitConfig())


class Halved(nn.Module):
    """Goes through 16 bits in the middle."""

    def __init__(self):
        super().__init__()
        self.front, self.back = nn.Conv2d(8, 8, 1), nn.Linear(128, 3)

    def forward(self, x):
        return self.back(self.front(x).half().flatten(1).float())


def test_what_crosses_in_half_precision_is_learned_from_as_it_is():
    data = blobs(64)
    model = Halved().eval()
    graph = capture(model, (torch.zeros(2, 8, 4, 4),))
    cut = next(c.index for c in cuts(graph) if c.tensors[0].dtype == "float16")
    plan = partition(graph, load_platform("two-pi-ethernet"), codec="bottleneck", cut=cut)
    assert fit_crossings(split_with_codecs(model, plan), data, FitConfig(epochs=1))


def test_a_ladder_without_entropy_code_is_refused():
    data, model = trained(64)
    with pytest.raises(InputError, match=r"fixed sizes; plan with a codec that ends in \+entropy"):
        climb_down(
            lambda: split_with_codecs(model, plan_of(model)),
            model,
            data,
            FitConfig(),
            drop=1,
            progress=Progress(),
        )


@pytest.mark.parametrize(
    "losses", [("task", "decoupled"), ("hinton", "feature", "attention", "relational")]
)
def test_a_fit_by_other_losses_keeps_the_accuracy_and_repeats_to_the_bit(losses):
    found = []
    for _ in range(2):
        data, model = trained()
        whole = accuracy(model, data.x_test, data.y_test)
        split_model = split_with_codecs(model, plan_of(model))
        records = fit_crossings(
            split_model, data, FitConfig(epochs=3, batch_size=16, losses=losses)
        )
        assert accuracy(split_model, data.x_test, data.y_test) >= whole - 0.05
        assert all(record.losses[-1] < record.losses[0] for record in records[1:])
        found.append(weights_of(split_model))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_matching_losses_see_every_crossing_of_a_chain_and_reach_every_codec():
    data, model = trained()
    graph = capture(model, (torch.zeros(2, 8, 4, 4),))
    relus = [i + 1 for i, node in enumerate(graph.nodes) if node.op == "relu"]
    plan = partition(
        graph, load_platform("camera-hub-cloud"), codec="bottleneck:ratio=4,bits=4", cut=relus
    )
    split_model = split_with_codecs(model, plan)
    before = weights_of(split_model.codecs)
    config = FitConfig(epochs=1, batch_size=16, losses=("feature",))
    fit = begin(split_model, data, config, progress=Progress())
    assert fit is not None
    calibrated = weights_of(split_model.codecs)
    tune_receiver(fit)
    moved = weights_of(split_model.codecs)
    for number in (0, 1):
        name = next(n for n in before if n.startswith(f"{number}.") and "narrow.weight" in n)
        assert not torch.equal(moved[name], calibrated[name])


def test_matching_losses_compare_a_nested_link_at_its_widest():
    data, model = trained()
    split_model = split_with_codecs(model, plan_of(model, "bottleneck:ratio=2,bits=6,nested=1"))
    config = FitConfig(epochs=3, batch_size=16, losses=("hinton", "feature", "relational"))
    records = fit_crossings(split_model, data, config)
    assert all(record.losses[-1] < record.losses[0] for record in records[1:])
    assert accuracy(split_model, data.x_test, data.y_test) > 0.9


def test_attention_is_refused_where_no_crossing_has_positions():
    data = blobs(64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    graph = capture(model, (torch.zeros(2, 8, 4, 4),))
    platform = load_platform("two-pi-ethernet")
    plan = partition(graph, platform, codec="bottleneck:ratio=2,bits=4", cut=3)
    split_model = split_with_codecs(model, plan)
    config = FitConfig(epochs=1, losses=("hinton", "attention"))
    with pytest.raises(InputError, match=r"crossings \[\(16,\)\], expected positions"):
        fit_crossings(split_model, data, config)


def test_mutual_learning_is_refused_as_the_whole_model_stays():
    model = net()
    split_model = split_with_codecs(model, plan_of(model, "uniform:bits=4"))
    with pytest.raises(InputError, match=r"loss mutual: .*expected hinton"):
        fit_crossings(split_model, blobs(), FitConfig(epochs=1, losses=("mutual",)))


@pytest.mark.parametrize("losses", [(), ("hinton", "hinton"), ("task", "l2")])
def test_losses_without_a_name_are_refused(losses):
    with pytest.raises(InputError, match="expected one or more of task, hinton, decoupled"):
        FitConfig(losses=losses)
