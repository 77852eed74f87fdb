"""`isthmus plan` and `isthmus profile --measure`, run as a person runs them."""

import json

import onnx
import pytest
import yaml

from isthmus.platform import load_platform


def test_the_map_of_a_link_says_from_where_to_where_each_plan_wins(isthmus, tmp_path):
    command = (
        "plan",
        "digits-resnet",
        "camera-hub",
        "--sweep",
        "link.bandwidth=10kbit/s..1Gbit/s",
    )
    shown = isthmus(*command, "--out", str(tmp_path / "map.html"))
    assert "all on camera" in shown.out
    assert "all on hub" in shown.out
    assert (tmp_path / "map.html").read_text().startswith("<!doctype html>")
    found = json.loads(isthmus(*command, "--json").out)
    assert found["schema"] == "isthmus.sweep/1"
    assert len(found["cells"]) == 25


def test_the_page_of_a_plan_draws_the_network(isthmus, tmp_path):
    page = tmp_path / "plan.html"
    isthmus("plan", "digits-resnet", "two-mcu-spi", "--out", str(page))
    assert "<svg" in page.read_text()


def test_stream_gets_platform_network_and_mapping(isthmus, tmp_path):
    for _ in range(2):  # the folder of before is replaced
        asked = ("plan", "digits-resnet", "two-mcu-spi", "--stream", str(tmp_path / "stream"))
        assert isthmus(*asked).code == 0
    network = onnx.load(tmp_path / "stream" / "network.onnx")
    layers = yaml.safe_load((tmp_path / "stream" / "mapping.yaml").read_text())["layers"]
    assert [layer["name"] for layer in layers] == [node.name for node in network.graph.node]
    cores = [core for layer in layers for group in layer["core_allocation"] for core in group]
    assert cores == sorted(cores)  # one stage after the other
    assert set(cores) == {0, 1}
    accelerator = yaml.safe_load((tmp_path / "stream" / "accelerator.yaml").read_text())
    for file in accelerator["cores"].values():
        assert (tmp_path / "stream" / file).is_file()


def test_a_measured_table_is_planned_with_and_refused_for_another_model(isthmus, tmp_path):
    times = tmp_path / "times.json"
    shown = isthmus("profile", "digits-resnet", "--measure", "--out", str(times))
    assert "The whole model in one program" in shown.out
    text = isthmus("platforms", "camera-hub").out
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("    backend:", "    measured: times.json\n    backend:"))
    assert load_platform(file).device("hub").node_s is not None
    shown = isthmus("plan", "digits-resnet", str(file))
    assert "times of hub are those measured on" in " ".join(shown.out.split())
    refused = isthmus("plan", "resnet18", str(file))
    assert refused.code == 1
    assert len(refused.err.splitlines()) == 1
    assert "profile MODEL --measure" in refused.err


def test_codecs_are_tried_on_data_and_the_drop_is_held(isthmus, mine):
    platform = mine / "mine.yaml"
    text = isthmus("platforms", "two-mcu-spi").out
    platform.write_text(text.replace("96 KiB", "15 KiB"))
    model = ("plan", "net.py:make", platform, "--input", "1x2x9x7", "--weights", "w.safetensors")
    command = (*model, "--data", "npz:data.npz", "--limit", "drop=100", "--json")
    plan = json.loads(isthmus(*command).out)
    assert all(crossing["origin"] != "unknown" for crossing in plan["crossings"])
    assert 0 <= plan["predicted"]["drop"] <= 1.0


def test_random_weights_are_no_ground_for_accuracies(isthmus):
    refused = isthmus("plan", "digits-resnet", "two-mcu-spi", "--data", "digits")
    assert refused.code == 1
    assert "add --weights" in refused.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "speed=1"], "expected one of latency, interval, energy, price, bytes, drop"),
        (["--limit", "latency=1"], "latency"),
        (["--limit", "drop=much"], "points of accuracy"),
        (["--limit", "drop=1", "--limit", "drop=2"], "twice"),
        (["--method", "magic"], "no partitioner"),
        (["--sweep", "link.speed=1..2"], "link has bandwidth"),
        (["--sweep", "link.latency=1ms"], "expected FIGURE=LOW..HIGH"),
        (["--out", "plan.txt"], "ends in .json or .html"),
    ],
)
def test_a_wrong_option_is_one_line(isthmus, options, says):
    refused = isthmus("plan", "digits-resnet", "two-mcu-spi", *options)
    assert says in refused.err
    assert len(refused.err.strip().splitlines()) == 1
