"""A plan for people, as rich draws it: the answer, its parts, its rivals. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from isthmus.platform import multiplexing
from isthmus.report.tables import add_row, new_table, seconds, some, spaced
from isthmus.report.words import (
    assumed,
    energy,
    headline,
    num_bytes,
    percent,
    quantity,
    raw_bytes,
    rooms,
    runner_up_text,
    span,
)

if TYPE_CHECKING:
    from isthmus.plan import Crossing, Plan

_SENSITIVE = 8


def plan_tables(plan: Plan) -> tuple[Table | Text, ...]:
    """Return a plan for people: the answer, stages, crossings, cost, runner-ups, what matters."""
    parts: list[Table | Text] = [Text(f"{headline(plan)}.", "bold")]
    parts += [_stages_table(plan), *([_crossings_table(plan)] if plan.crossings else [])]
    parts += [Text(line) for line in (_cost_line(plan), *_multiplexing(plan))]
    parts += [Text(f"Does not fit: {violation}", "bold red") for violation in plan.violations]
    parts += [_runner_ups_table(plan)] if plan.runner_ups else []
    parts += [_sensitivity_table(plan)] if plan.sensitivity else []
    if plan.unused:
        parts.append(Text(f"Not used: {', '.join(plan.unused)}."))
    return *parts, *(Text(f"Note: {note}", "dim") for note in plan.notes)


def _cost_line(plan: Plan) -> str:
    predicted = plan.predicted
    words = [
        f"latency {seconds(predicted.latency_s)}",
        f"energy {energy(plan)}",
    ]
    if predicted.price:
        words.append(f"devices for {predicted.price:,.2f} USD")
    if predicted.drop is not None:
        words.append(f"{100 * predicted.drop:.2f} points of accuracy lost{assumed(plan)}")
    return (
        f"Predicted for one sample, best {plan.objective}: {', '.join(words)}; a full pipeline "
        f"answers every {seconds(predicted.interval_s)}."
    )


def _multiplexing(plan: Plan) -> Iterator[str]:
    """Say how many ticks the pins of each link need, before narrowing and after."""
    links = {link.name: link for link in plan.platform.links if link.pins}
    for crossing in plan.crossings:
        if link := links.get(crossing.link):
            before = multiplexing(link, raw_bytes(crossing))
            after = multiplexing(link, crossing.payload_bytes)
            yield (
                f"Time-multiplexing on {link.name}, {link.pins} pins: {after:,} ticks for one "
                f"sample, {before:,} as fp32."
            )


def _accuracy(crossing: Crossing) -> str:
    if crossing.accuracy is None:
        return crossing.origin
    return f"{percent(crossing.accuracy)} ({crossing.origin})"


def _stages_table(plan: Plan) -> Table:
    table = new_table(
        "Stages",
        ("device", "l"), ("computes", "l"), ("MACs", "r"), ("format", "l"), ("memory", "l"),
        ("predicted\ncompute", "r"),
    )  # fmt: skip
    for index, stage in enumerate(plan.stages):
        memory = plan.platform.device(stage.device).memory
        add_row(
            table,
            stage.device,
            span(plan, index),
            some(stage.macs, "MAC"),
            stage.format if stage.nodes else "",
            "\n".join(f"{room} {room.what}" for room in rooms(stage, memory)),
            seconds(stage.compute_s),
        )
    return table


def _crossings_table(plan: Plan) -> Table:
    known = any(crossing.accuracy is not None for crossing in plan.crossings)
    table = new_table(
        "Crossings, per sample",
        ("link", "l"), ("after", "l"), ("codec", "l"), ("payload,\nbytes", "r"),
        ("as fp32,\nbytes", "r"), ("predicted\ntransfer", "r"),
        *([("accuracy", "l")] if known else []),
    )  # fmt: skip
    for crossing in plan.crossings:
        payload = num_bytes(crossing.payload_bytes)
        add_row(
            table,
            crossing.link,
            crossing.after,
            spaced(crossing.codec),
            payload if crossing.fixed_rate else f"about {payload}",
            num_bytes(raw_bytes(crossing)),
            seconds(crossing.transfer_s),
            *([_accuracy(crossing)] if known else []),
        )
    return table


def _runner_ups_table(plan: Plan) -> Table:
    table = new_table(
        "Other plans, best first",
        ("plan", "l"), ("payload,\nbytes", "r"), ("predicted\nlatency", "r"),
        ("predicted\nenergy", "r"), ("why it loses", "l"),
    )  # fmt: skip
    for other in plan.runner_ups:
        add_row(
            table,
            runner_up_text(other),
            num_bytes(other.payload_bytes),
            quantity(other.predicted.latency_s, "s") if other.fits else "",
            energy(other) if other.fits else "",
            other.reason,
            style="" if other.fits else "dim",
        )
    return table


def _sensitivity_table(plan: Plan) -> Table:
    table = new_table(
        "What would change the answer, nearest first",
        ("figure", "l"), ("now", "r"), ("changes at", "r"), ("then best", "l"),
    )  # fmt: skip
    for item in plan.sensitivity[:_SENSITIVE]:
        now, then = (quantity(value, item.unit) for value in (item.now, item.changes_at))
        add_row(table, item.figure, now, then, item.then)
    return table
