from dataclasses import replace

import pytest

from isthmus.platform import Memory
from isthmus.report.labels import Spot, heights
from isthmus.report.words import energy, headline, rooms, span, way
from tests.report.examples import PLAN, RUN


def test_a_span_names_the_modules_between_the_cuts():
    assert [span(PLAN, 0), span(PLAN, 1)] == ["input .. layer1", "after layer1 .. output"]


def test_a_device_in_the_middle_without_nodes_only_passes_on():
    first, second = PLAN.stages
    middle = replace(first, device="relay", nodes=())
    relayed = replace(
        PLAN, stages=(first, middle, second), crossings=(PLAN.crossings[0], PLAN.crossings[0])
    )
    assert span(relayed, 1) == "only passes on"
    assert headline(relayed).startswith("64 bytes cross 2 links from mcu-a to mcu-b")


def test_an_energy_for_which_there_is_no_figure_is_unknown():
    free = replace(PLAN, predicted=replace(PLAN.predicted, energy_j=0.0))
    assert [energy(PLAN), energy(free)] == ["144 mJ", "unknown"]


def test_shared_memory_holds_weights_and_activations_together():
    (room,) = rooms(PLAN.stages[0], Memory(shared_bytes=1e6))
    assert str(room) == "81 kB of 1 MB"


def test_memory_without_limit_is_said_to_have_none():
    assert [str(room) for room in rooms(PLAN.stages[0], Memory())] == [
        "74.8 kB of no limit",
        "6.14 kB of no limit",
    ]


def test_the_stretches_of_a_request_add_up_to_its_median():
    assert sum(step.seconds for step in way(RUN)) == pytest.approx(RUN.latency_s.p50)


def test_names_of_points_that_stand_together_get_heights_of_their_own():
    spots = [Spot(x=10.0 * k, y=0.0, half_width=30) for k in range(4)]
    found = heights(spots)
    assert len(set(found)) == 4
    assert min(abs(a - b) for a in found for b in found if a != b) >= 17


def test_the_name_of_a_lonely_point_stands_right_above_it():
    assert heights([Spot(x=0, y=0, half_width=30), Spot(x=500, y=0, half_width=30)]) == [22, 22]
