"""The value at which the answer changes, checked by planning on both sides of it."""

from dataclasses import replace
from math import isclose, isinf, log
from time import process_time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isthmus.errors import InfeasibleError
from isthmus.plan import partition
from isthmus.plan.choices import find_choices
from isthmus.plan.estimate import OBJECTIVES, estimate, stage_loads
from isthmus.plan.limits import violations
from isthmus.plan.routes import cheapest, make_costs
from isthmus.plan.table import make_problem
from isthmus.platform import Memory, load_platform, path
from tests.plan.nets import chain, graphs, pair, platforms

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


def costs(graph, platform, objective, plan):
    """Return the least cost and the plan's own, each None where it does not fit."""
    choices = find_choices(graph, codec=None, png_bytes=None).all
    devices, links = path(platform)
    problem = make_problem(graph, choices, devices=devices, links=links, objective=objective)
    least = cheapest(make_costs(problem)).cost
    known = {(choice.cut.index, choice.codec): choice for choice in choices}
    route = [known[crossing.cut, crossing.codec] for crossing in plan.crossings]
    loads = stage_loads(graph, route)
    own = estimate(loads, route, devices, links).cost(objective)
    fits = not violations(devices, loads, route)
    return None if isinf(least) else least, own if fits else None


cases = given(graph=graphs(), platform=platforms(), objective=st.sampled_from(sorted(OBJECTIVES)))


@settings(max_examples=80, deadline=None)
@cases
def test_the_plan_holds_up_to_the_value_and_loses_beyond_it(graph, platform, objective):
    try:
        plan = partition(graph, platform, objective=objective)
    except InfeasibleError:
        assume(False)
    for entry in plan.sensitivity:
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


@settings(max_examples=60, deadline=None)
@cases
def test_a_figure_that_is_not_named_changes_nothing_within_a_thousand(graph, platform, objective):
    try:
        plan = partition(graph, platform, objective=objective)
    except InfeasibleError:
        assume(False)
    named = {(entry.figure, entry.changes_at > entry.now) for entry in plan.sensitivity}
    devices, links = path(platform)
    figures = [(f"link {link.name} rate", link.bytes_per_s) for link in links]
    figures += [
        (f"{device.name} rate (fp32)", device.macs_per_s["fp32"])
        for device in devices
        if links and "fp32" in device.macs_per_s
    ]
    for figure, now in figures:
        for up, value in ((True, now * 999), (False, now / 999)):
            best, own = costs(graph, with_figure(platform, figure, value), objective, plan)
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


def test_five_hundred_nodes_on_four_devices_are_planned_in_a_few_seconds():
    layers = [(1_000 * (k % 7 + 1), 64 * (k % 5 + 1), (8 + k % 3, 8, 8)) for k in range(500)]
    start = process_time()
    partition(chain(*layers), load_platform("chiplets-4"), objective="throughput")
    assert process_time() - start < 10
