"""The planner against brute force: every order of devices and every choice, one by one."""

from dataclasses import replace
from math import isclose
from random import Random

import pytest

from isthmus.errors import InfeasibleError, InputError
from isthmus.graph import fingerprint
from isthmus.plan import check, partition
from isthmus.plan.accuracy import AccuracyRow, AccuracyTable
from isthmus.plan.choices import find_choices, undominated, within
from isthmus.plan.estimate import OBJECTIVES, stage_loads
from isthmus.plan.limits import WHOLE
from isthmus.plan.orders import ordered, states_of
from isthmus.plan.plan import NO_LIMITS, Asked, Limits, exceeds
from isthmus.plan.routes import backward, forward, through
from isthmus.plan.search import find
from isthmus.plan.table import make_problem, restricted
from isthmus.plan.weigh import Scope, interval, latency, make_costs, make_walk, predict
from tests.plan.brute import every_cost, make_cost
from tests.plan.draw import draw_graph, draw_platform

CODECS = [None, "raw", "uniform:bits=3", "bottleneck:ratio=2,bits=4"]
DROPS = [0.0, 0.01, 0.03, 0.2]


class Case:
    """A problem drawn at random, with all its plans."""

    def __init__(self, seed, *, most_devices=3):
        self.random = random = Random(seed)
        self.graph = draw_graph(random)
        self.platform = draw_platform(random, self.graph, most_devices=most_devices)
        self.objective = random.choice(sorted(OBJECTIVES))
        self.codec, self.png_bytes = random.choice(CODECS), random.choice([None, 20.0])
        choices = find_choices(self.graph, Asked(codec=self.codec, png_bytes=self.png_bytes)).all
        self.choices = tuple(
            choice if choice.drop is not None else replace(choice, drop=random.choice(DROPS))
            for choice in choices
        )
        self.cost = make_cost(self.graph, self.platform)
        self.plans = self.every_cost(self.choices)
        self.limits = self.draw_limits() if random.random() < 0.7 else NO_LIMITS

    def draw_limits(self):
        """Draw limits about what one of the plans costs."""
        if not self.plans:
            return Limits(latency_s=1.0)
        costs = self.random.choice(self.plans)[0]
        names = [name for name in WHOLE if self.random.random() < 0.4]
        share = self.random.choice([1.0, 1.0, 1.1, 0.9, 0.999])
        return Limits(**{name: getattr(costs, name) * share for name in names})

    def every_cost(self, choices):
        """Return all plans of some choices, each with what it costs."""
        return every_cost(self.cost, self.graph, self.platform, choices)

    def within_limits(self):
        """Return the plans that keep all limits."""
        return [plan for plan in self.plans if keeps(plan[0], self.limits)]

    def least(self, plans):
        """Return the least of what the objective makes small."""
        return min(getattr(plan[0], OBJECTIVES[self.objective]) for plan in plans)

    def find(self, choices, limits, must=()):
        """Return what the planner finds, and what that costs."""
        problem = make_problem(
            self.graph, self.platform, choices, objective=self.objective, limits=limits
        )
        problem = restricted(problem, must)
        states, any_order = states_of(problem)
        assert any_order
        return problem, find(problem, states, objective=self.objective, limits=limits)


def keeps(costs, limits):
    return not any(exceeds(getattr(costs, name), getattr(limits, name)) for name in WHOLE)


def cases(start, stop, **options):
    """Yield those that can be: of some networks a codec can carry no cut, some have no way."""
    for seed in range(start, stop):
        try:
            yield Case(seed, **options)
        except InputError:
            continue


def same(one, other, tolerance=1e-8):
    return isclose(one, other, rel_tol=tolerance, abs_tol=1e-15)


def agrees(case):
    """Check that the plan found is the best of all within the limits, and is as it says."""
    plans = case.within_limits()
    problem, found = case.find(case.choices, case.limits)
    if found is None:
        assert not plans
        return
    predicted = predict(problem, found.route)
    own = getattr(predicted, OBJECTIVES[case.objective])
    assert same(own, case.least(plans))
    assert same(found.least, own)
    names = [case.platform.devices[index].name for index in found.route.stops]
    picks = [case.choices[pick] for pick in found.route.picks]
    costs = case.cost(names, picks)
    assert keeps(costs, case.limits)
    assert all(same(getattr(costs, name), getattr(predicted, name)) for name in WHOLE)
    if case.objective != "latency" and case.objective != "energy":
        equal = [
            p[0].latency_s for p in plans if same(getattr(p[0], OBJECTIVES[case.objective]), own)
        ]
        assert same(predicted.latency_s, min(equal), 1e-7)


def test_no_plan_is_better_in_small_cases():
    for case in cases(0, 800):
        agrees(case)


def test_no_plan_is_better_on_more_devices():
    for case in cases(10_000, 10_200, most_devices=5):
        agrees(case)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_no_plan_is_better_in_thousands_of_small_cases(block):
    for case in cases(800 + 600 * block, 1400 + 600 * block):
        agrees(case)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_no_plan_is_better_in_thousands_of_cases_on_more_devices(block):
    for case in cases(10_200 + 300 * block, 10_500 + 300 * block, most_devices=5):
        agrees(case)


def test_to_drop_dominated_choices_changes_no_optimum():
    dropped = 0
    for case in cases(20_000, 20_300):
        fewer = undominated(case.choices, case.platform.devices)
        dropped += len(fewer) < len(case.choices)
        problem, found = case.find(fewer, case.limits)
        plans = case.within_limits()
        assert (found is None) is (not plans)
        if found is not None:
            own = getattr(predict(problem, found.route), OBJECTIVES[case.objective])
            assert same(own, case.least(plans))
    assert dropped > 50


def test_with_a_forced_cut_the_plan_is_the_best_of_those_that_have_it():
    for case in cases(30_000, 30_200):
        for cut in range(len(case.graph.nodes) + 1):
            having = [
                plan
                for plan in case.within_limits()
                if cut in [choice.cut.index for choice in plan[2]]
            ]
            problem, found = case.find(case.choices, case.limits, must=(cut,))
            assert (found is None) is (not having)
            if found is not None:
                own = getattr(predict(problem, found.route), OBJECTIVES[case.objective])
                assert same(own, case.least(having))


def test_in_the_order_of_the_file_the_plan_is_the_best_in_that_order():
    for case in cases(40_000, 40_300, most_devices=4):
        problem = make_problem(
            case.graph, case.platform, case.choices, objective=case.objective, limits=case.limits
        )
        names = [device.name for device in case.platform.devices]
        inner = [n for n in names if n not in (case.platform.input, case.platform.output)]
        kept = [
            plan
            for plan in case.within_limits()
            if [name for name in plan[1] if name in inner] == [n for n in inner if n in plan[1]]
        ]
        states = ordered(problem, [names.index(name) for name in inner])
        found = find(problem, states, objective=case.objective, limits=case.limits)
        assert (found is None) is (not kept)
        if found is not None:
            own = getattr(predict(problem, found.route), OBJECTIVES[case.objective])
            assert same(own, case.least(kept))


def test_through_each_choice_at_each_state_goes_the_best_plan():
    for case in cases(50_000, 50_150):
        problem = make_problem(case.graph, case.platform, case.choices, objective="latency")
        scope = Scope(problem=problem)
        steps = states_of(problem)[0](scope)
        for figure, measure in (("latency_s", latency), ("interval_s", interval)):
            costs = make_costs(scope, measure(scope))
            before, rest = forward(steps, costs)[0], backward(steps, costs)
            totals = costs.join(before, rest[0])
            for state, pick in zip(*(totals < float("inf")).nonzero(), strict=True):
                route = through(steps, costs, before, rest, int(state), int(pick))
                own = getattr(predict(problem, route), figure)
                assert same(route.cost, totals[state, pick])
                assert same(own, route.cost) or figure == "interval_s"
                assert pick in route.picks


def test_the_tables_hold_the_loads_of_every_stage():
    for case in cases(60_000, 60_200):
        problem, found = case.find(case.choices, NO_LIMITS)
        if found is not None:
            walk = make_walk(problem, found.route)
            assert walk.loads == stage_loads(case.graph, walk.route)


def draw_table(case):
    """Draw accuracies for some of the cuts."""
    rows = {
        (choice.cut.index, codec): AccuracyRow(
            cut=choice.cut.index,
            codec=codec,
            accuracy=0.9 - case.random.choice(DROPS),
            samples=100,
            origin=case.random.choice(["trained", "post-hoc"]),
        )
        for choice in case.choices
        for codec in case.random.sample(["uniform:bits=4", "uniform:bits=2"], 1)
        if 0 < choice.cut.index < len(case.graph.nodes) and case.random.random() < 0.7
    }
    return AccuracyTable(graph=fingerprint(case.graph), whole=0.9, rows=tuple(rows.values()))


def test_with_accuracies_the_plan_is_the_best_within_the_drop():
    for case in cases(70_000, 70_250):
        table = draw_table(case)
        limits = Limits(drop=case.random.choice([0.0, 0.01, 0.05]))
        known = find_choices(
            case.graph,
            Asked(codec="uniform:bits=3", accuracy=table, limits=Limits(drop=1)),
        ).all
        plans = case.every_cost(within(known, limits))
        kept = [plan for plan in plans if keeps(plan[0], limits)]
        arguments = {"objective": case.objective, "accuracy": table, "limits": limits}
        if not kept:
            with pytest.raises(InfeasibleError):
                partition(case.graph, case.platform, codec="uniform:bits=3", **arguments)
            continue
        plan = partition(case.graph, case.platform, codec="uniform:bits=3", **arguments)
        assert same(getattr(plan.predicted, OBJECTIVES[case.objective]), case.least(kept))
        assert keeps(plan.predicted, limits)
        assert check(plan, case.graph, case.platform, accuracy=table) == ()
        assert all(crossing.origin != "unknown" for crossing in plan.crossings)


def test_with_a_limit_on_the_bytes_of_each_link_the_plan_is_the_best_that_keeps_it():
    kept_back = 0
    for case in cases(90_000, 90_200):
        sizes = sorted({choice.spec.payload_bytes for choice in case.choices})
        most = case.random.choice(sizes)
        small = [p for p in case.plans if all(c.spec.payload_bytes <= most for c in p[2])]
        arguments = {
            "objective": case.objective,
            "codec": case.codec,
            "limits": Limits(link_bytes=most),
        }
        arguments["png_bytes"] = case.png_bytes
        kept_back += bool(small) and case.least(small) > case.least(case.plans) * (1 + 1e-8)
        if not small:
            with pytest.raises(InfeasibleError):
                partition(case.graph, case.platform, **arguments)
            continue
        plan = partition(case.graph, case.platform, **arguments)
        assert same(getattr(plan.predicted, OBJECTIVES[case.objective]), case.least(small))
        assert all(crossing.payload_bytes <= most for crossing in plan.crossings)
    assert kept_back > 10


def test_a_plan_is_the_best_and_is_what_it_says():
    for case in cases(80_000, 80_300):
        limits = replace(case.limits, drop=None)
        kept = [plan for plan in case.plans if keeps(plan[0], limits)]
        arguments = {"objective": case.objective, "codec": case.codec, "limits": limits}
        arguments["png_bytes"] = case.png_bytes
        if not kept:
            with pytest.raises(InfeasibleError) as caught:
                partition(case.graph, case.platform, **arguments)
            assert all("; " in str(violation) for violation in caught.value.violations)
            continue
        plan = partition(case.graph, case.platform, **arguments)
        own = getattr(plan.predicted, OBJECTIVES[case.objective])
        assert same(own, case.least(kept))
        assert plan.gap == pytest.approx(0, abs=1e-9)
        assert check(plan, case.graph, case.platform) == ()
        parts = [s.compute_s for s in plan.stages] + [c.transfer_s for c in plan.crossings]
        assert same(sum(parts), plan.predicted.latency_s)
        assert all(s.codec_s <= s.compute_s * (1 + 1e-9) for s in plan.stages)
        for rival in plan.runner_ups:
            figure = getattr(rival.predicted, OBJECTIVES[case.objective])
            assert not rival.fits or figure >= own * (1 - 1e-9)
            assert rival.fits or rival.reason.startswith("does not fit: ")
