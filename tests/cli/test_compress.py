"""`isthmus compress` and what it writes, as a user meets them."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isthmus.models import load_model, read_compressed

OURS = ("net.py:make", "--weights", "w.safetensors", "--input", "1x2x9x7")


def loads(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_techniques_are_listed_with_their_papers(isthmus):
    listed = loads(isthmus("techniques", "--json"))["techniques"]
    (found,) = [one for one in listed if one["name"] == "prune:slimming"]
    assert found["level"] == "model"
    assert found["options"]["keep"] == {"default": 0.5, "expected": "0.001 to 1"}
    assert "1708.06519" in found["paper"]
    assert "sparse:nm" in isthmus("techniques").out


def leads_on(isthmus, model, figures):
    """Split a compressed folder after its module ``stem``, and run it; return its accuracy."""
    profile = loads(isthmus("profile", model, "--json"))
    assert sum(node["macs"] for node in profile["nodes"]) == figures["macs"]
    planning = ("plan", model, "two-mcu-spi", "--cut", "stem", "--codec", "uniform:bits=8")
    plan = loads(isthmus(*planning, "--out", "plan.json", "--json"))
    assert len(plan["stages"]) == 2
    fitting = ("fit", model, "plan.json", "--data", "npz:data.npz", "--epochs", "1", "--json")
    fitted = loads(isthmus(*fitting))
    assert [phase["phase"] for phase in fitted["phases"]] == ["receiver", "whole"]
    exported = loads(isthmus("export", "fitted", "--out", "bundle", "--json"))
    assert exported["equal_predictions"] >= 0.98
    run = loads(isthmus("run", "bundle", "--data", "npz:data.npz", "--requests", "10", "--json"))
    assert (run["requests"], run["lost"]) == (10, 0)
    return fitted["accuracy_whole"]


@pytest.mark.long
def test_a_compressed_model_goes_the_way_of_any_model(isthmus, mine):
    pytest.importorskip("torch_pruning")
    facts = loads(
        isthmus(
            "compress", OURS[0], *OURS[3:], "--data", "npz:data.npz", "--epochs", "15",
            "--with", "prune:l1,keep=0.5,skip=mix", "--with", "quantize:int8",
            "--out", "small", "--json",
        )
    )  # fmt: skip
    before, after = facts["before"], facts["after"]
    assert facts["schema"] == "isthmus.compressed/1"
    assert after["macs"] < 0.7 * before["macs"]
    assert after["weight_bytes"] < before["weight_bytes"] / 4
    assert after["stored_bytes"] == (mine / "small" / "weights.safetensors").stat().st_size
    assert after["accuracy"] > 0.6

    whole = leads_on(isthmus, "small", after)
    assert whole == after["accuracy"]

    asked = ("integers", "bundle", "--data", "npz:data.npz", "--requests", "20")
    assert "mcu-a: Sub" in isthmus(*asked).err  # of the codec, which scales floats
    assert not (mine / "integers").exists()
    cut = ("--cut", "stem", "--codec", "raw", "--out", "plan.json", "--json")
    loads(isthmus("plan", "small", "two-mcu-spi", *cut))
    loads(isthmus("fit", "small", "plan.json", "--data", "npz:data.npz", "--json"))
    loads(isthmus("export", "fitted", "--out", "bundle", "--json"))
    for _ in range(2):  # the folder of before is replaced
        alone = loads(isthmus(*asked, "--json"))
    assert json.loads((mine / "integers" / "integers.json").read_text()) == alone
    assert [stage["reason"] for stage in alone["stages"]] == ["", ""]
    assert (alone["samples"], alone["equal_predictions"]) == (20, 1.0)
    assert max(alone["symbols_differ"]) < 0.01
    sizes = [stage["file_bytes"] for stage in alone["stages"]]
    files = sorted((mine / "integers").glob("*.safetensors"))
    assert sizes == [path.stat().st_size for path in files]
    other: Any = {f"x_{part}": np.zeros((4, 3, 5, 5), np.float32) for part in ("train", "test")}
    np.savez("other.npz", y_train=np.arange(4), y_test=np.arange(4), **other)
    said = isthmus("integers", "bundle", "--data", "npz:other.npz", "--out", "none").err
    assert "found float32[4, 3, 5, 5], expected float32 with samples of shape" in said
    assert not (mine / "none").exists()


STUDENT = """
from collections import OrderedDict

from torch import nn


def make():
    stem = nn.Sequential(nn.Conv2d(2, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.SiLU())
    rest = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(OrderedDict(stem=stem, rest=rest))
"""


@pytest.mark.long
def test_a_student_goes_the_way_of_any_model(isthmus, mine):
    (mine / "student.py").write_text(STUDENT)
    facts = loads(
        isthmus(
            "compress", OURS[0], *OURS[3:], "--data", "npz:data.npz", "--epochs", "60",
            "--with", "replace:network,name=student.py:make", "--with", "quantize:int8",
            "--out", "small", "--json",
        )
    )  # fmt: skip
    before, after = facts["before"], facts["after"]
    assert after["macs"] == 5 * 4 * 32 * 2 * 9 + 128 * 5 < before["macs"] / 4
    assert after["accuracy"] > 0.6
    assert leads_on(isthmus, "small", after) == after["accuracy"]


def test_a_compressed_model_can_be_compressed_again(isthmus, mine):
    first = ("--with", "sparse:magnitude,keep=0.3", "--out", "sparse")
    loads(isthmus("compress", *OURS, *first, "--json"))
    second = loads(
        isthmus("compress", "sparse", "--with", "share:kmeans,bits=3", "--out", "shared", "--json")
    )
    assert second["before"]["parameters"] == second["after"]["parameters"]
    assert read_compressed(mine / "shared").source.text == str(mine / "sparse")
    made: Any = load_model("shared")
    original = load_file("w.safetensors")
    assert len(made.down.weight.unique()) <= 8
    assert ((made.down.weight != 0) <= (original["down.weight"] != 0)).all()
    x = torch.randn(2, 2, 9, 7)
    assert torch.equal(made(x), load_model(str(mine / "shared"))(x))


def test_a_step_that_undoes_one_of_the_folder_is_refused(isthmus, mine):
    for out, source, text in (
        ("shared", OURS, "share:kmeans,bits=3"), ("again", ("shared",), "quantize:int8,skip=up"),
    ):  # fmt: skip
        result = isthmus("compress", *source, "--with", text, "--out", out)
    assert result.code == 1
    assert f"{mine / 'shared'}: quantize:int8 after share:kmeans: both choose" in result.err
    assert not (mine / "again").exists()


def test_a_width_of_a_slimmable_model_is_cut_out_planned_and_compared(isthmus, mine):
    pytest.importorskip("torch_pruning")
    made = loads(
        isthmus(
            "compress", OURS[0], *OURS[3:], "--data", "npz:data.npz", "--epochs", "2",
            "--with", "exits,only=stem+down", "--with", "prune:slimmable,widths=0.5,skip=mix",
            "--out", "slim", "--json",
        )
    )  # fmt: skip
    assert [each["path"] for each in made["exits"]] == ["stem", "down"]
    assert all(0 <= each["share"] <= 1 for each in made["exits"])
    cut = ("--with", "prune:width,width=0.5,skip=mix", "--data", "npz:data.npz", "--out", "half")
    half = loads(isthmus("compress", "slim", *cut, "--json"))
    assert half["before"]["accuracy"] == made["after"]["accuracy"]
    assert half["after"]["macs"] < 0.7 * half["before"]["macs"]
    plan = loads(isthmus("plan", "half", "two-mcu-spi", "--cut", "stem", "--json"))
    assert sum(stage["macs"] for stage in plan["stages"]) == half["after"]["macs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--with", "prune:l7"), ["no technique 'prune:l7'", "quantize:int8"]),
        (("--with", "prune:l1,keep=2"), ["found keep=2", "0.001 to 1"]),
        (("--with", "quantize:int8"), ["found 0 training samples", "add --data"]),
        (("--with", "share:kmeans", "--epochs", "1"), ["--epochs", "add --data"]),
        (("--with", "share:kmeans", "--out", "."), ["current folder"]),
        (("--with", "share:kmeans,only=tail"), ["no module 'tail'", "stem"]),
        (("--with", "share:kmeans", "--with", "format"), ["leave one out"]),
        (("--with", "prune:slimmable", "--with", "exits"), ["the widest alone; put it last"]),
        (
            ("--with", "format", "--data", "npz:data.npz", "--epochs", "1", "--loss", "fitnet"),
            ["found fitnet", "fitnets"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(isthmus, mine, arguments, words):
    before = sorted(path.name for path in mine.iterdir())
    result = isthmus("compress", *OURS, *arguments)
    assert result.code == 1, result.err
    line = result.err.splitlines()[-1]
    assert line.startswith("isthmus: ")
    for word in words:
        assert word in line
    assert "Traceback" not in result.err
    found = [path.name for path in mine.iterdir() if path.name != "__pycache__"]
    assert sorted(found) == before


def test_an_input_that_is_none_of_the_datas_is_refused(isthmus, mine):
    sized = ("net.py:make", "--input", "1x2x9x8", "--with", "fold", "--data", "npz:data.npz")
    result = isthmus("compress", *sized, "--out", "small")
    assert (result.code, (mine / "small").exists()) == (1, False)
    assert "found samples of [(2, 9, 8)], but npz:data.npz has [(2, 9, 7)]; give" in result.err


def test_random_weights_are_not_compressed(isthmus, mine):
    result = isthmus("compress", "digits-resnet", "--with", "share:kmeans")
    assert (result.code, result.out) == (1, "")
    assert "digits-resnet has random weights here; add --weights, or --data" in result.err
    made = isthmus("compress", *OURS, "--with", "sparse:nm", "--out", "digits-resnet")
    assert made.code == 0  # the name still means the model
    assert isthmus("compress", "digits-resnet", "--with", "share:kmeans").err == result.err


def damaged(file, change):
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(schema="isthmus.compressed/9"), ["isthmus.compressed/9"]),
        (lambda f: f.update(weights_sha256="0"), ["is not the one that was written"]),
        (lambda f: f["changes"].append({"path": "x", "layer": {"kind": "exec"}}), ["'exec'"]),
        (
            lambda f: f["changes"].append({"path": "nowhere", "layer": {"kind": "identity"}}),
            ["no module 'nowhere'"],
        ),
        (
            lambda f: f["changes"].append(
                {"path": "head", "layer": {"kind": "linear", "options": {"in_features": 1}}}
            ),
            ["head", "expected bias, in_features, out_features"],
        ),
        (
            lambda f: f["changes"].append(
                {
                    "path": "head",
                    "layer": {
                        "kind": "linear",
                        "options": {"in_features": 1 << 40, "out_features": 1 << 20, "bias": True},
                    },
                }
            ),
            ["weights do not match the model", "head.weight"],
        ),
    ],
)
def test_a_damaged_folder_is_refused(isthmus, mine, change, words):
    loads(isthmus("compress", *OURS, "--with", "sparse:nm", "--out", "small", "--json"))
    damaged(mine / "small" / "compressed.json", change)
    result = isthmus("profile", "small")
    assert result.code == 1, result.err
    for word in words:
        assert word in result.err.splitlines()[-1]


def test_weights_that_were_cut_short_are_refused(isthmus, mine):
    loads(isthmus("compress", *OURS, "--with", "sparse:nm", "--out", "small", "--json"))
    file = mine / "small" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = isthmus("profile", "small")
    assert (result.code, "compress the model anew" in result.err) == (1, True)


def test_what_hardware_would_save_is_counted_and_says_so(isthmus, mine):
    found = loads(isthmus("profile", *OURS, "--savings", "--data", "npz:data.npz", "--json"))
    assert (found["schema"], found["origin"]) == ("isthmus.savings/1", "counted")
    graph = loads(isthmus("profile", *OURS, "--json"))
    layers = found["layers"]
    assert sum(layer["macs"] for layer in layers) == sum(node["macs"] for node in graph["nodes"])
    assert all(0 < layer["nonzero"] <= layer["macs"] for layer in layers)
    shown = isthmus("profile", *OURS, "--savings")
    assert "Multiplications for one sample, counted" in shown.out
    assert "inputs of 0 skipped" not in shown.out  # no data were given
    refused = isthmus("profile", *OURS, "--data", "npz:data.npz")
    assert refused.code == 1
    assert "--data only with --savings" in refused.err
