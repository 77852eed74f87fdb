"""The baseline: its plans fit or say what they lack, and are never better than exact ones."""

from math import isclose

import pytest

from isthmus.errors import InfeasibleError, InputError
from isthmus.plan import partition
from isthmus.plan.estimate import OBJECTIVES
from tests.plan.nets import chain, pair
from tests.plan.test_exact import Case, cases

NUM_CASES = 60


def planned(case, method):
    """Return what a plan costs by the objective; None where none was found that fits."""
    try:
        plan = partition(
            case.graph,
            case.platform,
            objective=case.objective,
            codec=case.codec,
            png_bytes=case.png_bytes,
            method=method,
        )
    except InfeasibleError:
        return None
    except InputError:
        return "cannot be"
    return getattr(plan.predicted, OBJECTIVES[case.objective])


def test_greedy_is_never_better_than_chain_and_often_as_good():
    found = [(planned(case, "chain"), planned(case, "greedy")) for case in cases(0, NUM_CASES)]
    assert all(greedy is None for exact, greedy in found if exact is None)
    both = [pair for pair in found if all(isinstance(cost, float) for cost in pair)]
    assert len(both) > NUM_CASES / 2
    assert all(greedy >= exact * (1 - 1e-9) for exact, greedy in both)
    equal = sum(isclose(exact, greedy, rel_tol=1e-9) for exact, greedy in both)
    assert equal > len(both) / 2


def test_greedy_takes_one_cut_and_no_list_of_them():
    case = Case(0)
    with pytest.raises(InputError, match="greedy: found a cut for each link, expected one"):
        partition(case.graph, case.platform, cut=(0,), method="greedy")


def test_what_would_change_the_answer_is_said_of_exact_plans_alone():
    graph = chain((900, 400, (8, 8, 8)), (9_000, 4_000, (10,)))
    exact, found = (partition(graph, pair(), method=method) for method in ("chain", "greedy"))
    assert exact.sensitivity
    assert found.sensitivity == ()
