"""The planner for any assignment against brute force, costed by a walk that is written anew."""

import re
import sys
from dataclasses import replace
from itertools import combinations
from math import inf, isclose
from random import Random
from time import monotonic

import pytest
import torch

from isthmus.errors import InfeasibleError, InputError
from isthmus.graph import Graph, Node, Tensor, fingerprint
from isthmus.plan import check, partition
from isthmus.plan.accuracy import AccuracyRow, AccuracyTable
from isthmus.plan.cpsat import search
from isthmus.plan.estimate import OBJECTIVES, needs
from isthmus.plan.placement import make_setting, weigh
from isthmus.plan.plan import Asked, Limits
from isthmus.platform import Device, Link, Memory, Platform
from isthmus.split import split
from tests.plan.branching import every_placement, random_graph, random_platform, walk
from tests.plan.nets import chain, pair, weight

UNITS = {"latency_s": 1e-9, "interval_s": 1e-9, "energy_j": 1e-12, "price": 1e-6}


def within(figures, limits):
    return all(
        getattr(limits, name) is None or figures[name] <= getattr(limits, name) * (1 + 1e-9)
        for name in ("latency_s", "interval_s", "energy_j", "price", "drop")
    )


def random_limits(r, outcomes):
    """Return limits near what some placement needs."""
    names = r.sample(
        ["latency_s", "interval_s", "energy_j", "price", "drop"], r.choice([0, 0, 1, 2])
    )
    if not outcomes or not names:
        return Limits()
    some = r.choice(outcomes)
    return Limits(**{name: some[name] * r.choice([0.8, 1.001, 1.3]) for name in names})


def random_table(r, graph):
    """Return how accurate some codecs are at some cuts, or that nothing is known."""
    if r.random() < 0.7:
        return None
    rows = tuple(
        AccuracyRow(
            cut=cut, codec=codec, accuracy=r.uniform(0.7, 0.9), samples=100, origin="post-hoc"
        )
        for cut in range(len(graph.nodes) + 1)
        for codec in ("uniform:bits=2", "uniform:bits=4", "bottleneck:ratio=2,bits=4", "pixels")
        if r.random() < 0.5
    )
    return AccuracyTable(graph=fingerprint(graph), whole=0.9, rows=rows)


def random_case(seed):
    """Return a setting, what is asked of it, and what each of its placements that fits costs."""
    r = Random(seed)
    graph, platform = random_graph(r), random_platform(r)
    codec, objective = r.choice([None, "raw", "uniform:bits=4"]), r.choice(sorted(OBJECTIVES))
    table = random_table(r, graph)
    asked = Asked(codec=codec, accuracy=table)
    setting = make_setting(graph, platform, asked)
    figures = [walk(setting, one) for one in every_placement(setting)]
    limits = random_limits(r, [one for one in figures if one is not None])
    if limits != Limits():
        setting = make_setting(graph, platform, replace(asked, limits=limits))
        figures = [walk(setting, one) for one in every_placement(setting)]
    possible = [one for one in figures if one is not None and within(one, limits)]
    return setting, objective, limits, possible


def agrees(seeds):
    """Check that what is found is the best of all placements, listed one by one."""
    for seed in seeds:
        setting, objective, limits, possible = random_case(seed)
        found = search(setting, objective=objective, limits=limits, time_limit_s=60.0)
        assert found.proven
        assert (found.placement is None) == (not possible), seed
        if found.placement is None:
            continue
        name, figures = OBJECTIVES[objective], walk(setting, found.placement)
        least = min(one[name] for one in possible)
        assert within(figures, limits), seed
        assert figures[name] <= least * (1 + 1e-9) + 50 * UNITS[name], seed
        if name == "price":
            fastest = min(one["latency_s"] for one in possible if one["price"] <= least + 1e-9)
            assert figures["latency_s"] <= fastest + 50 * UNITS["latency_s"], seed


@pytest.mark.parametrize(
    "block", [*range(3), *(pytest.param(block, marks=pytest.mark.long) for block in range(3, 8))]
)
def test_no_placement_is_better_than_the_one_found(block):
    agrees(range(100 * block, 100 * block + 30))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_no_placement_is_better_in_thousands_of_small_cases(block):
    agrees(range(10_000 + 50 * block, 10_050 + 50 * block))


def test_a_placement_costs_what_a_walk_through_it_does():
    for seed in range(60):
        r = Random(seed)
        setting = make_setting(random_graph(r), random_platform(r), Asked())
        for placement in list(every_placement(setting))[:: r.randint(10, 30)]:
            weighed, figures = weigh(setting, placement), walk(setting, placement)
            room = all(
                limit is None or need <= limit
                for device, load in zip(setting.platform.devices, weighed.loads, strict=True)
                for _, need, limit in needs(device, load)
            )
            barred = any(
                setting.sites[place].barred[node + 1] > setting.sites[place].barred[node]
                for node, place in enumerate(placement.places)
            )
            assert (figures is None) == (barred or not room)
            for name in ("latency_s", "interval_s", "energy_j", "price") if figures else ():
                assert isclose(getattr(weighed.prediction, name), figures[name], rel_tol=1e-9)


def figure(plan, objective):
    return getattr(plan.predicted, OBJECTIVES[objective])


@pytest.mark.parametrize("block", range(2))
def test_on_graphs_that_do_not_branch_it_agrees_with_the_chain(block):
    walks = 0
    for seed in range(100 * block, 100 * block + 15):
        r = Random(seed)
        layers = [
            (r.randint(0, 5000), 4 * r.randint(0, 200), r.choice([(4, 3, 3), (16,), (2,)]))
            for _ in range(r.randint(2, 6))
        ]
        graph, platform = chain(*layers), random_platform(r)
        objective = r.choice(sorted(OBJECTIVES))
        try:
            best = partition(graph, platform, objective=objective, method="chain")
        except InfeasibleError:
            continue
        plan = partition(graph, platform, objective=objective, method="cpsat")
        setting = make_setting(graph, platform, Asked())
        found = search(setting, objective=objective, limits=Limits(), time_limit_s=60.0)
        assert found.placement is not None
        least = getattr(weigh(setting, found.placement).prediction, OBJECTIVES[objective])
        assert figure(plan, objective) <= figure(best, objective) * (1 + 1e-9)
        assert plan.gap == 0.0
        if plan.branched:
            assert (figure(plan, objective), plan.predicted.latency_s) < (
                figure(best, objective),
                best.predicted.latency_s,
            )
            continue
        walks += 1
        slack = 50 * UNITS[OBJECTIVES[objective]]
        assert isclose(figure(plan, objective), figure(best, objective), rel_tol=1e-9)
        assert isclose(least, figure(best, objective), rel_tol=1e-9, abs_tol=slack)
    assert walks >= 8


def two_branches(*, macs=1000, num_bytes=400):
    """Return a network of two heavy branches, joined at the end."""
    wide = num_bytes // 4
    return Graph(
        inputs=(Tensor(name="x", shape=(4,)),),
        nodes=(
            node("left", ["x"], (wide,), macs=macs),
            node("right", ["x"], (wide,), macs=macs),
            node("more_left", ["left"], (2,), macs=macs),
            node("more_right", ["right"], (2,), macs=macs),
            node("join", ["more_left", "more_right"], (2,), macs=1),
        ),
        outputs=("join",),
    )


def node(name, inputs, shape, *, macs):
    return Node(
        name=name,
        op="linear",
        module=name,
        inputs=tuple(inputs),
        outputs=(Tensor(name=name, shape=shape),),
        weights=(weight(f"{name}.w", 400),),
        macs=macs,
    )


def test_branches_go_to_different_devices_where_that_is_better():
    graph = two_branches()
    platform = pair(rate=1e4, memories=(Memory(weights_bytes=1000), Memory(weights_bytes=1300)))
    best = partition(graph, platform)
    plan = partition(graph, platform, method="cpsat")
    assert plan.branched
    assert plan.predicted.latency_s < best.predicted.latency_s
    near, far = (set(stage.nodes) for stage in plan.stages)  # either branch may be either's
    assert near in ({"left", "more_left"}, {"right", "more_right"})
    assert near | far == {node.name for node in graph.nodes}
    (first,), (second,) = (crossing.tensors for crossing in plan.crossings)
    assert (first, second in near) == ("x", True)
    assert plan.notes[0] == "proven: no assignment of nodes to devices does better"
    assert any(note.startswith("branched: ") for note in plan.notes)
    assert check(plan, graph, platform) == ()


def test_what_a_branched_plan_says_is_checked():
    graph = two_branches()
    platform = pair(rate=1e4, memories=(Memory(weights_bytes=1000), Memory(weights_bytes=1300)))
    plan = partition(graph, platform, method="cpsat")
    limits = Limits(latency_s=plan.predicted.latency_s / 2, link_bytes=1.0)
    found = check(plan, graph, platform, limits=limits)
    assert [one.what for one in found] == ["payload", "payload", "latency"]
    less = replace(
        platform,
        devices=(
            platform.devices[0],
            replace(platform.devices[1], memory=Memory(weights_bytes=900)),
        ),
    )
    (broken,) = check(plan, graph, less)
    assert (broken.where, broken.what) == ("far", "weights")
    assert broken.need >= 1200
    with pytest.raises(InputError, match=r"found no way for more_(left|right) to far"):
        check(replace(plan, crossings=plan.crossings[:1]), graph, platform)
    with pytest.raises(InputError, match="that nothing reads"):
        check(replace(plan, crossings=plan.crossings * 2), graph, platform)
    with pytest.raises(InputError, match="found other operations"):
        check(replace(plan, stages=plan.stages[:1]), graph, platform)


def test_a_branched_plan_names_the_nearest_remedies_and_they_mend_it():
    graph = two_branches(num_bytes=128)
    wide = [replace(node.outputs[0], shape=(64,)) for node in graph.nodes]
    nodes = zip(graph.nodes, wide, strict=True)
    graph = replace(graph, nodes=tuple(replace(node, outputs=(one,)) for node, one in nodes))
    rooms = (Memory(weights_bytes=1500), Memory(weights_bytes=1990))  # with a grid's scales
    platform = pair(rate=1e5, memories=rooms)
    plan = partition(graph, platform, method="cpsat", codec="uniform:bits=8")
    assert plan.branched
    latency = Limits(latency_s=0.999 * plan.predicted.latency_s)
    (slow,) = check(plan, graph, platform, limits=latency)
    rate = r"a rate of (\S+) kB/s on link near-far, or "
    codec = r"a narrower codec such as (\S+) after \w+, or allow "
    ((kilobytes, narrower),) = re.findall(rate + codec, slow.remedy)
    faster = pair(rate=float(kilobytes) * 1001, memories=rooms)
    assert check(plan, graph, faster, limits=latency) == ()
    less = partition(graph, platform, method="cpsat", codec=narrower)
    assert check(less, graph, platform, limits=latency) == ()
    (large,) = check(plan, graph, platform, limits=Limits(link_bytes=33.0))
    assert large.remedy == "a narrower codec such as uniform:bits=4 or allow 64 bytes"
    (unknown,) = check(plan, graph, platform, limits=Limits(drop=0.0))
    assert unknown.remedy == "measure it (isthmus plan --data), or use raw"


def test_a_branched_plan_is_not_split():
    plan = replace(partition(two_branches(), pair()), branched=True)
    with pytest.raises(InputError, match=r"it branches, .* plan with method chain"):
        split(torch.nn.Identity(), plan)


def test_limits_are_kept_or_said_to_be_broken():
    graph = two_branches()
    platform = pair(rate=1e4, memories=(Memory(weights_bytes=1000), Memory(weights_bytes=1300)))
    narrow = partition(graph, platform, method="cpsat", limits=Limits(link_bytes=60.0))
    assert max(crossing.payload_bytes for crossing in narrow.crossings) <= 60.0
    with pytest.raises(InfeasibleError, match="latency"):
        partition(graph, platform, method="cpsat", limits=Limits(latency_s=1e-6))
    free = partition(graph, platform, method="cpsat")
    for most in (inf, 1e300):
        limits = Limits(latency_s=most, energy_j=most)
        assert partition(graph, platform, method="cpsat", limits=limits).stages == free.stages
    tiny = Memory(weights_bytes=300)
    with pytest.raises(InfeasibleError, match="weights"):
        partition(graph, pair(memories=(tiny, tiny)), method="cpsat")
    with pytest.raises(InputError, match="takes no cuts"):
        partition(graph, platform, method="cpsat", cut=1)


@pytest.mark.parametrize("seed", [309, 701])
def test_the_best_is_found_where_presolve_of_or_tools_lost_it(seed):
    setting, objective, limits, possible = random_case(seed)
    found = search(setting, objective=objective, limits=limits, time_limit_s=60.0)
    assert objective == "energy"
    assert found.placement is not None
    least = min(one["energy_j"] for one in possible)
    assert isclose(walk(setting, found.placement)["energy_j"], least, rel_tol=1e-6)


@pytest.mark.alone
def test_when_time_is_up_the_best_plan_so_far_comes_with_its_gap():
    r = Random(1)
    nodes = [node("n0", ["x"], (64,), macs=1000)]
    for k in range(1, 60):
        read = {f"n{r.randrange(max(0, k - 6), k)}" for _ in range(2)}
        nodes.append(node(f"n{k}", sorted(read), (64,), macs=r.randint(10_000, 100_000)))
    graph = Graph(inputs=(Tensor(name="x", shape=(4,)),), nodes=tuple(nodes), outputs=("n59",))
    names = ["a", "b", "c", "d"]
    platform = Platform(
        name="mesh",
        devices=tuple(
            Device(name=name, macs_per_s={"fp32": r.uniform(1e6, 2e6)}) for name in names
        ),
        links=tuple(Link(between=pair, bytes_per_s=1e6) for pair in combinations(names, 2)),
        input="a",
        output="d",
    )
    start = monotonic()
    plan = partition(graph, platform, objective="throughput", method="cpsat", time_limit_s=5.0)
    assert monotonic() - start < 30.0
    assert plan.gap is not None
    assert 0.0 < plan.gap < 1.0
    assert plan.notes[0].startswith("stopped after 5 s: one that is ")
    assert check(plan, graph, platform) == ()
    walk = partition(graph, platform, objective="throughput", method="cpsat", time_limit_s=0.001)
    assert walk.gap is None
    assert walk.notes[0].startswith("stopped after 0.001 s, too soon to say")
    assert not walk.branched


def test_without_or_tools_the_method_says_what_to_install(monkeypatch):
    for name in ("isthmus.plan.assign", "isthmus.plan.cpsat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("ortools", *(name for name in sys.modules if name.startswith("ortools."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'pip install "isthmus\[plan\]"'):
        partition(two_branches(), pair(), method="cpsat")
