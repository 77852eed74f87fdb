"""What techniques there are, and what a chain of them came to, as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isthmus.compress import Technique
from isthmus.models import Compressed
from isthmus.report.tables import add_row, new_table
from isthmus.report.words import num_bytes, percent

_FIGURES = {
    "parameters": "parameters that are not 0",
    "macs": "MACs",
    "weight_bytes": "weights in memory, bytes",
    "stored_bytes": "weights as stored, bytes",
    "activation_bytes": "largest crossing, bytes",
}


def technique_rows(techniques: Mapping[str, Technique]) -> list[dict[str, Any]]:
    """Return a mapping for each technique, for programs."""
    return [
        {
            "name": technique.name,
            "does": technique.does,
            "paper": technique.paper,
            "level": technique.level,
            "needs": technique.needs,
            "improves": list(technique.improves),
            "options": {
                name: {"default": option.default, "expected": str(option)}
                for name, option in technique.all_options.items()
            },
        }
        for technique in techniques.values()
    ]


def techniques_table(techniques: Mapping[str, Technique]) -> Table:
    """Return a row for each technique."""
    table = new_table(
        "Ways to make a model smaller; all take only= and skip= with names of modules, too",
        ("technique", "l"), ("what it does, what it should improve, from where it comes", "l"),
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for technique in techniques.values():
        options = (f"{name}={option.default}" for name, option in technique.options.items())
        lines = (
            f"{technique.does} ({technique.level} level, needs {technique.needs})",
            f"improves {', '.join(technique.improves)}",
            ", ".join(options),
            technique.paper,
        )
        add_row(table, technique.name, "\n".join(filter(None, lines)))
        table.add_section()
    return table


def compressed_tables(facts: Compressed, out: Path) -> tuple[Table | Text, ...]:
    """Return the figures before and after, and what to do next.

    Args:
        facts: Of the compressed model.
        out: Its folder.
    """
    table = new_table(
        f"{facts.source.text} after {', then '.join(facts.techniques)}",
        ("figure", "l"), ("before", "r"), ("after", "r"), ("smaller", "r"),
    )  # fmt: skip
    before, after = facts.before, facts.after
    if before.accuracy is not None and after.accuracy is not None:
        drop = f"{100 * (before.accuracy - after.accuracy):.2f} points less"
        name = f"accuracy on the test set of {facts.data}"
        add_row(table, name, percent(before.accuracy), percent(after.accuracy), drop)
    for field, name in _FIGURES.items():
        old, new = getattr(before, field), getattr(after, field)
        times = f"{old / new:.2f} x" if new else ""
        add_row(table, name, num_bytes(old), num_bytes(new), times)
    line = f"{out} stands for the model wherever one is asked for: isthmus plan {out} camera-hub"
    return table, Text(line)
