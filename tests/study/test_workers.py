"""Workers that share a study, and what is left when one of them is killed."""

import json
import os
import resource
import subprocess
import threading
import time
from functools import partial

import pytest
from optuna.trial import TrialState

from isthmus.errors import RunError
from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision
from isthmus.study.database import Heartbeat
from isthmus.study.store import create_study, open_study, records, summarize
from isthmus.study.workers import ERROR_FILE, RECORD_FILE, cell_folder, run_worker, run_workers
from tests.study import computes
from tests.study.computes import STALL, counted, grid

QUICK = Heartbeat(interval_s=1, grace_s=2)


def records_of(url):
    with open_study(url, "tiny") as study:
        return records(study)


def attempts_of(url):
    with open_study(url, "tiny") as study:
        trials = study.trials.get_trials()
    return [trial.state.name for trial in trials if trial.user_attrs["cell"]["ratio"] == 2]


def wait_until(condition, *, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_workers_on_one_file_compute_every_cell_once(sqlite, tmp_path):
    create_study(grid(8), sqlite)
    told = []
    summary = run_workers(
        sqlite,
        "tiny",
        computes.count,
        folder=tmp_path / "cells",
        workers=2,
        report=lambda *step: told.append(step),
        heartbeat=QUICK,
    )
    assert (summary.finished, summary.total) == (8, 8)
    assert counted(tmp_path / "cells") == sorted(cell.key for cell in grid(8).cells)
    found = records_of(sqlite)
    assert [record.key for record in found] == counted(tmp_path / "cells")
    assert {record.machine for record in found} == {describe_machine()}
    assert all((record.revision is None) == (git_revision() is None) for record in found)
    assert told[-1] == ("study tiny", 8, 8)
    assert {step.partition(",")[0] for step, _, _ in told} <= {
        "worker 1",
        "worker 2",
        "study tiny",
    }


def test_a_killed_workers_cell_is_run_again_from_its_checkpoint(url, tmp_path, processes):
    create_study(grid(), url)
    folder = tmp_path / "cells"
    worker = processes.Process(
        target=partial(run_worker, folder=folder, heartbeat=QUICK),
        args=(url, "tiny", computes.stall),
    )
    worker.start()
    place = cell_folder(folder, grid().cells[1], {"rate": 0.1})
    checkpoint = json.dumps({"step": STALL})
    path = place / "steps" / "checkpoint.json"
    wait_until(lambda: path.exists() and path.read_text() == checkpoint)
    worker.kill()  # SIGKILL
    worker.join(10)
    assert worker.exitcode == -9

    assert run_worker(url, "tiny", computes.stall, folder=folder, heartbeat=QUICK) == 3
    assert attempts_of(url) == ["FAIL", "COMPLETE"]
    assert [each.name for each in place.iterdir()] == [RECORD_FILE]  # checkpoints have served
    found = {record.cell.ratio: record for record in records_of(url)}
    assert sorted(found) == [1, 2, 4, 8]
    assert (found[2].figures["resumed_from"], found[2].attempts) == (STALL, 2)
    assert [found[r].figures["resumed_from"] for r in (1, 4, 8)] == [0, 0, 0]


def test_the_other_worker_takes_over_while_the_launcher_says_who_died(sqlite, tmp_path):
    create_study(grid(), sqlite)
    told = []
    summary = run_workers(
        sqlite,
        "tiny",
        computes.die,
        folder=tmp_path / "cells",
        workers=2,
        report=lambda *step: told.append(step[0]),
        heartbeat=QUICK,
    )
    assert (summary.finished, summary.total) == (4, 4)
    assert [step for step in told if "ended" in step] in (
        ["worker 1 ended (killed by signal 9)"],
        ["worker 2 ended (killed by signal 9)"],
    )
    assert {r.cell.ratio: r.attempts for r in records_of(sqlite)} == {1: 1, 2: 2, 4: 1, 8: 1}


def test_workers_that_all_end_are_an_error_that_says_why(tmp_path):
    with pytest.raises(RunError) as caught:
        run_workers(
            f"sqlite:///{tmp_path}/none.db", "tiny", computes.never, folder=tmp_path, workers=2
        )
    assert str(caught.value).startswith("study tiny: all workers ended: worker 1 ended (storage ")
    assert str(caught.value).endswith("none.db: no such file; create the study first)")


def test_workers_that_are_asked_to_end_put_their_cells_back(sqlite, tmp_path):
    create_study(grid(2), sqlite)
    begun = []

    def report(step, done, total):
        begun.append(step.partition(":")[0])
        if any("worker 1" in step for step in begun) and any("worker 2" in step for step in begun):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(
            sqlite, "tiny", computes.wait_for_stop, folder=tmp_path, workers=2, report=report
        )
    with open_study(sqlite, "tiny") as study:
        assert summarize(study).waiting == 2


def test_workers_whose_launcher_is_killed_put_their_cells_back(sqlite, tmp_path, processes):
    create_study(grid(1), sqlite)
    launcher = processes.Process(
        target=partial(run_workers, folder=tmp_path / "cells", workers=2),
        args=(sqlite, "tiny", computes.wait_for_stop),
    )
    launcher.start()
    wait_until(lambda: list(tmp_path.glob("cells/*/begun")))
    launcher.kill()  # its workers notice that nobody listens
    launcher.join(10)

    def waits():
        with open_study(sqlite, "tiny") as study:
            return summarize(study).waiting == 1

    wait_until(waits)
    assert run_worker(sqlite, "tiny", computes.count, folder=tmp_path / "cells") == 1


def test_a_worker_that_nobody_listens_to_leaves_every_cell_waiting(sqlite, tmp_path):
    create_study(grid(2), sqlite)

    def gone(*_):
        raise KeyboardInterrupt  # as when the launcher died before the first report

    with pytest.raises(KeyboardInterrupt):
        run_worker(sqlite, "tiny", computes.never, folder=tmp_path, report=gone)
    with open_study(sqlite, "tiny") as study:
        assert (summarize(study).waiting, summarize(study).running) == (2, 0)


def test_an_interruption_puts_the_cell_back_and_goes_on(sqlite, tmp_path):
    create_study(grid(2), sqlite)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(sqlite, "tiny", interrupt, folder=tmp_path)
    with open_study(sqlite, "tiny") as study:
        assert summarize(study).waiting == 2


def test_a_cell_that_fails_is_named_with_its_reason_and_the_others_go_on(sqlite, tmp_path):
    create_study(grid(), sqlite)
    run = partial(run_workers, sqlite, "tiny", folder=tmp_path)
    (failure,) = run(computes.refuse_ratio_2).failed
    assert failure.key == grid().cells[1].key
    assert failure.reason == "ValueError: ratio 2 is refused"
    assert [record.cell.ratio for record in records_of(sqlite)] == [1, 4, 8]
    place = cell_folder(tmp_path, grid().cells[1], {"rate": 0.1})
    assert "refuse_ratio_2" in (place / ERROR_FILE).read_text()
    assert run(computes.never).failed == (failure,)
    create_study(grid(), sqlite)
    assert run(computes.count).failed == ()


def test_figures_that_are_missing_fail_the_cell(sqlite, tmp_path):
    create_study(grid(1), sqlite)
    (failure,) = run_workers(sqlite, "tiny", lambda *_: {"bytes": 1}, folder=tmp_path).failed
    assert failure.reason.startswith("ValueError: figure accuracy: found nan, expected a finite")


def test_a_worker_that_was_held_up_stops_when_its_cell_is_anothers(sqlite, tmp_path):
    create_study(grid(1), sqlite)
    taken_over = []

    def be_silent(cell, folder, report):
        with open_study(sqlite, "tiny") as study:  # as another worker does after the grace
            study.storage.set_trial_state_values(1, TrialState.FAIL)
        create_study(grid(1), sqlite)
        taken_over.append(cell)
        return computes.wait_for_stop(cell, folder, report)

    def compute(*args):
        return computes.count(*args) if taken_over else be_silent(*args)

    assert run_worker(sqlite, "tiny", compute, folder=tmp_path / "cells", heartbeat=QUICK) == 1
    assert attempts_of_all(sqlite) == ["FAIL", "COMPLETE"]


def attempts_of_all(url):
    with open_study(url, "tiny") as study:
        return [trial.state.name for trial in study.trials.get_trials()]


def test_a_record_outlives_its_database(sqlite, tmp_path):
    folder = tmp_path / "cells"
    create_study(grid(), sqlite)
    run_worker(sqlite, "tiny", computes.count, folder=folder)
    made = records_of(sqlite)
    (tmp_path / "study.db").unlink()
    create_study(grid(), sqlite)
    assert run_worker(sqlite, "tiny", computes.never, folder=folder) == 4
    assert records_of(sqlite) == made
    (tmp_path / "study.db").unlink()
    create_study(grid(config={"rate": 0.2}), sqlite)
    run_worker(sqlite, "tiny", computes.count, folder=folder)
    assert len(counted(folder)) == 8  # another config is another folder


def test_a_database_that_restarts_loses_nothing(server, postgresql, tmp_path):
    create_study(grid(1), postgresql)
    told = []

    def compute(cell, folder, report):
        server.stop()
        threading.Timer(0.5, server.start).start()
        return computes.count(cell, folder, report)

    def report(step, done, total):
        told.append(step.partition(",")[0])

    assert run_worker(postgresql, "tiny", compute, folder=tmp_path / "cells", report=report) == 1
    assert "waiting" in told
    assert len(records_of(postgresql)) == 1


class TestADiskThatIsFull:
    """While a checkpoint is written: the last good one survives, and the cell goes on from it."""

    def checkpoints(self, cell, folder, report):
        """Write two checkpoints, of 100 kB and 2 MB."""
        path = folder / "state" / "checkpoint"
        begun = path.stat().st_size if path.exists() else 0
        for size in (100_000, 2_000_000):
            if size > begun:
                write_bytes(path, bytes(size))
        return computes.figures(cell, resumed_from=begun)

    def check(self, url, folder, compute, *, mend, words):
        create_study(grid(1), url)
        (failure,) = run_workers(url, "tiny", compute, folder=folder).failed
        assert words in failure.reason
        place = cell_folder(folder, grid().cells[0], {"rate": 0.1})
        assert (place / "state" / "checkpoint").read_bytes() == bytes(100_000)
        assert [path.name for path in (place / "state").iterdir()] == ["checkpoint"]
        mend()
        create_study(grid(1), url)
        assert run_workers(url, "tiny", self.checkpoints, folder=folder).finished == 1
        assert records_of(url)[0].figures["resumed_from"] == 100_000

    def test_by_the_size_of_a_file(self, sqlite, tmp_path):
        def limited(*args):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
            try:
                return self.checkpoints(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        self.check(sqlite, tmp_path, limited, mend=lambda: None, words="File too large")

    def test_by_a_file_system(self, sqlite, tmp_path):
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small file system cannot be mounted here")
        grow = ["mount", "-o", "remount,size=8m", str(folder)]
        try:
            self.check(
                sqlite,
                folder,
                self.checkpoints,
                mend=lambda: subprocess.run(grow, check=True),
                words="No space left on device",
            )
        finally:
            subprocess.run(["umount", str(folder)], check=True)
