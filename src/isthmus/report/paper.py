"""The figures of a study for print, by matplotlib: PNG and SVG, the same bytes for the same input.

Nothing of pyplot is used: a figure is an object that is drawn into bytes.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from isthmus.report import charts
from isthmus.report.figures import BLUE, GREY, INK, LIGHT, ORANGE
from isthmus.report.findings import NetworkFront, Row
from isthmus.report.labels import apart
from isthmus.report.words import num_bytes
from isthmus.study.cells import COMPARED_CUT
from isthmus.study.transfer import Reading

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 8,
    "grid.color": LIGHT,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "savefig.dpi": 220,
    "svg.fonttype": "path",
    "svg.hashsalt": "isthmus",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
_LONGEST = 28  # characters of a name
_MARKERS = ("o", "s", "^", "D", "v")


def paper_figures(
    rows: Sequence[Row], fronts: Sequence[NetworkFront], readings: Sequence[Reading]
) -> dict[str, bytes]:
    """Draw each figure for which there is something to draw.

    Args:
        rows: For accuracy against ratio.
        fronts: For accuracy against bytes, one for each panel.
        readings: For the transfer after each layer.

    Returns:
        The content of each file by its name.
    """
    files: dict[str, bytes] = {}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the reader's own matplotlibrc says
        mpl.rcParams.update(_STYLE)
        if rows:
            files |= _files("accuracy_ratio", _ratio_figure(rows))
        if fronts:
            files |= _files("accuracy_bytes", _bytes_figure(fronts))
        if charts.transfer_grid(readings):
            files |= _files("transfer_layers", _transfer_figure(readings))
    return files


def _files(name: str, figure: Figure) -> dict[str, bytes]:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png")
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return {f"{name}.png": png.getvalue(), f"{name}.svg": svg.getvalue()}


def _ratio_figure(rows: Sequence[Row]) -> Figure:
    placements = charts.panels(rows)
    networks = list(dict.fromkeys(row.network for row in rows))
    figure = Figure(figsize=(0.6 + 3.1 * len(placements), 2.9), layout="constrained")
    every = figure.subplots(1, len(placements), sharey=True, squeeze=False)[0]
    low, high = charts.accuracy_limits(rows)
    for axes, (placement, lines) in zip(every, placements.items(), strict=True):
        ends = apart([100 * line[-1].mean for line in lines.values()], gap=(high - low) / 17)
        for (network, line), end in zip(lines.items(), ends, strict=True):
            index = networks.index(network)
            color = charts.NETWORK_COLORS[index % len(charts.NETWORK_COLORS)]
            axes.errorbar(
                [row.ratio for row in line],
                [100 * row.mean for row in line],
                yerr=[100 * (row.spread or 0.0) for row in line],
                color=color,
                marker=_MARKERS[index % len(_MARKERS)],
                elinewidth=0.8,
                capsize=2 if any(row.spread for row in line) else 0,
            )
            _write(axes, _short(network), (line[-1].ratio, end), (6, 0), color=color, va="center")
        _powers(axes, sorted({row.ratio for row in rows}))
        axes.set_title(f"placement {placement}", loc="left")
        axes.set_xlabel("ratio r")
    every[0].set_ylim(low, high)
    every[0].set_ylabel("accuracy on the test set, %")
    return figure


def _bytes_figure(fronts: Sequence[NetworkFront]) -> Figure:
    wide = min(len(fronts), charts.PANELS_WIDE)
    high = -(-len(fronts) // wide)
    figure = Figure(figsize=(0.6 + (4.2, 3.1, 2.5)[wide - 1] * wide, 2.7 * high))
    figure.set_layout_engine("constrained")
    every = list(figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat)
    for axes, front in zip(every, fronts, strict=False):
        _front_panel(axes, front)
    ticks, ends, percents = charts.byte_axes(fronts)
    for index, axes in enumerate(every):
        axes.set_visible(index < len(fronts))
        _powers(axes, ticks, labels=[num_bytes(tick) for tick in ticks])
        axes.tick_params(labelbottom=index + wide >= len(fronts), axis="x")
        if index + wide >= len(fronts):
            axes.set_xlabel(f"int8 bytes after {COMPARED_CUT}")
        if index % wide == 0:
            axes.set_ylabel("accuracy, %")
    block = Line2D([], [], marker="s", color=BLUE, linestyle="", label="placement block")
    block.set_markerfacecolor("white")
    handles = [
        Line2D([], [], marker="o", color=ORANGE, linestyle="", label="placement cut"),
        block,
        Line2D([], [], color=GREY, label="front"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    every[0].set_xlim(*ends)
    every[0].set_ylim(*percents)
    return figure


def _front_panel(axes: Axes, front: NetworkFront) -> None:
    sizes = [point.num_bytes for point in front.front]
    best = [100 * point.accuracy for point in front.front]
    axes.step(sizes, best, where="post", color=GREY, linewidth=1)
    rings = charts.ringed(front)
    for point in front.points:
        on_cut, place = charts.placed(point), (point.num_bytes, 100 * point.accuracy)
        color = ORANGE if on_cut else BLUE
        axes.plot(*place, marker="o" if on_cut else "s", color=color,
                  markerfacecolor=color if on_cut else "white")  # fmt: skip
        if point in rings:
            axes.plot(*place, marker="o", markersize=8, markerfacecolor="none", color=INK)
        _write(axes, charts.label(point, rings), place, (-5, 3), ha="right", va="bottom")
    axes.set_title(_short(front.network), loc="left")


def _transfer_figure(readings: Sequence[Reading]) -> Figure:
    grid = charts.transfer_grid(readings)
    placements, meters = charts.sides(grid)
    layers = list(dict.fromkeys(reading.layer for reading in readings))
    size = (1.0 + 2.3 * len(meters), 0.9 + 1.9 * len(placements))
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(len(placements), len(meters), sharex=True, sharey="col", squeeze=False)
    for (placement, meter), ratios in grid.items():
        axes = every[placements.index(placement)][meters.index(meter)]
        apart_by = 0.0 if charts.alike(ratios) else 0.08
        for rank, line in enumerate(ratios.values()):
            aside = apart_by * (rank - (len(ratios) - 1) / 2)
            _quartiles(axes, line, [layers.index(reading.layer) + aside for reading in line])
        if charts.alike(ratios):
            axes.text(0.03, 0.05, charts.ALIKE, transform=axes.transAxes)
        if charts.not_negative(ratios):
            axes.set_ylim(bottom=0)
        axes.set_title(f"{placement}, {meter}", loc="left")
    for axes in every[-1]:
        names = [_short(layer) for layer in layers]
        axes.set_xticks(range(len(layers)), names, rotation=60, ha="right", fontsize=6.5)
    for axes in every[:, 0]:
        axes.set_ylabel("KiB after the layer")
    found = sorted({reading.ratio for reading in readings})
    handles = [
        Line2D([], [], color=charts.ratio_color(ratio), label=f"r = {ratio}") for ratio in found
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(found))
    return figure


def _quartiles(axes: Axes, line: Sequence[Reading], places: Sequence[float]) -> None:
    medians = np.array([reading.median_bytes for reading in line]) / 1024
    low = np.array([reading.first_quartile_bytes for reading in line]) / 1024
    high = np.array([reading.third_quartile_bytes for reading in line]) / 1024
    axes.errorbar(
        places,
        medians,
        yerr=np.stack([medians - low, high - medians]),
        color=charts.ratio_color(line[0].ratio),
        marker="o",
        markersize=2,
        linewidth=0.9,
        elinewidth=0.7,
    )


def _short(name: str) -> str:
    """Return a name that leaves room for what it names."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def _powers(axes: Axes, ticks: Sequence[int], labels: Sequence[str] = ()) -> None:
    """Make the horizontal axis logarithmic, with whole numbers for its ticks."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(labels or [str(tick) for tick in ticks]))


def _write(
    axes: Axes, text: str, place: tuple[float, float], aside: tuple[float, float], **style: Any
) -> None:
    """Write a label some points aside of a place, over the frame if need be."""
    axes.annotate(
        text, place, xytext=aside, textcoords="offset points", annotation_clip=False, **style
    )
