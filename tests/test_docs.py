"""The words and commands of the documentation are those of the code.

The ``>>>`` blocks of README.md, docs and docstrings are run by pytest itself: see
``--doctest-glob`` and ``--doctest-modules`` in pyproject.toml.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
import typer.main

from isthmus.cli import app
from isthmus.platform import load_platform

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WORDS = re.findall(r"^\| (\S.*?) \|.*`([\w.]+)` \|$", (DOCS / "glossary.md").read_text(), re.M)
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))]
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("word", "place"), WORDS, ids=[word for word, _ in WORDS])
def test_every_word_of_the_glossary_stands_for_something(word, place):
    assert resolve_name(place) is not None, word


def test_the_commands_page_lists_every_command_and_no_other():
    rows = re.findall(r"^\| `isthmus (\w+)", (DOCS / "commands.md").read_text(), re.M)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_is_one(page):
    used = re.findall(r"(?:^    |`)isthmus ([a-z]\w+)", page.read_text(), re.M)
    assert set(used) <= COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_stage_has_its_page():
    stages = (
        "graph",
        "platform",
        "compress",
        "plan",
        "links",
        "split",
        "train",
        "export",
        "run",
        "study",
    )
    headings = ["## What goes in", "## What comes out", "## An example", "## The options"]
    for stage in (*stages, "report"):
        found = re.findall(r"^## .*$", (DOCS / f"{stage}.md").read_text(), re.M)
        assert found[:4] == headings, stage


def test_the_layers_that_contributors_read_are_those_that_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "\n".join(f"    {line}" for line in layers) in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_platform_file_of_the_documentation_can_be_read(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "platform.md").read_text(), re.S)
    file = tmp_path / "camera-and-hub.yaml"
    file.write_text(block)
    assert [device.name for device in load_platform(file).devices] == ["camera", "hub"]


def test_the_chain_of_the_readme_runs(tmp_path):
    (chain,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(chain.splitlines()) <= 15
    command = [sys.executable, "-W", "error", "-c", chain]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    accuracy, payload_bytes, latency_s = map(float, done.stdout.split())
    assert accuracy > 0.95
    assert payload_bytes == 64
    assert 0 < latency_s < 1
