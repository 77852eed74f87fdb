"""Measured times of a model's blocks, for people."""

from rich.table import Table
from rich.text import Text

from isthmus.graph import Graph
from isthmus.platform import NodeTimes
from isthmus.report.tables import add_row, new_table
from isthmus.report.words import percent, quantity


def times_table(graph: Graph, times: NodeTimes) -> tuple[Table | Text, ...]:
    """Return a row for each block that takes time, with its rate.

    Args:
        graph: What was timed.
        times: Of its nodes.
    """
    table = new_table(
        f"Times on {times.machine}",
        ("block from", "l"), ("MACs", "r"), ("time", "r"), ("share", "r"), ("rate", "r"),
    )  # fmt: skip
    total_s = sum(times.seconds.values()) or 1.0
    for node in graph.nodes:
        seconds = times.seconds.get(node.name, 0.0)
        if seconds:
            add_row(
                table,
                f"{node.module or node.name} ({node.op})",
                quantity(node.macs or 0, "MAC"),
                quantity(seconds, "s"),
                percent(seconds / total_s),
                quantity((node.macs or 0) / seconds, "MAC/s"),
            )
    whole = f"The whole model in one program: {quantity(times.whole_s, 's')}."
    return table, Text(whole), *(Text(f"Note: {note}") for note in times.notes)
