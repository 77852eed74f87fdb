"""Which plan wins where, for the terminal; no torch and no plotly are imported here."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from isthmus.report.tables import add_row, new_table, spaced
from isthmus.report.words import num_bytes, quantity

if TYPE_CHECKING:
    from isthmus.plan.sweep import Axis, Sweep, SweepCell

_COSTS = {
    "latency": ("latency", "s"),
    "throughput": ("interval", "s"),
    "energy": ("energy", "J"),
    "price": ("price", "USD"),
}


def cost_words(sweep: Sweep, value: float) -> str:
    """Return what the objective makes small as people read it."""
    return amount(value, _COSTS[sweep.objective][1])


def cost_name(sweep: Sweep) -> str:
    """Return the name of what the objective makes small."""
    return f"predicted {_COSTS[sweep.objective][0]}"


def amount(value: float, unit: str) -> str:
    """Return a number with its unit; money in full."""
    return f"{value:,.2f} USD" if unit == "USD" else quantity(value, unit)


def shown_in(axis: Axis) -> tuple[float, str]:
    """Return the unit that people read a figure in, with how many it is: links count bits."""
    if axis.unit == "byte/s" and not axis.figure.endswith("memory.bandwidth"):
        return 8, "bit/s"
    return 1, axis.unit


def axis_words(axis: Axis, value: float) -> str:
    """Return a value of a figure as people read it."""
    scale, unit = shown_in(axis)
    return amount(scale * value, unit)


def stretches(sweep: Sweep) -> list[list[SweepCell]]:
    """Return the neighbouring cells of each winner along the one axis."""
    return [list(cells) for _, cells in groupby(sweep.cells, key=lambda cell: cell.what)]


def winners(sweep: Sweep) -> dict[str, list[SweepCell]]:
    """Return the cells of each winner, those where nothing fits last."""
    found: dict[str, list[SweepCell]] = {}
    for cell in sorted(sweep.cells, key=lambda cell: not cell.fits):
        found.setdefault(cell.what, []).append(cell)
    return found


def sweep_headline(sweep: Sweep) -> str:
    """Return the finding in one sentence."""
    plans = [what for what, cells in winners(sweep).items() if cells[0].fits]
    span = " and ".join(
        f"{axis.figure} from {axis_words(axis, axis.values[0])} to "
        f"{axis_words(axis, axis.values[-1])}"
        for axis in sweep.axes
    )
    if len(plans) == 1:
        return f"One plan wins with {span}: {plans[0]}"
    return f"{len(plans) or 'No'} plans {'win' if plans else 'fit'} with {span}"


def sweep_table(sweep: Sweep) -> Table:
    """Return a row for each stretch of one axis that a plan wins; of two axes, for each plan."""
    alone = len(sweep.axes) == 1
    groups = stretches(sweep) if alone else list(winners(sweep).values())
    table = new_table(
        "From where to where each plan wins",
        *((axis.figure.replace(".", ".\n"), "l") for axis in sweep.axes),
        ("plan", "l"),
        ("payload,\nbytes", "r"),
        (cost_name(sweep).replace(" ", "\n"), "r"),
    )
    for cells in groups:
        costs = [cell.cost for cell in cells]
        spans = []
        for k, axis in enumerate(sweep.axes):
            values = [cell.values[k] for cell in cells]
            spans.append(_span(axis_words(axis, min(values)), axis_words(axis, max(values))))
        ends = (costs[0], costs[-1]) if alone else (min(costs), max(costs))
        add_row(
            table,
            *spans,
            spaced(cells[0].what),
            _span(*(num_bytes(f({cell.payload_bytes for cell in cells})) for f in (min, max))),
            _span(*(cost_words(sweep, cost) for cost in ends)),
            style="" if cells[0].fits else "dim",
        )
    return table


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} .. {last}"
