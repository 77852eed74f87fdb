"""Over a real link of the kernel: the cable is pulled, and the kernel counts the bytes."""

import json
import math
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.run.bundles import FAST, write_chain
from tests.run.cable import HOSTS, MSS, SEGMENT_BYTES, laid_cable

NAMES = ("near", "far")


@pytest.fixture
def cable():
    with laid_cable() as found:
        yield found


@pytest.fixture
def two_hosts(cable, tmp_path):
    """Two hosts that serve a bundle with keys, and how to ask the first."""
    keys = pytest.importorskip("isthmus.run.keys", reason="needs cryptography")
    write_chain(tmp_path / "bundle", FAST)
    keys.init_keys(tmp_path / "keys")
    for name, hosts in (("near", HOSTS[:1]), ("far", HOSTS[1:]), ("laptop", ())):
        keys.issue_key(tmp_path / "keys", name, hosts=hosts)
    at = [f"--at={name}={host}" for name, host in zip(NAMES, HOSTS, strict=True)]
    serving = []
    for end, name in enumerate(NAMES):
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "isthmus", "serve", tmp_path / "bundle",
                       f"--device={name}", f"--keys={tmp_path / 'keys' / name}", *at]  # fmt: skip
            serving.append(
                subprocess.Popen([*cable.inside(end), *command], stderr=log, stdout=log)
            )

    @contextmanager
    def asking(count, deadline_s):
        command = [*cable.inside(0), sys.executable, "-m", "tests.run.asking", HOSTS[0],
                   str(tmp_path / "keys" / "laptop"), str(count), str(deadline_s)]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            yield lambda: json.loads(client.communicate(timeout=120)[0])

    yield asking
    for process in serving:
        process.kill()
        process.wait()


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
