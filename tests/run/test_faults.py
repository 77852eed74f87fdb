"""What dies is named in time, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from isthmus.errors import RunError
from isthmus.run import start_workers
from tests.run.bundles import FAST, busy_program, far_program, samples, write_chain

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


@pytest.mark.alone
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


def stop_one(folder, index, wait, stopped_s):
    with start_workers(folder) as workers:
        assert workers.ask([X]) is not None
        os.kill(workers.processes[index].pid, signal.SIGSTOP)
        stopped_s.append(time.monotonic())
        wait(workers)


def fill(workers):
    while True:
        workers.send([X])


@pytest.mark.alone
@pytest.mark.parametrize(
    ("index", "device", "wait"),
    [(0, "near", ask_until_something_is_wrong), (1, "far", ask_until_something_is_wrong),
     (1, "far", fill)],
)  # fmt: skip
def test_a_worker_that_hangs_is_named_within_five_seconds(folder, index, device, wait):
    said = f"^device {device}: its worker does not answer for 2 s; [^\n]*start the run again$"
    stopped_s: list[float] = []
    with pytest.raises(RunError, match=said) as e:
        stop_one(folder, index, wait, stopped_s)
    assert time.monotonic() - stopped_s[0] < 5  # the workers' end included
    assert e.value.device == device


def test_a_slow_link_is_no_reason_to_think_that_a_worker_hangs(tmp_path):
    write_chain(tmp_path / "bundle", replace(FAST, latency_s=5.0))
    with start_workers(tmp_path / "bundle", timeout_s=1.0) as workers:
        workers.throttle(True)
        start_s = time.monotonic()
        assert workers.ask([X]) is not None
        assert time.monotonic() - start_s > 5


@pytest.mark.alone
def test_a_worker_that_computes_long_answers_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.run.bundles.far_program", lambda: busy_program(far_program()))
    write_chain(tmp_path / "bundle", FAST)
    with start_workers(tmp_path / "bundle") as workers:
        start_s = time.monotonic()
        request = workers.send([X])
        time.sleep(0.1)  # by now the far stage computes
        workers.statuses()
        answered_s = time.monotonic() - start_s
        reply = workers.receive()
        assert reply is not None
        assert reply.request == request
        assert answered_s < (time.monotonic() - start_s) / 2


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


@pytest.mark.parametrize("num_workers", [1, 2], ids=["as they start", "as they run"])
def test_the_command_ends_its_workers_at_sigterm_and_sweeps_its_folder(tmp_path, num_workers):
    write_chain(tmp_path / "bundle", replace(FAST, latency_s=0.1))
    x, y = samples(200), np.zeros(200, np.int64)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "tmp").mkdir()
    code = "from isthmus.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "run", "bundle", "--data", "npz:data.npz", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.DEVNULL,
    ) as command:
        workers: list[psutil.Process] = []
        while len(workers) < num_workers:
            assert command.poll() is None
            workers = psutil.Process(command.pid).children()
            time.sleep(0.01)
        time.sleep(2.0 * (num_workers - 1))
        command.terminate()
        assert command.wait(10) == 143
    assert wait_until_gone([worker.pid for worker in workers], 5)
    assert not any((tmp_path / "tmp").glob("isthmus*"))
    assert not (tmp_path / "run").exists()


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
