"""Tables for the terminal, as rich draws them. No torch and no plotly are imported here.

What is predicted and what is measured never share a column; energy is always a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from isthmus.report.words import (
    assumed,
    energy,
    headline,
    judged,
    num_bytes,
    num_nodes,
    percent,
    quantity,
    raw_bytes,
    runner_up_text,
    sent,
    widest,
)

if TYPE_CHECKING:
    from isthmus.export import IntegersRecord, Verification
    from isthmus.graph import Cut, Graph, Node
    from isthmus.plan import Plan
    from isthmus.platform import Link, Platform
    from isthmus.run import RunRecord
    from isthmus.run.record import AdaptRecord
    from isthmus.study.evaluate import Record
    from isthmus.train import FitRecord
    from isthmus.train.rivals import Rival

T = TypeVar("T")

_UNBROKEN = 24  # characters of a name
_RUNNER_UPS = 5
_LOSSY_IMAGES = ("input jpeg", "input webp")
_GUESSING = 1.2  # times chance: up to here luck explains a score on a small test set


def profile_tables(graph: Graph, cuts: Sequence[Cut]) -> tuple[Table | Text, ...]:
    """Return a row for each node, with what would cross if the model were cut after it.

    Args:
        graph: The captured model.
        cuts: All of it, from before the first node to after the last.
    """
    table = new_table(
        "What each operation costs, and what crosses when the model is cut after it (per sample)",
        ("after", "l"), ("MACs", "r"), ("other\nops", "r"), ("bytes\nmoved", "r"),
        ("weights", "r"), ("crossing,\nbytes", "r"), ("MACs\nbefore", "r"),
    )  # fmt: skip
    done, total = 0, graph.macs or 1
    for cut in cuts:
        crossing = num_bytes(cut.num_bytes) if not cut.obstacle else "no cut"
        if len(cut.tensors) > 1:
            crossing += f" in {len(cut.tensors)}"
        style = "dim" if cut.obstacle else ""
        if cut.index == 0:
            add_row(table, cut.after, "", "", "", "", crossing, percent(0), style=style)
            continue
        node = graph.nodes[cut.index - 1]
        done += node.macs or 0
        ops = some(node.ops or 0, "MAC").removesuffix("MAC").strip()
        add_row(
            table,
            f"{cut.after} ({node.op})",
            _with_unknown(node, some(node.macs or 0, "MAC")),
            _with_unknown(node, ops),
            some(node.read_bytes + node.written_bytes, "byte"),
            some(node.weight_bytes, "byte"),
            crossing,
            percent(done / total),
            style=style,
        )
    whole = (
        f"The whole model: {graph.num_parameters:,} parameters, "
        f"{quantity(graph.weight_bytes, 'byte')} of weights, {quantity(graph.macs, 'MAC')} for "
        "one sample."
    )
    if graph.unknown_ops:
        whole += f" Not counted, for want of a cost rule: {', '.join(graph.unknown_ops)}."
    obstacles = sorted({cut.obstacle for cut in cuts if cut.obstacle})
    return table, Text(whole), *(Text(f"No cut: {obstacle}", "dim") for obstacle in obstacles)


def _with_unknown(node: Node, known: str) -> str:
    """Return what is known of a node's operations, and that it is not all where it is not."""
    if not node.unknown and node.macs is not None:
        return known
    return f"{known} + ?" if known else "unknown"


def platforms_table(platforms: Sequence[Platform]) -> Table:
    """Return a row for each kind of device and each kind of link of some platforms."""
    table = new_table(
        "Platforms; `isthmus platforms NAME` prints one with the source of each figure",
        ("platform", "l"), ("devices and links", "l"), ("memory", "l"), ("speed", "l"),
        ("latency", "r"),
    )  # fmt: skip
    table.columns[0].no_wrap = True  # a name to be typed
    for platform in platforms:
        name = platform.name
        for names, device in _alike(
            platform.devices, lambda device: device.name, lambda device: replace(device, name="")
        ):
            memory = device.memory
            sizes = (
                ("weights", memory.weights_bytes),
                ("activations", memory.activations_bytes),
                ("shared", memory.shared_bytes),
            )
            room = "\n".join(f"{quantity(size, 'byte')} {what}" for what, size in sizes if size)
            speed = "\n".join(
                f"{quantity(rate, 'MAC/s')} {form}" for form, rate in device.macs_per_s.items()
            )
            add_row(table, name, f"{names}: {device.kind}", room or "no limit", speed, "")
            name = ""
        for names, link in _alike(
            platform.links,
            lambda link: (" > " if link.duplex == "one-way" else " - ").join(link.between),
            lambda link: replace(link, between=("", "")),
        ):
            add_row(table, name, names, "", _speed(link), seconds(link.latency_s))
        table.add_section()
    return table


def _alike(
    parts: Sequence[T], name: Callable[[T], str], nameless: Callable[[T], T]
) -> list[tuple[str, T]]:
    """Return one of each kind of device or link, with the names of all of that kind."""
    kinds: list[tuple[T, list[T]]] = []
    for part in parts:
        kind = nameless(part)
        same = next((same for other, same in kinds if other == kind), [])
        if not same:
            kinds.append((kind, same))
        same.append(part)
    found = [([name(part) for part in same], same[0]) for _, same in kinds]
    return [
        (", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more", part)
        for names, part in found
    ]


def fit_table(
    record: FitRecord, out: Path | None = None, *, num_outputs: int | None = None
) -> Table:
    """Return what training did, the accuracy with and without the cut, and where it stands.

    Args:
        record: The facts of the fit.
        out: The folder, where it is worth a word.
        num_outputs: Of the model; where it is known, a fit that only guesses gets a note.
    """
    table = new_table(
        "Training", ("phase", "l"), ("epochs", "r"), ("loss, first", "r"), ("loss, last", "r"),
        ("time", "r"),
    )  # fmt: skip
    for phase in record.phases:
        losses = [f"{loss:.4g}" for loss in (*phase.losses[:1], *phase.losses[-1:])] or ["", ""]
        add_row(table, phase.phase, str(phase.epochs), *losses, seconds(phase.seconds))
    table.caption = Text(
        f"{judged(record).capitalize()} on the test set of {record.data}: "
        f"{percent(record.accuracy_split)} through the codecs, "
        f"{percent(record.accuracy_whole)} without a cut.{_beside_planned(record)}"
        f"{_guessing(record, num_outputs or 1)}{_written(out)}"
    )
    return table


def _beside_planned(record: FitRecord) -> str:
    """Return the drop that was measured beside the one that the plan predicts, if it does."""
    predicted = record.plan.predicted.drop
    if predicted is None:
        return ""
    measured = 100 * (record.accuracy_whole - record.accuracy_split)
    return (
        f"\nPoints of accuracy lost: {measured:.2f} measured, {100 * predicted:.2f} by the plan"
        f"{assumed(record.plan)}."
    )


def _guessing(record: FitRecord, num_outputs: int) -> str:
    """Return a note on a fit that is hardly better than chance; empty for one that is."""
    chance = 1 / num_outputs
    scores = {"without a cut": record.accuracy_whole, "through the codecs": record.accuracy_split}
    poor = [f"{percent(s)} {w}" for w, s in scores.items() if s <= _GUESSING * chance]
    if num_outputs < 2 or not poor:
        return ""
    return (
        f"\nNote: {' and '.join(poor)}: hardly better than guessing among {num_outputs} outputs "
        f"({percent(chance)}); check the data's scale and labels, and the epochs."
    )


def verification_table(verification: Verification, out: Path | None = None) -> Table:
    """Return how far a bundle is from its model, and where it stands."""
    payloads = ", ".join(num_bytes(payload) for payload in verification.payload_bytes)
    table = new_table("The bundle against the model it came from", ("", "l"), ("found", "r"))
    add_row(table, "samples compared", str(verification.samples))
    add_row(table, "equal predictions", percent(verification.equal_predictions))
    add_row(table, "largest difference of an output", f"{verification.largest_difference:.3g}")
    add_row(table, "payload of each crossing, mean bytes", payloads or "nothing crosses")
    counted = [share for share in verification.symbols_differ if share is not None]
    if counted:
        apart = max(steps or 0 for steps in verification.symbols_apart)
        most = f"{max(counted):.4%}, by {apart} at most" if any(counted) else "none"
        add_row(table, "symbols other than the model's, at the worst crossing", most)
    if verification.early_exit_equal is not None:
        equal = percent(verification.early_exit_equal)
        add_row(table, "early exit, predictions equal to the model's", equal)
    if verification.early_exit_share is not None:
        share, sure = verification.early_exit_share, verification.early_exit_sure_equal
        add_row(table, "answered early since it is sure", percent(share))
        add_row(table, "of these equal to the model's", "none" if sure is None else percent(sure))
    if verification.early_exit_drop is not None:
        add_row(table, "points of accuracy lost by these", f"{verification.early_exit_drop:.2g}")
    table.caption = Text(_written(out).strip())
    return table


def integers_table(record: IntegersRecord, out: Path) -> Table:
    """Return what a bundle answers by integers alone, and where these stand."""
    table = new_table("By integers alone, against the bundle", ("", "l"), ("found", "r"))
    for stage in record.stages:
        said = stage.reason or num_bytes(stage.file_bytes)
        add_row(table, f"{stage.device}{', not of integers' if stage.reason else ''}", said)
    add_row(table, "samples compared", str(record.samples))
    add_row(table, "equal predictions", percent(record.equal_predictions))
    if record.accuracy is not None and record.accuracy_of_bundle is not None:
        add_row(table, "accuracy", percent(record.accuracy))
        add_row(table, "accuracy of the bundle", percent(record.accuracy_of_bundle))
    counted = [share for share in record.symbols_differ if share is not None]
    if counted:
        add_row(
            table, "symbols other than the bundle's, at the worst crossing", f"{max(counted):.4%}"
        )
    table.caption = Text(_written(out).strip())
    return table


def run_tables(record: RunRecord) -> tuple[Table | Text, ...]:
    """Return what a run measured, beside what was predicted."""
    stages = new_table(
        "Stages: measured here, medians; how long frames and devices wait, with the pipeline full",
        ("device", "l"), ("decode", "r"), ("compute", "r"), ("compute\n99th", "r"),
        ("encode", "r"), ("frame\nwaits", "r"), ("device\nidle", "r"),
    )  # fmt: skip
    for stage in record.stages:
        alone, busy = stage.times_s, stage.busy_s
        shown = (
            alone["decode"].p50, alone["compute"].p50, alone["compute"].p99, alone["encode"].p50,
        )  # fmt: skip
        full = [seconds(busy[name].p50) if busy else "" for name in ("queue", "wait")]
        add_row(stages, stage.device, *map(seconds, shown), *full)
    crossings = new_table(
        "Crossings, bytes per sample",
        ("link", "l"), ("after", "l"), ("codec", "l"), ("payload\npredicted", "r"),
        ("payload\nmeasured", "r"), ("on the wire", "r"),
    )  # fmt: skip
    links = new_table(
        "Links, medians: emulated time, and the round trip of the transport besides",
        ("link", "l"), ("asked", "r"), ("observed", "r"), ("round\ntrip", "r"), ("99th", "r"),
        ("rate", "r"), ("sent\nagain", "r"),
    )  # fmt: skip
    most = "up to " if record.adapted else ""
    for crossing in record.crossings:
        predicted = f"{most}{num_bytes(crossing.payload_bytes_predicted)}"
        if crossing.payload_spread_bytes is not None:
            predicted += f" +- {crossing.payload_spread_bytes:.1f}"
        counts = (crossing.payload_bytes_measured, crossing.wire_bytes)
        codec = spaced(crossing.codec)
        add_row(
            crossings, crossing.link, crossing.after, codec, predicted, *map(num_bytes, counts)
        )
        trip = crossing.round_trip_s
        add_row(
            links,
            crossing.link,
            seconds(crossing.link_asked_s),
            seconds(crossing.link_observed_s),
            *((seconds(trip.p50), seconds(trip.p99)) if trip else ("", "")),
            quantity(crossing.rate_bytes_per_s, "B/s"),
            f"{crossing.retries}",
        )
    for table in (stages, crossings, links):
        longest = max(map(len, map(str, table.columns[0].cells)), default=0)
        table.columns[0].min_width = min(longest, _UNBROKEN)
    score = "" if record.accuracy is None else f"accuracy {percent(record.accuracy)}; "
    width = "" if record.width is None else f"Nested crossings at {record.width}. "
    totals = (
        f"{width}{record.requests} requests answered, {record.lost} lost, {record.retries} frames "
        f"sent again; {score}{record.throughput_per_s:,.1f} samples per second with the pipeline "
        f"full{', at the widest' if record.adapted else ''}."
    )
    latency = new_table(
        "Latency, one request in flight",
        ("predicted\nbefore the run", "r"), ("measured\nmedian", "r"), ("measured\n95th", "r"),
        ("measured\n99th", "r"),
    )  # fmt: skip
    measured = (record.latency_s.p50, record.latency_s.p95, record.latency_s.p99)
    add_row(latency, *map(seconds, (record.predicted_here_s, *measured)))
    emulated = Text(f"Emulated: {record.emulated.rstrip('.')}. Machine: {record.machine}.", "dim")
    words = (Text(_breakdown(record)), *_adapted(record.adapted), Text(totals), emulated)
    return stages, crossings, links, latency, *words


def _adapted(adapted: AdaptRecord | None) -> tuple[Text, ...]:
    """Return how the widths were chosen, where they were."""
    if adapted is None:
        return ()
    used = [f"{width} {count} times" for width, count in adapted.requests.items() if count]
    words = (
        f"Widths chosen to answer within {seconds(adapted.target_s)}: {percent(adapted.in_time)} "
        f"of the requests in time; {', '.join(used)}."
    )
    return (Text(words),)


def demo_tables(record: Record, report: Path) -> tuple[Table | Text, ...]:
    """Return the demo's outcome for a stranger, on one screen: 40 lines of 96 columns."""
    plan = record.plan
    ways = rivals_table(plan, record.fit, record.run, _shown(record.rivals))
    latency = _latency_table(record)
    lost = new_table("Other plans, and why they lose", ("plan", "l"), ("why", "l"))
    for other in plan.runner_ups[:_RUNNER_UPS]:
        add_row(lost, runner_up_text(other), other.reason)
    for table in (ways, latency, lost):
        table.show_edge = False  # saves two lines and two columns
    others: list[Table | Text] = [lost, Text()] if plan.runner_ups else []
    answer = Text(f"{headline(plan)}. All figures: {report}", "bold")
    return ways, Text(), latency, Text(f"{_breakdown(record.run)}\n"), *others, answer


def rivals_table(
    plan: Plan, fit: FitRecord, run: RunRecord | None, rivals: Sequence[Rival]
) -> Table:
    """Return a row for each way of getting the answer across: uncut, Isthmus, the rivals."""
    samples = "" if run is None else f" (Isthmus: mean bytes of {run.requests} test samples)"
    table = new_table(
        f"What crosses for one sample{samples}",
        ("way across", "l"), ("bytes", "r"), ("accuracy", "r"), ("what crosses", "l"),
    )  # fmt: skip
    crossing = widest(plan)
    if crossing is not None:
        inner = 0 < crossing.cut < num_nodes(plan)
        words = f"all that is needed after {crossing.after}" if inner else "not narrowed"
        whole = percent(fit.accuracy_whole)
        add_row(table, "uncut, fp32", num_bytes(raw_bytes(crossing)), whole, words)
        longest, size = sent(plan, run) or (crossing, crossing.payload_bytes)
        score = fit.accuracy_split
        name = "Isthmus, bytes predicted" if run is None else "Isthmus, measured"
        what = "the same" if longest is crossing else f"what is needed after {longest.after}"
        words = f"{what}, through {longest.codec}"
        words += "; the link with most bytes" if len(plan.crossings) > 1 else ""
        add_row(table, name, num_bytes(size), percent(score), words, style="bold green")
        table.caption = Text(_verdict(plan, size, score, rivals))
    for rival in rivals:
        words = _hindrance(rival, plan) or rival.what
        payload = num_bytes(rival.payload_bytes)
        add_row(table, rival.name, payload, percent(rival.accuracy), words)
    return table


def _verdict(plan: Plan, sent: float, score: float, rivals: Sequence[Rival]) -> str:
    """Return which rivals are at least as good as the split, and what the reader makes of it."""
    better = [r for r in rivals if r.payload_bytes <= sent and r.accuracy >= score]
    if not better:
        return "None of these ways does as well with so few bytes." if rivals else ""
    names = [r.name + (" (does not fit)" if _hindrance(r, plan) else "") for r in better]
    fitting = [r for r in better if not _hindrance(r, plan)]
    advice = f"Of what fits {plan.platform.name}, nothing does as well with so few bytes."
    if fitting:
        advice = _advice(plan, min(fitting, key=lambda r: (r.payload_bytes, -r.accuracy)), score)
    return f"No more bytes than Isthmus and no less accurate: {', '.join(names)}.\n{advice}"


def _advice(plan: Plan, rival: Rival, score: float) -> str:
    """Return who does at least as well as the split, and when to do that instead."""
    near, far = plan.stages[0].device, plan.stages[-1].device
    who, when = {
        "smaller": (
            f"A smaller network, trained for {near} alone,",
            "where you may retrain, do that",
        ),
        "label": (f"{near} with the whole network", "where it holds it, do not split"),
        "input": (f"{far} with the whole network", "where it holds it, do not split"),
        "int8": (f"The same crossing as {rival.name}", "spare yourself the training"),
    }.get(rival.name.partition(" ")[0], (rival.name, "do that"))
    how = "better" if rival.accuracy > score else "as well"
    unit = "byte" if rival.payload_bytes == 1 else "bytes"
    return f"{who} does {how} with {num_bytes(rival.payload_bytes)} {unit}: {when}."


def _shown(rivals: Sequence[Rival]) -> list[Rival]:
    """Leave out lossy images that take more bytes than PNG; the report shows all."""
    png = min((r.payload_bytes for r in rivals if r.name == "input png"), default=float("inf"))
    return [r for r in rivals if r.name not in _LOSSY_IMAGES or r.payload_bytes < png]


def _hindrance(rival: Rival, plan: Plan) -> str:
    """Return why a way that leaves the network whole cannot be had; empty where it can."""
    cut = {"input": 0, "label": num_nodes(plan)}.get(rival.name.partition(" ")[0])
    same = [runner_up for runner_up in plan.runner_ups if set(runner_up.cuts) == {cut}]
    if not same or any(runner_up.fits for runner_up in same):
        return ""
    return same[0].reason


def _latency_table(record: Record) -> Table:
    run, plan = record.run, record.plan
    table = new_table(
        "Latency of one request", ("where", "l"), ("predicted", "r"), ("measured\nmedian", "r"),
        ("measured\n95th", "r"),
    )  # fmt: skip
    here = "this machine's speed, links emulated"
    platform = f"{plan.platform.name} (energy predicted: {energy(plan)})"
    add_row(table, platform, seconds(plan.predicted.latency_s), "-", "-")
    latency = run.latency_s
    add_row(table, here, *map(seconds, (run.predicted_here_s, latency.p50, latency.p95)))
    return table


def _breakdown(record: RunRecord) -> str:
    parts, links = record.breakdown, record.crossings
    asked = sum(crossing.link_asked_s for crossing in links)
    return (
        f"The median of {seconds(record.latency_s.p50)}: compute {seconds(parts.compute_s)}, "
        f"emulated links {seconds(parts.link_s)} (asked {seconds(asked)}), "
        f"codecs {seconds(parts.codec_s)}, remainder {seconds(parts.remainder_s)} "
        f"(unthrottled floor {seconds(parts.floor_per_hop_s)} per hop)."
    )


def _written(out: Path | None) -> str:
    return "" if out is None else f"\nWritten: {out}"


def spaced(codec: str) -> str:
    """Return a codec's text with places where a narrow column can break it."""
    return codec.replace(":", ": ").replace(",", ", ")


def _speed(link: Link) -> str:
    rate = quantity(8 * link.bytes_per_s, "bit/s")
    if link.pins and link.clock_hz:
        return f"{rate}, {link.pins} pins x {quantity(link.clock_hz, 'Hz')}"
    if link.medium:
        return f"{rate}, shared"
    return f"{rate}, {link.duplex}" + (" duplex" if link.duplex != "one-way" else "")


def seconds(value: float) -> str:
    """Write a time."""
    return quantity(value, "s")


def some(value: float | None, unit: str) -> str:
    """Write a quantity; nothing for none."""
    return quantity(value, unit) if value else ""


def new_table(title: str, *columns: tuple[str, str]) -> Table:
    """Return an empty table.

    Args:
        title: What it shows.
        columns: Their heads, each with l or r, the side it is flush with. Numbers are flush right
            and never broken.
    """
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for head, side in columns:
        if side == "r":
            table.add_column(Text(head), justify="right", no_wrap=True)
        else:
            table.add_column(Text(head), overflow="fold")
    return table


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Add a row whose cells are text as it is: a name may hold what rich takes for markup."""
    table.add_row(*(Text(cell) for cell in cells), style=style)
