"""Why this plan: the ones that lost, and what a byte costs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isinf

import numpy as np

from isthmus.graph import Graph
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import (
    FORMAT,
    OBJECTIVES,
    Estimate,
    coding_format,
    estimate,
    stage_nodes,
)
from isthmus.plan.limits import violations
from isthmus.plan.plan import RunnerUp, Violation
from isthmus.plan.routes import (
    Costs,
    bound,
    cheapest_and_fastest,
    make_costs,
    through,
)
from isthmus.plan.table import Problem, pick_loads
from isthmus.platform import Device, Link
from isthmus.units import format_quantity
from isthmus.wire.spec import FLOATS, CodecSpec, channel_dim

_MOST_RUNNER_UPS = 8
_UNITS = {"latency": "s", "throughput": "s", "energy": "J"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One plan among others.

    Attributes:
        what: In words.
        route: What each link carries.
        estimate: What it costs.
        violations: The limits it breaks.
        cost: What the objective makes small.
    """

    what: str
    route: tuple[Choice, ...]
    estimate: Estimate
    violations: tuple[Violation, ...]
    cost: float

    @property
    def cuts(self) -> tuple[int, ...]:
        """Index of the cut on each link."""
        return tuple(choice.cut.index for choice in self.route)

    @property
    def work(self) -> tuple[float, ...]:
        """MACs of each stage and payload of each hop: equal in cuts with only views between."""
        macs = (float(load.macs) for load in self.estimate.loads)
        return (*macs, *(choice.spec.payload_bytes for choice in self.route))

    @property
    def payload_bytes(self) -> float:
        """Payload over all links, one sample."""
        return sum(choice.spec.payload_bytes for choice in self.route)


def make_outcome(problem: Problem, picks: Sequence[int]) -> Outcome:
    """Work out the plan in which each link carries the choice of some index."""
    route = tuple(problem.choices[pick] for pick in picks)
    loads = pick_loads(problem, picks)
    result = estimate(loads, route, problem.devices, problem.links)
    return Outcome(
        what=describe(problem, route),
        route=route,
        estimate=result,
        violations=violations(problem.devices, loads, route),
        cost=result.cost(problem.objective),
    )


def describe(problem: Problem, route: Sequence[Choice]) -> str:
    """Say in words where a plan cuts: ``"all on hub"``, ``"cut after layer1"``."""
    names = [device.name for device in problem.devices]
    stages = stage_nodes(problem.num_nodes, route)
    busy = [name for name, nodes in zip(names, stages, strict=True) if nodes]
    if len(busy) < 2:
        return f"all on {(busy or names)[-1]}"
    inner = [c.cut.after for c in route if 0 < c.cut.index < problem.num_nodes]
    places = " and ".join(dict.fromkeys(inner))
    where = f" ({', '.join(busy)})" if len(names) > 2 else ""
    return f"cut after {places}{where}"


def find_runner_ups(problem: Problem, best: Outcome) -> tuple[RunnerUp, ...]:
    """List the plans that lost, best first: with other cuts, unsplit, and those that do not fit.

    Args:
        problem: What was chosen from.
        best: What was chosen.

    Returns:
        The best plan through each of some eight other cuts, cuts with nothing computed between
        them counted as one; all on the first and on the last device; and what would win if
        memories were larger.
    """
    if not problem.links:
        return ()
    costs, free = make_costs(problem), make_costs(problem, limited=False)
    rivals: dict[tuple[int, ...], Outcome] = {best.cuts: best}
    alike = {best.work}
    for outcome in _ranked(problem, costs):
        if len(rivals) > _MOST_RUNNER_UPS:
            break
        if outcome.work not in alike:
            rivals.setdefault(outcome.cuts, outcome)
            alike.add(outcome.work)
    for outcome in _unsplit_and_free(problem, costs, free):
        rivals.setdefault(outcome.cuts, outcome)
    del rivals[best.cuts]
    lost = sorted(rivals.values(), key=lambda outcome: (bool(outcome.violations), outcome.cost))
    return tuple(_runner_up(problem, outcome, best) for outcome in lost)


def _ranked(problem: Problem, costs: Costs) -> Iterator[Outcome]:
    """Yield the best plan through each choice on each link, cheapest first."""
    totals = np.concatenate(through(costs))
    covered: set[tuple[int, int]] = set()
    # In steps of what rounding may do, so that of equal ones the preferred choice comes first.
    order = sorted(
        (float(f"{total:.9e}"), index % len(problem.choices), index // len(problem.choices))
        for index, total in enumerate(totals.tolist())
        if not isinf(total)
    )
    for _, pick, link in order:
        if (link, pick) not in covered:
            picks = cheapest_and_fastest(problem, bound(costs, link, [pick])).picks
            covered |= set(enumerate(picks))
            yield make_outcome(problem, picks)


def _unsplit_and_free(problem: Problem, costs: Costs, free: Costs) -> Iterator[Outcome]:
    """Yield all on the first device, all on the last, and the best of all without limits."""
    for link, cut in ((0, problem.num_nodes), (len(problem.links) - 1, 0)):
        picks = [k for k, choice in enumerate(problem.choices) if choice.cut.index == cut]
        routes = [cheapest_and_fastest(problem, bound(c, link, picks)) for c in (costs, free)]
        possible = [route for route in routes if not isinf(route.cost)]
        if possible:
            yield make_outcome(problem, possible[0].picks)
    unlimited = cheapest_and_fastest(problem, free)
    if not isinf(unlimited.cost):
        yield make_outcome(problem, unlimited.picks)


def _runner_up(problem: Problem, other: Outcome, best: Outcome) -> RunnerUp:
    if other.violations:
        first = other.violations[0]
        reason = f"does not fit: {first.where} {first.shortfall}"
    else:
        reason = _difference(problem, other, best)
    return RunnerUp(
        what=other.what,
        cuts=other.cuts,
        codecs=tuple(choice.codec for choice in other.route),
        predicted=other.estimate.prediction,
        payload_bytes=other.payload_bytes,
        reason=reason,
        fits=not other.violations,
    )


def _difference(problem: Problem, other: Outcome, best: Outcome) -> str:
    """Say by how much another plan is worse and what most of that is."""
    delta = other.cost - best.cost
    if abs(delta) <= 1e-9 * abs(best.cost):
        return "costs the same"
    amount = format_quantity(abs(delta), _UNITS[problem.objective])
    if delta < 0:
        return f"-{amount}: better, but another cut was asked for"
    if problem.objective == "throughput":
        return f"+{amount} between answers: {_slowest(problem, other)} is the slowest part"
    return f"+{amount}: {_cause(problem, other, best)}"


def _slowest(problem: Problem, outcome: Outcome) -> str:
    parts = dict(zip((d.name for d in problem.devices), outcome.estimate.compute_s, strict=True))
    parts |= zip((link.name for link in problem.links), outcome.estimate.occupied_s, strict=True)
    return max(parts, key=lambda name: parts[name])


def _cause(problem: Problem, other: Outcome, best: Outcome) -> str:
    """Name the part that grows most: what crosses, what is computed, or how long all stay on."""
    old, new = best.estimate, other.estimate
    later_s = new.prediction.latency_s - old.prediction.latency_s
    if problem.objective == "energy":
        link = sum(new.link_j) - sum(old.link_j)
        stages = [after - before for before, after in zip(old.stage_j, new.stage_j, strict=True)]
        idle = new.static_w * later_s
    else:
        link = sum(new.transfer_s) - sum(old.transfer_s)
        stages = [
            after - before for before, after in zip(old.compute_s, new.compute_s, strict=True)
        ]
        idle = 0.0
    most = max(link, sum(stages), idle)
    if most == link:
        if other.payload_bytes <= best.payload_bytes:
            return "slower links carry more"
        where = " over all links" if len(problem.links) > 1 else ""
        return (
            f"{_count(other.payload_bytes)} bytes cross{where} "
            f"instead of {_count(best.payload_bytes)}"
        )
    if most == idle:
        return f"all devices stay on for {format_quantity(later_s, 's')} longer"
    unit = _UNITS[problem.objective]
    parts = [
        f"{device.name} {'+' if amount > 0 else '-'}{format_quantity(abs(amount), unit)}"
        for device, amount in zip(problem.devices, stages, strict=True)
        if amount
    ]
    return f"computing takes {format_quantity(sum(stages), unit)} more ({', '.join(parts)})"


def _count(num_bytes: float) -> str:
    return f"{num_bytes:,.0f}" if num_bytes == int(num_bytes) else f"{num_bytes:,.2f}"


def make_notes(
    problem: Problem, graph: Graph, best: Outcome, runner_ups: Sequence[RunnerUp]
) -> tuple[str, ...]:
    """Say in words whether to split, what is narrowed, what is for free, what a byte costs."""
    return (
        *_split_notes(problem, best, runner_ups),
        *dict.fromkeys(note for choice in best.route for note in _narrowing(choice.spec)),
        *_gaps(graph, problem.devices),
        *(
            _break_even(link, device)
            for link, device in zip(problem.links, problem.devices[:-1], strict=True)
        ),
    )


def _split_notes(problem: Problem, best: Outcome, runner_ups: Sequence[RunnerUp]) -> Iterator[str]:
    if not problem.links:
        yield f"nothing to split: {best.what}, where the input arises and the answer is wanted"
        return
    fitting = [rival for rival in runner_ups if rival.fits]
    figure = OBJECTIVES[problem.objective]
    forced = any(getattr(rival.predicted, figure) < best.cost for rival in fitting)
    if forced or not best.what.startswith("all on "):
        return
    amount = format_quantity(best.cost, _UNITS[problem.objective])
    takes = "answers every" if problem.objective == "throughput" else "takes"
    splits = [rival for rival in fitting if not rival.what.startswith("all on ")]
    why = f"the best split, {splits[0].what}: {splits[0].reason}" if splits else "no split fits"
    yield f"do not split: {best.what} {takes} {amount}; {why}"


def _narrowing(spec: CodecSpec) -> Iterator[str]:
    """Say what a bottleneck narrows where it might be time, or where the ratio leaves a rest."""
    if spec.name != "bottleneck":
        return
    floats = [s for s, dtype in zip(spec.shapes, spec.dtypes, strict=True) if dtype in FLOATS]
    for shape, (before, after) in zip(floats, spec.narrowed, strict=True):
        if before > after and (len(shape) == 2 or before % spec.ratio):
            dim = "last" if channel_dim(shape) else "first"
            yield f"bottleneck narrows {before} to {after} along the {dim} dimension of {shape}"


def _gaps(graph: Graph, devices: Iterable[Device]) -> Iterator[str]:
    unknown = sorted({node.op for node in graph.nodes if node.macs is None})
    if unknown:
        yield f"counted as 0 MACs, for want of a rule: {', '.join(unknown)}"
    for device in devices:
        used = coding_format(device)
        if used and used not in device.j_per_mac:
            yield f"counted as 0 J, for want of a figure: {used} MACs on {device.name}"


def _break_even(link: Link, sender: Device) -> str:
    byte_s = 1 / link.bytes_per_s
    text = f"one byte on {link.name} takes {format_quantity(byte_s, 's')}"
    if FORMAT in sender.macs_per_s:
        text += f", as long as {byte_s * sender.macs_per_s[FORMAT]:.3g} {FORMAT} MACs"
        text += f" on {sender.name}"
    text += f", and {format_quantity(link.j_per_byte, 'J')}"
    if sender.j_per_mac.get(FORMAT):
        text += f", as much as {link.j_per_byte / sender.j_per_mac[FORMAT]:.3g} of them"
    return text
