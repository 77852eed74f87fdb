"""A plan in words and numbers as people read them; for the tables, the figures and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.units import format_quantity
from isthmus.wire import parse_codec

if TYPE_CHECKING:
    from isthmus.plan import Crossing, Plan, RunnerUp, Stage
    from isthmus.platform import Memory
    from isthmus.run import RunRecord
    from isthmus.train import FitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much of one memory a stage takes.

    Attributes:
        what: weights, activations, or memory for a memory that holds both.
        used_bytes: What the stage takes.
        limit_bytes: What the device has; None where the platform names no limit.
    """

    what: str
    used_bytes: float
    limit_bytes: float | None

    def __str__(self) -> str:
        limit = "no limit" if self.limit_bytes is None else quantity(self.limit_bytes, "byte")
        return f"{quantity(self.used_bytes, 'byte')} of {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stretch of a request's way.

    Attributes:
        where: Who does what.
        kind: compute, codec, link or rest.
        seconds: For how long.
    """

    where: str
    kind: str
    seconds: float


def quantity(value: float, unit: str) -> str:
    """Write a number of SI units as people read it, three significant digits or so."""
    return format_quantity(float(f"{value:.3g}"), unit)


def num_bytes(value: float) -> str:
    """Write a count of bytes in full; a mean with one decimal.

    Example:
        >>> num_bytes(2048), num_bytes(57.25)
        ('2,048', '57.2')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def percent(share: float) -> str:
    """Write a share of 0..1 as a percentage."""
    return f"{100 * share:.1f} %"


def raw_bytes(crossing: Crossing) -> float:
    """Return the payload of a crossing that is sent as it is, floats in fp32."""
    inner = crossing.cut > 0  # where integers are what a stage holds in place of floats
    dtypes = ["float32" if inner and "uint" in name else name for name in crossing.dtypes]
    return parse_codec("raw", shapes=crossing.shapes, dtypes=dtypes).payload_bytes


def widest(plan: Plan) -> Crossing | None:
    """Return the crossing with most bytes before its codec; None where nothing crosses."""
    return max(plan.crossings, key=raw_bytes, default=None)


def sent(plan: Plan, run: RunRecord | None) -> tuple[Crossing, float] | None:
    """Return the crossing with most bytes on the wire, and how many; None where nothing crosses.

    Measured where there is a run.
    """
    sizes = [crossing.payload_bytes for crossing in plan.crossings]
    if run is not None:
        sizes = [crossing.payload_bytes_measured for crossing in run.crossings]
    pairs = zip(plan.crossings, sizes, strict=True)
    return max(pairs, key=lambda pair: pair[1], default=None)


def energy(plan: Plan | RunnerUp) -> str:
    """Return the predicted energy of a sample; the platform may have no figure for any of it."""
    joules = plan.predicted.energy_j
    return quantity(joules, "J") if joules else "unknown"


def judged(fit: FitRecord) -> str:
    """Return what the accuracies of a fit are."""
    return "accuracy" if fit.judge == "labels" else "agreement with the whole model"


def assumed(plan: Plan) -> str:
    """Return what a drop in accuracy is called that is a sum; empty where one crossing loses."""
    lossy = {(c.cut, c.codec) for c in plan.crossings if c.origin != "lossless"}
    return " (assumed: the sum over the crossings)" if len(lossy) > 1 else ""


def num_nodes(plan: Plan) -> int:
    """Return how many nodes the stages hold together."""
    return sum(len(stage.nodes) for stage in plan.stages)


def rooms(stage: Stage, memory: Memory) -> tuple[Room, ...]:
    """Return what a stage takes of each memory of its device."""
    weights, activations = stage.weight_bytes, stage.peak_memory_bytes
    if memory.shared_bytes is not None:
        both = weights + activations
        return (Room(what="memory", used_bytes=both, limit_bytes=memory.shared_bytes),)
    return (
        Room(what="weights", used_bytes=weights, limit_bytes=memory.weights_bytes),
        Room(what="activations", used_bytes=activations, limit_bytes=memory.activations_bytes),
    )


def span(plan: Plan, index: int) -> str:
    """Return which part of the model a stage computes, e.g. ``"input .. layer2"``."""
    if not plan.stages[index].nodes:
        idle = {0: "only sends the input", len(plan.stages) - 1: "only receives"}
        return idle.get(index, "only passes on")
    first = plan.crossings[index - 1] if index else None
    last = plan.crossings[index] if index < len(plan.crossings) else None
    begin = "input" if first is None or first.cut == 0 else f"after {first.after}"
    end = "output" if last is None or last.cut == num_nodes(plan) else last.after
    return "the whole model" if (begin, end) == ("input", "output") else f"{begin} .. {end}"


def totals(plan: Plan) -> tuple[float, float]:
    """Return the payload of all crossings together, and the same as fp32."""
    return (
        sum(crossing.payload_bytes for crossing in plan.crossings),
        sum(raw_bytes(crossing) for crossing in plan.crossings),
    )


def headline(plan: Plan) -> str:
    """Return the plan's answer in one sentence, with the numbers that matter."""
    computing = ", ".join(stage.device for stage in plan.stages if stage.nodes)
    computing = computing or plan.stages[-1].device  # as in the notes, where nothing is computed
    payload, raw = map(num_bytes, totals(plan))
    if not plan.split:
        answer = f"Do not split: {computing} computes the whole model"
        if not plan.crossings:
            return f"{answer}, and nothing crosses"
        crossing = plan.crossings[0]
        what = "input" if crossing.cut == 0 else "output"
        return f"{answer}, and the {what} crosses as {crossing.codec}, {payload} bytes"
    ends = f"from {plan.stages[0].device} to {plan.stages[-1].device}"
    links = ends if len(plan.crossings) == 1 else f"{len(plan.crossings)} links {ends}"
    instead = "" if payload == raw else f", instead of {raw}"
    return f"{payload} bytes cross {links} for each sample{instead}"


def way(run: RunRecord) -> list[Step]:
    """Return the stretches of a request in order; their sum is the median latency."""
    steps = []
    for k, stage in enumerate(run.stages):
        if k:
            before = run.crossings[k - 1]
            steps += [
                Step(where=f"link {before.link}", kind="link", seconds=before.link_observed_s),
                Step(where=f"{stage.device}: unpack", kind="codec", seconds=before.decode_s),
            ]
        steps.append(
            Step(where=f"{stage.device}: compute", kind="compute", seconds=stage.compute_s)
        )
        if k < len(run.crossings):
            seconds = run.crossings[k].encode_s
            steps.append(Step(where=f"{stage.device}: pack", kind="codec", seconds=seconds))
    rest = max(0.0, run.breakdown.remainder_s)
    return [*steps, Step(where="everything else", kind="rest", seconds=rest)]


def runner_up_text(other: RunnerUp) -> str:
    """Name a plan that lost, and say how many cuts are just like it."""
    return f"{other.what} (+{len(other.alike)} alike)" if other.alike else other.what
