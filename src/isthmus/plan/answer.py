"""From a route to a plan with its explanations."""

from dataclasses import replace

from isthmus.plan.choices import make_crossing
from isthmus.plan.estimate import make_inputs, make_stage
from isthmus.plan.explain import find_runner_ups, make_notes, make_outcome
from isthmus.plan.plan import NO_LIMITS, Plan
from isthmus.plan.routes import Route
from isthmus.plan.sensitivity import find_sensitivity
from isthmus.plan.table import Problem


def make_plan(
    problem: Problem, route: Route, *, gap: float | None, beatable: bool = False
) -> Plan:
    """Write a plan down, with its runner-ups and with what would change it if it fits.

    Args:
        problem: What was chosen from, any cut that was asked for left aside.
        route: What was chosen.
        gap: As `Plan` says.
        beatable: Whether others may be better: a cut was asked for, or the search is not exact.
    """
    best = make_outcome(problem, route)
    walk, costs = best.walk, best.estimate
    fits, platform = not best.violations, problem.platform
    runner_ups, alike = find_runner_ups(problem, best) if fits and platform.links else ((), ())
    unlimited = replace(problem.limits, link_bytes=None) == NO_LIMITS
    priced = problem.objective == "price"
    robust = fits and platform.links and unlimited and not beatable and not priced
    names = {site.device.name for site in walk.sites}
    parts = zip(walk.sites, walk.loads, costs.compute_s, costs.stage_j, strict=True)
    stages = tuple(
        make_stage(
            site, range(load.start, load.stop), problem.graph, load, time_s=time_s, joules=joules
        )
        for site, load, time_s, joules in parts
    )
    return Plan(
        objective=problem.objective,
        split=sum(bool(stage.nodes) for stage in stages) > 1,
        stages=stages,
        crossings=tuple(map(make_crossing, walk.links, walk.route)),
        predicted=costs.prediction,
        violations=best.violations,
        runner_ups=runner_ups,
        sensitivity=find_sensitivity(problem, best) if robust else (),
        inputs=make_inputs(problem.graph),
        platform=platform,
        unused=tuple(d.name for d in platform.devices if d.name not in names),
        notes=make_notes(problem, best, runner_ups, alike) if fits else (),
        limits=problem.limits,
        gap=gap,
    )
