"""The demo: one call of `isthmus.study.evaluate`, and what it leaves for people to look at."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isthmus import bundle
from isthmus.files import new_folder, write_bytes, write_json
from isthmus.progress import Report, silent
from isthmus.report.page import page
from isthmus.run.record import RUN_FILE
from isthmus.study import Record, demo, evaluate
from isthmus.train import fitted

SCHEMA = "isthmus.demo/1"
SUMMARY_FILE = "demo.json"
FILES = (
    SUMMARY_FILE, RUN_FILE, "plan.json", "report.html",
    *(f"fitted/{name}" for name in fitted.FILES),
    *(f"bundle/{name}" for name in bundle.FILES),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo found.

    Attributes:
        record: Everything.
        summary: The figures for programs, schema `isthmus.demo/1`.
        report: The page.
    """

    record: Record
    summary: Mapping[str, Any]
    report: Path


def write_demo(out: Path, *, seed: int = 0, report: Report = silent) -> Demo:
    """Run the demo and write its folder: the page, the records, the fit and the bundle.

    Args:
        out: The folder to make; an older demo there is replaced.
        seed: Of everything.
        report: Told of every step.

    Returns:
        The figures.

    Raises:
        InputError: Something else stands at ``out``.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)  # the network is small: more threads only wait for each other
    recipe = demo()
    with new_folder(out, files=FILES) as folder:
        record = evaluate(
            replace(recipe, fit=replace(recipe.fit, seed=seed)), folder, report=report
        )
        text = page(
            title="Isthmus: a network on two microcontrollers",
            plan=record.plan,
            graph=record.graph,
            fit=record.fit,
            verification=record.verification,
            run=record.run,
            rivals=record.rivals,
        )
        write_bytes(folder / "report.html", text.encode())
        write_json(folder / RUN_FILE, record.run)
        write_json(folder / "plan.json", record.plan)
        seconds = time.perf_counter() - started
        summary = _summary(record, seed=seed, report=out / "report.html", seconds=seconds)
        write_bytes(folder / SUMMARY_FILE, json.dumps(summary, indent=1).encode())
    return Demo(record=record, summary=summary, report=out / "report.html")


def _summary(record: Record, *, seed: int, report: Path, seconds: float) -> dict[str, Any]:
    """Return the demo's figures: bytes per sample, accuracies in 0..1, times in seconds."""
    cut = record.plan.crossings[0]
    tensors = record.graph.tensors()
    crossing = record.run.crossings[0]
    rivals = {rival.name: rival.payload_bytes for rival in record.rivals}
    return {
        "schema": SCHEMA,
        "seed": seed,
        "whole": {
            "accuracy": record.fit.accuracy_whole,
            "crossing_bytes_fp32": sum(tensors[name].num_bytes for name in cut.tensors),
        },
        "split": {
            "accuracy": record.run.accuracy,
            "payload_bytes_predicted": crossing.payload_bytes_predicted,
            "payload_bytes_measured": crossing.payload_bytes_measured,
            "wire_bytes": crossing.wire_bytes,
        },
        "rivals": {
            "input_raw_bytes": rivals["input raw"],
            "input_png_bytes": rivals["input png"],
            "int8_bytes": rivals.get("int8"),
            "int8_zlib_bytes": rivals.get("int8 + zlib"),
            "label_bytes": rivals["label"],
        },
        "runner_ups": [asdict(runner_up) for runner_up in record.plan.runner_ups],
        "latency_s": {
            "predicted_platform": record.plan.predicted.latency_s,
            "predicted_here": record.run.predicted_here_s,
            "measured_p50": record.run.latency_s.p50,
            "measured_p95": record.run.latency_s.p95,
        },
        "requests": record.run.requests,
        "report": str(report),
        "seconds": round(seconds, 1),
    }
