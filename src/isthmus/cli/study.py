"""The commands over many runs: studies and reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import (
    DataDir,
    Download,
    Json,
    check_used,
    print_json,
    print_parts,
    print_path,
    resumable,
)
from isthmus.errors import InputError, RunError


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="digits (3 minutes), small or depth (2 cores), paper, base (GPU: the plain "
            "networks' weights), or transfer."
        ),
    ] = "digits",
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; study-NAME if left out.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database for many machines: postgresql://USER@HOST/DB.")
    ] = None,
    search: Annotated[
        int,
        typer.Option(
            min=0,
            help="After the grid, try so many more networks (depth, width, placement, ratio) for "
            "more accuracy and fewer bytes, on a part of the training set held out; the best are "
            "then trained and tested as the grid's.",
        ),
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    join: Annotated[
        bool, typer.Option("--join", help="Help with a study that was created elsewhere.")
    ] = False,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Train nothing; show what is finished by now.")
    ] = False,
    meter: Annotated[
        list[str] | None,
        typer.Option(help="transfer only: memory, shape or wire. Repeat; all if left out."),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Run the paper's experiments: accuracy against ratio, and what passes from layer to layer.

    What is finished is not done again: stopped or killed, the same command goes on.

    Example: `isthmus study small --data-dir data --workers 2`
    """
    from isthmus.progress import shown
    from isthmus.report.study import study_tables, transfer_tables, write_study
    from isthmus.study.source import run_named, run_transfer

    failed: tuple[Any, ...] = ()
    folder = out or Path(f"study-{name}")
    if meter and name != "transfer":
        raise InputError("--meter: is for `isthmus study transfer` alone; leave it out")
    training: dict[str, Any] = {"search": search, "so_far": so_far, "storage": storage}
    training |= {"workers": workers, "join": join, "data_dir": data_dir, "download": download}
    several = {**training, "workers": workers > 1}
    check_used(name != "transfer", "a study that trains", **several)
    with resumable(name != "transfer"), shown() as progress:
        if name == "transfer":
            read = run_transfer(folder, meter, report=progress)
            page = write_study(folder, title="Transfer", records=(), choice=None, transfer=read)
            parts: tuple[Any, ...] = transfer_tables(read.readings)
            summary: dict[str, Any] = {"readings": len(read.readings)}
        else:
            outcome = run_named(name, folder, **training, report=progress)
            found, choice = outcome.records, outcome.choice
            page = write_study(folder, title=f"Study {name}", records=found, choice=choice)
            parts = study_tables(found)
            failed, summary = outcome.summary.failed, asdict(outcome.summary)
    if json_:
        print_json({"schema": "isthmus.study/1", "name": name, **summary, "page": str(page)})
    else:
        print_parts(*parts)
        print(page)
    if failed:
        raise RunError(
            f"study {name}: {len(failed)} cells failed, the first {failed[0].key} "
            f"({failed[0].reason}); the same command tries them again"
        )


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="What fit, export and run made, in any order.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """Write one self-contained HTML page with the figures.

    Example: `isthmus report fitted bundle run --out report.html`
    """
    from isthmus.report.page import write_report

    write_report(folders, out)
    print_path(out, json_=json_, report=str(out))
