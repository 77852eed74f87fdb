"""How every benchmark writes down its rows."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.files import write_bytes


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
