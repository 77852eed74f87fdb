import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import pytest

from isthmus.platform import Link
from isthmus.run.throttle import Throttle, wait_until

pytestmark = pytest.mark.alone

LINK = Link(
    between=("a", "b"), bytes_per_s=100e3, latency_s=0.05, overhead_bytes=100, mtu_bytes=450
)
FRAME_BYTES, BUSY_S = 900, 0.011  # two messages: 1,100 bytes on the medium


def test_the_rate_holds_back_the_next_frame_and_the_latency_does_not(tmp_path):
    with Throttle(LINK, tmp_path / "clock") as throttle:
        start_s = time.monotonic()
        across_s = [throttle.reserve(FRAME_BYTES) for _ in range(4)]
    expected_s = [start_s + LINK.latency_s + BUSY_S * count for count in (1, 2, 3, 4)]
    assert across_s == pytest.approx(expected_s, abs=2e-3)
    assert across_s[3] - across_s[0] == pytest.approx(3 * BUSY_S, abs=1e-6)


def test_a_link_that_has_been_free_for_a_while_starts_at_once(tmp_path):
    with Throttle(LINK, tmp_path / "clock") as throttle:
        throttle.reserve(FRAME_BYTES)
        time.sleep(2 * BUSY_S)
        taken_s = throttle.reserve(FRAME_BYTES) - time.monotonic()
    assert taken_s == pytest.approx(LINK.transfer_s(FRAME_BYTES), abs=2e-3)


def test_a_wait_ends_within_a_tenth_of_a_millisecond_and_never_early():
    late_s = []
    for _ in range(40):
        end_s = time.monotonic() + 0.003
        wait_until(end_s)
        late_s.append(time.monotonic() - end_s)
    assert min(late_s) >= 0
    assert median(late_s) < 1e-4


SENDER = """
import sys, time
from pathlib import Path
from isthmus.platform import Link
from isthmus.run.throttle import Throttle, wait_until
link = Link(between=("a", "b"), bytes_per_s=100e3)
print("ready", flush=True)
sys.stdin.readline()
with Throttle(link, Path(sys.argv[1])) as throttle:
    print(time.monotonic())
    for _ in range(20):
        across_s = throttle.reserve(1000)
        wait_until(across_s)
    print(across_s)
"""


@pytest.mark.parametrize(("clocks", "expected_s"), [(("one", "one"), 0.4), (("one", "two"), 0.2)])
def test_two_processes_share_the_rate_of_a_half_duplex_link_and_not_of_a_full_duplex_one(
    tmp_path, clocks, expected_s
):
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, tmp_path / clock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for clock in clocks
    ]  # fmt: skip
    for sender in senders:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.write("start\n")
        sender.stdin.flush()
    times_s = [
        [float(line) for line in sender.communicate(timeout=20)[0].split()] for sender in senders
    ]
    start_s, end_s = min(t[0] for t in times_s), max(t[1] for t in times_s)
    assert end_s - start_s == pytest.approx(expected_s, rel=0.15)


def test_a_slower_link_is_slower_in_proportion(tmp_path):
    taken_s = []
    for number, rate in enumerate((10e3, 1e3)):  # slow enough that the second frame waits
        with Throttle(replace(LINK, bytes_per_s=rate), tmp_path / str(number)) as throttle:
            first_s, second_s = (throttle.reserve(10 * FRAME_BYTES) for _ in range(2))
        taken_s.append(second_s - first_s)
    assert taken_s[1] / taken_s[0] == pytest.approx(10)
