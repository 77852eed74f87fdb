"""A plan in words and numbers as people read them; for the tables, the figures and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.units import format_quantity
from isthmus.wire import parse_codec

if TYPE_CHECKING:
    from isthmus.plan import Crossing, Plan, Stage
    from isthmus.platform import Memory
    from isthmus.run import RunRecord
    from isthmus.train import FitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much of one memory a stage takes.

    Attributes:
        what: weights, activations, or both.
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
    spec = parse_codec("raw", shapes=crossing.shapes, dtypes=crossing.dtypes)
    return spec.payload_bytes


def widest(plan: Plan) -> Crossing | None:
    """Return the crossing with most bytes before its codec; None where nothing crosses."""
    return max(plan.crossings, key=raw_bytes, default=None)


def accuracy_across(fit: FitRecord, run: RunRecord | None) -> float:
    """Return the accuracy over the crossings, 0..1: measured by the run, else the fit's."""
    if run is None or run.accuracy is None:
        return fit.accuracy_split
    return run.accuracy


def num_nodes(plan: Plan) -> int:
    """Return how many nodes the stages hold together."""
    return sum(len(stage.nodes) for stage in plan.stages)


def rooms(stage: Stage, memory: Memory) -> tuple[Room, ...]:
    """Return what a stage takes of each memory of its device."""
    weights, activations = stage.weight_bytes, stage.peak_memory_bytes
    if memory.shared_bytes is not None:
        both = weights + activations
        return (
            Room(what="weights + activations", used_bytes=both, limit_bytes=memory.shared_bytes),
        )
    return (
        Room(what="weights", used_bytes=weights, limit_bytes=memory.weights_bytes),
        Room(what="activations", used_bytes=activations, limit_bytes=memory.activations_bytes),
    )


def span(plan: Plan, index: int) -> str:
    """Return which part of the model a stage computes, e.g. ``"input .. layer2"``."""
    if not plan.stages[index].nodes:
        return "nothing" if 0 < index < len(plan.stages) - 1 else _end_of_the_way(index)
    first = plan.crossings[index - 1] if index else None
    last = plan.crossings[index] if index < len(plan.crossings) else None
    begin = "input" if first is None or first.cut == 0 else f"after {first.after}"
    end = "output" if last is None or last.cut == num_nodes(plan) else last.after
    return "the whole model" if (begin, end) == ("input", "output") else f"{begin} .. {end}"


def headline(plan: Plan) -> str:
    """Return the plan's answer in one sentence, with the numbers that matter."""
    computing = [stage.device for stage in plan.stages if stage.nodes]
    crossing = widest(plan)
    if not plan.split:
        answer = f"Do not split: {', '.join(computing)} computes the whole model"
        if crossing is None:
            return f"{answer}, and nothing crosses"
        what = "input" if crossing.cut == 0 else "output"
        payload = num_bytes(crossing.payload_bytes)
        return f"{answer}, and the {what} crosses as {crossing.codec}, {payload} bytes"
    assert crossing is not None
    payload, raw = num_bytes(crossing.payload_bytes), num_bytes(raw_bytes(crossing))
    where = f"from {computing[0]} to {computing[-1]}"
    if payload == raw:
        return f"{payload} bytes cross {where} for each sample"
    return f"{payload} bytes cross {where} for each sample, instead of {raw}"


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


def _end_of_the_way(index: int) -> str:
    return "nothing; it only receives" if index else "nothing; it only sends the input"
