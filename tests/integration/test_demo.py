"""The demo as a user runs it: a process of its own, real data, real stages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "isthmus", "demo", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder / "isthmus-demo", json.loads(done.stdout)


def test_the_summary_has_the_promised_keys(demo):
    _, summary = demo
    assert summary["schema"] == "isthmus.demo/1"
    assert {key: set(value) for key, value in summary.items() if isinstance(value, dict)} == {
        "whole": {"accuracy", "crossing_bytes_fp32"},
        "split": {
            "accuracy",
            "payload_bytes_predicted",
            "payload_bytes_measured",
            "wire_bytes",
        },
        "rivals": {
            "input_raw_bytes",
            "input_png_bytes",
            "int8_bytes",
            "int8_zlib_bytes",
            "label_bytes",
        },
        "latency_s": {"predicted_platform", "predicted_here", "measured_p50", "measured_p95"},
    }
    assert set(summary) == {
        "schema", "seed", "whole", "split", "rivals", "runner_ups", "latency_s", "requests",
        "report", "seconds",
    }  # fmt: skip


def test_little_crosses_and_exactly_what_was_predicted(demo):
    _, summary = demo
    split = summary["split"]
    assert split["payload_bytes_measured"] == split["payload_bytes_predicted"] <= 32
    assert split["payload_bytes_measured"] < summary["rivals"]["input_raw_bytes"] == 64
    assert split["wire_bytes"] <= split["payload_bytes_measured"] + 16
    assert summary["whole"]["crossing_bytes_fp32"] == 2048


def test_the_processes_answer_as_well_as_the_whole_network_nearly(demo):
    _, summary = demo
    assert summary["requests"] == 360
    assert summary["whole"]["accuracy"] > 0.97
    assert summary["split"]["accuracy"] > summary["whole"]["accuracy"] - 0.02


def test_the_split_is_the_planners_own_answer_because_no_device_holds_the_network(demo):
    folder, summary = demo
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["split"]
    unsplit = {r["what"]: r for r in summary["runner_ups"] if r["what"].startswith("all on")}
    assert set(unsplit) == {"all on mcu-a", "all on mcu-b"}
    assert not any(runner_up["fits"] for runner_up in unsplit.values())


def test_the_folder_holds_the_page_the_records_and_the_bundle(demo):
    folder, summary = demo
    assert Path(summary["report"]) == Path("isthmus-demo/report.html")
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.html", "run.json", "plan.json", "demo.json", "fitted", "bundle"}
    assert json.loads((folder / "demo.json").read_text()) == summary


def test_the_run_says_that_it_is_emulated_and_where_the_time_went(demo):
    folder, _ = demo
    run = json.loads((folder / "run.json").read_text())
    assert "links" in run["emulated"]
    parts = run["breakdown"]
    spent = sum(parts[key] for key in ("compute_s", "link_s", "codec_s", "remainder_s"))
    assert spent == pytest.approx(run["latency_s"]["p50"])
    assert run["crossings"][0]["link_observed_s"] == pytest.approx(
        run["crossings"][0]["link_asked_s"], rel=0.5
    )
