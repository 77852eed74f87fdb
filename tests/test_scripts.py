"""The scripts set themselves up: once, again after an interruption, and only with a new Python.

A small shell script stands in for Python and pip; it writes down what it is asked to do.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAND_IN = """#!/bin/sh
case "$*" in
    -c*version_info*) [ -z "${OLD:-}" ] ;;
    -c*) ;;
    --version) echo "Python 3.${OLD:-11}.0" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/isthmus" ;;
    *install*) echo "$*" >>"$LOG"; [ -z "${OFFLINE:-}" ] ;;
    *) echo "$@" ;;
esac
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of the scripts, in a folder with a space, beside a Python that does little."""
    root = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / "python3").write_text(STAND_IN)
    (root / "python3").chmod(0o755)
    return root


def call(root: Path, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{root}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "LOG": str(root / "log"), **env}
    command = [str(root / "scripts" / script), *args]
    return subprocess.run(
        command, env=env, cwd=root.parent, capture_output=True, text=True, timeout=30
    )


def installs(root: Path) -> int:
    log = root / "log"
    return log.read_text().count("--editable") if log.exists() else 0


@pytest.mark.parametrize("path", ["scripts/demo", "scripts/test", "scripts/check", ".ci/run"])
def test_a_script_can_be_run_and_any_shell_reads_it(path):
    assert os.access(ROOT / path, os.X_OK)
    assert subprocess.run(["sh", "-n", ROOT / path], check=False).returncode == 0


def test_the_first_run_installs_and_the_second_starts_at_once(repository):
    first = call(repository, "demo", "--seed", "7", "--out", "a b")
    second = call(repository, "demo", "--json")
    assert (first.returncode, first.stdout) == (0, "demo --seed 7 --out a b\n")
    assert (second.returncode, second.stdout, second.stderr) == (0, "demo --json\n", "")
    assert installs(repository) == 1


def test_tests_take_the_arguments_of_pytest(repository):
    assert call(repository, "test", "-k", "a or b").stdout == (
        "-m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -k a or b\n"
    )


def test_an_interrupted_set_up_is_made_again(repository):
    assert call(repository, "demo", OFFLINE="1").returncode != 0
    (repository / ".venv" / "half-written").touch()
    assert call(repository, "demo").stdout == "demo\n"
    assert not (repository / ".venv" / "half-written").exists()


def test_new_requirements_are_installed_into_the_environment_that_is_there(repository):
    call(repository, "demo")
    (repository / ".venv" / "kept").touch()
    with (repository / "constraints.txt").open("a") as file:
        file.write("new==1.0\n")
    assert call(repository, "demo").returncode == 0
    assert installs(repository) == 2
    assert (repository / ".venv" / "kept").exists()


def test_a_moved_repository_is_set_up_anew(repository):
    call(repository, "demo")
    moved = repository.rename(repository.with_name("moved"))
    assert call(moved, "demo").returncode == 0
    assert installs(moved) == 2


def test_an_environment_of_the_users_own_survives_a_failed_set_up(repository):
    (repository / ".venv").mkdir()
    (repository / ".venv" / "mine").touch()
    assert call(repository, "demo", OFFLINE="1").returncode != 0
    assert call(repository, "demo").returncode == 0
    assert (repository / ".venv" / "mine").exists()


def test_an_old_python_is_refused_in_one_line(repository):
    refused = call(repository, "demo", OLD="9")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "python3 is Python 3.9.0, expected Python 3.11 or newer" in refused.stderr
    assert not (repository / ".venv").exists()


def test_a_missing_python_is_named(repository):
    refused = call(repository, "demo", PYTHON="python3.99")
    assert refused.returncode == 1
    assert "python3.99 is not there" in refused.stderr
