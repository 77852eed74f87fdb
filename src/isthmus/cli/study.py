"""The commands over many runs: studies and reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import DataDir, Download, Json, print_json, print_parts
from isthmus.errors import InputError


def study(
    name: Annotated[
        str, typer.Argument(help="digits (3 minutes), small (2 cores), paper (GPU), or transfer.")
    ] = "digits",
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; study-NAME if left out.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database for many machines: postgresql://USER@HOST/DB.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    join: Annotated[
        bool, typer.Option("--join", help="Help with a study that was created elsewhere.")
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

    folder = out or Path(f"study-{name}")
    if meter and name != "transfer":
        raise InputError("--meter: is for `isthmus study transfer` alone; leave it out")
    with shown() as progress:
        if name == "transfer":
            readings = run_transfer(folder, meter, report=progress)
            page = write_study(
                folder, title="Transfer", records=(), choice=None, readings=readings
            )
            parts = transfer_tables(readings)
            summary: dict[str, Any] = {"readings": len(readings)}
        else:
            outcome = run_named(
                name,
                folder,
                storage=storage,
                workers=workers,
                join=join,
                data_dir=data_dir,
                download=download,
                report=progress,
            )
            page = write_study(
                folder,
                title=f"Study {name}",
                records=outcome.records,
                choice=outcome.choice,
            )
            parts = study_tables(outcome.records)
            summary = asdict(outcome.summary)
    if json_:
        print_json({"schema": "isthmus.study/1", "name": name, **summary, "page": str(page)})
    else:
        print_parts(*parts)
        print(page)


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
    if json_:
        print_json({"report": str(out)})
    else:
        print(out)
