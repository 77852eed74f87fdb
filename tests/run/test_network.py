"""Over a real link of the kernel: the cable is pulled, and the kernel counts the bytes."""

import json
import math
import subprocess
import sys
import time

import pytest

from tests.run.cable import HOSTS, MSS, SEGMENT_BYTES, laid_cable
from tests.run.hosts import serving


@pytest.fixture
def cable():
    with laid_cable() as found:
        yield found


@pytest.fixture
def two_hosts(cable, tmp_path):
    """How to ask two hosts that serve a bundle with keys."""
    with serving(cable, tmp_path) as asking:
        yield asking


def test_every_request_is_answered_though_the_cable_is_pulled_for_a_while(cable, two_hosts):
    with two_hosts(300, 60) as result:
        time.sleep(0.5)
        cable.pull()
        time.sleep(3)
        cable.plug()
        found = result()
    assert found["longest_s"] > 2  # some had to wait
    assert found == {"right": 300, "longest_s": found["longest_s"]}


def test_requests_end_by_their_deadline_while_the_cable_is_pulled_and_later_ones_are_answered(
    cable, two_hosts
):
    with two_hosts(100, 1) as result:
        cable.pull()
        found = result()
    cable.plug()
    assert found.get("deadline", 0) >= 80
    assert set(found) <= {"deadline", "right", "longest_s"}
    assert found["longest_s"] < 1 + 100 / 16 + 5  # sixteen at a time
    with two_hosts(50, 60) as result:
        found = result()
    assert found["right"] == 50


@pytest.mark.parametrize("size", [16 << 10, 64 << 10, 1 << 20])
def test_what_the_interface_counts_is_the_frames_and_the_transport(cable, size):
    count = max(8, (4 << 20) // size)
    sender = [*cable.inside(0), sys.executable, "-m", "tests.run.counted", cable.ends[0],
              HOSTS[0], str(count), str(size)]  # fmt: skip
    with subprocess.Popen(sender, stdout=subprocess.PIPE, text=True) as sending:
        assert sending.stdout is not None
        address = sending.stdout.readline().strip()
        reader = [*cable.inside(1), sys.executable, "-m", "tests.run.reader", address, "hop",
                  str(count)]  # fmt: skip
        reading = subprocess.run(reader, capture_output=True, text=True, timeout=120)
        assert reading.returncode == 0, reading.stderr
        found = json.loads(sending.communicate(timeout=60)[0])
    segments = count * math.ceil(found["frames"] / count / MSS)
    predicted = found["frames"] + segments * SEGMENT_BYTES
    predicted += found["retransmitted"] * (MSS + SEGMENT_BYTES)  # a busy machine drops some
    assert found["counted"] == pytest.approx(predicted, rel=0.02)
