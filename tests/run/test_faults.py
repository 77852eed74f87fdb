"""What dies is named in time, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isthmus.errors import RunError
from isthmus.run import start_workers
from tests.run.bundles import FAST, samples, write_chain

X = samples(1)[0]
LAUNCHER = """
import sys, time
from pathlib import Path
from isthmus.run import start_workers
with start_workers(Path(sys.argv[1])) as workers:
    print(*[process.pid for process in workers.processes], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    return tmp_path / "bundle"


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids, seconds):
    end_s = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def ask_until_something_is_wrong(workers):
    while workers.ask([X]) is not None:
        pass


def test_a_killed_second_stage_is_named_within_five_seconds(folder):
    with start_workers(folder) as workers:
        pids = [process.pid for process in workers.processes]
        for _ in range(5):
            assert workers.ask([X]) is not None
        for _ in range(3):
            workers.send([X])
        os.kill(pids[1], signal.SIGKILL)
        start_s = time.monotonic()
        with pytest.raises(
            RunError, match=r"device far: its worker ended \(killed by signal 9\)"
        ) as e:
            ask_until_something_is_wrong(workers)
        assert time.monotonic() - start_s < 5
        assert e.value.device == "far"
    assert wait_until_gone(pids, 1)


def test_a_worker_that_hangs_is_named(folder):
    with start_workers(folder, timeout_s=4.0) as workers:
        pid = workers.processes[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RunError, match="device near: its worker does not answer") as e:
                workers.ask([X])
        finally:
            os.kill(pid, signal.SIGCONT)
        assert e.value.device == "near"


def test_a_program_that_fails_says_why_and_where(tmp_path):
    bundle = write_chain(tmp_path / "bundle", FAST, input_dtype="int32")
    assert bundle.inputs[0].dtype == "int32"
    with (
        start_workers(tmp_path / "bundle") as workers,
        pytest.raises(RunError, match=r"device near: .*exit code 1.*onnxruntime failed") as e,
    ):
        workers.ask([X.astype("int32")])
    assert e.value.device == "near"
    assert "\n" not in str(e.value)


def test_a_codec_that_does_not_fit_the_program_is_named(tmp_path):
    write_chain(tmp_path / "bundle", FAST, codec="raw", payload_bytes=20)
    with start_workers(tmp_path / "bundle") as workers, pytest.raises(RunError, match="codec raw"):
        workers.ask([X])


def test_workers_end_when_their_launcher_is_killed(folder):
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, folder], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        launcher.kill()
        launcher.wait()
    assert wait_until_gone(pids, 5)


def test_a_worker_ends_cleanly_at_sigterm(folder):
    with start_workers(folder) as workers:
        process = workers.processes[1]
        process.terminate()
        assert process.wait(5) == 0
        with pytest.raises(RunError, match=r"device far: its worker ended \(exit code 0\)"):
            workers.ask([X])


def test_workers_end_cleanly_with_their_context_and_leave_no_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with start_workers(folder) as workers:
        assert any((tmp_path / "tmp").iterdir())
    assert [process.returncode for process in workers.processes] == [0, 0]
    assert not any((tmp_path / "tmp").iterdir())


def test_a_worker_that_cannot_start_is_named_with_its_reason(tmp_path):
    bundle = write_chain(tmp_path / "bundle", FAST, backend="abacus")
    assert bundle.devices[1].backend == "abacus"
    with (
        pytest.raises(RunError, match="no backend 'abacus'; there are onnxruntime"),
        start_workers(tmp_path / "bundle"),
    ):
        pass
