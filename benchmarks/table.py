"""How every benchmark writes down its rows."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from isthmus.files import write_bytes


def rows_begun(folder: Path, name: str) -> Path:
    """Return the file whose rows a benchmark of many days goes on with.

    Args:
        folder: Of the results.
        name: Of the benchmark and the machine; the month in which it was begun follows.

    Returns:
        The newest there is, or this month's.
    """
    begun = sorted(folder.glob(f"{name}_[0-9]*-[0-9]*.jsonl"))
    return begun[-1] if begun else folder / f"{name}_{date.today():%Y-%m}.jsonl"


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], fields: Iterable[str] | None = None
) -> None:
    """Write rows as CSV, the folder too.

    Args:
        path: Of the file.
        rows: By field; what a row lacks is left empty, what is no field is left out.
        fields: In this order; those of the first row if left out.
    """
    text = io.StringIO()
    columns = list(rows[0] if fields is None else fields)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode())
