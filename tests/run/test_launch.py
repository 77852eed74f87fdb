"""Bundles that run as real processes; the right answers are known in numpy."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from isthmus.bundle import write_bundle
from isthmus.errors import BundleError, InputError, RunError
from isthmus.files import to_json
from isthmus.platform import Link
from isthmus.run import run_bundle, start_workers
from isthmus.run.session import locator, open_session
from isthmus.wire import HEADER_BYTES, codec_text, parse_codec
from isthmus.wire.nested import Width, at_width, narrowed, payload_bytes_at, widened, widths
from tests.run.bundles import (
    FAST,
    HEAD,
    HIGH,
    LOW,
    MIDDLE,
    NARROW,
    PAYLOAD_BYTES,
    logits,
    samples,
    write_chain,
)

FRAME_BYTES = PAYLOAD_BYTES + HEADER_BYTES
SLOW = Link(between=("near", "far"), bytes_per_s=FRAME_BYTES / 0.010)  # 10 ms a frame
RELAYED = (replace(FAST, between=("near", "mid")), replace(FAST, between=("mid", "far")))
X = samples(60)
LABELS = logits(X).argmax(1)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow") / "bundle"
    write_chain(folder, SLOW)
    return run_bundle(folder, [X], LABELS, warmup_inputs=[samples(20, seed=1)])


@pytest.mark.parametrize("links", [(), (FAST,), RELAYED], ids=["one", "two", "three"])
def test_processes_give_the_answers_of_the_whole_network(tmp_path, links):
    write_chain(tmp_path / "bundle", *links)
    with start_workers(tmp_path / "bundle") as workers:
        for x in X[:10]:
            np.testing.assert_array_equal(workers.ask([x]), [logits(x)])


NESTED = parse_codec("bottleneck:ratio=1,bits=4,nested=1", shapes=[(5,)], dtypes=["float32"])


def nested_logits(x, width):
    """Return what the far side makes of the codes that cross at a width, 8 for all others."""
    whole = NESTED.wire_tensors[0]
    part = at_width(NESTED, width).wire_tensors[0]
    codes = np.clip(x @ NARROW + MIDDLE, LOW, HIGH).astype(np.uint8)
    arrived = [widened(narrowed(code, whole, part), whole, part) for code in codes]
    return np.stack(arrived).astype(np.float32) @ HEAD


def write_nested(folder, *links):
    payload = NESTED.payload_bytes
    write_chain(folder, *links, codec=codec_text(NESTED), payload_bytes=payload, fixed_rate=False)


def test_every_request_may_have_a_width_of_its_own_with_nothing_loaded_anew(tmp_path):
    write_nested(tmp_path / "bundle", *RELAYED)
    with start_workers(tmp_path / "bundle") as workers:
        processes = [status.pid for status in workers.statuses()]
        for x, width in zip(X, [*widths(NESTED), *reversed(widths(NESTED))], strict=False):
            workers.use_width(width)
            np.testing.assert_array_equal(
                workers.ask([x]), [nested_logits(x[np.newaxis], width)[0]]
            )
            sizes = {work.payload_bytes for work in workers.timings()[0].work}
            assert sizes == {payload_bytes_at(NESTED, width)}
        assert [status.pid for status in workers.statuses()] == processes


def test_a_run_at_a_narrower_width_predicts_and_sends_fewer_bytes(tmp_path):
    write_nested(tmp_path / "bundle", replace(FAST, bytes_per_s=1000.0))
    width = Width(ratio=2, bits=2)
    labels = nested_logits(X, width).argmax(1)
    record = run_bundle(tmp_path / "bundle", [X[:20]], labels[:20], width=width)
    (crossing,) = record.crossings
    assert crossing.payload_bytes_predicted == crossing.payload_bytes_measured == 2
    assert crossing.link_asked_s == pytest.approx((2 + HEADER_BYTES) / 1000)
    assert record.accuracy == 1
    assert record.width == width


@pytest.mark.parametrize(
    ("nested", "width", "words"),
    [
        (True, Width(ratio=3, bits=2), "expected a ratio of 1, 2, 4 and 2 to 4 bits"),
        (False, Width(ratio=2, bits=2), "no crossing of this bundle is nested; plan with"),
    ],
)
def test_a_width_that_does_not_exist_is_refused(tmp_path, nested, width, words):
    (write_nested if nested else write_chain)(tmp_path / "bundle", FAST)
    with pytest.raises(InputError, match=words):
        run_bundle(tmp_path / "bundle", [X[:2]], width=width)


def test_a_worker_loads_no_compiler_and_meets_its_neighbour_directly(tmp_path):
    write_chain(tmp_path / "bundle", *RELAYED)
    with start_workers(tmp_path / "bundle") as workers:
        near, mid, far = workers.statuses()
        pids = [process.pid for process in workers.processes]
    assert [near.pid, mid.pid, far.pid] == pids
    for status, needs in ((near, True), (mid, False), (far, True)):  # mid only passes on
        assert ("onnxruntime" in status.modules) == needs
        assert not {"torch", "lightning", "optuna", "onnx"} & set(status.modules)
    assert mid.session in near.peers
    assert far.session in mid.peers


def test_a_relay_passes_payloads_on_as_they_are_and_at_no_cost(tmp_path):
    write_chain(tmp_path / "bundle", *RELAYED)
    record = run_bundle(tmp_path / "bundle", [X], LABELS)
    first, second = record.crossings
    assert first.payload_bytes_measured == second.payload_bytes_measured == PAYLOAD_BYTES
    assert record.stages[1].compute_s == 0
    assert record.accuracy == 1.0


@pytest.mark.alone
def test_the_record_holds_what_was_sent_and_answered(slow):
    assert (slow.requests, slow.lost, slow.retries) == (60, 0, 0)
    assert slow.accuracy == 1.0
    (crossing,) = slow.crossings
    assert crossing.payload_bytes_measured == crossing.payload_bytes_predicted == PAYLOAD_BYTES
    assert crossing.wire_bytes == FRAME_BYTES
    assert [stage.device for stage in slow.stages] == ["near", "far"]
    assert all(stage.compute_s > 0 for stage in slow.stages)
    assert slow.latency_s.p50 <= slow.latency_s.p95
    assert "throttled to the platform's figures" in slow.emulated


@pytest.mark.alone
def test_the_record_as_json_has_the_promised_keys(slow):
    fields = json.loads(to_json(slow))
    assert fields["schema"] == "isthmus.run/2"
    assert {"payload_bytes_predicted", "payload_bytes_measured", "wire_bytes"} <= set(
        fields["crossings"][0]
    )
    assert {"device", "compute_s"} <= set(fields["stages"][0])
    assert set(fields["latency_s"]) == {"p50", "p95", "p99"}
    assert {"accuracy", "throughput_per_s", "requests", "lost"} <= set(fields)


@pytest.mark.alone
def test_the_emulated_link_takes_the_time_it_is_asked_for(slow):
    (crossing,) = slow.crossings
    assert crossing.link_asked_s == pytest.approx(0.010)
    assert crossing.link_observed_s == pytest.approx(0.010, rel=0.05)


@pytest.mark.alone
def test_the_parts_of_the_latency_add_up(slow):
    parts = slow.breakdown
    total_s = parts.compute_s + parts.link_s + parts.codec_s + parts.remainder_s
    assert total_s == pytest.approx(slow.latency_s.p50)
    assert parts.floor_per_hop_s > 0


@pytest.mark.alone
def test_the_latency_predicted_before_the_first_request_is_near_the_measured_one(slow):
    assert slow.predicted_here_s == pytest.approx(slow.latency_s.p50, rel=0.20)


@pytest.mark.alone
def test_a_tenfold_rate_moves_the_latency_by_the_predicted_amount(tmp_path):
    """In turns, so that both links meet the same machine; the quicker half, as it is at rest."""
    write_chain(tmp_path / "slow", replace(SLOW, bytes_per_s=SLOW.bytes_per_s / 5))
    write_chain(tmp_path / "fast", replace(SLOW, bytes_per_s=SLOW.bytes_per_s * 2))
    latencies_s: dict[str, list[float]] = {"slow": [], "fast": []}
    with start_workers(tmp_path / "slow") as slow, start_workers(tmp_path / "fast") as fast:
        for workers in (slow, fast):
            workers.throttle(True)
        for x in X:
            for name, workers in (("slow", slow), ("fast", fast)):
                start_s = time.perf_counter()
                assert workers.ask([x]) is not None
                latencies_s[name].append(time.perf_counter() - start_s)
    quick_s = {name: np.percentile(seconds, 25) for name, seconds in latencies_s.items()}
    assert quick_s["slow"] - quick_s["fast"] == pytest.approx(0.050 - 0.005, rel=0.1)


@pytest.mark.alone
def test_a_full_pipeline_is_as_fast_as_its_slowest_part(slow):
    assert slow.throughput_per_s == pytest.approx(100, rel=0.15)


@pytest.mark.alone
def test_without_the_throttle_a_link_takes_no_time_of_its_own(tmp_path):
    write_chain(tmp_path / "bundle", SLOW)
    seen = []
    record = run_bundle(
        tmp_path / "bundle",
        [X],
        requests=20,
        throttle=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert record.latency_s.p50 < 0.008
    assert (record.crossings[0].link_asked_s, record.breakdown.link_s) == (0, 0)
    assert record.accuracy is None
    assert record.requests == 20
    assert seen == [(done, 40) for done in range(1, 41)]


def test_a_payload_that_is_not_as_long_as_predicted_is_an_error(tmp_path):
    write_chain(tmp_path / "bundle", FAST, payload_bytes=PAYLOAD_BYTES + 1)
    with pytest.raises(RunError, match="measured a payload of 3 bytes, the bundle predicts 4"):
        run_bundle(tmp_path / "bundle", [X])


def test_a_port_of_ones_own_is_used_and_a_taken_one_is_one_line(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with open_session() as session:
        port = int(locator(session).rpartition(":")[2])
        with pytest.raises(RunError, match=f"{port}: the port is taken"):
            run_bundle(tmp_path / "bundle", [X], port=port)
    with start_workers(tmp_path / "bundle", port=port) as workers:
        assert workers.ask([X[0]]) is not None


@pytest.mark.parametrize(
    ("inputs", "keywords", "said"),
    [
        ([], {}, "found 0 input arrays, expected 1"),
        ([X.astype(np.float64)], {}, "expected float32 with samples of shape"),
        ([X[:, :3]], {}, r"found float32\[60, 3\]"),
        ([X[:0]], {}, "samples"),
        ([X], {"requests": 61}, "expected 1 to 60"),
        ([X], {"labels": LABELS[:5]}, "found labels of shape"),
    ],
)
def test_arrays_that_the_bundle_does_not_take_are_refused(tmp_path, inputs, keywords, said):
    write_chain(tmp_path / "bundle", FAST)
    with pytest.raises(InputError, match=said):
        run_bundle(tmp_path / "bundle", inputs, **keywords)


def test_a_damaged_bundle_starts_nothing(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    (tmp_path / "bundle" / "far" / "program.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="changed or cut short"):
        run_bundle(tmp_path / "bundle", [X])


def test_a_crossing_without_a_link_on_the_platform_is_named(tmp_path):
    bundle = write_chain(tmp_path / "bundle", FAST)
    text = (tmp_path / "bundle" / "platform.yaml").read_text()
    (tmp_path / "bundle" / "platform.yaml").write_text(text.replace("far", "away"))
    write_bundle(tmp_path / "bundle", bundle)
    with pytest.raises(BundleError, match="no link between near and far"):
        run_bundle(tmp_path / "bundle", [X])
