"""Workers: each takes one cell of a study after the other, here or on any other machine.

.. code-block:: none

    claim --> compute, from the cell's checkpoint if there is one --> record.json --> finish
                 | heart beats in a thread

A cell's folder is named by all that the cell depends on. Its record is written there before it
is handed in, so that a database that cannot be reached loses nothing; then its checkpoints go.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from traceback import format_exception
from typing import Any, TypeVar

import torch

from isthmus.errors import IsthmusError, RunError, StorageError
from isthmus.files import read_json, write_bytes
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.progress import Report, silent
from isthmus.signals import raise_at
from isthmus.study.database import Heartbeat
from isthmus.study.grid import Cell
from isthmus.study.records import StudyRecord, to_line
from isthmus.study.store import (
    Lease,
    Study,
    Summary,
    beat,
    claim,
    fail,
    finish,
    objective_values,
    open_study,
    release,
    summarize,
)

T = TypeVar("T")

# Figures of a cell, whatever JSON holds. The folder is the cell's own: checkpoints lie in folders
# there, to go on from, and are removed when the record is handed in; files that it leaves beside
# them stay. Reporting often lets it be stopped.
Compute = Callable[[Cell, Path, Report], Mapping[str, Any]]

RECORD_FILE = "record.json"
ERROR_FILE = "error.txt"

_PATIENCE_S = 600  # how long a database may be away while workers are at work
_RETRY_S = 2
_STOP_S = 10
_RELEASES = 5  # a database that is busy just then
_RELEASE_PAUSE_S = 0.5


class _Lost(BaseException):
    """The cell was given to another worker; no compute function catches this by accident."""


def run_workers(
    url: str,
    name: str,
    compute: Compute,
    *,
    folder: Path,
    workers: int = 1,
    report: Report = silent,
    heartbeat: Heartbeat | None = None,
) -> Summary:
    """Compute all cells that are left, those of workers that die elsewhere included.

    Args:
        url: The study's database; any number of machines may do this on the same one.
        name: The study's name.
        compute: What a cell is; a function that other processes can import.
        folder: Holds a folder for each cell; workers that share it go on from each other's
            checkpoints.
        workers: Processes to start; one works in this process. They share the cores.
        report: Told of every step of every worker.
        heartbeat: How workers show that they live; the same for all of them.

    Returns:
        How far the study is.

    Raises:
        InputError: There is no such study, or its database cannot be reached.
        RunError: All workers died.
    """
    work = partial(run_worker, url, name, compute, folder=folder, heartbeat=heartbeat)
    if workers == 1:
        work(report=report)
    elif len(died := _run_processes(work, _context(compute), workers, report)) == workers:
        raise RunError(f"study {name}: all workers ended: {'; '.join(sorted(died))}")
    with open_study(url, name, heartbeat=heartbeat) as study:
        return summarize(study)


def run_worker(
    url: str,
    name: str,
    compute: Compute,
    *,
    folder: Path,
    report: Report = silent,
    heartbeat: Heartbeat | None = None,
    label: str = "worker",
) -> int:
    """Work in this process until no cell is waiting, nor with a worker that may still die.

    A cell that fails is marked with one line of reason, and the work goes on. An interruption
    puts the cell back. Arguments are those of `run_workers`, and the ``label`` by which the
    report calls this worker.

    Returns:
        How many records were handed in.

    Raises:
        InputError: There is no such study, or its database cannot be reached for long.
    """
    handed_in = 0
    shown = -1
    with open_study(url, name, heartbeat=heartbeat) as study:

        def tell() -> Summary:
            nonlocal shown
            summary = _patiently(lambda: summarize(study), report)
            if summary.finished != shown:
                shown = summary.finished
                report(f"study {name}", summary.finished, summary.total)
            return summary

        while True:
            tell()  # may end this worker, so not between claiming a cell and working on it
            claimed = _patiently(lambda: claim(study), report)
            if claimed is not None:
                handed_in += _work(study, claimed, compute, folder, label, report)
                continue
            summary = tell()
            if summary.waiting + summary.running == 0:
                return handed_in
            time.sleep(study.heartbeat.interval_s)


def cell_folder(folder: Path, cell: Cell, config: Mapping[str, Any]) -> Path:
    """Return where a cell keeps its checkpoints, for one config."""
    content = json.dumps([cell.key, config], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return folder / f"{cell.key.replace('/', '-')}-{digest}"


def _work(
    study: Study, claimed: Lease, compute: Compute, folder: Path, label: str, report: Report
) -> bool:
    """Compute one cell and hand its record in; return whether it was taken."""
    place = cell_folder(folder, claimed.cell, study.config["config"])
    lost = Event()

    def step(words: str, done: int, total: int) -> None:
        if lost.is_set():
            raise _Lost
        report(f"{label}, {claimed.cell.key}: {words}", done, total)

    try:
        with _beating(study, claimed, lost):
            try:
                record = _record(study, claimed, compute, place, step)
            except Exception as error:
                _give_up(study, claimed, place, error, report)
                return False
            if not _patiently(lambda: finish(study, claimed, record), report):
                return False
            for checkpoints in filter(Path.is_dir, place.iterdir()):
                shutil.rmtree(checkpoints, ignore_errors=True)
            return True
    except _Lost:
        return False
    except BaseException:
        _put_back(study, claimed)
        raise


def _put_back(study: Study, claimed: Lease) -> None:
    """Release a cell on the way out; where that fails to the end, its silent heart tells."""
    for _ in range(_RELEASES):
        with suppress(StorageError):
            release(study, claimed)
            return
        time.sleep(_RELEASE_PAUSE_S)


def _record(
    study: Study, claimed: Lease, compute: Compute, place: Path, report: Report
) -> StudyRecord:
    """Return the record that an earlier attempt could not hand in, or compute it."""
    path = place / RECORD_FILE
    if path.is_file():
        return read_json(path, StudyRecord)
    place.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    figures = compute(claimed.cell, place, report)
    record = StudyRecord(
        key=claimed.cell.key,
        cell=claimed.cell,
        config=study.config["config"],
        figures=figures,
        machine=describe_machine(),
        versions=library_versions(),
        revision=git_revision(),
        seconds=time.perf_counter() - started,
        attempts=claimed.attempt,
    )
    objective_values(study, record)  # before it is written: a figure that is missing is an error
    write_bytes(path, to_line(record).encode())
    return record


def _give_up(study: Study, claimed: Lease, place: Path, error: Exception, report: Report) -> None:
    """Mark the cell as failed; all that is known stays in its folder."""
    words = " ".join(str(error).split())
    reason = words if isinstance(error, IsthmusError) else f"{type(error).__name__}: {words}"
    with suppress(IsthmusError):
        write_bytes(place / ERROR_FILE, "".join(format_exception(error)).encode())
    _patiently(lambda: fail(study, claimed, reason), report)
    report(f"{claimed.cell.key} failed: {reason}", 1, 1)


@contextmanager
def _beating(study: Study, claimed: Lease, lost: Event) -> Iterator[None]:
    """Show in a thread that the worker lives; set ``lost`` when the cell is no longer its own."""
    stop = Event()

    def beat_on() -> None:
        while not stop.wait(study.heartbeat.interval_s) and not lost.is_set():
            with suppress(StorageError):  # the next beat may reach it
                if not beat(study, claimed):
                    lost.set()
        study.storage.remove_session()

    thread = Thread(target=beat_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _patiently(action: Callable[[], T], report: Report) -> T:
    """Do it as soon as the database can be reached; nothing is lost while it restarts."""
    deadline_s = time.monotonic() + _PATIENCE_S
    said = ""
    while True:
        try:
            return action()
        except StorageError as error:
            if time.monotonic() > deadline_s:
                raise
            if str(error) != said:
                said = str(error)
                report(f"waiting, at most {_PATIENCE_S // 60} minutes, {said}", 1, 1)
            time.sleep(_RETRY_S)


def _run_processes(
    work: Callable[..., int],
    context: ForkServerContext | SpawnContext,
    workers: int,
    report: Report,
) -> list[str]:
    """Start worker processes, hand their reports on, wait for all; return how some died."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes: dict[Connection, BaseProcess] = {}
    try:
        for index in range(1, workers + 1):
            ours, theirs = context.Pipe(duplex=False)
            label = f"worker {index}"
            given = (theirs, threads, partial(work, label=label))
            process = context.Process(target=_process, args=given, name=label)
            process.start()
            theirs.close()
            processes[ours] = process
        return _relay(processes, report)
    finally:
        _stop(processes.values())


def _context(compute: Compute) -> ForkServerContext | SpawnContext:
    """Return how processes start: all from one that has done the imports, where that is known."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, compute.__module__])
    return context


def _relay(processes: Mapping[Connection, BaseProcess], report: Report) -> list[str]:
    """Hand reports on until all processes have ended; return how those ended that died."""
    died: list[str] = []
    last: dict[Connection, str] = {}
    open_ends = list(processes)
    while open_ends:
        for end in wait(open_ends):
            assert isinstance(end, Connection)
            try:
                last[end], done, total = json.loads(end.recv_bytes())
                report(last[end], done, total)
            except (EOFError, OSError):
                open_ends.remove(end)
                process = processes[end]
                process.join()
                if code := process.exitcode:
                    how = f"killed by signal {-code}" if code < 0 else last.get(end, "")
                    died.append(f"{process.name} ended ({how})")
                    report(died[-1], 1, 1)
    return died


def _stop(processes: Collection[BaseProcess]) -> None:
    """End what still runs; a worker that is asked puts its cell back."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


def _process(end: Connection, threads: int, work: Callable[..., int]) -> None:
    """Be a worker process: report to the launcher, end when asked or when it is gone."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher gets it too, and asks
    raise_at(signal.SIGTERM, KeyboardInterrupt)  # the cell is put back
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)

    def report(step: str, done: int, total: int) -> None:
        try:
            end.send_bytes(json.dumps([step, done, total]).encode())
        except OSError as error:
            raise KeyboardInterrupt from error

    try:
        work(report=report)
    except KeyboardInterrupt:
        sys.exit(1)
    except IsthmusError as error:
        report(str(error), 1, 1)
        sys.exit(1)
