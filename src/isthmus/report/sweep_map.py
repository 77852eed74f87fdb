"""Which plan wins where, as a map by plotly and as one self-contained page."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10, sqrt
from pathlib import Path

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from isthmus.files import write_bytes
from isthmus.plan.sweep import Sweep, SweepCell
from isthmus.report.charts import PURPLE
from isthmus.report.figures import BLUE, GREEN, GREY, INK, ORANGE, Figure, plain, styled
from isthmus.report.page import Section, check_free, drawn, rendered, shown
from isthmus.report.sweep_table import (
    axis_words,
    cost_name,
    cost_words,
    shown_in,
    stretches,
    sweep_headline,
    sweep_table,
    winners,
)
from isthmus.report.words import num_bytes

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#F0E442")
_MOST_TICKS = 7


def write_sweep_page(path: Path, sweep: Sweep, *, title: str) -> None:
    """Write the page of a sweep; an older page there is replaced.

    Args:
        path: The file.
        sweep: Which plan wins at each value.
        title: Of the document, and above its first heading.

    Raises:
        InputError: Something other than a page of ours stands at ``path``.
    """
    check_free(path)
    parts = (drawn(sweep_figure(sweep)), *shown([sweep_table(sweep)]))
    text = rendered(
        "page.html.j2",
        title=title,
        statement=sweep_headline(sweep),
        tiles=[],
        sections=[Section(title="Which plan wins where", parts=parts)],
    )
    write_bytes(path, text.encode())


def sweep_figure(sweep: Sweep) -> Figure:
    """Draw what the best plan costs along one figure, or the map of the winners over two."""
    chart = _curve(sweep) if len(sweep.axes) == 1 else _map(sweep)
    for axis, update in zip(sweep.axes, (chart.update_xaxes, chart.update_yaxes), strict=False):
        ticks = _ticks(axis.values, scale=shown_in(axis)[0])
        words = [axis_words(axis, tick) for tick in ticks]
        edges = _edges(axis.values)
        update(
            type="log",
            range=[log10(edges[0]), log10(edges[-1])],
            title=plain(axis.figure),
            tickvals=ticks,
            ticktext=words,
        )
    names = " and ".join(axis.figure for axis in sweep.axes)
    return Figure(
        name="sweep",
        title=f"The plan with the least {cost_name(sweep)}, by {names}",
        text="Each colour is one plan; where nothing fits, it is grey. Axes are logarithmic.",
        chart=styled(chart, height=560, top=30, legend=True),
    )


def _colors(sweep: Sweep) -> dict[str, str]:
    """Return each winner's colour: grey where nothing fits."""
    found = winners(sweep)
    fitting = [what for what, cells in found.items() if cells[0].fits]
    colors: Sequence[str] = _COLORS
    if len(fitting) > len(_COLORS):
        colors = sample_colorscale("Viridis", len(fitting))
    return dict.fromkeys(found, GREY) | dict(zip(fitting, colors, strict=False))


def _curve(sweep: Sweep) -> go.Figure:
    """Draw the cost along one axis, a band behind each stretch."""
    chart, colors, named = go.Figure(), _colors(sweep), set()
    values = sweep.axes[0].values
    edges = dict(zip(values, pairwise(_edges(values)), strict=True))
    for cells in stretches(sweep):
        what, fits = cells[0].what, cells[0].fits
        chart.add_vrect(
            x0=edges[cells[0].values[0]][0],
            x1=edges[cells[-1].values[0]][1],
            fillcolor=colors[what],
            opacity=0.15,
            line_width=0,
        )
        chart.add_scatter(
            x=[cell.values[0] for cell in cells],
            y=[cell.cost for cell in cells],
            mode="lines+markers",
            name=plain(what),
            legendgroup=what,
            showlegend=what not in named,
            line={"color": colors[what], "dash": "solid" if fits else "dot"},
            marker={"size": 8, "symbol": "circle" if fits else "x-thin-open"},
            hovertext=[_hover(sweep, cell) for cell in cells],
        )
        named.add(what)
    costs = [cell.cost for cell in sweep.cells]
    chart.update_yaxes(title=cost_name(sweep))
    if min(costs) > 0:
        ticks = _ticks(costs)
        words = [cost_words(sweep, tick) for tick in ticks]
        chart.update_yaxes(type="log", tickvals=ticks, ticktext=words)
    return chart


def _map(sweep: Sweep) -> go.Figure:
    """Draw the winner of each cell, the first axis to the right, the second upwards."""
    across, upwards = (axis.values for axis in sweep.axes)
    colors = _colors(sweep)
    number = {what: k for k, what in enumerate(colors)}
    rows = [sweep.cells[k :: len(upwards)] for k in range(len(upwards))]
    chart = go.Figure(
        go.Heatmap(
            x=_edges(across),
            y=_edges(upwards),
            z=[[number[cell.what] for cell in row] for row in rows],
            zmin=-0.5,
            zmax=len(colors) - 0.5,
            colorscale=[
                ((k + side) / len(colors), color)
                for k, color in enumerate(colors.values())
                for side in (0, 1)
            ],
            showscale=False,
            xgap=1,
            ygap=1,
            hovertext=[[_hover(sweep, cell) for cell in row] for row in rows],
        )
    )
    for what, cells in winners(sweep).items():
        unfit = not cells[0].fits
        chart.add_scatter(
            x=[cell.values[0] for cell in cells] if unfit else [None],
            y=[cell.values[1] for cell in cells] if unfit else [None],
            mode="markers",
            name=plain(what),
            marker={
                "symbol": "x-thin-open" if unfit else "square",
                "size": 9 if unfit else 14,
                "color": INK if unfit else colors[what],
            },
            hoverinfo="skip",
        )
    return chart


def _hover(sweep: Sweep, cell: SweepCell) -> str:
    values = zip(sweep.axes, cell.values, strict=True)
    where = ", ".join(f"{axis.figure} {axis_words(axis, value)}" for axis, value in values)
    cost = f"{cost_name(sweep)} {cost_words(sweep, cell.cost)}"
    payload = f"{num_bytes(cell.payload_bytes)} bytes cross"
    return f"<b>{plain(cell.what)}</b><br>{plain(where)}<br>{cost}, {payload}"


def _edges(values: Sequence[float]) -> list[float]:
    """Return where the cell of each value begins, in equal ratios, and where the last ends."""
    inner = [sqrt(a * b) for a, b in pairwise(values)]
    if not inner:
        return [values[0] / 2, values[0] * 2]
    return [values[0] ** 2 / inner[0], *inner, values[-1] ** 2 / inner[-1]]


def _ticks(values: Sequence[float], *, scale: float = 1.0) -> list[float]:
    """Return numbers that are round when scaled: powers of ten, or 1, 2 and 5 times such."""
    low, high = 0.999 * scale * min(values), 1.001 * scale * max(values)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    finer = [k * 10.0**power for power in powers for k in (1, 2, 5)]
    ticks = tens[:: 1 + len(tens) // _MOST_TICKS] if len(tens) > 2 else finer
    return [tick / scale for tick in ticks if low <= tick <= high]
