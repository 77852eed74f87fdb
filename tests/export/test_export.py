import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from isthmus.bundle import read_bundle
from isthmus.errors import BundleError, CaptureError, InputError
from isthmus.export import check_devices, export
from isthmus.export.export import Program, write_program
from isthmus.graph import capture, cuts
from isthmus.plan import partition
from isthmus.platform import load_platform
from isthmus.run import start_workers
from isthmus.run.messages import hop_terms
from isthmus.train import calibrate, split_with_codecs
from tests.nets import NETS

CHAIN = """
schema: isthmus.platform/1
name: three
devices:
  a: {memory: 1 MiB, compute: {fp32: 1 MMAC/s}}
  b: {memory: 1 KiB, compute: {fp32: 1 MMAC/s}}
  c: {memory: 1 MiB, compute: {fp32: 1 GMAC/s}}
links:
  - {between: [a, b], bandwidth: 10 Mbit/s}
  - {between: [b, c], bandwidth: 10 Mbit/s}
input: a
output: c
"""


def fitted(model, example, platform, codec, cut):
    graph = capture(model, example)
    plan = partition(graph, platform, codec=codec, cut=cut(graph))
    split_model = split_with_codecs(model, plan)
    calibrate(split_model, example)
    return split_model, plan


def count_symbols(split_model, example):
    with torch.no_grad():
        split_model.codecs[0].fit_tables(split_model.stages[0](*example))


@pytest.mark.parametrize(
    "codec",
    [
        "raw",
        "raw:bits=16",
        "uniform:bits=5",
        "uniform:bits=5,per=vector",
        "float:format=bf16",
        "float:format=mxfp6-e2m3",
        "bottleneck:ratio=2",
    ],
)
def test_a_bundle_predicts_what_the_split_model_does(tmp_path, codec):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()
    example = (torch.rand(16, 3, 8, 8),)
    split_model, plan = fitted(
        model, example, load_platform("two-mcu-spi"), codec, lambda graph: 3
    )
    verification = export(
        split_model, plan, tmp_path / "bundle", samples=[x.numpy() for x in example]
    )
    assert verification.samples == 16
    assert verification.equal_predictions == 1
    (differ,), (apart,) = verification.symbols_differ, verification.symbols_apart
    assert (differ is None) == (apart is None) == codec.startswith("raw")
    assert (differ or 0) <= 0.01
    assert (apart or 0) <= 1
    assert verification.payload_bytes == (plan.crossings[0].payload_bytes,)
    if codec == "raw":
        assert verification.largest_difference < 1e-5
    bundle = read_bundle(tmp_path / "bundle")
    assert [device.program for device in bundle.devices] == [
        "mcu-a/program.onnx",
        "mcu-b/program.onnx",
    ]
    assert set(bundle.files) == {
        "mcu-a/program.onnx", "mcu-b/program.onnx", "plan.json", "platform.yaml",
        "verification.json",
    }  # fmt: skip


def test_programs_end_in_integers_and_take_any_batch(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    example = (torch.rand(4, 3, 8, 8),)
    split_model, plan = fitted(
        model, example, load_platform("two-mcu-spi"), "bottleneck:ratio=4,bits=3", lambda g: 2
    )
    export(split_model, plan, tmp_path / "bundle", samples=[x.numpy() for x in example])
    program = onnx.load(tmp_path / "bundle" / "mcu-a" / "program.onnx")
    output = program.graph.output[0].type.tensor_type
    assert output.elem_type == onnx.TensorProto.UINT8
    assert output.shape.dim[0].dim_param


@pytest.mark.parametrize(
    "codec",
    ["uniform:bits=5,per=vector", pytest.param("float:format=mxfp8-e4m3", marks=pytest.mark.slow)],
)
def test_a_device_that_only_passes_on_has_no_program_and_runs(tmp_path, codec):
    (tmp_path / "three.yaml").write_text(CHAIN)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    example = (torch.rand(8, 40),)
    split_model, plan = fitted(
        model, example, load_platform(tmp_path / "three.yaml"), codec, lambda g: 2
    )
    assert [len(stage.nodes) for stage in plan.stages] == [2, 0, 1]
    export(split_model, plan, tmp_path / "bundle", samples=[x.numpy() for x in example])
    bundle = read_bundle(tmp_path / "bundle")
    assert [device.program is None for device in bundle.devices] == [False, True, False]
    with start_workers(tmp_path / "bundle") as workers, torch.no_grad():
        outputs = workers.ask([example[0][0].numpy()])
        assert outputs is not None
        assert np.allclose(outputs[0], split_model(example[0][:1]).numpy(), atol=1e-5)


@pytest.mark.parametrize("codec", ["uniform:bits=6+entropy", "bottleneck:ratio=2,bits=6+entropy"])
def test_tables_go_into_the_bundle_and_a_relay_needs_none_of_its_own(tmp_path, codec):
    (tmp_path / "three.yaml").write_text(CHAIN)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    example = (torch.rand(256, 40),)
    split_model, plan = fitted(
        model, example, load_platform(tmp_path / "three.yaml"), codec, lambda g: 2
    )
    count_symbols(split_model, example)
    samples = [x.numpy() for x in example]
    verification = export(split_model, plan, tmp_path / "bundle", samples=samples)
    bundle = read_bundle(tmp_path / "bundle")
    assert {crossing.tables for crossing in bundle.crossings} == {"crossing0.tables"}
    assert "crossing0.tables" in bundle.files
    for crossing, measured in zip(bundle.crossings, verification.payload_bytes, strict=True):
        assert not crossing.fixed_rate
        assert measured < plan.crossings[0].payload_bytes
        assert crossing.payload_spread_bytes is not None
        assert abs(measured - crossing.payload_bytes) < 0.25 + crossing.payload_spread_bytes
    with start_workers(tmp_path / "bundle") as workers, torch.no_grad():
        outputs = workers.ask([example[0][0].numpy()])
        assert outputs is not None
        assert np.allclose(outputs[0], split_model(example[0][:1]).numpy(), atol=1e-5)


def test_both_ends_of_a_hop_name_their_tables_by_their_hash(tmp_path):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    terms = []
    for seed in (0, 1):
        example = (torch.rand(256, 40, generator=torch.Generator().manual_seed(seed)),)
        split_model, plan = fitted(
            model, example, load_platform("two-mcu-spi"), "uniform:bits=6+entropy", lambda g: 2
        )
        count_symbols(split_model, example)
        folder = tmp_path / str(seed)
        export(split_model, plan, folder, samples=[x.numpy() for x in example])
        bundle = read_bundle(folder)
        terms.append(hop_terms(bundle, "", 1).codec)
        assert bundle.files["crossing0.tables"] in terms[-1]
    assert terms[0] != terms[1]
    (folder / "crossing0.tables").write_bytes((tmp_path / "0" / "crossing0.tables").read_bytes())
    with pytest.raises(BundleError, match=r"crossing0\.tables: has been changed"):
        read_bundle(folder)


def test_a_bundle_that_differs_from_the_model_is_not_left_behind(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    example = (torch.randn(32, 6),)
    split_model, plan = fitted(
        model, example, load_platform("two-mcu-spi"), "raw", lambda graph: 1
    )

    class Drifting(nn.Module):
        """Gives other answers to torch than to the exporter."""

        def forward(self, x):
            sign = 1.0 if torch.compiler.is_exporting() else -1.0
            return (x * sign,)

    split_model.stages[0] = Drifting()
    with pytest.raises(BundleError, match="predictions differ"):
        export(split_model, plan, tmp_path / "bundle", samples=[x.numpy() for x in example])
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_cannot_be_written_names_the_device(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    example = (torch.randn(4, 6),)
    split_model, plan = fitted(
        model, example, load_platform("two-mcu-spi"), "raw", lambda graph: 1
    )

    class Odd(nn.Module):
        def forward(self, x):
            return (torch.linalg.eigvals(x.reshape(-1, 1, 1) + torch.eye(6)).real[:6],)

    split_model.stages[1] = Odd()
    with pytest.raises(CaptureError, match="stage on mcu-b") as caught:
        export(split_model, plan, tmp_path / "bundle", samples=[x.numpy() for x in example])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_is_replaced_and_other_folders_are_not(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    example = (torch.randn(4, 6),)
    split_model, plan = fitted(
        model, example, load_platform("two-mcu-spi"), "raw", lambda graph: 1
    )
    samples = [x.numpy() for x in example]
    export(split_model, plan, tmp_path / "bundle", samples=samples)
    first = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    export(split_model, plan, tmp_path / "bundle", samples=samples)
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text()) == first
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(InputError, match="not ours"):
        export(split_model, plan, tmp_path / "home", samples=samples)


def test_an_interruption_that_torch_loses_while_it_writes_is_no_fault_of_the_model(tmp_path):
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                raise KeyboardInterrupt
            finally:
                raise AssertionError("Trying to pop empty mode stack")

    with pytest.raises(KeyboardInterrupt):
        write_program(
            Program(None, Interrupted(), None),
            (torch.zeros(2, 4),),
            tmp_path / "a" / "p.onnx",
            device="a",
        )


QUICK = ("branches", "attention", "windows", "decoder", "sensors")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in NETS
        if name != "dropouts"  # ONNX has no RReLU
    ],
)
def test_every_small_network_survives_the_way_to_a_bundle(tmp_path, name):
    torch.manual_seed(0)
    split_model, plan = fitted(
        NETS[name].make().eval(),
        NETS[name].inputs(16),
        load_platform("chiplets-4"),
        None if NETS[name].tokens else "uniform:bits=8",
        lambda graph: next(c.index for c in cuts(graph)[3:] if not c.obstacle),
    )
    samples = [x.numpy() for x in NETS[name].inputs(16, seed=1)]
    verification = export(split_model, plan, tmp_path / "bundle", samples=samples)
    assert verification.equal_predictions == 1


def test_a_way_that_visits_a_device_twice_is_planned_but_has_no_bundle():
    net = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)))
    graph = capture(net, (torch.zeros(1, 64, 32, 32),))
    plan = partition(graph, load_platform("pcie-pair"))
    assert [stage.device for stage in plan.stages] == ["host", "accelerator", "host"]
    assert "host on the way more than once: a plan that no bundle can hold" in plan.notes
    with pytest.raises(InputError, match="host stands on the way 2 times"):
        check_devices(plan, net)


@pytest.mark.parametrize("name", ["plan.json", "Bundle.sig", "crossing0.tables"])
def test_a_device_that_is_called_like_a_file_of_a_bundle_has_none(name):
    boards = load_platform("two-mcu-spi")
    devices = (replace(boards.devices[0], name=name), boards.devices[1])
    links = (replace(boards.links[0], between=(name, "mcu-b")),)
    platform = replace(boards, devices=devices, links=links, input=name)
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    plan = partition(capture(net, (torch.zeros(1, 8),)), platform, codec="raw", cut=1)
    with pytest.raises(InputError, match=f"plan: device {name}: a bundle holds a file of that"):
        check_devices(plan, net)


def test_a_program_that_has_no_room_is_no_matter_of_the_cut(tmp_path):
    path = tmp_path / "a" / "program.safetensors"
    path.mkdir(parents=True)
    program: Any = nn.Linear(4, 2).eval()
    with pytest.raises(InputError, match=r"program\.safetensors: cannot be written"):
        write_program(program, (torch.zeros(1, 4),), path, device="a", any_batch=False)


def test_a_type_that_bundles_do_not_name_is_planned_but_has_no_bundle():
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).bfloat16()
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    plan = partition(capture(net, (x,)), load_platform("two-mcu-spi"), codec="raw", cut=1)
    with pytest.raises(InputError, match=r"bfloat16 tensors on the way.*model\.float"):
        check_devices(plan, net)


def test_a_payload_longer_than_a_frame_is_planned_but_has_no_bundle():
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    plan = partition(
        capture(net, (torch.zeros(1, 8),)), load_platform("two-mcu-spi"), codec="raw", cut=1
    )
    check_devices(plan, net)
    wide = replace(plan.crossings[0], payload_bytes=float(1 << 27))
    with pytest.raises(InputError, match="payload of 134217728 bytes, expected at most 67108864"):
        check_devices(replace(plan, crossings=(wide,)), net)


def test_a_convolution_of_float64_is_left_to_a_runtime_that_computes_it():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)).double()
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    plan = partition(capture(net, (x,)), load_platform("two-pi-ethernet"), codec="raw", cut=1)
    with pytest.raises(InputError, match=r"0\.weight: found a convolution of float64.*float\(\)"):
        check_devices(plan, net)
    devices = tuple(replace(d, backend="torch") for d in plan.platform.devices)
    check_devices(replace(plan, platform=replace(plan.platform, devices=devices)), net)


def test_a_model_that_answers_nan_is_no_bundle(tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).eval()
    graph = capture(net, (torch.zeros(1, 8),))
    plan = partition(graph, load_platform("two-pi-ethernet"), codec="raw", cut=1)
    with torch.no_grad():
        list(net.parameters())[-1][0] = torch.nan
    samples = (np.zeros((4, 8), np.float32),)
    with pytest.raises(BundleError, match="the model itself answers NaN; look for NaN"):
        export(split_with_codecs(net, plan), plan, tmp_path / "bundle", samples=samples)
    assert not (tmp_path / "bundle").exists()
