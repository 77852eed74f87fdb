"""docs/your-own.md, followed to the letter in an empty folder."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus import cli

PAGE = Path(__file__).parents[2] / "docs" / "your-own.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_the_page_leads_from_nothing_to_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []
    for _, title, content in BLOCK.findall(PAGE.read_text()):
        if title:
            (tmp_path / title).write_text(content)
            continue
        for line in content.splitlines():
            program, *arguments = shlex.split(line)
            if program == "python":
                subprocess.run([sys.executable, *arguments], check=True, timeout=120)
            else:
                assert program == "isthmus"
                monkeypatch.setattr(sys, "argv", [program, *arguments])
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                assert not ended.value.code, line
            commands.append(arguments[0])
    assert commands == [
        "make_data.py", "profile", "plan", "plan", "fit", "export", "run", "report",
    ]  # fmt: skip
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["crossings"][0]["codec"] == "bottleneck:ratio=4,bits=8"
    assert plan["split"]
    fit = json.loads((tmp_path / "fitted" / "fit.json").read_text())
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert fit["accuracy_whole"] > 0.9
    assert run["accuracy"] > 0.9
    assert run["requests"] == 100
    assert run["lost"] == 0
    crossing = run["crossings"][0]
    assert crossing["payload_bytes_measured"] == crossing["payload_bytes_predicted"]
    assert (tmp_path / "report.html").stat().st_size > 1_000_000  # plotly is inside
