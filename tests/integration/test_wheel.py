"""The wheel, alone with its core dependencies, runs a bundle: what a small machine installs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.platform import Link
from tests.run.bundles import PAYLOAD_BYTES, logits, samples, write_chain

pytestmark = pytest.mark.long  # a wheel is built, and an environment made for it
ROOT = Path(__file__).parents[2]
EXTRAS = ["torch", "lightning", "onnx", "openvino", "sklearn", "plotly", "jinja2", "PIL"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
ENV = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The folder of the programs of an environment that holds the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("core")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    built = call(*build, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("isthmus-*.whl")
    bin_folder = folder / "venv" / "bin"
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    to_venv = [*PIP, "--python", bin_folder / "python", "install", "--retries", "1"]
    done = call(*to_venv, "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    if "connection broken" in done.stderr:
        pytest.skip("pip reaches no package index from here")
    assert done.returncode == 0, done.stderr
    return bin_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A folder with a small bundle of two devices, and data whose right answers are known."""
    folder = tmp_path_factory.mktemp("bundle")
    write_chain(folder / "bundle", Link(between=("near", "far"), bytes_per_s=1e6))
    x = samples(24)
    y = logits(x).argmax(axis=1)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


def test_the_core_brings_no_extra(core, tmp_path):
    code = f"from importlib.util import find_spec; print([*filter(find_spec, {EXTRAS})])"
    found = call(core / "python", "-c", code, cwd=tmp_path)
    assert found.stdout == "[]\n", found.stderr


def test_the_core_explains_itself(core, tmp_path):
    shown = call(core / "isthmus", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "demo" in shown.stdout


def test_the_presets_are_in_the_wheel(core, tmp_path):
    shown = call(core / "isthmus", "platforms", "two-mcu-spi", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "schema: isthmus.platform/1" in shown.stdout


def test_the_core_runs_a_bundle(core, bundle):
    options = ["--data", "npz:data.npz", "--requests", "20", "--out", "run"]
    done = call(core / "isthmus", "run", "bundle", *options, "--json", cwd=bundle)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((bundle / "run" / "run.json").read_text())
    assert record["crossings"][0]["payload_bytes_measured"] == PAYLOAD_BYTES
    assert (record["requests"], record["lost"], record["accuracy"]) == (20, 0, 1.0)


def test_the_core_prints_the_tables_of_a_run(core, bundle):
    done = call(
        core / "isthmus", "run", "bundle", "--data", "npz:data.npz", "--requests", "5", cwd=bundle
    )
    assert done.returncode == 0, done.stderr
    assert "emulated" in done.stdout


def test_a_command_that_needs_an_extra_names_it(core, tmp_path):
    refused = call(core / "isthmus", "profile", "resnet18", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert 'pip install "isthmus[fit]"' in refused.stderr
