"""A run as a timeline: Chrome's trace format, which Perfetto and ``chrome://tracing`` open.

.. code-block:: none

    client          request 0 |---------------------------|
    camera  stage       |decode compute encode|
            link                              |-----|            emulated, as observed
    hub     stage                                    |decode compute encode|

All processes of a run are on one machine and share its monotonic clock, so that their times may
stand beside each other. Those of several hosts may not, and have no timeline.

References:
    "Trace Event Format", Google, https://docs.google.com/document/d/
    1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (event types X, b, e, M).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.run.messages import Timings, Work

TIMELINE_FILE = "timeline.json"
MAX_REQUESTS = 2000  # of each pass; more would take long to open

_STAGE, _LINK = 0, 1
_CLIENT = 0

Event = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request as its client saw it; times are those of `time.monotonic`."""

    request: int
    start_s: float
    end_s: float


def to_trace(
    devices: Sequence[str],
    links: Sequence[str],
    spans: Sequence[Span],
    timings: Sequence[Timings],
) -> dict[str, Any]:
    """Return a run in Chrome's trace format, times in microseconds since its first request.

    Args:
        devices: Their names, in order.
        links: Of the crossings, in order.
        spans: One for each request.
        timings: What each device measured of them.
    """
    origin_s = min((span.start_s for span in spans), default=0.0)
    shown = {span.request for span in spans}
    events = [*_names(devices, links)]
    for span in spans:
        events += _between("request", _CLIENT, _STAGE, span.request, span.start_s, span.end_s)
    for index, timing in enumerate(timings):
        process = index + 1
        for work in timing.work:
            if work.request in shown:
                events += _work(work, process)
        for passage in timing.passages:
            if passage.request in shown and passage.observed_s:
                end_s = passage.start_s + passage.observed_s
                found = _between("link", process, _LINK, passage.request, passage.start_s, end_s)
                found[0]["args"] = {"frame_bytes": passage.frame_bytes}
                events += found
    for event in events:
        if "ts" in event:
            event["ts"] = round(1e6 * (event["ts"] - origin_s), 3)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(devices: Sequence[str], links: Sequence[str]) -> Iterator[Event]:
    for process, name in enumerate(("client", *devices)):
        yield _name("process_name", process, _STAGE, name)
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": _STAGE,
               "args": {"sort_index": process}}  # fmt: skip
        yield _name("thread_name", process, _STAGE, "stage" if process else "requests")
    for index, link in enumerate(links):
        yield _name("thread_name", index + 1, _LINK, f"link {link}")


def _name(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _work(work: Work, process: int) -> Iterator[Event]:
    """Yield what one request took on one device; what takes no time is left out."""
    start_s = work.start_s
    more = {
        "request": work.request,
        "queue_us": round(1e6 * work.queue_s, 3),
        "wait_us": round(1e6 * work.wait_s, 3),
        "payload_bytes": work.payload_bytes,
        "batch": work.batch,
    }
    for name in ("decode", "compute", "encode"):
        seconds = getattr(work, f"{name}_s")
        if seconds:
            yield {"ph": "X", "name": name, "cat": "stage", "pid": process, "tid": _STAGE,
                   "ts": start_s, "dur": round(1e6 * seconds, 3), "args": more}  # fmt: skip
        start_s += seconds


def _between(
    kind: str, process: int, thread: int, request: int, start_s: float, end_s: float
) -> list[Event]:
    """Return the two ends of what may overlap with others of its kind."""
    same = {"name": f"{kind} {request}", "cat": kind, "id": f"{process}.{request}",
            "pid": process, "tid": thread}  # fmt: skip
    return [{"ph": "b", "ts": start_s, **same}, {"ph": "e", "ts": end_s, **same}]
