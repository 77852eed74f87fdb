"""The separate commands, on a model and data that are not ours."""

import json
from typing import Any

import numpy as np
import pytest


def loads(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def exits_are_exported(isthmus):
    with_exit = ("export", "fitted", "--early-exit", "npz:data.npz", "--out", "exiting", "--json")
    assert loads(isthmus(*with_exit))["early_exit_equal"] > 0.5  # of five classes
    sure = loads(isthmus(*with_exit, "--exit-share", "0.5"))
    assert 0.2 < sure["early_exit_share"] < 0.8
    assert sure["early_exit_sure_equal"] >= sure["early_exit_equal"] - 0.05
    lossy = loads(isthmus(*with_exit, "--exit-drop", "10"))
    assert 0 < lossy["early_exit_share"] <= 1
    assert lossy["early_exit_drop"] < 20
    arrays = dict(np.load("data.npz"))
    np.savez("bare.npz", x_train=arrays["x_train"], x_test=arrays["x_test"])
    bare = ("export", "fitted", "--early-exit", "npz:bare.npz", "--out", "exiting", "--json")
    assert loads(isthmus(*bare, "--exit-share", "0.5"))["early_exit_drop"] is None
    refused = isthmus(*bare, "--exit-drop", "10")
    assert (refused.code, "bare.npz: no y_train, y_test" in refused.err) == (1, True)
    refused = isthmus("export", "fitted", "--exit-share", "0.5")
    assert (refused.code, "add --early-exit" in refused.err) == (1, True)


@pytest.mark.long
def test_the_commands_lead_from_a_model_to_a_report(isthmus, mine):
    ours = ("net.py:make", "--weights", "w.safetensors")
    profile = loads(isthmus("profile", *ours, "--input", "1x2x9x7", "--json"))
    assert profile["schema"] == "isthmus.graph/1"
    # stem: 9*7 positions x 12 outputs x 2*9 inputs
    assert next(n for n in profile["nodes"] if n["op"] == "conv2d")["macs"] == 63 * 12 * 18

    plan = loads(
        isthmus(
            "plan", "net.py:make", "two-mcu-spi", "--weights", "w.safetensors",
            "--input", "1x2x9x7", "--codec", "bottleneck:ratio=8,bits=8", "--cut", "down",
            "--out", "plan.json", "--json",
        )
    )  # fmt: skip
    assert plan["schema"] == "isthmus.plan/1"
    assert plan == json.loads((mine / "plan.json").read_text())
    assert plan["crossings"][0]["codec"] == "bottleneck:ratio=8,bits=8"
    assert plan["crossings"][0]["payload_bytes"] == 4 * 5 * 4  # 32 / 8 channels of 5 x 4

    fitted = loads(
        isthmus(
            "fit", "net.py:make", "plan.json", "--data", "npz:data.npz", "--epochs", "3",
            "--out", "fitted", "--json",
        )
    )  # fmt: skip
    assert fitted["schema"] == "isthmus.fit/2"
    assert [phase["phase"] for phase in fitted["phases"]] == [
        "base",
        "features",
        "receiver",
        "whole",
    ]

    exported = loads(isthmus("export", "fitted", "--out", "bundle", "--json"))
    assert exported["equal_predictions"] >= 0.99
    assert exported["payload_bytes"] == [80]
    assert exported["early_exit_equal"] is None
    exits_are_exported(isthmus)
    ran = loads(isthmus("run", "exiting", "--data", "npz:data.npz", "--requests", "10", "--json"))
    assert ran["requests"] == 10
    assert (mine / "exiting" / "mcu-a" / "exit.onnx").is_file()

    run = loads(
        isthmus(
            "run", "bundle", "--data", "npz:data.npz", "--requests", "20", "--out", "run", "--json"
        )
    )
    assert run == json.loads((mine / "run" / "run.json").read_text())
    assert json.loads((mine / "run" / "timeline.json").read_text())["traceEvents"]
    assert run["requests"] == 20
    assert run["lost"] == 0
    assert run["crossings"][0]["payload_bytes_measured"] == 80
    assert run["crossings"][0]["wire_bytes"] <= 80 + 16

    assert isthmus("report", "fitted", "bundle", "run", "--out", "report.html").code == 0
    page = (mine / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "emulated" in page


@pytest.mark.long
def test_a_nested_link_carries_what_its_widths_are_worth_and_a_run_chooses_among_them(
    isthmus, mine
):
    codec = "bottleneck:ratio=1,bits=8,nested=1"
    planning = ("plan", "net.py:make", "two-mcu-spi", "--input", "1x2x9x7", "--cut", "stem")
    assert isthmus(*planning, "--codec", codec, "--out", "plan.json").code == 0
    fitting = ("fit", "net.py:make", "plan.json", "--data", "npz:data.npz", "--epochs", "1")
    fitted = loads(isthmus(*fitting, "--out", "fitted", "--json"))
    assert isthmus("export", "fitted", "--out", "bundle").code == 0
    worth = json.loads((mine / "bundle" / "bundle.json").read_text())["widths"]
    assert len(worth) > 5
    assert worth == [
        {**found["width"], "payload_bytes": found["payload_bytes"], "accuracy": found["accuracy"]}
        for found in fitted["widths"]
    ]
    running = ("run", "bundle", "--data", "npz:data.npz", "--requests", "20")
    run = loads(isthmus(*running, "--adapt", "latency=10s", "--json"))
    best = max(worth, key=lambda each: (each["accuracy"], -each["payload_bytes"]))
    assert run["adapted"]["requests"][f"ratio={best['ratio']},bits={best['bits']}"] == 20
    assert run["adapted"]["in_time"] == 1


def test_a_model_with_weights_is_not_trained_from_nothing(isthmus, mine):
    isthmus(
        "plan", "net.py:make", "two-mcu-spi", "--input", "1x2x9x7", "--cut", "stem", "--codec",
        "uniform:bits=5", "--out", "plan.json",
    )  # fmt: skip
    fitted = loads(
        isthmus(
            "fit", "net.py:make", "plan.json", "--weights", "w.safetensors",
            "--data", "npz:data.npz", "--epochs", "1", "--bf16", "--out", "fitted", "--json",
        )
    )  # fmt: skip
    assert [phase["phase"] for phase in fitted["phases"]] == ["receiver", "whole"]
    assert fitted["accuracy_whole"] < 0.7  # the untrained weights that were given
    assert fitted["config"]["precision"] == "bf16-mixed"


def test_a_codec_left_out_is_chosen_and_named(isthmus, mine):
    plan = loads(
        isthmus("plan", "net.py:make", "two-mcu-spi", "--input", "1x2x9x7", "--cut", "down",
                "--json")
    )  # fmt: skip
    assert plan["crossings"][0]["codec"].startswith("bottleneck:ratio=8")


def test_plain_output_is_for_people(isthmus, mine):
    text = isthmus("plan", "digits-resnet", "two-mcu-spi").out
    assert "mcu-a" in text
    assert "Traceback" not in text
    assert isthmus("profile", "digits-resnet").code == 0
    assert "camera-hub" in isthmus("platforms").out
    assert "bandwidth" in isthmus("platforms", "camera-hub").out


def test_the_profile_can_be_written_as_a_graph_or_as_a_plot(isthmus, mine):
    assert isthmus("profile", "digits-resnet", "--out", "graph.json").code == 0
    assert json.loads((mine / "graph.json").read_text())["schema"] == "isthmus.graph/1"
    assert isthmus("profile", "digits-resnet", "--out", "plot.html").code == 0
    assert (mine / "plot.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("demo", {"--seed", "--out", "--json"}),
        (
            "profile",
            {
                "--weights",
                "--input",
                "--measure",
                "--savings",
                "--data",
                "--data-dir",
                "--out",
                "--json",
            },
        ),
        ("platforms", {"--json"}),
        (
            "plan",
            {
                "--weights",
                "--input",
                "--objective",
                "--limit",
                "--codec",
                "--cut",
                "--data",
                "--data-dir",
                "--download",
                "--fits",
                "--method",
                "--sweep",
                "--stream",
                "--out",
                "--json",
            },
        ),
        (
            "fit",
            {
                "--data",
                "--data-dir",
                "--download",
                "--weights",
                "--eval-form",
                "--bf16",
                "--bytes",
                "--drop",
                "--freeze-sender",
                "--loss",
                "--unlabelled",
                "--epochs",
                "--seed",
                "--out",
                "--json",
            },
        ),
        (
            "export",
            {
                "--early-exit",
                "--early-model",
                "--exit-share",
                "--exit-agreement",
                "--exit-drop",
                "--data-dir",
                "--download",
                "--out",
                "--json",
            },
        ),
        (
            "run",
            {
                "--data",
                "--data-dir",
                "--download",
                "--requests",
                "--throttle",
                "--no-throttle",
                "--port",
                "--width",
                "--adapt",
                "--keys",
                "--signed",
                "--signed-since",
                "--out",
                "--json",
            },
        ),
        (
            "serve",
            {
                "--device",
                "--at",
                "--service",
                "--keys",
                "--signed",
                "--signed-since",
                "--config",
                "--adapt",
                "--switch-at",
                "--http",
                "--metrics",
            },
        ),
        ("ask", {"--deadline", "--priority", "--service", "--keys", "--json"}),
        (
            "probe",
            {
                "--listen",
                "--name",
                "--model",
                "--weights",
                "--input",
                "--keys",
                "--out",
                "--json",
            },
        ),
        (
            "study",
            {
                "--out",
                "--storage",
                "--search",
                "--workers",
                "--join",
                "--so-far",
                "--meter",
                "--data-dir",
                "--download",
                "--json",
            },
        ),
        ("report", {"--out", "--json"}),
        ("keys init", {"--out", "--json"}),
        ("keys issue", {"--out", "--host", "--days", "--renew", "--json"}),
        ("keys sign", {"--keys", "--json"}),
    ],
)
def test_the_flags_are_these_and_every_help_has_an_example(isthmus, command, flags):
    import typer

    from isthmus.cli import app

    found_command: Any = typer.main.get_command(app)
    for word in command.split():
        found_command = found_command.commands[word]
    found = {
        name
        for parameter in found_command.params
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert found - {"--help"} == flags
    assert "Example" in isthmus(*command.split(), "--help").out
