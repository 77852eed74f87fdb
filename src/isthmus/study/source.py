"""The source study from end to end: choose, compute every cell, export the records."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter
from sqlalchemy import URL

from isthmus.data import load_images
from isthmus.errors import InputError
from isthmus.files import check_writable, read_json, refusing, write_json
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.progress import Report, silent
from isthmus.study.cells import CHOICE_FILE, RECIPES, Choice, choose, compute_cell
from isthmus.study.front import Point, front
from isthmus.study.grid import Cell, Grid
from isthmus.study.recipes import STUDIES, StudyRecipe, beyond, grid_of
from isthmus.study.records import RECORDS_FILE, StudyRecord, write_records
from isthmus.study.store import (
    Summary,
    add_cells,
    check_storage,
    create_study,
    open_study,
    records,
    summarize,
)
from isthmus.study.transfer import METERS, Transfer, measure_transfer
from isthmus.study.workers import run_workers

DATABASE_FILE = "study.db"
TRANSFER_FILE = "transfer.json"


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
    search: int = 0,
    storage: str | None = None,
    workers: int = 1,
    report: Report = silent,
) -> Outcome:
    """Run a study, or go on with one: what is finished is not done again.

    After the grid a search tries networks that the grid does not hold, on the held-out part of
    the training set; those that no other beats there are then trained and tested as the grid's.
    Arguments are those of `run_named`, with a recipe in place of its name.

    Returns:
        How far it is; failed cells are named in the summary.

    Raises:
        InputError: The stored study was asked for in another way, its database or data set cannot
            be reached, or there is less to search in.
    """
    space = len(beyond(recipe, trained=recipe.candidates[0]))
    if search > space:
        raise InputError(
            f"study {recipe.name}: search: found {search}, expected at most {space}, the networks "
            "that it may choose from"
        )
    with refusing(folder, "cannot be made", "name another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    url = storage or _own_database(folder)
    check_storage(url)
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
        candidates=beyond(recipe, trained=trained) if search else (),
        search=search,
    )
    create_study(grid, url)
    work = partial(run_workers, url, recipe.name, compute_cell)
    work = partial(work, folder=folder / "cells", workers=workers, report=report)
    work()
    with open_study(url, recipe.name) as study:
        added = add_cells(study, _best_found(records(study)))
    if added:
        work()
    return _outcome(url, recipe.name, folder)


def _best_found(found: Sequence[StudyRecord]) -> tuple[Cell, ...]:
    """Return what no other beat of all that was searched, to be trained and tested."""
    searched = {
        Point(
            name=record.key,
            accuracy=record.figures["accuracy"],
            num_bytes=record.figures["bytes"],
        ): record.cell
        for record in found
        if record.cell.judged == "held-out"
    }
    if not searched:
        return ()
    return tuple(replace(searched[point], judged="test") for point in front(tuple(searched)))


def join_study(
    name: str,
    folder: Path,
    *,
    storage: str,
    workers: int = 1,
    report: Report = silent,
) -> Outcome:
    """Help with a study that somebody else created; see `run_study`.

    Raises:
        InputError: There is no such study, or the folder has the choice of another.
    """
    with open_study(storage, name) as study:
        stored = TypeAdapter(Choice).validate_python(study.config["config"]["choice"])
    path = folder / CHOICE_FILE
    if path.is_file() and read_json(path, Choice) != stored:
        raise InputError(f"{path}: is of another study; name another folder")
    with refusing(folder, "cannot be made", "name another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, stored)
    run_workers(
        storage, name, compute_cell, folder=folder / "cells", workers=workers, report=report
    )
    return _outcome(storage, name, folder)


def run_named(
    name: str,
    folder: Path,
    *,
    search: int = 0,
    storage: str | None = None,
    workers: int = 1,
    join: bool = False,
    so_far: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    report: Report = silent,
) -> Outcome:
    """Run, or help with, a study by its name; see `run_study` and `join_study`.

    Args:
        name: A key of ``STUDIES``.
        folder: Of the study, on this machine: keeps the choice, every cell's checkpoints, and
            ``records.jsonl``.
        search: How many networks beyond the grid the search has tried in the end; its creator
            says so, not who joins.
        storage: URL of the database; a SQLite file in ``folder`` if None, but needed to join.
        workers: Processes on this machine.
        join: Help with a study that was created elsewhere.
        so_far: Train nothing; return what is finished, also while others are at work on it.
        data_dir: Where the published files of data sets lie; ``$ISTHMUS_DATA`` if None.
        download: Fetch a missing data set first.
        report: Told of every epoch.

    Raises:
        InputError: There is no such study, to join one a database is not named, or the folder
            cannot be made.
    """
    if name not in STUDIES:
        raise InputError(f"no study {name!r}; there are {', '.join((*STUDIES, 'transfer'))}")
    check_writable(folder / DATABASE_FILE)
    if so_far:
        return _outcome(storage or _own_database(folder), name, folder)
    recipe = STUDIES[name]()
    if data_dir is not None:
        os.environ["ISTHMUS_DATA"] = str(data_dir)  # the workers look there too
    if download:
        load_images(recipe.candidates[0].data, "train", download=True, progress=report)
    if not join:
        return run_study(
            recipe, folder, search=search, storage=storage, workers=workers, report=report
        )
    if search:
        raise InputError("--search: is for who creates the study; leave it out with --join")
    if storage is None:
        raise InputError("--join: names no database; add --storage, as where it was created")
    return join_study(name, folder, storage=storage, workers=workers, report=report)


def run_transfer(
    folder: Path, meters: Sequence[str] | None, *, report: Report = silent
) -> Transfer:
    """Read every meter, and keep the readings; see `isthmus.study.transfer.measure_transfer`."""
    check_writable(folder / TRANSFER_FILE)
    started = time.perf_counter()
    transfer = Transfer(
        readings=measure_transfer(meters or tuple(METERS), report=report),
        machine=describe_machine(),
        versions=library_versions(),
        revision=git_revision(),
        seconds=time.perf_counter() - started,
    )
    write_json(folder / TRANSFER_FILE, transfer)
    return transfer


def _own_database(folder: Path) -> str:
    path = str(folder.resolve() / DATABASE_FILE)
    return URL.create("sqlite", database=path).render_as_string()


def _outcome(url: str, name: str, folder: Path) -> Outcome:
    with open_study(url, name) as study:
        found = records(study)
        summary = summarize(study)
        choice = TypeAdapter(Choice).validate_python(study.config["config"]["choice"])
    write_records(folder / RECORDS_FILE, found)
    return Outcome(summary=summary, choice=choice, records=found)
