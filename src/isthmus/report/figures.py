"""The figures of the page, by plotly. Each states its finding; colours tell kinds apart.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart
(jfly.uni-koeln.de/color, 2008).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from math import log10

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from isthmus.graph import Cut, Graph, cuts, live_bytes
from isthmus.plan import Crossing, Plan
from isthmus.report.labels import Spot, heights
from isthmus.report.words import (
    Room,
    num_bytes,
    percent,
    quantity,
    raw_bytes,
    rooms,
    sent,
    way,
    widest,
)
from isthmus.run import RunRecord
from isthmus.train import FitRecord
from isthmus.train.rivals import Rival

BLUE, ORANGE, GREEN, GREY, LIGHT, INK = (
    "#0072B2", "#D55E00", "#009E73", "#8A94A0", "#D5DAE0", "#1F2933",
)  # fmt: skip

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
_MAX_TICKS = 12
POWERS = {"dtick": log10(4), "tickformat": ",.0f"}
_MAX_SHARE = 2.0  # a network forty times too large shall not squeeze all other bars


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with what is to be seen in it.

    Attributes:
        name: Its id on the page.
        title: The finding, with its numbers.
        text: How to read the chart.
        chart: What plotly draws.
    """

    name: str
    title: str
    text: str
    chart: go.Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """One way of getting the answer across."""

    name: str
    payload_bytes: float
    accuracy: float
    color: str
    symbol: str = "circle"


def drawing_library() -> str:
    """Return the source of plotly.js, which draws the charts."""
    return str(get_plotlyjs())


def bytes_figure(graph: Graph, plan: Plan | None = None) -> Figure:
    """Draw what would cross at every cut of a model, and what crosses as planned.

    Args:
        graph: The model.
        plan: Its cuts are marked; None marks none.
    """
    places = cuts(graph)
    chart = make_subplots(
        rows=2, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05
    )
    hover = [
        f"<b>after {plain(cut.after)}</b><br>{num_bytes(cut.num_bytes)} bytes in "
        f"{len(cut.tensors)} tensors<br>{percent(share)} of the MACs before"
        + (f"<br>no cut here: {plain(cut.obstacle)}" if cut.obstacle else "")
        for cut, share in zip(places, _shares(graph), strict=True)
    ]
    chart.add_scatter(
        x=[cut.index for cut in places],
        y=[cut.num_bytes or None for cut in places],
        mode="lines+markers",
        line={"color": LIGHT, "width": 1.5},
        marker={
            "color": ["white" if cut.obstacle else BLUE for cut in places],
            "line": {"color": [GREY if cut.obstacle else BLUE for cut in places], "width": 1},
            "size": 7,
        },
        hovertext=hover,
        row=1,
        col=1,
    )
    chart.add_scatter(
        x=[cut.index for cut in places],
        y=[100 * share for share in _shares(graph)],
        fill="tozeroy",
        line={"color": GREY, "width": 1, "shape": "hv"},
        fillcolor=LIGHT,
        hovertext=hover,
        row=2,
        col=1,
    )
    for crossing in plan.crossings if plan else ():
        _mark(chart, crossing, len(places))
    chart.update_yaxes(title="bytes per sample", type="log", **POWERS, row=1, col=1)
    chart.update_yaxes(title="MACs done, %", range=[0, 105], tickvals=[0, 50, 100], row=2, col=1)
    ticks = _ticks(graph, places)
    chart.update_xaxes(tickvals=[cut.index for cut in ticks], range=[-0.5, len(places) - 0.5])
    names = [plain(cut.after) for cut in ticks]
    chart.update_xaxes(ticktext=names, title="cut after", row=2, col=1)
    sizes = [cut.num_bytes for cut in places[1:-1] if not cut.obstacle]
    span = f": from {num_bytes(min(sizes))} to {num_bytes(max(sizes))} bytes" if sizes else ""
    sent = [crossing.payload_bytes for crossing in plan.crossings] if plan else []
    chosen = f"; the plan sends {num_bytes(sum(sent))}" if sent else ""
    return Figure(
        name="bytes",
        title=f"How much is alive at each cut{span}{chosen}",
        text="Every place where the model can be divided, in execution order, with the bytes that "
        "are alive there in the model's own number format, skips included. Hollow: no cut is "
        "possible. Below: the share of the work that is done before the cut; few bytes mean "
        "little once nearly all of it is.",
        chart=styled(chart, height=470),
    )


def accuracy_figure(
    plan: Plan, fit: FitRecord, run: RunRecord | None, rivals: Sequence[Rival]
) -> Figure:
    """Draw accuracy against bytes: the cut as it was, as it is, and the rivals."""
    crossing = widest(plan)
    assert crossing is not None
    _, after = sent(plan, run) or (crossing, crossing.payload_bytes)
    before = raw_bytes(crossing)
    across = fit.accuracy_split  # of all test samples, as of the others
    points = [
        _Point(name="uncut, fp32", payload_bytes=before, accuracy=fit.accuracy_whole, color=INK),
        _Point(
            name="Isthmus", payload_bytes=after, accuracy=across, color=ORANGE, symbol="diamond"
        ),
    ]
    points += [
        _Point(name=r.name, payload_bytes=r.payload_bytes, accuracy=r.accuracy, color=BLUE)
        for r in rivals
    ]
    chart = go.Figure()
    look = {"color": ORANGE, "symbol": "circle-open"}
    nested = [
        _Point(name=str(r.width), payload_bytes=r.payload_bytes, accuracy=r.accuracy, **look)
        for r in fit.widths
    ]
    for point in (*nested, *points):
        chart.add_scatter(
            x=[point.payload_bytes],
            y=[100 * point.accuracy],
            mode="markers",
            marker={"color": point.color, "size": 12, "symbol": point.symbol},
            hovertext=f"<b>{plain(point.name)}</b><br>{num_bytes(point.payload_bytes)} bytes per "
            f"sample<br>accuracy {percent(point.accuracy)}",
        )
    _arrow(chart, points[0], points[1])
    _label(chart, points)
    chart.update_xaxes(title="payload, bytes per sample", type="log", **POWERS)
    chart.update_yaxes(title="accuracy on the test set, %")
    lost = 100 * (fit.accuracy_whole - across)
    change = f"{abs(lost):.1f} points of accuracy {'less' if lost >= 0 else 'more'}"
    where = " on the link with most" if len(plan.crossings) > 1 else ""
    return Figure(
        name="accuracy",
        title=f"{num_bytes(after)} bytes{where} instead of {num_bytes(before)}, for {change}",
        text="Each point is one way of getting the answer across: the bytes of the link that then "
        "carries most. Upper left is best. A way that leaves the network whole (the input or the "
        "label crosses) needs a device that can hold all of it; the table says which can."
        + (" Open circles: the widths of the nested link." if fit.widths else ""),
        chart=styled(chart, height=430),
    )


def timeline_figure(run: RunRecord) -> Figure:
    """Draw one request from the first device to the answer, from the medians of a run."""
    colors = {"compute": BLUE, "codec": GREEN, "link": ORANGE, "rest": GREY}
    steps = way(run)
    begins = [sum(step.seconds for step in steps[:k]) for k in range(len(steps))]
    chart = go.Figure()
    for kind, color in colors.items():
        chosen = [(s, begin) for s, begin in zip(steps, begins, strict=True) if s.kind == kind]
        chart.add_bar(
            name=kind,
            orientation="h",
            y=[plain(step.where) for step, _ in chosen],
            x=[1e3 * step.seconds for step, _ in chosen],
            base=[1e3 * begin for _, begin in chosen],
            marker={"color": color},
            text=[quantity(step.seconds, "s") for step, _ in chosen],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                f"<b>{plain(step.where)}</b><br>{quantity(step.seconds, 's')}, begins at "
                f"{quantity(begin, 's')}"
                for step, begin in chosen
            ],
        )
    end = 1e3 * sum(step.seconds for step in steps)
    chart.update_xaxes(title="ms, medians, emulated links", range=[0, 1.1 * end])
    order = [plain(step.where) for step in steps]
    chart.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed")
    parts = run.breakdown
    shares = {
        "Compute takes": parts.compute_s,
        "The emulated links take": parts.link_s,
        "Packing and unpacking take": parts.codec_s,
        "Transport and waiting take": parts.remainder_s,
    }
    words = max(shares, key=lambda key: shares[key])
    share = f"{100 * shares[words] / run.latency_s.p50:.0f} %"
    return Figure(
        name="timeline",
        title=f"{words} {share} of the {quantity(run.latency_s.p50, 's')} of a request",
        text=f"Medians of {run.requests} requests, one in flight. Emulated: "
        f"{run.emulated.rstrip('.')}. The last bar is what is left of the median: transport "
        "between processes, scheduling, the client's own hops.",
        chart=styled(chart, height=130 + 34 * len(steps)),
    )


def prediction_figure(run: RunRecord) -> Figure:
    """Draw what was predicted before the run beside what the run measured."""
    panels = {
        "payload, bytes per sample": (
            sum(crossing.payload_bytes_predicted for crossing in run.crossings),
            sum(crossing.payload_bytes_measured for crossing in run.crossings),
            "",
        ),
        "emulated links, median": (
            sum(crossing.link_asked_s for crossing in run.crossings),
            sum(crossing.link_observed_s for crossing in run.crossings),
            "s",
        ),
        "latency on this machine, median": (run.predicted_here_s, run.latency_s.p50, "s"),
    }
    chart = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.08)
    for column, (predicted, measured, unit) in enumerate(panels.values(), start=1):
        for name, value, marker in (
            ("predicted", predicted, {"color": "white", "line": {"color": BLUE, "width": 2}}),
            ("measured", measured, {"color": BLUE, "line": {"color": BLUE, "width": 2}}),
        ):
            text = quantity(value, unit) if unit else num_bytes(value)
            chart.add_bar(
                x=[name],
                y=[value],
                marker=marker,
                text=[text],
                textposition="outside",
                cliponaxis=False,
                width=0.5,
                hovertext=f"{name}: {text}",
                row=1,
                col=column,
            )
        top = 1.2 * max(predicted, measured) or 1
        chart.update_yaxes(range=[0, top], showticklabels=False, showgrid=False, col=column)
    same = all(c.payload_bytes_predicted == c.payload_bytes_measured for c in run.crossings)
    off = 100 * (run.latency_s.p50 / run.predicted_here_s - 1) if run.predicted_here_s else 0.0
    payload = "Payload as predicted, to the byte" if same else "Payload not quite as predicted"
    return Figure(
        name="predicted",
        title=f"{payload}; latency {abs(off):.1f} % {'over' if off >= 0 else 'under'} prediction",
        text="Outlined: predicted before the first request, from the platform's links and from "
        "stage times measured on this machine with other inputs. Filled: measured.",
        chart=styled(chart, height=290, top=40),
    )


def memory_figure(plan: Plan, graph: Graph | None = None) -> Figure | None:
    """Draw what each stage takes of its device's memory.

    Args:
        plan: Stages and devices.
        graph: Where given, the whole model stands beside each stage.

    Returns:
        The figure, or None where no device names a limit.
    """
    rows = [
        (f"{plain(stage.device)}: {room.what}", room)
        for stage in plan.stages
        for room in rooms(stage, plan.platform.device(stage.device).memory)
        if room.limit_bytes
    ]
    if not rows:
        return None
    chart = go.Figure()
    _memory_bars(chart, rows, "this plan", ORANGE, BLUE)
    alone = []
    if graph:
        alone = [(label, replace(room, used_bytes=_whole(room, graph))) for label, room in rows]
        _memory_bars(chart, alone, "the whole model on this device", GREY, LIGHT)
    chart.add_vline(x=100, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    top = max(1.0, *(_share(room) for _, room in (*alone, *rows)))
    chart.update_xaxes(title="% of the device's limit", range=[0, 125 * min(top, _MAX_SHARE)])
    chart.update_xaxes(tickvals=[0, 50, 100, 150, 200])
    chart.update_yaxes(autorange="reversed")
    over = {label.partition(":")[0] for label, room in alone if _share(room) > 1}
    none = {plain(stage.device) for stage in plan.stages} <= over
    none_holds = "; no device could hold the whole model" if none else ""
    fits = "Each stage fits its device" if not plan.violations else "Not every stage fits"
    return Figure(
        name="memory",
        title=f"{fits}{none_holds}",
        text="Weights and peak activations of each stage, codec halves included, against the "
        "device's memory (dotted). Predicted from shapes and number formats. Bars over twice "
        "the limit are cut off; their labels are not.",
        chart=styled(chart, height=110 + 46 * len(rows), top=40, legend=bool(alone)),
    )


def _memory_bars(
    chart: go.Figure, rows: Sequence[tuple[str, Room]], name: str, over: str, under: str
) -> None:
    """Add a bar for each room, in one colour where it is too small and in another where not."""
    chart.add_bar(
        name=name,
        orientation="h",
        y=[label for label, _ in rows],
        x=[100 * min(_share(room), _MAX_SHARE) for _, room in rows],
        marker={"color": [over if _share(room) > 1 else under for _, room in rows]},
        text=[f"{quantity(r.used_bytes, 'byte')}, {100 * _share(r):.0f} %" for _, r in rows],
        textposition="outside",
        cliponaxis=False,
        hovertext=[f"{label}, {name}: {room}" for label, room in rows],
    )


def _share(room: Room) -> float:
    return room.used_bytes / room.limit_bytes if room.limit_bytes else 0.0


def _whole(room: Room, graph: Graph) -> float:
    """Return what the whole model would take of a room."""
    sizes = {"weights": graph.weight_bytes, "activations": max(live_bytes(graph), default=0)}
    return sizes.get(room.what, sum(sizes.values()))


def _mark(chart: go.Figure, crossing: Crossing, num_cuts: int) -> None:
    """Mark a planned cut: a line down to what the codec leaves, with both figures."""
    raw, payload = raw_bytes(crossing), crossing.payload_bytes
    right = crossing.cut < 0.7 * num_cuts
    chart.add_scatter(
        x=[crossing.cut, crossing.cut],
        y=[raw, payload],
        mode="lines+markers",
        line={"color": ORANGE, "width": 2},
        marker={"color": ORANGE, "opacity": 1, "size": [9, 13], "symbol": ["circle", "diamond"]},
        hovertext=[
            f"<b>after {plain(crossing.after)}</b><br>{num_bytes(raw)} bytes as fp32",
            f"<b>{plain(crossing.codec)}</b><br>{num_bytes(payload)} bytes of payload",
        ],
        row=1,
        col=1,
    )
    for value, words, down in (
        (raw, f"after {plain(crossing.after)}: {num_bytes(raw)}", 16),
        (payload, f"payload: {num_bytes(payload)}", 0),
    ):
        chart.add_annotation(
            x=crossing.cut,
            y=log10(value),
            text=f"<b>{words}</b>",
            font={"color": ORANGE, "size": 13},
            bgcolor="rgba(255,255,255,0.85)",
            showarrow=False,
            xanchor="left" if right else "right",
            yanchor="middle",
            xshift=10 if right else -10,
            yshift=-down,
            row=1,
            col=1,
        )


def _arrow(chart: go.Figure, start: _Point, end: _Point) -> None:
    chart.add_annotation(
        x=log10(end.payload_bytes),
        y=100 * end.accuracy,
        ax=log10(start.payload_bytes),
        ay=100 * start.accuracy,
        axref="x",
        ayref="y",
        standoff=10,
        startstandoff=8,
        arrowhead=2,
        arrowcolor=ORANGE,
        arrowwidth=1.5,
        opacity=0.5,
        text="",
    )


def _label(chart: go.Figure, points: Sequence[_Point]) -> None:
    """Write each point's name where it covers no other; a thin line leads to a far one."""
    logs = [log10(point.payload_bytes) for point in points]
    scores = [100 * point.accuracy for point in points]
    margin = 0.35 * (max(scores) - min(scores)) + 0.5
    low, high = min(scores) - margin, max(scores) + margin
    left, right = min(logs) - 0.3, max(logs) + 0.3
    chart.update_xaxes(range=[left, right])
    chart.update_yaxes(range=[low, high])
    spots = [
        Spot(
            x=900 * (log - left) / (right - left),
            y=330 * (score - low) / (high - low),
            half_width=3.6 * len(point.name) + 6,
        )
        for point, log, score in zip(points, logs, scores, strict=True)
    ]
    for point, log, score, height in zip(points, logs, scores, heights(spots), strict=True):
        far = abs(height) > 30
        chart.add_annotation(
            x=log,
            y=score,
            text=f"<b>{point.name}</b>" if point.color == ORANGE else plain(point.name),
            font={"color": point.color},
            showarrow=far,
            arrowwidth=0.5,
            arrowcolor=GREY,
            arrowhead=0,
            standoff=7,
            ax=0,
            ay=-height,
            yshift=0 if far else height,
        )


def _shares(graph: Graph) -> list[float]:
    """Return the share of the MACs before each cut, 0..1."""
    total = graph.macs or 1
    done, shares = 0, [0.0]
    for node in graph.nodes:
        done += node.macs or 0
        shares.append(done / total)
    return shares


def _ticks(graph: Graph, places: Sequence[Cut]) -> list[Cut]:
    """Return the cuts to name on the axis: where outer modules end, well apart."""
    modules = {"input", *(node.module.partition(".")[0] for node in graph.nodes)}
    outer = [cut for cut in places if cut.after in modules]
    apart = max(1, -(-len(places) // _MAX_TICKS))
    chosen: list[Cut] = []
    for cut in outer if len(outer) > 3 else places:
        if all(abs(cut.index - other.index) >= apart for other in chosen):
            chosen.append(cut)
    return chosen


def plain(text: str) -> str:
    """Return text that plotly shows as it is: it reads some HTML tags and entities."""
    return escape(text, quote=False)


def styled(chart: go.Figure, *, height: int, top: int = 14, legend: bool = False) -> go.Figure:
    """Give a chart the page's fonts, margins and axes; what hovers is the text alone."""
    chart.update_traces(hoverinfo="text", selector=lambda trace: trace.hovertext is not None)
    chart.update_layout(
        template="plotly_white",
        height=height,
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        margin={"l": 70, "r": 30, "t": top, "b": 50},
        font={"family": _FONT, "size": 13, "color": INK},
        hoverlabel={"font": {"family": _FONT}},
    )
    chart.update_xaxes(zeroline=False, title_font_size=13)
    chart.update_yaxes(zeroline=False, title_font_size=13, automargin=True)
    return chart
