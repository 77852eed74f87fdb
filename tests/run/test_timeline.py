"""A run in Chrome's trace format: hand-made, and from real processes."""

import json
from typing import Any

import pytest

from isthmus.run import run_bundle
from isthmus.run.messages import Passage, Timings, Work
from isthmus.run.timeline import Span, to_trace
from tests.run.bundles import FAST, samples, write_chain


def work(request, start_s):
    return Work(request=request, decode_s=0.001, compute_s=0.002, encode_s=0.0, payload_bytes=3,
                start_s=start_s, queue_s=0.0005, wait_s=0.1)  # fmt: skip


def test_a_run_of_two_devices_is_drawn_where_it_happened():
    passage = Passage(request=7, frame_bytes=17, asked_s=0.004, observed_s=0.005, start_s=10.004)
    near = Timings(work=(work(7, 10.001), work(8, 11.0)), passages=(passage,), round_trips=(),
                   retries=0)  # fmt: skip
    far = Timings(work=(work(7, 10.010),), passages=(), round_trips=(), retries=0)
    spans = [Span(request=7, start_s=10.0, end_s=10.015)]
    trace = to_trace(["near", "far"], ["near-far"], spans, [near, far])
    assert trace["displayTimeUnit"] == "ms"
    events = trace["traceEvents"]
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert named == {(0, 0): "requests", (1, 0): "stage", (1, 1): "link near-far", (2, 0): "stage"}
    slices = [(e["pid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [  # request 8 has no span, encoding took no time
        (1, "decode", 1000, 1000), (1, "compute", 2000, 2000),
        (2, "decode", 10000, 1000), (2, "compute", 11000, 2000),
    ]  # fmt: skip
    ends = [(e["name"], e["ph"], e["pid"], e["ts"]) for e in events if e["ph"] in "be"]
    assert ends == [
        ("request 7", "b", 0, 0), ("request 7", "e", 0, 15000),
        ("link 7", "b", 1, 4000), ("link 7", "e", 1, 9000),
    ]  # fmt: skip


@pytest.mark.alone
def test_a_real_run_writes_one_and_every_part_lies_within_its_request(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    traces: list[dict[str, Any]] = []
    record = run_bundle(tmp_path / "bundle", [samples(20)], timeline=traces.append)
    (trace,) = traces
    events = json.loads(json.dumps(trace))["traceEvents"]
    requests: dict[int, list[float]] = {}
    for event in events:
        if event.get("cat") == "request":
            requests.setdefault(int(event["name"].split()[1]), []).append(event["ts"])
    assert len(requests) == 40  # one in flight, then many
    stages = [event for event in events if event["ph"] == "X"]
    assert len([event for event in stages if event["name"] == "compute"]) == 80
    for event in stages:
        begin, end = requests[event["args"]["request"]]
        assert begin <= event["ts"] <= event["ts"] + event["dur"] <= end + 1
    for stage in record.stages:
        for times in (stage.times_s, stage.busy_s):
            assert set(times) == {"wait", "queue", "decode", "compute", "encode"}
            assert all(0 <= each.p50 <= each.p95 <= each.p99 for each in times.values())
        assert stage.compute_s == stage.times_s["compute"].p50
    (crossing,) = record.crossings
    assert crossing.round_trip_s is not None
    assert 0 < crossing.round_trip_s.p50 < record.latency_s.p50
