"""The value at which the answer changes, checked by planning on both sides of it."""

from dataclasses import replace
from math import isclose, log
from random import Random

import pytest

from isthmus.errors import InfeasibleError, InputError
from isthmus.plan import partition
from isthmus.plan.choices import find_choices, undominated
from isthmus.plan.explain import make_outcome
from isthmus.plan.orders import around
from isthmus.plan.plan import NO_LIMITS, Asked
from isthmus.plan.routes import Route
from isthmus.plan.search import find
from isthmus.plan.table import make_problem
from isthmus.platform import Link, Memory, Platform, load_platform
from isthmus.report.words import headline
from tests.plan.draw import draw_graph, draw_platform
from tests.plan.nets import chain, pair

ROOMS = {"memory (weights)": "weights_bytes", "memory (activations)": "activations_bytes"}


def with_figure(platform, figure, value):
    """Return the platform with another value of a figure, known by its name in a plan."""
    devices, links = list(platform.devices), list(platform.links)
    for k, link in enumerate(links):
        if figure == f"link {link.name} rate":
            links[k] = replace(link, bytes_per_s=value, pins=None, clock_hz=None)
    for k, device in enumerate(devices):
        what = figure.removeprefix(f"{device.name} ")
        if what == "rate (fp32)":
            devices[k] = replace(device, macs_per_s={**device.macs_per_s, "fp32": value})
        elif what in ROOMS or what == "memory":
            room = {ROOMS.get(what, "shared_bytes"): value}
            devices[k] = replace(device, memory=replace(device.memory, **room))
    return replace(platform, devices=tuple(devices), links=tuple(links))


def draw(seeds):
    """Yield platforms without two ways to one place, memories of any speed, and their plans."""
    for seed in range(*seeds):
        random = Random(seed)
        graph = draw_graph(random)
        try:
            platform = draw_platform(random, graph, kinds=("chain", "tree"))
            devices = (replace(d, memory_bytes_per_s=None, node_s=None) for d in platform.devices)
            platform = replace(platform, devices=tuple(devices))
            objective = random.choice(["latency", "throughput", "energy"])
            yield graph, platform, objective, partition(graph, platform, objective=objective)
        except (InputError, InfeasibleError):
            continue


def costs(graph, platform, objective, plan):
    """Return the least cost in the plan's order and its own, each None where it does not fit."""
    every = find_choices(graph, Asked()).all
    problem = make_problem(
        graph, platform, undominated(every, platform.devices), objective=objective
    )
    outcome = make_outcome(problem, as_route(problem, plan))
    states = around(problem, outcome.route)
    found = find(problem, states, objective=objective, limits=NO_LIMITS)
    least = None if found is None else found.route.cost
    return least, None if outcome.violations else outcome.cost


def as_route(problem, plan):
    """Return a plan in short: the devices that code, and what passes between them."""
    picks = {(choice.cut.index, choice.codec): k for k, choice in enumerate(problem.choices)}
    stops, passed = [problem.platform.index(plan.stages[0].device)], []
    for k, crossing in enumerate(plan.crossings):
        last = k == len(plan.crossings) - 1
        if last or plan.stages[k + 1].nodes:
            stops.append(problem.platform.index(plan.stages[k + 1].device))
            passed.append(picks[crossing.cut, crossing.codec])
    return Route(cost=0.0, stops=tuple(stops), picks=tuple(passed))


@pytest.mark.parametrize(
    "seeds", [(0, 60), pytest.param((60, 400), marks=pytest.mark.slow)], ids=str
)
def test_the_plan_holds_up_to_the_value_and_loses_beyond_it(seeds):
    entries = 0
    for graph, platform, objective, plan in draw(seeds):
        for entry in plan.sensitivity:
            entries += 1
            up = 1 if entry.changes_at > entry.now else -1
            near, far = entry.changes_at * (1 - up * 1e-6), entry.changes_at * (1 + up * 1e-6)
            if "memory" in entry.figure:
                sizes = (entry.changes_at - 1, entry.changes_at)
                near, far = sizes if up > 0 else sizes[::-1]
            best, own = costs(graph, with_figure(platform, entry.figure, near), objective, plan)
            assert isclose(own, best, rel_tol=1e-8)
            best, own = costs(graph, with_figure(platform, entry.figure, far), objective, plan)
            assert own is None or best < own
            assert (entry.then == "no plan fits") == (best is None)
    assert entries > seeds[1] - seeds[0]


def test_a_figure_that_is_not_named_changes_nothing_within_a_thousand():
    for graph, platform, objective, plan in draw((1000, 1100)):
        named = {(entry.figure, entry.changes_at > entry.now) for entry in plan.sensitivity}
        on_the_way = {stage.device for stage in plan.stages}
        figures = [
            (f"link {link.name} rate", link.bytes_per_s)
            for link in platform.links
            if link.name in {crossing.link for crossing in plan.crossings}
        ]
        figures += [
            (f"{device.name} rate (fp32)", device.macs_per_s["fp32"])
            for device in platform.devices
            if device.name in on_the_way and "fp32" in device.macs_per_s and platform.links
        ]
        for figure, now in figures:
            for up, value in ((True, now * 999), (False, now / 999)):
                changed = with_figure(platform, figure, value)
                best, own = costs(graph, changed, objective, plan)
                assert (figure, up) in named or isclose(own, best, rel_tol=1e-8)


def test_the_rate_at_which_a_link_no_longer_pays_is_where_two_plans_cost_the_same():
    # All on the far device: 64 + 14 byte cross, 1 s of work. All on the near one: 1 + 14 byte
    # cross, 10 s of work. They are level where 63 byte take 9 s (halves of codecs left aside).
    graph = chain((1_000_000, 400, (10,)))
    plan = partition(graph, pair(first=1e5, second=1e6, rate=1_000.0))
    slower = [entry for entry in plan.sensitivity if entry.changes_at < entry.now]
    (entry,) = [entry for entry in slower if entry.figure == "link near-far rate"]
    assert entry.changes_at == pytest.approx(63 / 9, rel=1e-3)
    assert (entry.now, entry.unit, entry.then) == (1_000.0, "byte/s", "all on near")


@pytest.mark.parametrize("method", ["chain", "cpsat"])
@pytest.mark.parametrize("objective", ["latency", "throughput", "energy", "price"])
def test_a_model_without_operations_has_a_plan_that_no_rate_changes(objective, method):
    plan = partition(chain(), pair(), objective=objective, method=method)
    assert [crossing.after for crossing in plan.crossings] == ["input"]
    assert (plan.sensitivity, plan.split) == ((), False)
    assert headline(plan).startswith("Do not split: far computes the whole model")


def test_a_slow_link_with_a_way_around_it_changes_nothing():
    graph = chain((1_000_000, 400, (64,)), (1_000_000, 400, (10,)))
    near, far = pair(first=1e5, second=1e9, rate=1e6).devices
    names = (("near", "far"), ("near", "mid"), ("mid", "far"))
    platform = Platform(
        name="triangle",
        devices=(near, replace(far, name="mid", macs_per_s={"fp32": 1e3}), far),
        links=tuple(Link(between=ends, bytes_per_s=1e6) for ends in names),
        input="near",
        output="far",
    )
    plan = partition(graph, platform)
    slowed = with_figure(platform, "link near-far rate", 1.0)
    assert [s.device for s in partition(graph, slowed).stages if s.nodes] == ["far"]
    assert [s.device for s in plan.stages if s.nodes] == ["far"]
    figures = [x.figure for x in plan.sensitivity if x.changes_at < x.now]
    assert "link near-far rate" not in figures


def test_platforms_with_two_ways_to_one_place_have_a_sensitivity_without_links():
    for seed in range(60):
        random = Random(seed)
        graph = draw_graph(random)
        try:
            platform = draw_platform(random, graph)
            plan = partition(graph, platform, objective=random.choice(["latency", "throughput"]))
        except (InputError, InfeasibleError):
            continue
        if len(platform.links) >= len(platform.devices):
            assert not any(x.figure.startswith("link") for x in plan.sensitivity)


def test_a_plan_that_costs_the_same_today_does_not_hide_where_the_answer_changes():
    # On devices as fast as each other a cut after layer0 costs what one after layer1 does;
    # layer2, of 10 ms, moves over where that saves the 2.56 ms of 256 byte more.
    room = Memory(weights_bytes=10_000)
    graph = chain(*[(10_000, 400, shape) for shape in ((8,), (8,), (72,))], (10_000, 20_000, (9,)))
    platform = pair(first=1e6, second=1e6, rate=1e5, memories=(room, Memory()))
    plan = partition(graph, platform, codec="raw")
    assert plan.split
    faster = [entry for entry in plan.sensitivity if entry.changes_at > entry.now]
    (entry,) = [entry for entry in faster if entry.figure == "near rate (fp32)"]
    assert entry.changes_at == pytest.approx(1e6 / (1 - 0.256), rel=1e-6)
    assert entry.then == "cut after layer2"


def test_the_memory_that_would_make_a_split_needless_is_named_to_the_byte():
    graph = chain((1_000, 60_000, (8, 2, 2)), (1_000, 60_000, (10,)))
    room = Memory(weights_bytes=100_000, activations_bytes=10_000)
    plan = partition(graph, pair(memories=(room, room)), codec="raw")
    assert plan.split
    found = {(e.figure, e.changes_at > e.now): e for e in plan.sensitivity}
    larger = found["near memory (weights)", True]
    assert (larger.changes_at, larger.then) == (120_000, "all on near")
    smaller = found["near memory (weights)", False]
    assert (smaller.changes_at, smaller.then) == (60_000, "no plan fits")


def test_the_nearest_change_comes_first_and_a_links_latency_is_none():
    plan = partition(chain((10**5, 40_000, (8, 4, 4)), (10**5, 80_000, (10,))),
                     load_platform("two-mcu-spi"))  # fmt: skip
    nearness = [abs(log(entry.changes_at / entry.now)) for entry in plan.sensitivity]
    assert nearness
    assert nearness == sorted(nearness)
    assert not any("latency" in entry.figure for entry in plan.sensitivity)


def test_five_hundred_nodes_on_four_devices_are_planned_with_what_would_change_the_plan():
    layers = [(1_000 * (k % 7 + 1), 64 * (k % 5 + 1), (8 + k % 3, 8, 8)) for k in range(500)]
    plan = partition(chain(*layers), load_platform("chiplets-4"), objective="throughput")
    assert sum(len(stage.nodes) for stage in plan.stages) == 500
    assert plan.sensitivity
