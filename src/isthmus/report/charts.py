"""The figures of a study's page, by plotly; `isthmus.report.paper` draws the same for print."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, floor, log2, log10
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from isthmus.report.answers import accuracy_text, saved_by_shape
from isthmus.report.figures import BLUE, GREEN, GREY, INK, ORANGE, Figure, plain, styled
from isthmus.report.findings import NetworkFront, Row, lines_of
from isthmus.report.labels import apart
from isthmus.report.words import num_bytes, percent
from isthmus.study import Point
from isthmus.study.cells import COMPARED_CUT
from isthmus.study.transfer import CLAIM_RATIO, Reading

PURPLE = "#CC79A7"
NETWORK_COLORS = (BLUE, ORANGE, GREEN, PURPLE, INK)
RATIO_COLORS = ("#440154", "#443983", "#31688E", "#21918C", "#35B779", "#90D743")  # viridis
PANELS_WIDE = 3
METERS = ("memory", "shape", "wire")

ALIKE = "the same at every ratio"

Grid = dict[tuple[str, str], dict[int, list[Reading]]]


def ratio_color(ratio: int) -> str:
    """Return a ratio's colour: dark for 1, lighter with each doubling."""
    return RATIO_COLORS[int(log2(ratio)) % len(RATIO_COLORS)]


def limits(values: Sequence[float], *, margin: float = 0.08) -> tuple[float, float]:
    """Return the ends of an axis that leaves a margin around some values."""
    room = margin * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def accuracy_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the ends of an axis, in percent, that holds every mean with its spread."""
    spreads = [(100 * row.mean, 100 * (row.spread or 0.0)) for row in rows]
    return limits([mean + side * spread for mean, spread in spreads for side in (-1, 1)])


def byte_axes(
    fronts: Sequence[NetworkFront],
) -> tuple[list[int], tuple[float, float], tuple[float, float]]:
    """Return what accuracy against bytes is drawn in.

    Args:
        fronts: All that stand on the same axes.

    Returns:
        Powers of two around the bytes, at most seven or so; the ends of their logarithmic axis,
        with room for labels to the left of the points; the ends of the other axis, in percent.
    """
    points = [point for front in fronts for point in front.points]
    logs = [log2(point.num_bytes) for point in points]
    first, last = floor(min(logs)), ceil(max(logs))
    ticks = [1 << power for power in range(first, last + 1, 1 + (last - first) // 7)]
    low, high = limits(logs, margin=0.1)
    percents = limits([100 * point.accuracy for point in points], margin=0.22)
    return ticks, (2 ** (low - 0.15 * (high - low)), 2**high), percents


def placed(point: Point) -> bool:
    """Tell whether a point's narrow layer stands on the cut."""
    return " cut r=" in point.name


def ringed(front: NetworkFront) -> dict[Point, str]:
    """Return the balanced points with their rules."""
    found: dict[Point, list[str]] = {}
    for balanced in front.balanced:
        found.setdefault(balanced.point, []).append(balanced.rule)
    return {point: ", ".join(rules) for point, rules in found.items()}


def label(point: Point, rings: Mapping[Point, str], *, newline: str = "\n") -> str:
    """Return what stands beside a point: its rule and ratio; nothing where it would crowd."""
    ratio = point.name.rpartition(" ")[2]
    if point in rings:
        return f"{rings[point]}{newline}{ratio}"
    return ratio if placed(point) and ratio != "r=1" else ""


def transfer_grid(readings: Sequence[Reading]) -> Grid:
    """Return the readings of each placement and meter that the figure shows, by ratio."""
    grid: Grid = {}
    placements = dict.fromkeys(reading.placement for reading in readings)
    for place in product(placements, METERS):
        for reading in readings:
            if (reading.placement, reading.meter) == place:
                grid.setdefault(place, {}).setdefault(reading.ratio, []).append(reading)
    return grid


def panels(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the lines of each placement, by their networks."""
    found: dict[str, dict[str, list[Row]]] = {}
    for (network, placement), line in lines_of(rows).items():
        found.setdefault(placement, {})[network] = line
    return found


def sides(grid: Grid) -> tuple[list[str], list[str]]:
    """Return the placements and the meters of a grid, each once."""
    meters = [meter for meter in METERS if any(found == meter for _, found in grid)]
    return list(dict.fromkeys(placement for placement, _ in grid)), meters


def alike(ratios: Mapping[int, Sequence[Reading]]) -> bool:
    """Tell whether a meter says the same at every ratio."""
    medians = {tuple(reading.median_bytes for reading in line) for line in ratios.values()}
    return len(ratios) > 1 and len(medians) == 1


def not_negative(ratios: Mapping[int, Sequence[Reading]]) -> bool:
    """Tell whether an axis may begin at nothing."""
    return all(r.first_quartile_bytes >= 0 for line in ratios.values() for r in line)


def ratio_chart(rows: Sequence[Row]) -> Figure:
    """Draw accuracy against the ratio: a panel for each placement, a line for each network."""
    placements = panels(rows)
    networks = list(dict.fromkeys(row.network for row in rows))
    low, high = accuracy_limits(rows)
    chart = make_subplots(
        cols=len(placements),
        shared_yaxes=True,
        horizontal_spacing=0.12,
        subplot_titles=[f"placement {placement}" for placement in placements],
    )
    for column, (placement, lines) in enumerate(placements.items(), start=1):
        ends = apart([100 * line[-1].mean for line in lines.values()], gap=(high - low) / 16)
        for (network, line), end in zip(lines.items(), ends, strict=True):
            color = NETWORK_COLORS[networks.index(network) % len(NETWORK_COLORS)]
            chart.add_scatter(
                x=[row.ratio for row in line],
                y=[100 * row.mean for row in line],
                error_y={
                    "type": "data",
                    "array": [100 * (row.spread or 0.0) for row in line],
                    "visible": any(row.spread is not None for row in line),
                    "thickness": 1.2,
                },
                mode="lines+markers",
                line={"color": color, "width": 1.8},
                marker={"size": 7},
                hovertext=[
                    f"<b>{plain(network)}</b>, placement {placement}, r = {row.ratio}<br>"
                    f"{accuracy_text(row)} %, seeds: {len(row.accuracies)}"
                    for row in line
                ],
                row=1,
                col=column,
            )
            chart.add_annotation(
                x=log10(line[-1].ratio),
                y=end,
                text=plain(network),
                font={"color": color},
                showarrow=False,
                xanchor="left",
                xshift=10,
                row=1,
                col=column,
            )
    ratios = sorted({row.ratio for row in rows})
    ends_x = [log10(ratios[0]) - 0.08, log10(ratios[-1]) + 0.08]
    ends_x[1] += 0.016 * max(map(len, networks)) * len(placements) * (ends_x[1] - ends_x[0])
    chart.update_xaxes(type="log", tickvals=ratios, range=ends_x, title="ratio r")
    chart.update_yaxes(range=[low, high])
    chart.update_yaxes(title="accuracy on the test set, %", row=1, col=1)
    seeds = sorted({len(row.accuracies) for row in rows})
    mean = f", mean over {' or '.join(map(str, seeds))} seeds" if seeds[-1] > 1 else ""
    spread = (
        "Bars: standard deviation over the seeds."
        if seeds[-1] > 1
        else "One seed: no spread is known."
    )
    return Figure(
        name="accuracy_ratio",
        title=_fall(rows),
        text=f"Top-1{mean}, each read once from the test set after the last epoch. {spread}",
        chart=styled(chart, height=430, top=40),
    )


def bytes_chart(fronts: Sequence[NetworkFront], *, name: str = "accuracy_bytes") -> Figure:
    """Draw accuracy against bytes: a panel for each network, its front and balanced points."""
    wide = min(len(fronts), PANELS_WIDE)
    high = -(-len(fronts) // wide)
    chart = make_subplots(
        rows=high,
        cols=wide,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
        subplot_titles=[plain(front.network) for front in fronts],
    )
    for index, front in enumerate(fronts):
        _front_panel(chart, front, {"row": 1 + index // wide, "col": 1 + index % wide})
    ticks, ends, percents = byte_axes(fronts)
    words = [num_bytes(tick) for tick in ticks]
    chart.update_xaxes(type="log", tickvals=ticks, ticktext=words, range=list(map(log10, ends)))
    chart.update_xaxes(title=f"int8 bytes after {COMPARED_CUT}", row=high)
    chart.update_yaxes(range=list(percents))
    chart.update_yaxes(title="accuracy, %", col=1)
    return Figure(
        name=name,
        title=_span(max(fronts, key=lambda front: front.front[-1].accuracy)),
        text="Filled: placement cut. Hollow: placement block, which sends as much at every ratio. "
        "The steps are the front: the best accuracy that so many bytes buy. Ringed: the balanced "
        "points. One doubling of the bytes is as wide as the next.",
        chart=styled(chart, height=70 + 340 * high, top=40),
    )


def _fall(rows: Sequence[Row]) -> str:
    """Return the title of `ratio_chart`: what the whole span of ratios costs."""
    least_r, most_r = min(row.ratio for row in rows), max(row.ratio for row in rows)
    if least_r == most_r:
        return "Accuracy at one ratio"
    changes = sorted(
        100 * (line[-1].mean - line[0].mean)
        for line in lines_of(rows).values()
        if (line[0].ratio, line[-1].ratio) == (least_r, most_r)
    )
    if not changes:
        return "Accuracy at the ratios that each network has"
    span = f"from r = {least_r} to r = {most_r}"
    if changes[-1] >= 0:
        return f"Accuracy changes by {changes[0]:+.1f} to {changes[-1]:+.1f} points {span}"
    least, most = f"{-changes[-1]:.1f}", f"{-changes[0]:.1f}"
    return f"Accuracy falls by {least if least == most else f'{least} to {most}'} points {span}"


def _span(front: NetworkFront) -> str:
    """Return the title of `bytes_chart`: the ends of the best network's front."""
    ends = dict.fromkeys((front.front[0], front.front[-1]))
    words = [f"{percent(end.accuracy)} for {num_bytes(end.num_bytes)} bytes" for end in ends]
    return f"{front.network} has {', and '.join(words)}"


def _saved(readings: Sequence[Reading]) -> str:
    """Return the title of `transfer_chart`: what the shapes say about the paper's claim."""
    shares = saved_by_shape(readings)
    if not shares:
        return "What passes after each layer of ResNet-18, by each meter"
    return f"By shape, r = {CLAIM_RATIO} saves {shares} at the fifth layer"


def _front_panel(chart: go.Figure, front: NetworkFront, where: Mapping[str, int]) -> None:
    chart.add_scatter(
        x=[point.num_bytes for point in front.front],
        y=[100 * point.accuracy for point in front.front],
        mode="lines",
        line={"color": GREY, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        **where,
    )
    rings = ringed(front)
    for on_cut in (False, True):
        points = [point for point in front.points if placed(point) is on_cut]
        if points:
            fill = ORANGE if on_cut else "white"
            chart.add_scatter(
                x=[point.num_bytes for point in points],
                y=[100 * point.accuracy for point in points],
                mode="markers+text",
                marker={"color": fill, "size": 9, "line": {"color": ORANGE if on_cut else BLUE,
                                                           "width": 1.6}},
                text=[label(point, rings, newline="<br>") for point in points],
                textposition="top left",
                hovertext=[_hover(point) for point in points],
                **where,
            )  # fmt: skip
    chart.add_scatter(
        x=[point.num_bytes for point in rings],
        y=[100 * point.accuracy for point in rings],
        mode="markers",
        marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 1.5}},
        hoverinfo="skip",
        **where,
    )


def _hover(point: Point) -> str:
    size = num_bytes(point.num_bytes)
    return f"<b>{plain(point.name)}</b><br>{percent(point.accuracy)}, {size} bytes"


def transfer_chart(readings: Sequence[Reading]) -> Figure:
    """Draw what passes after each layer: a panel for each placement and meter."""
    grid = transfer_grid(readings)
    placements, meters = sides(grid)
    layers = list(dict.fromkeys(reading.layer for reading in readings))
    chart = make_subplots(
        rows=len(placements),
        cols=len(meters),
        shared_xaxes=True,
        shared_yaxes="columns",
        horizontal_spacing=0.06,
        vertical_spacing=0.1,
        subplot_titles=[f"{place}, {meter}" for place in placements for meter in meters],
    )
    named: set[int] = set()
    for (placement, meter), ratios in grid.items():
        where = {"row": 1 + placements.index(placement), "col": 1 + meters.index(meter)}
        for ratio, line in ratios.items():
            chart.add_scatter(
                **_quartiles(line),
                name=f"r = {ratio}",
                legendgroup=str(ratio),
                showlegend=ratio not in named,
                line={"color": ratio_color(ratio), "width": 1.6},
                **where,
            )
            named.add(ratio)
        if alike(ratios):
            chart.add_annotation(
                text=ALIKE,
                x=0.03,
                y=0.03,
                xref="x domain",
                yref="y domain",
                xanchor="left",
                yanchor="bottom",
                showarrow=False,
                **where,
            )
        if not_negative(ratios):
            chart.update_yaxes(rangemode="tozero", **where)
    chart.update_xaxes(categoryorder="array", categoryarray=[plain(layer) for layer in layers])
    chart.update_yaxes(title="KiB", col=1)
    styled(chart, height=90 + 280 * len(placements), top=70, legend=True)
    chart.update_layout(legend={"y": 1.08})
    return Figure(
        name="transfer_layers",
        title=_saved(readings),
        text="Medians; the bars go from the first to the third quartile. memory is the paper's "
        "meter: growth of the machine's used memory around the layer's thread. shape is the bytes "
        "of the tensor that is handed on; wire the bytes of the frames between processes. Where "
        "lines coincide, only the last is seen.",
        chart=chart,
    )


def _quartiles(line: Sequence[Reading]) -> dict[str, Any]:
    above = [(each.third_quartile_bytes - each.median_bytes) / 1024 for each in line]
    below = [(each.median_bytes - each.first_quartile_bytes) / 1024 for each in line]
    return {
        "x": [plain(reading.layer) for reading in line],
        "y": [reading.median_bytes / 1024 for reading in line],
        "error_y": {"type": "data", "symmetric": False, "array": above,
                    "arrayminus": below, "thickness": 1, "width": 2},
        "mode": "lines+markers",
        "marker": {"size": 5},
        "hovertext": [
            f"<b>{plain(reading.layer)}</b>, r = {reading.ratio}<br>median "
            f"{num_bytes(reading.median_bytes)} bytes, quartiles "
            f"{num_bytes(reading.first_quartile_bytes)} to "
            f"{num_bytes(reading.third_quartile_bytes)}<br>{percent(reading.not_positive)} of "
            f"{reading.repeats} readings are not positive"
            for reading in line
        ],
    }  # fmt: skip
