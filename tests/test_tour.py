"""The whole package on one page, in the order in which the data flows. Read this first."""

from dataclasses import replace

import torch

from isthmus.data import load_data
from isthmus.export import export
from isthmus.graph import capture, cuts
from isthmus.links import Codec
from isthmus.models import digits_resnet
from isthmus.plan import check, partition
from isthmus.platform import load_platform
from isthmus.run import run_bundle
from isthmus.train import FitConfig, fit_base, fit_crossings, split_with_codecs


def test_the_tour(tmp_path):
    # Data are arrays; a model is a torch module.
    digits = load_data("digits")
    torch.manual_seed(0)
    model = digits_resnet()
    fit_base(model, digits, FitConfig(base_epochs=3))

    # WHAT is computed: a graph of nodes, and every place where it can be cut.
    graph = capture(model, (torch.zeros(1, 1, 8, 8),))
    assert graph.num_parameters == 39_354
    after_layer2 = next(cut for cut in cuts(graph) if cut.after == "layer2")
    assert [tensor.shape for tensor in after_layer2.tensors] == [(32, 4, 4)]
    assert after_layer2.num_bytes == 2048

    # ON WHAT: two microcontrollers, neither of which can hold the weights.
    platform = load_platform("two-mcu-spi")
    rooms = [device.memory.weights_bytes or 0 for device in platform.devices]
    assert max(rooms) < graph.weight_bytes < sum(rooms)

    # WHO computes what, and what crosses: the best plan, its rivals, and nothing it breaks.
    plan = partition(graph, platform, codec="bottleneck:ratio=8,bits=4")
    assert plan.split
    assert check(plan, graph, platform) == ()
    assert plan.crossings[0].payload_bytes == 32
    assert plan.predicted.latency_s <= min(
        r.predicted.latency_s for r in plan.runner_ups if r.fits
    )

    # HOW it crosses: the model in stages, a codec between them, trained together.
    split_model = split_with_codecs(model, plan)
    fit_crossings(split_model, digits, FitConfig(epochs=3))
    (codec,) = split_model.codecs
    assert isinstance(codec, Codec)
    assert len(codec.compress(split_model.stages[0](torch.zeros(1, 1, 8, 8)))[0]) == 32

    # A bundle on disk, equal to the model it came from.
    verification = export(split_model, plan, tmp_path / "bundle", samples=digits.x_test)
    assert verification.equal_predictions >= 0.99

    # One process per device, real bytes between them.
    record = run_bundle(tmp_path / "bundle", digits.x_test, digits.y_test, requests=40)
    assert record.lost == 0
    assert record.crossings[0].payload_bytes_measured == plan.crossings[0].payload_bytes
    assert record.accuracy is not None
    assert record.accuracy > 0.8

    # Another platform is another answer: with room for everything, nobody splits.
    roomy = replace(platform, devices=tuple(map(_without_limits, platform.devices)))
    assert not partition(graph, roomy, codec="bottleneck:ratio=8,bits=4").split


def _without_limits(device):
    return replace(device, memory=type(device.memory)())
