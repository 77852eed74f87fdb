"""What techniques there are, and what a chain of them came to, as tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isthmus.compress import Savings, Technique
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
                name: {
                    "default": None if option.default == inf else option.default,
                    "expected": option.expected,
                }
                for name, option in technique.all_options.items()
            },
        }
        for technique in techniques.values()
    ]


def techniques_table(techniques: Mapping[str, Technique]) -> Table:
    """Return a row for each technique."""
    table = new_table(
        "Ways to make a model smaller; nearly all take only= and skip= with names of modules, too",
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
        lost = 100 * (before.accuracy - after.accuracy)
        drop = f"{abs(lost):.2f} points {'less' if lost >= 0 else 'more'}"
        name = f"accuracy on the test set of {facts.data}"
        add_row(table, name, percent(before.accuracy), percent(after.accuracy), drop)
    for field, name in _FIGURES.items():
        old, new = getattr(before, field), getattr(after, field)
        times = f"{old / new:.2f} x" if new else ""
        add_row(table, name, num_bytes(old), num_bytes(new), times)
    line = f"{out} stands for the model wherever one is asked for: isthmus plan {out} camera-hub"
    return table, *_exits_tables(facts), Text(line)


def _exits_tables(facts: Compressed) -> list[Table]:
    if not facts.exits:
        return []
    table = new_table(
        f"Early exits, each for itself, on the test set of {facts.data}",
        ("behind", "l"), ("accuracy,\nall leave", "r"), ("leaves if\nas sure as", "r"),
        ("leave", "r"), ("accuracy,\nthese leave", "r"), ("mean\nMACs", "r"),
    )  # fmt: skip
    for exit_ in facts.exits:
        shares = (exit_.accuracy, exit_.confidence, exit_.share, exit_.accuracy_with)
        add_row(table, exit_.path, *map(percent, shares), num_bytes(exit_.macs))
    return [table]


_IDEAS = {
    "fft": "Fourier transforms",
    "winograd_2": "Winograd F(2)",
    "winograd_4": "Winograd F(4)",
    "strassen": "Strassen",
    "repeated": "repeated weights once (UCNN)",
    "nonzero_inputs": "inputs of 0 skipped",
    "nonzero": "inputs and weights of 0 skipped",
}


def savings_json(counted: Sequence[Savings]) -> str:
    """Return the counts of each layer as JSON."""
    layers = [{**asdict(layer), "macs_per_byte": layer.macs_per_byte} for layer in counted]
    return json.dumps({"schema": "isthmus.savings/1", "origin": "counted", "layers": layers})


def savings_tables(counted: Sequence[Savings], macs: int) -> tuple[Table | Text, ...]:
    """Return what each idea of hardware comes to over all layers.

    Args:
        counted: Layers that have weights.
        macs: Of the whole model.
    """
    plain = sum(layer.macs for layer in counted)
    table = new_table(
        "Multiplications for one sample, counted; a layer uses an idea where it takes fewer",
        ("idea", "l"), ("multiplications", "r"), ("of all", "r"), ("layers", "r"),
    )  # fmt: skip
    add_row(table, "as written, also by im2col", num_bytes(plain), percent(1), f"{len(counted)}")
    for field, name in _IDEAS.items():
        found = [getattr(layer, field) for layer in counted]
        pairs = [(layer.macs, f) for layer, f in zip(counted, found, strict=True) if f is not None]
        fewer = sum(f < m for m, f in pairs)
        if pairs:
            total = plain - sum(max(0, m - f) for m, f in pairs)
            add_row(table, name, num_bytes(total), percent(total / plain), f"{fewer}")
    flows = new_table(
        "Elements that pass a unit's registers for one sample, counted, by what it holds",
        ("holds", "l"), ("weights", "r"), ("inputs", "r"), ("partial sums", "r"), ("all", "r"),
    )  # fmt: skip
    for flow in counted[0].accesses:
        each = [layer.accesses[flow] for layer in counted]
        kinds = ("weights", "inputs", "sums", "total")
        add_row(flows, flow, *(num_bytes(sum(getattr(a, kind) for a in each)) for kind in kinds))
    low, high = (end(counted, key=lambda layer: layer.macs_per_byte) for end in (min, max))
    more = sum(layer.im2col for layer in counted) / sum(layer.inputs for layer in counted)
    moved = sum(layer.num_bytes for layer in counted)
    lines = (
        f"These layers hold {percent(plain / macs)} of the MACs. im2col makes their inputs "
        f"{more:.1f} times as large.",
        f"Roofline: {plain / moved:.1f} MAC for each byte moved, from {low.macs_per_byte:.1f} "
        f"({low.path}) to {high.macs_per_byte:.1f} ({high.path}); a device of more MAC/s "
        "for each byte/s of its memory waits for that.",
    )
    return table, flows, *map(Text, lines)
