"""A process ends at a signal, even where a callback swallows what the handler raises."""

import subprocess
import sys

SWALLOWING = """
import gc, signal, sys, time
from isthmus.signals import raise_at

raise_at(signal.SIGTERM, lambda: SystemExit(143))

class Swallowing:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

try:
    Swallowing()
    print("went on", flush=True)
    time.sleep(20)
finally:
    print("cleared up", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("once", flush=True)
"""


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=15)


def test_a_swallowed_signal_is_sent_again_and_clearing_up_is_not_disturbed():
    found = run(SWALLOWING)
    assert found.stdout.split("\n") == ["went on", "cleared up", "once", ""]
    assert found.returncode == 143
    assert not found.stderr


def test_a_terminal_that_is_closed_ends_a_command_as_sigterm_does_but_not_under_nohup():
    code = (
        "import signal\nfrom isthmus import cli\n"
        "def app():\n    try:\n        signal.raise_signal(signal.SIGHUP)\n"
        "        print('went on')\n    finally:\n        print('cleared up')\n"
        "cli.app = app\ncli.main()\n"
    )
    closed, nohup = (
        run(f"import signal\nsignal.signal(signal.SIGHUP, signal.{how})\n{code}")
        for how in ("SIG_DFL", "SIG_IGN")
    )
    assert (closed.returncode, closed.stdout) == (143, "cleared up\n")
    assert (nohup.returncode, nohup.stdout) == (0, "went on\ncleared up\n")


def test_what_else_a_destructor_raises_is_still_reported():
    code = SWALLOWING.partition("class")[0] + (
        "class Broken:\n    def __del__(self):\n        raise ValueError('broken')\nBroken()\n"
    )
    found = run(code)
    assert found.returncode == 0
    assert "ValueError: broken" in found.stderr
