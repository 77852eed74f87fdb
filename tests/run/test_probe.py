"""A link is measured as it is, and what was measured can be planned with."""

import json
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import yaml

from isthmus.platform import load_platform
from isthmus.run.client import open_client
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import PROTOCOL, Terms
from isthmus.run.probe_file import yaml_name
from isthmus.run.probed import MAX_FRAME_BYTES
from isthmus.run.rates import PRODUCT, Rates, measure_rates
from isthmus.wire import HEADER_BYTES
from tests.run.cable import HOSTS, CannotLayError, laid_cable
from tests.run.services import LONG_S, free_ports

TERMS = Terms(bundle="probe", codec="echo")
PROBE = [sys.executable, "-m", "isthmus", "probe"]


@contextmanager
def answering(folder, *options, inside=()):
    """Let another process answer probes until the context ends; yields its log."""
    log = folder / "listen.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*inside, *PROBE, *options], stdout=file, stderr=file)
    try:
        end_s = time.monotonic() + LONG_S
        while "answers probes" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.05)
        yield log
    finally:
        process.kill()
        process.wait()


def probe(*options, inside=()):
    return subprocess.run([*inside, *PROBE, *options], capture_output=True, text=True, timeout=120)


def test_the_rate_of_a_link_that_the_kernel_shapes_is_found_and_written(tmp_path):
    keys = pytest.importorskip("isthmus.run.keys", reason="needs cryptography")
    keys.init_keys(tmp_path / "keys")
    keys.issue_key(tmp_path / "keys", "hub", hosts=HOSTS[1:])
    keys.issue_key(tmp_path / "keys", "camera")
    own = {name: f"--keys={tmp_path / 'keys' / name}" for name in ("hub", "camera")}
    out = tmp_path / "measured.yaml"
    with laid_cable() as cable:
        try:
            cable.shape(2e6)
        except CannotLayError as error:
            pytest.skip(f"no shaping here: {error}")
        listen = ["--listen", HOSTS[1], "--name=hub", own["hub"]]
        with answering(tmp_path, *listen, inside=cable.inside(1)):
            done = probe(
                HOSTS[1], "--name=camera", own["camera"], f"--out={out}", "--json",
                inside=cable.inside(0),
            )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for way in ("there", "back"):
        assert 8 * found[way]["bytes_per_s"]["median"] == pytest.approx(2e6, rel=0.1)
    assert found["retries"] == 0
    platform = load_platform(out)
    assert [device.name for device in platform.devices] == ["camera", "hub"]
    rate = platform.links[0].bytes_per_s
    assert rate == pytest.approx(found["there"]["bytes_per_s"]["median"], rel=1e-3)
    assert out.read_text().count("measured: ") >= 7
    largest = found["there"]["trips"][-1]  # a frame takes as long as the platform says
    there_s = platform.links[0].transfer_s(largest["frame_bytes"])
    assert there_s == pytest.approx(largest["seconds"]["median"], rel=0.1)


@pytest.mark.slow
def test_a_model_is_timed_on_both_sides_and_planned_with_these_times(tmp_path):
    (port,) = free_ports(1)
    place, out = f"127.0.0.1:{port}", tmp_path / "measured.yaml"
    model = "--model=digits-resnet"
    with answering(tmp_path, "--listen", place, model):
        done = probe(place, model, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.glob("measured*")} == {
        "measured.yaml", "measured.near.json", "measured.far.json"
    }  # fmt: skip
    command = [sys.executable, "-m", "isthmus", "plan", "digits-resnet", str(out), "--json"]
    plan = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert plan.returncode == 0, plan.stderr
    times = [device.node_s for device in load_platform(out).devices]
    assert all(each is not None and each.whole_s > 0 for each in times)


def test_one_prober_is_answered_at_a_time_and_what_asks_for_too_much_is_sent_away(tmp_path):
    (port,) = free_ports(1)
    place = f"127.0.0.1:{port}"
    with answering(tmp_path, "--listen", place) as log, open_client(place, None) as session:
        for junk in (b"", b"{}", b"x" * 2000, hello("../x")):
            assert asked(session, junk).err is not None
        key = f"isthmus/probe/{'a' * 32}"
        receiver = Receiver(session, f"{key}/back", TERMS)
        assert asked(session, hello("a" * 32)).ok is not None
        refusal = asked(session, hello("b" * 32)).err
        assert b"answers another prober" in refusal.payload.to_bytes()
        with Sender(session, f"{key}/there", crossing=0, timeout_s=LONG_S) as sender:
            sender.agree(TERMS)
            sender.send(0, struct.pack("<I", 100))
            frame = receiver.receive(LONG_S)
            assert frame is not None
            assert len(frame.payload) == 100 - HEADER_BYTES
            sender.send(1, struct.pack("<I", MAX_FRAME_BYTES + 1))
            end_s = time.monotonic() + LONG_S
            while "asks for 1048577 bytes" not in log.read_text():
                assert time.monotonic() < end_s
                time.sleep(0.05)
        key = f"isthmus/probe/{'b' * 32}/back/terms"  # one that speaks nonsense ends no listener
        terms = session.declare_queryable(key, lambda query: query.reply(key, b"garbage"))
        while asked(session, hello("b" * 32)).ok is None:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        while "bbbbbbbb: " not in log.read_text():
            assert time.monotonic() < end_s
            time.sleep(0.05)
        terms.undeclare()
        while asked(session, hello("c" * 32)).ok is None:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def hello(visitor):
    return json.dumps({"schema": "isthmus.hello/1", "id": visitor, "protocol": PROTOCOL}).encode()


def asked(session, payload):
    end_s = time.monotonic() + LONG_S
    while not (replies := list(session.get("isthmus/probe/hello", payload=payload, timeout=10))):
        assert time.monotonic() < end_s
        time.sleep(0.05)  # not connected yet
    return replies[0]


def test_the_product_that_is_timed_is_one_and_its_rates_can_be():
    from onnx.reference import ReferenceEvaluator

    onnx.checker.check_model(onnx.load_from_string(PRODUCT))
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    (c,) = ReferenceEvaluator(onnx.load_from_string(PRODUCT)).run(None, {"a": a, "b": b})
    assert np.array_equal(c, a @ b)
    rates = measure_rates()
    assert isinstance(rates, Rates)
    assert rates.macs_per_s.low <= rates.macs_per_s.median <= rates.macs_per_s.high
    assert max(share for _, share in rates.shares) == 1


@pytest.mark.parametrize("name", ["camera", "on", "7", "1.5", "null", "2026-11-30", "a-b_c.d"])
def test_a_name_is_written_so_that_yaml_reads_it_back(name):
    written = (
        f"devices:\n  {yaml_name(name)}: {{kind: probed}}\nbetween: [{yaml_name(name)}, hub]\n"
    )
    found = yaml.safe_load(written)
    assert list(found["devices"]) == [name]
    assert found["between"] == [name, "hub"]
