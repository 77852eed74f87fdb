"""The planner against brute force: every assignment of choices to links, costed one by one."""

from itertools import pairwise, product
from math import inf, isclose, isinf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isthmus.errors import InfeasibleError, InputError
from isthmus.plan import check, partition
from isthmus.plan.choices import find_choices
from isthmus.plan.estimate import OBJECTIVES, estimate, stage_loads
from isthmus.plan.limits import violations
from isthmus.plan.routes import make_costs, through
from isthmus.plan.table import make_problem, pick_loads
from isthmus.platform import path
from tests.plan.nets import graphs, platforms

CODECS = [None, "raw", "uniform:bits=3", "bottleneck:ratio=2,bits=4"]


def allowed(route, num_nodes):
    """Cuts in order; between two links with one cut the same codec: the device passes it on."""
    return all(
        before.cut.index < after.cut.index or before == after for before, after in pairwise(route)
    )


def brute_force(graph, platform, objective, choices):
    """Return the least cost of all assignments that fit, and every one's cost by its choices."""
    devices, links = path(platform)
    costs = {}
    for picks in product(range(len(choices)), repeat=len(links)):
        route = [choices[pick] for pick in picks]
        if not allowed(route, len(graph.nodes)):
            continue
        loads = stage_loads(graph, route)
        if not violations(devices, loads, route):
            costs[picks] = estimate(loads, route, devices, links).cost(objective)
    return costs


cases = given(
    graph=graphs(),
    platform=platforms(),
    objective=st.sampled_from(sorted(OBJECTIVES)),
    codec=st.sampled_from(CODECS),
)


def find(graph, codec):
    try:
        return find_choices(graph, codec=codec, png_bytes=None).all
    except InputError:
        assume(False)


@settings(max_examples=150, deadline=None)
@cases
def test_no_assignment_is_better_than_the_plan(graph, platform, objective, codec):
    choices = find(graph, codec)
    assume(len(choices) ** len(platform.links) < 2000)
    costs = brute_force(graph, platform, objective, choices)
    try:
        plan = partition(graph, platform, objective=objective, codec=codec)
    except InfeasibleError:
        assert not costs
        return
    found = getattr(plan.predicted, OBJECTIVES[objective])
    assert isclose(found, min(costs.values()), rel_tol=1e-9)
    assert check(plan, graph, platform) == ()
    for rival in plan.runner_ups:
        cost = getattr(rival.predicted, OBJECTIVES[objective])
        assert not rival.fits or cost >= found * (1 - 1e-9)
        assert rival.fits or rival.reason.startswith("does not fit: d")


@settings(max_examples=60, deadline=None)
@cases
def test_through_each_choice_on_each_link_goes_the_best_plan(graph, platform, objective, codec):
    choices = find(graph, codec)
    assume(platform.links and len(choices) ** len(platform.links) < 2000)
    costs = brute_force(graph, platform, objective, choices)
    devices, links = path(platform)
    problem = make_problem(graph, choices, devices=devices, links=links, objective=objective)
    for link, totals in enumerate(through(make_costs(problem))):
        for pick, total in enumerate(totals):
            least = min((c for picks, c in costs.items() if picks[link] == pick), default=inf)
            assert isclose(total, least, rel_tol=1e-9) or (isinf(total) and isinf(least))


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), platform=platforms(), data=st.data())
def test_the_tables_hold_the_loads_of_every_stage(graph, platform, data):
    choices = find(graph, None)
    devices, links = path(platform)
    problem = make_problem(graph, choices, devices=devices, links=links, objective="latency")
    picks = [data.draw(st.integers(0, len(choices) - 1)) for _ in links]
    picks.sort(key=lambda pick: choices[pick].cut.index)
    route = [choices[pick] for pick in picks]
    assume(allowed(route, len(graph.nodes)))
    assert pick_loads(problem, picks) == stage_loads(graph, route)


@settings(max_examples=60, deadline=None)
@cases
def test_with_a_forced_cut_the_plan_is_the_best_of_those_that_have_it(
    graph, platform, objective, codec
):
    choices = find(graph, codec)
    assume(platform.links and len(choices) ** len(platform.links) < 500)
    costs = brute_force(graph, platform, objective, choices)
    for cut in {choice.cut.index for choice in choices}:
        having = [
            cost
            for picks, cost in costs.items()
            if cut in [choices[pick].cut.index for pick in picks]
        ]
        if not having:
            with pytest.raises(InfeasibleError):
                partition(graph, platform, objective=objective, codec=codec, cut=cut)
            continue
        plan = partition(graph, platform, objective=objective, codec=codec, cut=cut)
        assert cut in [crossing.cut for crossing in plan.crossings]
        found = getattr(plan.predicted, OBJECTIVES[objective])
        assert isclose(found, min(having), rel_tol=1e-9)


@settings(max_examples=60, deadline=None)
@cases
def test_of_plans_with_one_interval_the_fastest_is_taken(graph, platform, objective, codec):
    del objective
    choices = find(graph, codec)
    assume(len(choices) ** len(platform.links) < 2000)
    intervals = brute_force(graph, platform, "throughput", choices)
    latencies = brute_force(graph, platform, "latency", choices)
    assume(intervals)
    least = min(intervals.values())
    fastest = min(latencies[picks] for picks, s in intervals.items() if s <= least * (1 + 1e-9))
    plan = partition(graph, platform, objective="throughput", codec=codec)
    assert isclose(plan.predicted.latency_s, fastest, rel_tol=1e-9)
