"""The front and the balanced points, by hand and against brute force."""

from itertools import pairwise
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.study.front import Point, dominated, front, hypervolume, knee, least_bytes


def point(accuracy: float, num_bytes: float, name: str = "") -> Point:
    return Point(name=name or f"{num_bytes:g} B", accuracy=accuracy, num_bytes=num_bytes)


# Few values on each axis, so that ties and equal points are common.
POINTS = st.lists(
    st.builds(
        point, st.integers(0, 8).map(lambda n: n / 8), st.sampled_from([1, 2, 3, 4, 8, 9, 16])
    ),
    min_size=1,
    max_size=12,
)

# Bytes halve four times. The chord goes from (1 B, 10 %) to (16 B, 90 %), 20 points a doubling.
LADDER = (
    point(0.90, 16, "r=1"),
    point(0.88, 8, "r=2"),
    point(0.85, 4, "r=4"),  # 35 points above the chord
    point(0.50, 2, "r=8"),
    point(0.10, 1, "r=16"),
    point(0.40, 3, "beaten"),  # by r=8
)


def beats(a: Point, b: Point) -> bool:
    no_worse = a.accuracy >= b.accuracy and a.num_bytes <= b.num_bytes
    return no_worse and (a.accuracy, a.num_bytes) != (b.accuracy, b.num_bytes)


def test_the_front_leaves_out_what_is_beaten_and_goes_by_growing_bytes():
    assert dominated(LADDER).tolist() == [False] * 5 + [True]
    assert [p.name for p in front(LADDER)] == ["r=16", "r=8", "r=4", "r=2", "r=1"]


def test_equal_points_do_not_beat_each_other_but_a_tie_on_one_axis_does():
    twins = (point(0.5, 4, "a"), point(0.5, 4, "b"))
    assert front(twins) == twins
    assert front((*twins, point(0.4, 4, "less accurate"), point(0.5, 5, "more bytes"))) == twins


@given(POINTS)
def test_the_front_equals_brute_force(points):
    expected = [any(beats(other, p) for other in points) for p in points]
    assert dominated(points).tolist() == expected
    kept = [p for p, beaten in zip(points, expected, strict=True) if not beaten]
    assert sorted(front(points), key=repr) == sorted(kept, key=repr)
    assert list(front(points)) == sorted(front(points), key=lambda p: (p.num_bytes, p.accuracy))


def test_the_hypervolume_of_two_points_by_hand():
    # From 4 B to 16 B, two doublings, 0.5 above the reference; from 2 B to 4 B, one doubling, 0.2.
    points = (point(0.6, 4), point(0.3, 2))
    assert hypervolume(points, point(0.1, 16)) == pytest.approx(2 * 0.5 + 1 * 0.2)


def test_what_is_no_better_than_the_reference_covers_nothing():
    points = (point(0.05, 1), point(0.9, 32), point(0.9, 16))
    assert hypervolume(points, point(0.1, 16)) == 0


@given(POINTS, st.integers(0, 8).map(lambda n: n / 8), st.sampled_from([1, 4, 12, 32]))
def test_the_hypervolume_equals_the_sum_over_all_cells(points, accuracy, num_bytes):
    reference = point(accuracy, num_bytes)
    columns = sorted({p.num_bytes for p in points if p.num_bytes < num_bytes} | {num_bytes})
    expected = sum(
        1 / 8 * log2(right / left)
        for left, right in pairwise(columns)
        for row in range(8)
        if row / 8 >= accuracy
        and any(p.num_bytes <= left and p.accuracy >= (row + 1) / 8 for p in points)
    )
    assert hypervolume(points, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("drop", "name"), [(0.0, "r=1"), (0.02, "r=2"), (0.05, "r=4"), (0.39, "r=4"), (1.0, "r=16")]
)
def test_the_fewest_bytes_within_a_drop_may_lose_exactly_that_much(drop, name):
    assert least_bytes(LADDER, drop=drop).point.name == name


def test_a_drop_that_floats_cannot_hold_exactly_still_counts():
    assert least_bytes((point(0.8, 9), point(0.7, 1)), drop=0.1).point.num_bytes == 1


@given(POINTS, st.integers(0, 8).map(lambda n: n / 8))
def test_the_fewest_bytes_equal_brute_force(points, drop):
    best = max(p.accuracy for p in points)
    good = [p for p in points if p.accuracy >= best - drop]
    expected = min(good, key=lambda p: (p.num_bytes, -p.accuracy))
    assert least_bytes(points, drop=drop).point == expected


def test_the_knee_is_farthest_above_the_chord_and_says_by_how_much():
    balanced = knee(LADDER)
    assert (balanced.point.name, balanced.rule) == ("r=4", "knee")
    assert balanced.why == (
        "r=4 (85.00 % at 4 B) is the knee: of all points of the front it lies farthest above the "
        "chord from 1 B to 16 B, by 35.00 points, with bytes by their logarithm."
    )


@given(POINTS)
def test_the_knee_has_the_largest_distance_at_a_right_angle(points):
    ends = front(points)
    (x0, y0), (x1, y1) = ((log2(p.num_bytes), p.accuracy) for p in (ends[0], ends[-1]))
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5

    def distance(p: Point) -> float:
        cross = (x1 - x0) * (p.accuracy - y0) - (y1 - y0) * (log2(p.num_bytes) - x0)
        return cross / length if length else 0.0

    chosen = knee(points).point
    farthest = max(map(distance, ends))
    assert distance(chosen) == pytest.approx(farthest, abs=1e-6)
    if farthest < 1e-9:
        assert chosen.accuracy == ends[-1].accuracy


@given(POINTS, st.sampled_from([1 / 8, 8, 1024]))
def test_counting_bits_instead_of_bytes_moves_no_balanced_point(points, scale):
    scaled = [point(p.accuracy, p.num_bytes * scale, p.name) for p in points]
    assert knee(scaled).point.name == knee(points).point.name
    assert least_bytes(scaled).point.name == least_bytes(points).point.name


@pytest.mark.parametrize(
    "points",
    [
        [point(0.5, 4, "last")],
        [point(0.1, 1), point(0.5, 4, "last")],
        [point(0.1, 1), point(0.2, 2), point(0.5, 4, "last")],  # below the chord
        [point(0.5, 4, "last"), point(0.5, 4, "last")],
    ],
)
def test_a_front_without_a_knee_says_so_and_gives_its_most_accurate_point(points):
    balanced = knee(points)
    assert balanced.point.name == "last"
    assert "no knee" in balanced.why


def test_of_two_equally_far_points_the_knee_is_the_one_of_fewer_bytes():
    points = (point(0.1, 1), point(0.4, 2), point(0.6, 4), point(0.7, 8))
    assert knee(points).point.num_bytes == 2


def test_a_single_point_is_the_front_and_balanced_by_either_rule():
    only = point(0.5, 12.5, "only")
    assert front([only]) == (only,)
    assert knee([only]).point == least_bytes([only]).point == only
    assert least_bytes([only]).why == (
        "Of all within 1.00 points of the best accuracy (50.00 % at 12.5 B), only sends the "
        "fewest bytes: 12.5 B at 50.00 %."
    )


@pytest.mark.parametrize("rule", [front, knee, least_bytes])
def test_no_point_at_all_is_an_error(rule):
    with pytest.raises(InputError, match="found no point, expected at least one"):
        rule([])
    with pytest.raises(InputError, match="found no point"):
        hypervolume([], point(0.1, 16))
    assert dominated([]).tolist() == []


@pytest.mark.parametrize(
    ("accuracy", "num_bytes", "message"),
    [
        (76.1, 4, "a net: accuracy 76.1, expected 0 to 1"),
        (float("nan"), 4, "accuracy nan"),
        (0.5, 0, "a net: 0 bytes, expected more than 0"),
        (0.5, float("inf"), "inf bytes"),
    ],
)
def test_a_point_that_cannot_be_says_why(accuracy, num_bytes, message):
    with pytest.raises(InputError, match=message):
        point(accuracy, num_bytes, "a net")


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan")])
def test_a_drop_is_a_share(drop):
    with pytest.raises(InputError, match="expected an accuracy between 0 and 1"):
        least_bytes(LADDER, drop=drop)
