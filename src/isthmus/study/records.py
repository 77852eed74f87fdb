"""What came out of a study: a record for each finished cell, and the files that hold them.

No database is needed to read them.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from isthmus.errors import InputError
from isthmus.files import from_json, refusing, write_bytes
from isthmus.study.grid import Cell

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """One cell's complete facts.

    Attributes:
        key: The cell in one word.
        cell: What was computed.
        config: All else that the figures depend on, as the study holds it.
        figures: What was found; whatever JSON holds.
        machine: Where, in one line.
        versions: Of Python and the libraries.
        revision: The commit of this code, None where it is not known.
        seconds: Wall time of the attempt that finished it.
        attempts: How often it was begun, the finished attempt included.
    """

    SCHEMA = "isthmus.study/1"
    key: str
    cell: Cell
    config: Mapping[str, Any]
    figures: Mapping[str, Any]
    machine: str
    versions: Mapping[str, str]
    revision: str | None
    seconds: float
    attempts: int


def to_line(record: StudyRecord) -> str:
    """Return a record as one line of JSON, its schema first.

    Raises:
        ValueError: A figure is not a number (NaN, infinite), or nothing that JSON can hold.
    """
    return json.dumps({"schema": record.SCHEMA, **to_jsonable_python(record)}, allow_nan=False)


def write_records(path: Path, records: Sequence[StudyRecord]) -> None:
    """Write one line for each record, sorted by key; the file is whole or absent."""
    lines = [to_line(record) + "\n" for record in sorted(records, key=lambda each: each.key)]
    write_bytes(path, "".join(lines).encode())


def read_records(path: Path) -> tuple[StudyRecord, ...]:
    """Read what `write_records` wrote.

    Raises:
        InputError: The file is missing, damaged, or holds a key twice.
    """
    with refusing(path, "cannot be read", "expected records of `isthmus study`"):
        lines = path.read_text(encoding="utf-8").splitlines()
    records = tuple(
        from_json(line, StudyRecord, where=f"{path}: line {number}")
        for number, line in enumerate(lines, 1)
    )
    keys = [record.key for record in records]
    for number, key in enumerate(keys, 1):
        if key in keys[: number - 1]:
            raise InputError(f"{path}: line {number}: {key} stands there twice, expected it once")
    return records


def table_csv(table: Sequence[Sequence[Any]]) -> str:
    """Return a table, its head first, as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def table_markdown(table: Sequence[Sequence[Any]]) -> str:
    """Return a table, its head first, in Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |\n"
        for line in lines
    )


def records_table(records: Sequence[StudyRecord]) -> list[list[Any]]:
    """Return the head and a row for each record: its cell, every figure that is a plain value.

    A figure that a record lacks stays empty.
    """
    cell_names = [each.name for each in fields(Cell)]
    figure_names = sorted(
        {
            name
            for record in records
            for name, value in record.figures.items()
            if isinstance(value, int | float | str)
        }
    )
    rows = [
        [
            *asdict(record.cell).values(),
            *(record.figures.get(name, "") for name in figure_names),
            record.seconds,
        ]
        for record in sorted(records, key=lambda each: each.key)
    ]
    return [[*cell_names, *figure_names, "seconds"], *rows]
