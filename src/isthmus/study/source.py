"""The source study from end to end: choose, compute every cell, export the records."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from isthmus.data import load_images
from isthmus.errors import InputError
from isthmus.files import write_bytes, write_json
from isthmus.progress import Report, silent
from isthmus.study.cells import (
    CHOICE_FILE,
    CHOICE_SCHEMA,
    RECIPES,
    Choice,
    choose,
    compute_cell,
)
from isthmus.study.grid import SCHEMA, Grid
from isthmus.study.recipes import STUDIES, StudyRecipe, grid_of
from isthmus.study.records import StudyRecord, write_records
from isthmus.study.store import Summary, create_study, open_study, records, summarize
from isthmus.study.transfer import METERS, Reading, measure_transfer
from isthmus.study.workers import run_workers

DATABASE_FILE = "study.db"
RECORDS_FILE = "records.jsonl"
READINGS_FILE = "readings.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How far a study is.

    Attributes:
        summary: Finished, waiting, running and failed cells.
        choice: How the cells are trained, and how that was chosen.
        records: One for each finished cell.
    """

    summary: Summary
    choice: Choice
    records: tuple[StudyRecord, ...]


def run_study(
    recipe: StudyRecipe,
    folder: Path,
    *,
    storage: str | None = None,
    workers: int = 1,
    report: Report = silent,
) -> Outcome:
    """Run a study, or go on with one: what is finished is not done again.

    Args:
        recipe: The study.
        folder: Keeps the choice, every cell's checkpoints, and ``records.jsonl``.
        storage: URL of the database; a SQLite file in ``folder`` if None.
        workers: Processes on this machine.
        report: Told of every epoch.

    Returns:
        How far it is; failed cells are named in the summary.

    Raises:
        InputError: The stored study was asked for in another way, or its database or data set
            cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{folder.resolve() / DATABASE_FILE}"
    choice = choose(recipe.candidates, folder, report=report)
    best = choice.best
    (trained,) = [
        cell
        for cell in recipe.candidates
        if (cell.recipe, cell.epochs) == (best.recipe, best.epochs)
    ]
    grid = Grid(
        name=recipe.name,
        cells=grid_of(recipe, trained=trained),
        config={"choice": asdict(choice), "recipe": asdict(RECIPES[best.recipe])},
    )
    create_study(grid, url)
    run_workers(
        url, recipe.name, compute_cell, folder=folder / "cells", workers=workers, report=report
    )
    return _outcome(url, recipe.name, folder)


def join_study(
    name: str,
    folder: Path,
    *,
    storage: str,
    workers: int = 1,
    report: Report = silent,
) -> Outcome:
    """Help with a study that somebody else created; see `run_study`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_study(storage, name) as study:
        stored = TypeAdapter(Choice).validate_python(study.config["config"]["choice"])
    write_json(folder / CHOICE_FILE, stored, schema=CHOICE_SCHEMA)
    run_workers(
        storage, name, compute_cell, folder=folder / "cells", workers=workers, report=report
    )
    return _outcome(storage, name, folder)


def run_named(
    name: str,
    folder: Path,
    *,
    storage: str | None = None,
    workers: int = 1,
    join: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    report: Report = silent,
) -> Outcome:
    """Run, or help with, a study by its name; see `run_study` and `join_study`.

    Args:
        name: A key of ``STUDIES``.
        folder: Of the study, on this machine.
        storage: URL of the database; needed to join.
        workers: Processes on this machine.
        join: Help with a study that was created elsewhere.
        data_dir: Where the published files of data sets lie; ``$ISTHMUS_DATA`` if None.
        download: Fetch a missing data set first.
        report: Told of every epoch.

    Raises:
        InputError: There is no such study, or to join one a database is not named.
    """
    if name not in STUDIES:
        raise InputError(f"no study {name!r}; there are {', '.join((*STUDIES, 'transfer'))}")
    recipe = STUDIES[name]()
    if data_dir is not None:
        os.environ["ISTHMUS_DATA"] = str(data_dir)  # the workers look there too
    if download:
        load_images(recipe.candidates[0].data, "train", download=True, progress=report)
    if not join:
        return run_study(recipe, folder, storage=storage, workers=workers, report=report)
    if storage is None:
        raise InputError("--join: names no database; add --storage, as where it was created")
    return join_study(name, folder, storage=storage, workers=workers, report=report)


def run_transfer(
    folder: Path, meters: Sequence[str] | None, *, report: Report = silent
) -> tuple[Reading, ...]:
    """Read every meter, and keep the readings; see `isthmus.study.transfer.measure_transfer`."""
    readings = measure_transfer(meters or tuple(METERS), report=report)
    lines = [json.dumps({"schema": SCHEMA, **asdict(reading)}) for reading in readings]
    write_bytes(folder / READINGS_FILE, "\n".join([*lines, ""]).encode())
    return readings


def _outcome(url: str, name: str, folder: Path) -> Outcome:
    with open_study(url, name) as study:
        found = records(study)
        summary = summarize(study)
        choice = TypeAdapter(Choice).validate_python(study.config["config"]["choice"])
    write_records(folder / RECORDS_FILE, found)
    return Outcome(summary=summary, choice=choice, records=found)
