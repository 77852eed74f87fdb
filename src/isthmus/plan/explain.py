"""Why this plan: the ones that lost, and what a byte costs."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from math import inf, isinf

import numpy as np

from isthmus.graph.cost import has_rule
from isthmus.plan.estimate import (
    FORMAT,
    OBJECTIVES,
    Array,
    Estimate,
    Indices,
    coding_format,
)
from isthmus.plan.limits import WHOLE, Walk, violations
from isthmus.plan.orders import alone, around
from isthmus.plan.plan import RunnerUp, Violation
from isthmus.plan.routes import TOLERANCE, Route, Steps, backward, cheapest, forward, through
from isthmus.plan.table import Problem, narrowed
from isthmus.plan.weigh import (
    Measure,
    Scope,
    energy,
    interval,
    latency,
    make_costs,
    make_walk,
    passed,
)
from isthmus.platform import Device, Link
from isthmus.units import format_quantity
from isthmus.wire.spec import FLOATS, CodecSpec, channel_dim

_MOST_RUNNER_UPS = 8
_MOST_LOOKED_AT = 50
_LEAST = 1e-9  # of a sum: what is less is rounding
_UNITS = {objective: WHOLE[figure][1] for objective, figure in OBJECTIVES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One plan among others.

    Attributes:
        what: In words.
        route: In short.
        walk: At length.
        estimate: What it costs.
        violations: The limits it breaks.
        cost: What the objective makes small.
    """

    what: str
    route: Route
    walk: Walk
    estimate: Estimate
    violations: tuple[Violation, ...]
    cost: float

    @property
    def kind(self) -> Hashable:
        """What is equal in plans that differ in nothing but the place of a cut."""
        lacks = tuple((one.where, one.what) for one in self.violations)
        figures = (f"{self.cost:.9e}", f"{self.estimate.prediction.latency_s:.9e}")
        sent = tuple((choice.codec, choice.spec.payload_bytes) for choice in self.walk.route)
        return self.walk.places[0], figures, sent, lacks

    @property
    def payload_bytes(self) -> float:
        """Payload over all links, one sample."""
        return sum(choice.spec.payload_bytes for choice in self.walk.route)


def make_outcome(problem: Problem, route: Route) -> Outcome:
    """Work out a plan from what it is in short."""
    walk = make_walk(problem, route)
    result = walk.estimate()
    return Outcome(
        what=describe(problem, walk),
        route=route,
        walk=walk,
        estimate=result,
        violations=violations(walk, problem.limits),
        cost=result.cost(problem.objective),
    )


def describe(problem: Problem, walk: Walk) -> str:
    """Say in words where a plan cuts: ``"all on hub"``, ``"cut after layer1"``."""
    names = list(dict.fromkeys(site.device.name for site in walk.sites))
    stages = zip(walk.sites, walk.loads, strict=True)
    busy = [site.device.name for site, load in stages if load.start < load.stop]
    if len(busy) < 2:
        return f"all on {(busy or names)[-1]}"
    end = len(problem.graph.nodes)
    inner = [choice.cut.after for choice in walk.route if 0 < choice.cut.index < end]
    where = f" ({', '.join(busy)})" if len(problem.stages) > 2 else ""
    return f"cut after {' and '.join(dict.fromkeys(inner))}{where}"


def find_runner_ups(
    problem: Problem, best: Outcome
) -> tuple[tuple[RunnerUp, ...], tuple[str, ...]]:
    """List the plans that lost, best first: on other cuts and devices, and those that do not fit.

    Args:
        problem: What was chosen from.
        best: What was chosen.

    Returns:
        The best plan through each of some eight other cuts or devices, where devices compute in
        the order of the plan, and cuts that differ in nothing but their place count as one; all
        on one device; and what would win if memories were larger. And in words the other cuts
        that count as one with what was chosen.
    """
    groups: dict[Hashable, list[Outcome]] = {best.kind: [best]}
    seen = {best.walk.places}
    for outcome in islice(_ranked(problem, best), _MOST_LOOKED_AT):
        fitting = sum(not group[0].violations for group in groups.values())
        if fitting > _MOST_RUNNER_UPS:
            break
        few = len(groups) - fitting < 2 or not outcome.violations
        if outcome.walk.places not in seen and (few or outcome.kind in groups):
            groups.setdefault(outcome.kind, []).append(outcome)
            seen.add(outcome.walk.places)
    for outcome in (*_unsplit(problem), *_unlimited(problem, best)):
        if outcome.walk.places not in seen:
            groups[outcome.walk.places] = [outcome]
            seen.add(outcome.walk.places)
    same = groups.pop(best.kind)
    lost = sorted(groups.values(), key=lambda group: (bool(group[0].violations), group[0].cost))
    runner_ups = tuple(_runner_up(problem, group, best) for group in lost)
    return runner_ups, tuple(outcome.what for outcome in same[1:])


def scope_of(problem: Problem, best: Outcome) -> Scope:
    """Return the scope that weighs plans on the same devices as a plan at just what they cost."""
    return Scope(problem=problem, paid=passed(problem, best.route))


def measure_of(scope: Scope) -> Measure:
    """Return what stands for the objective along a walk; where that is the price, time does."""
    measures = {"latency": latency, "throughput": interval, "energy": energy, "price": latency}
    return measures[scope.problem.objective](scope)


def _ranked(problem: Problem, best: Outcome) -> Iterator[Outcome]:
    """Yield the best plan through each choice that each device may send, cheapest first."""
    scope = scope_of(problem, best)
    steps = around(problem, best.route)(scope)
    costs = make_costs(scope, measure_of(scope))
    before, rest = forward(steps, costs)[0], backward(steps, costs)
    totals = costs.join(before, rest[0])
    covered: set[tuple[int, int]] = set()
    seen = {best.walk.places}
    for state, pick in _by_cost(totals, costs.rank):
        if (steps.devices[state], pick) in covered:
            continue
        route = through(steps, costs, before, rest, state, pick)
        covered |= set(zip(route.stops, route.picks, strict=False))
        outcome = make_outcome(problem, route)
        if outcome.walk.places not in seen and problem.objective == "throughput":
            near = np.flatnonzero(totals.min(axis=0) <= route.cost * (1 + TOLERANCE))
            few = replace(scope, problem=narrowed(problem, near))
            where = int(np.searchsorted(near, pick))
            route = _fastest_through(few, steps, route.cost, state, where)
            outcome = make_outcome(few.problem, route)
        seen.add(outcome.walk.places)
        yield outcome


def _by_cost(totals: Array, rank: Indices) -> Iterator[tuple[int, int]]:
    """Yield all states and choices, cheapest first; of equal ones the preferred choice.

    Costs count in steps of what rounding may do.
    """
    order = np.argsort(totals, axis=None)[: np.count_nonzero(totals < inf)]
    places = zip(*(part.tolist() for part in np.unravel_index(order, totals.shape)), strict=True)
    for _, equal in groupby(places, key=lambda place: f"{totals[place]:.9e}"):
        yield from sorted(equal, key=lambda place: (rank[place[1]], place))


def _fastest_through(scope: Scope, steps: Steps, most_s: float, state: int, pick: int) -> Route:
    """Return the fastest route through a choice on which nothing takes longer than some time."""
    scope = replace(scope, most_s=most_s * (1 + TOLERANCE))
    costs = make_costs(scope, latency(scope))
    before, rest = forward(steps, costs)[0], backward(steps, costs)
    return through(steps, costs, before, rest, state, pick)


def _unsplit(problem: Problem) -> Iterator[Outcome]:
    """Yield all on the first device, all on the last, and all on the best of the others."""
    ends = problem.platform.ends
    outer = (0, len(problem.graph.nodes))
    problem = narrowed(
        problem, [k for k, choice in enumerate(problem.choices) if choice.cut.index in outer]
    )
    scope = Scope(problem=problem, paid=ends)
    scopes = (scope, replace(scope, limited=False))
    costs = [make_costs(one, measure_of(one)) for one in scopes]
    others: list[Outcome] = []
    for index in range(len(problem.stages)):
        routes = (cheapest(alone(problem, index), one) for one in costs)
        route = next((route for route in routes if route.stops), None)
        if route is not None and index in ends:
            yield make_outcome(problem, route)
        elif route is not None:
            others.append(make_outcome(problem, route))
    if others:
        yield min(others, key=lambda outcome: (bool(outcome.violations), outcome.cost))


def _unlimited(problem: Problem, best: Outcome) -> Iterator[Outcome]:
    """Yield the best plan of all, were memories without limit."""
    scope = replace(scope_of(problem, best), limited=False)
    steps = around(problem, best.route)(scope)
    route = cheapest(steps, make_costs(scope, measure_of(scope)))
    if not isinf(route.cost):
        yield make_outcome(problem, route)


def _runner_up(problem: Problem, group: Sequence[Outcome], best: Outcome) -> RunnerUp:
    other = group[0]
    if other.violations:
        first = other.violations[0]
        reason = f"does not fit: {first.where} {first.shortfall}"
    else:
        reason = _difference(problem, other, best)
    return RunnerUp(
        what=other.what,
        cuts=other.walk.places[1],
        codecs=tuple(choice.codec for choice in other.walk.route),
        predicted=other.estimate.prediction,
        payload_bytes=other.payload_bytes,
        reason=reason,
        fits=not other.violations,
        alike=tuple(outcome.what for outcome in group[1:]),
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
        return f"+{amount} between answers: {_slowest(other)} is the slowest part"
    if problem.objective == "price":
        new = dict.fromkeys(set(other.walk.places[0]) - set(best.walk.places[0]))
        return f"+{amount}: {', '.join(sorted(new))} as well"
    return f"+{amount}: {_cause(problem, other, best)}"


def _slowest(outcome: Outcome) -> str:
    name = max(outcome.estimate.busy_s, key=lambda name: outcome.estimate.busy_s[name])
    return name if isinstance(name, str) else "-".join(name[:2])


def _cause(problem: Problem, other: Outcome, best: Outcome) -> str:
    """Name the part that grows most: what crosses, what is computed, or how long all stay on."""
    old, new = best.estimate, other.estimate
    if problem.objective == "energy":
        link = sum(new.link_j) - sum(old.link_j)
        idle = new.static_w * new.prediction.latency_s - old.static_w * old.prediction.latency_s
        parts = ((other, new.stage_j, 1), (best, old.stage_j, -1))
    else:
        link = sum(new.transfer_s) - sum(old.transfer_s)
        idle = 0.0
        parts = ((other, new.compute_s, 1), (best, old.compute_s, -1))
    stages: dict[str, float] = {}
    for outcome, amounts, sign in parts:
        for name, amount in zip(outcome.walk.places[0], amounts, strict=True):
            stages[name] = stages.get(name, 0.0) + sign * amount
    computing = sum(stages.values())
    most = max(link, computing, idle)
    if most == link:
        if other.payload_bytes <= best.payload_bytes:
            return "slower links carry more"
        where = " over all links" if len(other.walk.links) > 1 else ""
        return (
            f"{_count(other.payload_bytes)} bytes cross{where} "
            f"instead of {_count(best.payload_bytes)}"
        )
    if most == idle:
        return f"devices that stay on draw {format_quantity(idle, 'J')} more"
    unit = _UNITS[problem.objective]
    changes = [
        f"{name} {'+' if amount > 0 else '-'}{format_quantity(abs(amount), unit)}"
        for name, amount in stages.items()
        if abs(amount) > _LEAST * abs(computing)
    ]
    return f"computing takes {format_quantity(computing, unit)} more ({', '.join(changes)})"


def _count(num_bytes: float) -> str:
    return f"{num_bytes:,.0f}" if num_bytes == int(num_bytes) else f"{num_bytes:,.2f}"


def make_notes(
    problem: Problem, best: Outcome, runner_ups: Sequence[RunnerUp], alike: Sequence[str]
) -> tuple[str, ...]:
    """Say in words whether to split, what is as good, what is narrowed, what a byte costs."""
    hops = [
        (link, site.device)
        for link, site in zip(best.walk.links, best.walk.sites[:-1], strict=True)
    ]
    if not hops:
        device = problem.stages[problem.platform.source].site.device
        hops = [(link, device) for link in problem.platform.links if device.name in link.between]
    names = [site.device.name for site in best.walk.sites]
    twice = ", ".join(name for name in dict.fromkeys(names) if names.count(name) > 1)
    return (
        *([f"{twice} on the way more than once: a plan that no bundle can hold"] if twice else []),
        *_split_notes(problem, best, runner_ups),
        *([f"as good, and as many bytes: {', '.join(alike)}"] if alike else []),
        *dict.fromkeys(note for choice in best.walk.route for note in _narrowing(choice.spec)),
        *_accuracy_notes(best),
        *dict.fromkeys(_gaps(problem, best)),
        *_odd_ops(problem),
        *dict.fromkeys(_break_even(link, device) for link, device in hops),
    )


def _split_notes(problem: Problem, best: Outcome, runner_ups: Sequence[RunnerUp]) -> Iterator[str]:
    if not problem.platform.links:
        yield f"nothing to split: {best.what}, where the input arises and the answer is wanted"
        return
    fitting = [rival for rival in runner_ups if rival.fits]
    figure = OBJECTIVES[problem.objective]
    forced = any(getattr(rival.predicted, figure) < best.cost for rival in fitting)
    if forced or not best.what.startswith("all on "):
        return
    amount = format_quantity(best.cost, _UNITS[problem.objective])
    takes = {"throughput": "answers every", "price": "costs"}.get(problem.objective, "takes")
    splits = [rival for rival in fitting if not rival.what.startswith("all on ")]
    why = f"the best split, {splits[0].what}: {splits[0].reason}" if splits else "no split fits"
    yield f"do not split: {best.what} {takes} {amount}; {why}"


def _narrowing(spec: CodecSpec) -> Iterator[str]:
    """Say what a bottleneck narrows where it might be time, or where the ratio leaves a rest."""
    if spec.name != "bottleneck":
        return
    floats = [shape for shape, dtype in spec.carried if dtype in FLOATS]
    for shape, (before, after) in zip(floats, spec.narrowed, strict=True):
        if before > after and (len(shape) == 2 or before % spec.ratio):
            dim = "last" if channel_dim(shape) else "first"
            yield f"bottleneck narrows {before} to {after} along the {dim} dimension of {shape}"


def _accuracy_notes(best: Outcome) -> Iterator[str]:
    crossings = dict.fromkeys(best.walk.route)
    lossy = [choice for choice in crossings if choice.origin != "lossless"]
    for choice in lossy:
        if choice.drop is None:
            yield f"the accuracy with {choice.codec} after {choice.cut.after} is unknown"
    drop = best.estimate.prediction.drop
    if drop is not None and len(lossy) > 1:
        yield f"accuracy drop of {drop:.2%} assumed: the sum of what {len(lossy)} crossings lose"


def _odd_ops(problem: Problem) -> Iterator[str]:
    ops = {node.op for node in problem.graph.nodes}
    for device in problem.platform.devices:
        for op in device.unsupported:
            if op not in ops and not has_rule(op):
                yield f"{device.name} lacks {op!r}, which is no operation: see `isthmus profile`"


def _gaps(problem: Problem, best: Outcome) -> Iterator[str]:
    unknown = problem.graph.unknown_ops
    if unknown:
        yield f"counted as 0 MACs, for want of a rule: {', '.join(unknown)}"
    if problem.objective == "price" or problem.limits.price is not None:
        free = [site.device.name for site in best.walk.sites if not site.device.price]
        yield from (f"counted as 0 USD, for want of a price: {name}" for name in free)
    for site, load in zip(best.walk.sites, best.walk.loads, strict=True):
        device, part = site.device, slice(load.start, load.stop)
        wanted = [node.format for node in problem.graph.nodes[part]]
        used = dict(zip(wanted, site.formats[part], strict=True))
        for name in dict.fromkeys((coding_format(device), *used.values())):
            if name and name not in device.j_per_mac:
                yield f"counted as 0 J, for want of a figure: {name} MACs on {device.name}"
        for name, other in used.items():
            if name != other and device.node_s is None:
                yield f"{device.name} has no rate in {name}: predicted in {other} there"
        if device.node_s is not None:
            yield f"times of {device.name} are those measured on {device.node_s.machine}"


def _break_even(link: Link, sender: Device) -> str:
    byte_s = 1 / link.bytes_per_s
    text = f"one byte on {link.name} takes {format_quantity(byte_s, 's')}"
    if FORMAT in sender.macs_per_s:
        text += f", as long as {byte_s * sender.macs_per_s[FORMAT]:.3g} {FORMAT} MACs"
        text += f" on {sender.name}"
    text += f", and {format_quantity(link.j_per_byte, 'J')}" if link.j_per_byte else ""
    if link.j_per_byte and sender.j_per_mac.get(FORMAT):
        text += f", as much as {link.j_per_byte / sender.j_per_mac[FORMAT]:.3g} of them"
    return text
