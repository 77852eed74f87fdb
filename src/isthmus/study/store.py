"""A study in its database: optuna keeps the trials, SQLite or PostgreSQL keeps optuna.

.. code-block:: none

    create_study --> waiting --> claim --> running --> finish --> complete --> records
                        ^                     |------> fail
                        |                     |------> release
                        +--- run again -------+------> heart stopped: abandoned, in no table

A cell stands in the database once for each attempt, and only one of them is alive (waiting,
running or complete) at any time. Whatever changes that is done by one process at a time: SQLite
has no row locks, so optuna alone would hand one trial to two workers that ask at once.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from isthmus.errors import InputError, StorageError, few
from isthmus.files import from_json
from isthmus.study.database import (
    Heartbeat,
    alone,
    connected,
    parse_address,
    quiet,
    reaching,
    shown,
)
from isthmus.study.grid import OBJECTIVES, SCHEMA, Cell, Grid, differences, stored_config
from isthmus.study.records import StudyRecord, to_line

_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """An open study; see `open_study`.

    Attributes:
        url: Its database.
        name: Its name there.
        heartbeat: How its workers show that they live.
        config: What its grid said, all but the cells.
        storage: Optuna's side of the database.
        trials: Optuna's study.
    """

    url: URL
    name: str
    heartbeat: Heartbeat
    config: dict[str, Any]
    storage: RDBStorage
    trials: optuna.Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One cell that one worker has to itself.

    Attributes:
        cell: What to compute.
        attempt: 1 for the first.
        trial_id: Of the trial in the database.
        trial: Optuna's trial.
    """

    cell: Cell
    attempt: int
    trial_id: int
    trial: optuna.Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A cell that has no record and is not going to get one.

    Attributes:
        key: The cell in one word.
        reason: One line.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How far a study is, in cells.

    Attributes:
        name: Of the study.
        finished: Have a record.
        waiting: Will be taken by the next worker.
        running: Are with a worker, here or elsewhere.
        failed: Are tried again when the study is run again.
    """

    name: str
    finished: int
    waiting: int
    running: int
    failed: tuple[Failure, ...]

    @property
    def total(self) -> int:
        """All cells."""
        return self.finished + self.waiting + self.running + len(self.failed)


def check_storage(url: str) -> None:
    """Reach a database once, before what takes long.

    Raises:
        StorageError: It cannot be reached, or is none that workers can share.
    """
    with _for_creator(parse_address(url)):
        pass


def create_study(grid: Grid, url: str) -> None:
    """Make a study, or add the cells that it lacks; failed cells are tried again.

    Done twice, also at the same time, it changes nothing more. A search of fewer cells than one
    that is there already is that one.

    Args:
        grid: What to compute.
        url: ``sqlite:///path/study.db`` or ``postgresql://user@host/database``.

    Raises:
        InputError: The study is there with another config; names every difference.
        StorageError: The database cannot be reached.
    """
    asked = stored_config(grid)
    with _for_creator(parse_address(url)) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name=grid.name,
            directions=list(OBJECTIVES.values()),
            load_if_exists=True,
        )
        stored = study.user_attrs.get("config", {})
        if not stored and not study.get_trials(deepcopy=False):
            study.set_user_attr("config", asked)
        elif differing := differences(stored, asked):
            raise InputError(
                f"study {grid.name}: it is stored with another config: "
                f"{few(differing, most=8, apart='; ')}; ask for the stored one, or begin another "
                "study"
            )
        elif grid.search > stored["search"]["cells"]:
            study.set_user_attr("config", {**stored, "search": asked["search"]})
        attempts = _attempts(study)
        known = [Cell(**trials[0].user_attrs["cell"]) for trials in attempts.values()]
        for key, cell in {cell.key: cell for cell in (*grid.cells, *known)}.items():
            if _state(attempts.get(key, ())) is TrialState.FAIL:  # new, failed or lost
                _enqueue(study, cell)


def add_cells(study: Study, cells: Sequence[Cell]) -> int:
    """Add cells to an open study; those that it has stay as they are. Return how many it lacked.

    Raises:
        StorageError: The database cannot be reached.
    """
    with reaching(study.url), alone(study.url):
        attempts = _attempts(study.trials)
        lacking = [cell for cell in cells if cell.key not in attempts]
        for cell in lacking:
            _enqueue(study.trials, cell)
    return len(lacking)


@contextmanager
def open_study(url: str, name: str, *, heartbeat: Heartbeat | None = None) -> Iterator[Study]:
    """Join a study that `create_study` made.

    Args:
        url: Its database.
        name: Its name.
        heartbeat: How workers show that they live; the same for all of them.

    Yields:
        The study, until the context ends.

    Raises:
        InputError: There is no such study; names those that there are.
        StorageError: The database cannot be reached.
    """
    target = parse_address(url)
    if target.get_backend_name() == "sqlite" and not Path(target.database or "").is_file():
        raise StorageError(f"storage {shown(target)}: no such file; create the study first")
    heartbeat = heartbeat or Heartbeat()
    with ExitStack() as stack:
        with reaching(target), alone(target):
            storage = stack.enter_context(connected(target, heartbeat))
            names = optuna.get_all_study_names(storage)
            if name not in names:
                known = ", ".join(names) or "none"
                raise InputError(f"study {name}: not in {shown(target)}; it holds {known}")
            trials = optuna.load_study(study_name=name, storage=storage)
            config = trials.user_attrs.get("config", {})
        if config.get("schema") != SCHEMA:
            raise InputError(
                f"study {name} in {shown(target)}: not made by this version of isthmus; "
                "name another"
            )
        yield Study(
            url=target,
            name=name,
            heartbeat=heartbeat,
            config=config,
            storage=storage,
            trials=trials,
        )


def claim(study: Study) -> Lease | None:
    """Take the next waiting cell, those of dead workers included; None if none is waiting.

    Raises:
        StorageError: The database cannot be reached.
    """
    with reaching(study.url), alone(study.url), quiet():
        fail_stale_trials(study.trials)
        waiting = _waiting(study.trials) or _propose(study)
        if not waiting:
            return None
        # Before the trial runs: one that runs without a heartbeat would be waited for for ever.
        number = study.storage.get_study_id_from_name(study.name)
        trial_id = study.storage.get_trial_id_from_study_id_trial_number(number, waiting[0].number)
        study.storage.record_heartbeat(trial_id)
        trial = study.trials.ask()
        assert trial.number == waiting[0].number
    return Lease(
        cell=Cell(**waiting[0].user_attrs["cell"]),
        attempt=1 + len(waiting[0].system_attrs.get("retry_history", ())),
        trial_id=trial_id,
        trial=trial,
    )


def beat(study: Study, claimed: Lease) -> bool:
    """Show that the worker lives; return whether the cell is still its own."""
    with reaching(study.url):
        if study.storage.get_trial(claimed.trial_id).state is not TrialState.RUNNING:
            return False
        study.storage.record_heartbeat(claimed.trial_id)
    return True


def finish(study: Study, claimed: Lease, record: StudyRecord) -> bool:
    """Hand in a record; return whether it was taken.

    It is not taken if the worker was silent for so long that the cell was given to another. Done
    twice, as when the answer was lost, it changes nothing more.

    Raises:
        ValueError: A figure is missing that the study compares, or is not a number.
        StorageError: The database cannot be reached.
    """
    values = objective_values(study, record)
    line = to_line(record)
    with reaching(study.url), alone(study.url):
        state = study.storage.get_trial(claimed.trial_id).state
        if state is TrialState.RUNNING:
            claimed.trial.set_user_attr("record", json.loads(line))
            study.trials.tell(claimed.trial, values)
    return state in (TrialState.RUNNING, TrialState.COMPLETE)


def objective_values(study: Study, record: StudyRecord) -> list[float]:
    """Return the figures that the study compares, in its order.

    Raises:
        ValueError: One is missing or is not a number.
    """
    values = []
    for objective in study.config["objectives"]:
        value = record.figures.get(objective["figure"], math.nan)
        if not isinstance(value, int | float) or not math.isfinite(value):
            found = f"found {value!r}, expected a finite number"
            raise ValueError(f"figure {objective['figure']}: {found}")
        values.append(float(value))
    return values


def fail(study: Study, claimed: Lease, reason: str) -> None:
    """Give a cell up, with one line that says why; it stays failed until the study is run again.

    Raises:
        StorageError: The database cannot be reached.
    """
    with reaching(study.url), alone(study.url):
        if study.storage.get_trial(claimed.trial_id).state is TrialState.RUNNING:
            claimed.trial.set_user_attr("reason", reason)
            study.trials.tell(claimed.trial, state=TrialState.FAIL)


def release(study: Study, claimed: Lease) -> None:
    """Put a cell back for the next worker, who goes on from its checkpoint.

    Raises:
        StorageError: The database cannot be reached.
    """
    with reaching(study.url), alone(study.url):
        if study.storage.get_trial(claimed.trial_id).state is TrialState.RUNNING:
            study.storage.set_trial_state_values(claimed.trial_id, TrialState.WAITING)


def records(study: Study) -> tuple[StudyRecord, ...]:
    """Return the record of every finished cell, sorted by key.

    Raises:
        InputError: A cell has two records, or one that this version cannot read.
        StorageError: The database cannot be reached.
    """
    with reaching(study.url):
        complete = study.trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found: dict[str, StudyRecord] = {}
    for trial in complete:
        where = f"study {study.name}: trial {trial.number}"
        record = from_json(json.dumps(trial.user_attrs.get("record")), StudyRecord, where=where)
        if record.key in found:
            raise InputError(
                f"{where}: a second record of {record.key}; expected one for each key"
            )
        found[record.key] = record
    return tuple(found[key] for key in sorted(found))


def summarize(study: Study) -> Summary:
    """Count the cells.

    Raises:
        StorageError: The database cannot be reached.
    """
    with reaching(study.url):
        attempts = _attempts(study.trials)
    states = {key: _state(trials) for key, trials in attempts.items()}
    count = list(states.values()).count
    return Summary(
        name=study.name,
        finished=count(TrialState.COMPLETE),
        waiting=count(TrialState.WAITING),
        running=count(TrialState.RUNNING),
        failed=tuple(
            Failure(key=key, reason=_reason(attempts[key]))
            for key, state in sorted(states.items())
            if state is TrialState.FAIL
        ),
    )


@contextmanager
def _for_creator(target: URL) -> Iterator[RDBStorage]:
    """Connect as who creates a study does: a SQLite file is made where there is none."""
    if target.database and target.get_backend_name() == "sqlite":
        Path(target.database).parent.mkdir(parents=True, exist_ok=True)
    with reaching(target), alone(target), connected(target, Heartbeat()) as storage:
        yield storage


def _enqueue(study: optuna.Study, cell: Cell, *, searched: bool = False) -> None:
    fixed = asdict(cell)
    study.enqueue_trial(fixed, {"key": cell.key, "cell": fixed, "searched": searched})


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def _propose(study: Study) -> list[FrozenTrial]:
    """Enqueue one candidate of the search, if it may try another; return what then waits.

    The sampler learns from all finished cells that were judged as the candidates are.
    """
    search = study.config["search"]
    attempts = _attempts(study.trials)
    cells = [Cell(**candidate) for candidate in search["candidates"]]
    free = [cell for cell in cells if cell.key not in attempts]
    searched = [key for key, trials in attempts.items() if trials[0].user_attrs["searched"]]
    if len(searched) >= search["cells"] or not free:
        return []
    known = [
        (cell, trial.values)
        for trials in attempts.values()
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and (cell := Cell(**trial.user_attrs["cell"])).judged == free[0].judged
    ]
    # One proposal for one state of the study, whichever worker asks.
    sampler = TPESampler(seed=len(study.trials.get_trials(deepcopy=False)))
    scratch = optuna.create_study(directions=study.trials.directions, sampler=sampler)
    _enqueue(study.trials, proposal(scratch, free, known), searched=True)
    return _waiting(study.trials)


def proposal(
    scratch: optuna.Study, free: Sequence[Cell], known: Sequence[tuple[Cell, Sequence[float]]]
) -> Cell:
    """Return the candidate that is fewest steps away from where the sampler would look next.

    It is the tree-structured Parzen estimator for several objectives. It sees each field of a
    cell as a place in the row of that field's values, of which it thus knows the order.

    References:
        Ozaki, Tanigaki, Watanabe, Nomura, Onishi, "Multiobjective Tree-Structured Parzen
        Estimator", JAIR 73, 2022, https://doi.org/10.1613/jair.1.13188.
    """
    cells = [*free, *(cell for cell, _ in known)]
    rows = {
        each.name: sorted({getattr(cell, each.name) for cell in cells}) for each in fields(Cell)
    }
    ranges: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(row) - 1) for name, row in rows.items()
    }

    def place(cell: Cell) -> dict[str, int]:
        return {name: row.index(getattr(cell, name)) for name, row in rows.items()}

    for cell, values in known:
        scratch.add_trial(create_trial(params=place(cell), distributions=ranges, values=values))
    aim = scratch.ask(ranges).params
    return min(free, key=lambda cell: sum(abs(at - aim[name]) for name, at in place(cell).items()))


def _attempts(study: optuna.Study) -> dict[str, list[FrozenTrial]]:
    attempts: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if "key" in trial.user_attrs:
            attempts.setdefault(trial.user_attrs["key"], []).append(trial)
    return attempts


def _state(attempts: Sequence[FrozenTrial]) -> TrialState:
    """Return the state of the attempt that lives, FAIL if none does."""
    living = [trial.state for trial in attempts if trial.state in _LIVE]
    return living[0] if living else TrialState.FAIL


def _reason(attempts: Sequence[FrozenTrial]) -> str:
    died = f"its worker died, {len(attempts)} times in all"
    return str(attempts[-1].user_attrs.get("reason", died))
