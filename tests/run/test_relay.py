"""Packets of a real link are lost, repeated, swapped, damaged and late; no request is."""

import pytest

from tests.run.hosts import serving
from tests.run.relay import Harm, laid_relay

DEADLINE_S = 60


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """A link with a relay in it, and how to ask the service at its two ends."""
    with laid_relay() as relay, serving(relay.cable, tmp_path_factory.mktemp("hosts")) as asking:
        yield relay, asking


@pytest.mark.parametrize(
    ("what", "harm", "count"),
    [
        ("repeated", Harm(repeated=0.5), 60),
        ("swapped", Harm(swapped=0.3), 60),
        ("damaged", Harm(damaged=0.15), 100),
        ("lost", Harm(lost=0.3), 20),
    ],
)
def test_every_request_has_its_result_though_packets_are(link, what, harm, count):
    relay, asking = link
    with asking(count, DEADLINE_S) as result:
        relay.counts.clear()
        relay.harm = harm
        found = result()
        relay.harm = Harm()
    assert relay.counts[what] > 5
    assert found == {"right": count, "longest_s": found["longest_s"]}


def test_every_request_has_its_result_though_packets_take_ten_times_as_long(link):
    relay, asking = link
    relay.harm = Harm(delay_s=2e-3)
    with asking(40, DEADLINE_S) as result:
        relay.harm = Harm(delay_s=2e-2)
        found = result()
    relay.harm = Harm()
    assert found == {"right": 40, "longest_s": found["longest_s"]}
    assert found["longest_s"] > 2 * 2e-2  # there and back


def test_every_request_ends_by_its_deadline_though_most_packets_are_lost(link):
    relay, asking = link
    with asking(40, 1) as result:
        relay.harm = Harm(lost=0.7)
        found = result()
        relay.harm = Harm()
    assert set(found) <= {"deadline", "right", "longest_s"}
    assert found.get("deadline", 0) + found.get("right", 0) == 40
    assert found.get("deadline", 0) > 0
