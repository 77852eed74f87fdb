import random
from itertools import combinations, pairwise

import pytest

from isthmus.report.layout import lay_out

WIDTH = 100.0


def random_links(items, seed):
    """A graph of one input in which every item reads one or two earlier ones, mostly near ones."""
    rng = random.Random(seed)
    pairs = []
    for item in range(1, items):
        near = range(max(0, item - 4), item)
        pairs += [(rng.choice(near), item)]
        pairs += [(rng.randrange(item), item)] if rng.random() < 0.3 else []
    return pairs


def test_the_rows_of_a_chain_are_its_depths_and_its_links_are_straight():
    layout = lay_out([range(4)], [(0, 1), (1, 2), (2, 3)], item_width=WIDTH)
    assert layout.rows == (0, 1, 2, 3)
    assert set(layout.places) == {WIDTH / 2}
    assert layout.width == WIDTH


def test_branches_stand_side_by_side_and_a_skip_passes_them():
    # 0 -> 1 -> 2 -> 4 is the longest way, 3 a branch beside 1, 0 -> 4 a skip.
    links = [(0, 1), (1, 2), (2, 4), (0, 3), (3, 4), (0, 4)]
    layout = lay_out([range(5)], links, item_width=WIDTH)
    assert layout.rows == (0, 1, 2, 1, 3)
    assert len({layout.places[item] for item in (0, 1, 2, 4)}) == 1
    assert abs(layout.places[3] - layout.places[1]) > WIDTH
    ends, middle = layout.ways[0, 4][::3], layout.ways[0, 4][1:3]
    assert ends == (layout.places[0], layout.places[4])
    assert len(set(middle)) == 1


def test_no_row_holds_items_of_two_groups():
    # 2 and 3 both read 1; 3 is of the second group, and stands below 2 although it could beside.
    layout = lay_out([range(3), range(3, 5)], [(0, 1), (1, 2), (1, 3), (3, 4)], item_width=WIDTH)
    assert layout.starts == (0, 3, 5)
    assert layout.rows == (0, 1, 2, 3, 4)


def test_an_empty_group_has_no_rows():
    layout = lay_out([range(1), range(1, 1), range(1, 2)], [(0, 1)], item_width=WIDTH)
    assert layout.starts == (0, 1, 1, 2)


def test_what_reads_nothing_stands_just_above_what_reads_it():
    links = [(0, 1), (1, 3), (3, 4), (2, 4)]
    assert lay_out([range(5)], links, item_width=WIDTH).rows == (0, 1, 2, 2, 3)


@pytest.mark.parametrize("seed", range(20))
def test_links_go_down_past_all_items_and_no_two_items_overlap(seed):
    links = random_links(40, seed)
    layout = lay_out([range(15), range(15, 40)], links, item_width=WIDTH)
    rows: dict[int, list[float]] = {}
    for row, place in zip(layout.rows, layout.places, strict=True):
        rows.setdefault(row, []).append(place)
    for places in rows.values():
        assert all(abs(a - b) > WIDTH for a, b in combinations(places, 2))
    for (source, target), way in layout.ways.items():
        assert len(way) == layout.rows[target] - layout.rows[source] + 1 >= 2
        for row, x in enumerate(way[1:-1], start=layout.rows[source] + 1):
            assert all(abs(x - place) > WIDTH / 2 for place in rows.get(row, ()))
    edges = [edge for place in layout.places for edge in (place - WIDTH / 2, place + WIDTH / 2)]
    assert min(edges) >= 0
    assert max(edges) <= layout.width
    assert all(a < b for a, b in pairwise(sorted(rows)))
