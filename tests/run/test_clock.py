"""The wall clock of both devices jumps while they serve; deadlines and waits do not see it."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from isthmus.errors import RequestError
from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import LONG_S, devices

DAY_S = 86400
TWO = ("near", "far")
X = samples(80)


class Clock:
    """The wall clock of the processes that start from now on; moved while they run."""

    def __init__(self, folder, monkeypatch):
        self._file = folder / "offset"
        self.move(0)
        library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True, timeout=LONG_S)
        monkeypatch.setenv("CLOCK_OFFSET", str(self._file))
        monkeypatch.setenv("LD_PRELOAD", str(library))

    def move(self, seconds):
        self._file.touch()
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.fixture
def clock(tmp_path, monkeypatch):
    if not (sys.platform == "linux" and shutil.which("cc")):
        pytest.skip("needs Linux and a C compiler, to move a process's wall clock")
    return Clock(tmp_path, monkeypatch)


def test_jumps_of_the_clock_neither_lose_a_request_nor_move_its_deadline(clock, tmp_path):
    clock.move(3 * DAY_S)
    command = [sys.executable, "-c", "import time; print(time.time())"]
    seen_s = float(subprocess.run(command, capture_output=True, timeout=LONG_S).stdout)
    assert seen_s - time.time() == pytest.approx(3 * DAY_S, abs=LONG_S)
    clock.move(0)
    write_chain(tmp_path / "bundle", FAST)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        client.ask(X[0])
        for turn, jump_s in enumerate((DAY_S, -DAY_S, 400 * DAY_S, -400 * DAY_S)):
            futures = [client.submit(x) for x in X[20 * turn : 20 * turn + 10]]
            clock.move(jump_s)
            futures += [client.submit(x) for x in X[20 * turn + 10 : 20 * turn + 20]]
            found = [future.result(timeout=LONG_S)[0] for future in futures]
            np.testing.assert_array_equal(found, logits(X[20 * turn : 20 * turn + 20]))
        for jump_s in (DAY_S, -DAY_S):
            hosts.processes["far"].send_signal(signal.SIGSTOP)
            start_s = time.monotonic()
            future = client.submit(X[0], deadline_s=1.0)
            clock.move(jump_s)
            with pytest.raises(RequestError) as error:
                future.result(timeout=LONG_S)
            assert error.value.reason == "deadline"
            assert time.monotonic() - start_s >= 0.99  # nor sooner
            hosts.processes["far"].send_signal(signal.SIGCONT)
            np.testing.assert_array_equal(client.ask(X[1])[0], logits(X[1:2])[0])
