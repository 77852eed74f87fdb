"""Run the demo as a user does; put its output into README.md and a picture of its page into docs/.

    python benchmarks/readme.py

Needs playwright and a Chromium of the system (the test group of pyproject.toml brings playwright).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from playwright.sync_api import sync_playwright

from isthmus.files import write_bytes
from isthmus.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- demo output: start -->\n).*?(<!-- demo output: end -->)", re.DOTALL)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = run_demo(Path(folder))
        picture(Path(folder) / "isthmus-demo" / "report.html", ROOT / "docs" / "report.png")
    note = f"Run by `benchmarks/readme.py` on {describe_machine()}, {date.today():%Y-%m-%d}."
    text = "\n".join(f"    {line}".rstrip() for line in output.strip().splitlines())
    readme = ROOT / "README.md"
    filled = BLOCK.sub(lambda m: f"{m[1]}{text}\n\n{note}\n{m[2]}", readme.read_text())
    write_bytes(readme, filled.encode())


def run_demo(folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "96"}
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", "demo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def picture(page: Path, target: Path) -> None:
    browser = next(path for path in map(shutil.which, BROWSERS) if path)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=arguments)
        sheet = chromium.new_page(viewport={"width": 1100, "height": 760})
        sheet.goto(page.as_uri())
        sheet.wait_for_selector(".main-svg")
        sheet.screenshot(path=target)
        chromium.close()


if __name__ == "__main__":
    main()
