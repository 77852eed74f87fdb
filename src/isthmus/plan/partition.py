"""From a graph and a platform to a plan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from isthmus.errors import InfeasibleError, InputError
from isthmus.graph import Graph
from isthmus.plan.accuracy import AccuracyTable
from isthmus.plan.chain import plan_chain
from isthmus.plan.check import check
from isthmus.plan.estimate import OBJECTIVES
from isthmus.plan.greedy import plan_greedy
from isthmus.plan.plan import NO_LIMITS, Asked, Limits, Plan
from isthmus.platform import Platform


class Partitioner(Protocol):
    """Maps a graph onto a platform. Any callable of this shape will do."""

    def __call__(self, graph: Graph, platform: Platform, asked: Asked) -> Plan:
        """Return a plan; it need not fit, `partition` checks it."""


def _plan_cpsat(graph: Graph, platform: Platform, asked: Asked) -> Plan:
    try:
        from isthmus.plan.assign import plan_cpsat  # noqa: PLC0415  OR-Tools is optional
    except ModuleNotFoundError as error:
        raise InputError('method cpsat needs OR-Tools: pip install "isthmus[plan]"') from error
    return plan_cpsat(graph, platform, asked)


METHODS: dict[str, Partitioner] = {
    "chain": plan_chain,
    "cpsat": _plan_cpsat,
    "greedy": plan_greedy,
}


def partition(
    graph: Graph,
    platform: Platform,
    *,
    objective: str = "latency",
    codec: str | None = None,
    cut: int | Sequence[int] | None = None,
    png_bytes: float | None = None,
    accuracy: AccuracyTable | None = None,
    limits: Limits = NO_LIMITS,
    method: str | Partitioner = "chain",
    time_limit_s: float = 60.0,
) -> Plan:
    """Choose cuts, devices and codecs.

    Each device computes one stage of the network at most, in any order; to compute all on one of
    them competes with every division. Memories are hard limits.

    Args:
        graph: What to compute, one sample at a time.
        platform: On what.
        objective: What to make small: ``"latency"`` of one sample, the interval between answers of
            a full pipeline (``"throughput"``), ``"energy"``, or the ``"price"`` of all devices on
            the way.
        codec: What carries a cut inside the network, e.g. ``"uniform:bits=4"``; None lets
            a sensible narrow one and ``raw`` compete.
        cut: Index of a cut that some link has to carry, or one index for each link on the way from
            input to output; None leaves it free.
        png_bytes: Mean size of the inputs as PNG, where it was measured; without it PNG competes
            with its upper bound.
        accuracy: What codecs cost in accuracy at the cuts; those of its rows compete too.
        limits: What the plan must not exceed.
        method: A key of ``METHODS``, or your own partitioner.
        time_limit_s: How long ``cpsat`` may look for a better plan.

    Returns:
        A plan that fits, with its runner-ups and what would change it.

    Raises:
        InputError: No such objective, method, codec or cut.
        InfeasibleError: Nothing fits; carries what the plan nearest to fitting lacks.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"no objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(f"no partitioner {method!r}; there are {', '.join(METHODS)}")
        method = METHODS[method]
    asked = Asked(
        objective=objective,
        codec=codec,
        cut=cut,
        png_bytes=png_bytes,
        accuracy=accuracy,
        limits=limits,
        time_limit_s=time_limit_s,
    )
    plan = method(graph, platform, asked)
    broken = check(plan, graph, platform, limits=limits, accuracy=accuracy)
    if broken:
        broken = plan.violations or broken
        raise InfeasibleError(broken, nearest=replace(plan, violations=broken))
    return plan


def partition_anyway(graph: Graph, platform: Platform, **options: Any) -> Plan:
    """Return a plan as `partition` does; where nothing fits, the one nearest to fitting."""
    try:
        return partition(graph, platform, **options)
    except InfeasibleError as error:
        if not isinstance(error.nearest, Plan):
            raise
        return error.nearest
