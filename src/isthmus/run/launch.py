"""Run a bundle on this machine, a process for each device, and measure it.

.. code-block:: none

    start --> calibrate --> predict --> one in flight --> many in flight --> stop
              links free    written     latency           throughput
              other inputs  before      accuracy

    predicted = programs + codecs + floor per hop x hops    from the calibration
              + what each link takes for its frame          the platform's figures

The first line of the prediction adds up to the calibration's median latency.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from isthmus.backends import Array
from isthmus.bundle import Bundle, count_samples, read_bundle
from isthmus.errors import InputError, RunError
from isthmus.machine import describe_machine, library_versions
from isthmus.run.adapt import Adapter, empty_s, rungs
from isthmus.run.messages import Timings, in_flight
from isthmus.run.processes import Workers, start_workers
from isthmus.run.record import (
    STEPS,
    AdaptRecord,
    Breakdown,
    CrossingRecord,
    RunRecord,
    Spread,
    StageRecord,
)
from isthmus.run.timeline import MAX_REQUESTS, Span, to_trace
from isthmus.wire import HEADER_BYTES, parse_codec
from isthmus.wire.nested import Width, payload_bytes_at

Samples = Sequence[Array]  # one array for each input, samples along axis 0
Sample = tuple[Array, ...]  # one array for each input, without a batch

_WARM_UP_REQUESTS = 10  # at least
_WARM_UP_S = 0.5  # at least: so long after their start, processes still fault in their pages
_CALIBRATION_REQUESTS = 100
_LONGEST_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One pass with one request in flight, or with as many as `in_flight` says.

    Attributes:
        spans: One for each answered request, in the order of the answers.
        lost: Requests without an answer.
        timings: What each worker measured.
        seconds: From the first request to the end.
        classes: Index of the sample and of its largest output, answered requests only; with one in
            flight.
        widths: What each of them asked of nested crossings, 0 where it asked nothing; likewise.
    """

    spans: tuple[Span, ...]
    lost: int
    timings: tuple[Timings, ...]
    seconds: float
    classes: tuple[tuple[int, int], ...] = ()
    widths: tuple[int, ...] = ()

    @property
    def latencies_s(self) -> tuple[float, ...]:
        """One for each answered request."""
        return tuple(span.end_s - span.start_s for span in self.spans)


def run_bundle(
    path: Path,
    inputs: Samples,
    labels: Array | None = None,
    *,
    requests: int | None = None,
    warmup_inputs: Samples | None = None,
    throttle: bool = True,
    port: int | None = None,
    width: Width | None = None,
    target_s: float | None = None,
    timeline: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> RunRecord:
    """Run samples through all stages of a bundle and measure bytes, time and accuracy.

    Args:
        path: The bundle.
        inputs: One array for each input of the model, samples along axis 0.
        labels: The right class of each sample, (N,).
        requests: How many of the samples to send; all of them if None.
        warmup_inputs: Other samples, for the calibration; zeros if None.
        throttle: Whether links behave like the platform's.
        port: Where the launcher listens; None lets the system choose.
        width: Of nested crossings; None is the widest.
        target_s: How long a request may take, one in flight: the width of nested crossings is
            chosen for each anew; None leaves it at ``width``.
        timeline: Told of the run request by request, as `isthmus.run.timeline.to_trace` writes it.
        timeout_s: Longest wait for another process, beside the links' own time.
        progress: Called with the number of requests done and their total.

    Returns:
        What was measured, beside what was predicted before the first request.

    Raises:
        InputError: The arrays are not what the bundle takes, or a crossing has no such width.
        BundleError: The bundle is damaged or of another version.
        RunError: A worker died or does not answer; or a payload of a codec of fixed rate is not
            as long as predicted.
    """
    bundle = read_bundle(path)
    if width is not None and target_s is not None:
        raise InputError("found a width and a target, expected one: the target chooses the width")
    samples = _samples(bundle, inputs, requests)
    if labels is not None and (labels.ndim != 1 or len(labels) < len(samples)):
        raise InputError(f"found labels of shape {labels.shape}, expected ({len(samples)},)")
    if warmup_inputs is None:
        warmup_inputs = [np.zeros((1, *tensor.shape), tensor.dtype) for tensor in bundle.inputs]
    others = _samples(bundle, warmup_inputs, None)
    hops = len(bundle.crossings) + 2  # one from the client, one back to it
    with start_workers(path, port=port, timeout_s=timeout_s) as workers:
        ladder = None if target_s is None else rungs(bundle, workers.links)
        if width is not None:
            workers.use_width(width)
        pause_s = _links_s(workers, _payloads(workers.bundle)) if throttle else 0.0
        calibration = _calibrate(workers, others, pause_s=min(pause_s, _LONGEST_PAUSE_S))
        payloads = _payloads(workers.bundle, width, calibration.timings)
        links_s = _links_s(workers, payloads) if throttle else 0.0
        free = _breakdown(calibration)
        floor_per_hop_s = free.remainder_s / hops
        predicted_s = free.compute_s + free.codec_s + floor_per_hop_s * hops + links_s
        adapter = None
        if ladder is not None and target_s is not None:
            rest_s = predicted_s - links_s + sum(map(empty_s, workers.links)) * throttle
            adapter = Adapter(ladder, target_s, rest_s=rest_s)
        workers.throttle(throttle)
        report = _reporter(progress, 2 * len(samples))
        measured = _one_in_flight(workers, samples, report, adapter)
        flow = _many_in_flight(workers, samples, report)
    if timeline is not None:
        timeline(_trace(workers, measured, flow))
    return RunRecord(
        crossings=_crossings(workers, measured.timings, payloads),
        width=width,
        stages=_stages(workers, measured.timings, flow.timings),
        accuracy=None
        if labels is None
        else fmean(labels[index] == found for index, found in measured.classes),
        latency_s=_spread(measured.latencies_s),
        predicted_here_s=predicted_s,
        breakdown=_breakdown(measured, floor_per_hop_s=floor_per_hop_s),
        throughput_per_s=len(flow.spans) / flow.seconds,
        requests=len(measured.latencies_s),
        lost=measured.lost + flow.lost,
        retries=sum(timings.retries for timings in flow.timings),
        emulated="devices run at this machine's speed; links are loopback TCP, "
        + ("throttled to the platform's figures" if throttle else "not throttled"),
        machine=describe_machine(),
        versions=library_versions(),
        adapted=None if adapter is None else _adapted(adapter, measured),
    )


def check_payloads(bundle: Bundle, timings: Sequence[Timings]) -> None:
    """Raise a `RunError` unless every payload of a fixed rate is exactly as long as predicted."""
    for crossing, sender in zip(bundle.crossings, timings, strict=False):
        for work in sender.work if crossing.fixed_rate else ():
            if work.payload_bytes != crossing.payload_bytes:
                raise RunError(
                    f"crossing after {crossing.after}: measured a payload of "
                    f"{work.payload_bytes} bytes, the bundle predicts "
                    f"{crossing.payload_bytes:g}; export it anew",
                    device=crossing.source,
                )


def _samples(bundle: Bundle, inputs: Samples, requests: int | None) -> list[Sample]:
    """Check the arrays and return the samples to send."""
    num_samples = count_samples(bundle, inputs)
    if requests is not None and not 1 <= requests <= num_samples:
        raise InputError(f"found requests={requests}, expected 1 to {num_samples} (the samples)")
    return list(zip(*(array[: requests or num_samples] for array in inputs), strict=True))


def _reporter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """Return what is called after each request."""
    done = count(1)
    return (lambda: progress(next(done), total)) if progress else lambda: None


def _calibrate(workers: Workers, samples: Sequence[Sample], *, pause_s: float) -> _Pass:
    """Time stages, codecs and hops with free links, on inputs that are not measured later.

    A pause before each request lets the processes rest as long as they do in the measured pass:
    a process that has slept a while starts with cold caches.
    """
    turns = [samples[index % len(samples)] for index in range(_CALIBRATION_REQUESTS)]
    end_s = time.monotonic() + _WARM_UP_S
    while time.monotonic() < end_s:
        _one_in_flight(workers, turns[:_WARM_UP_REQUESTS], lambda: None)
    return _one_in_flight(workers, turns, lambda: time.sleep(pause_s))


def _one_in_flight(
    workers: Workers,
    samples: Sequence[Sample],
    report: Callable[[], None],
    adapter: Adapter | None = None,
) -> _Pass:
    classes, spans, widths = [], [], []
    begun_s = time.perf_counter()
    for index, sample in enumerate(samples):
        width = 0 if adapter is None else adapter.choose().byte
        start_s = time.monotonic()
        reply = workers.wait(workers.send(sample, width))
        if reply is not None:
            end_s = time.monotonic()
            spans.append(Span(request=reply.request, start_s=start_s, end_s=end_s))
            classes.append((index, int(np.argmax(reply.outputs[0]))))
            widths.append(reply.width)
            if adapter is not None:
                adapter.learn(reply.width, end_s - start_s)
        report()
    if not spans:
        raise RunError(f"none of {len(samples)} requests was answered in {workers.timeout_s:g} s")
    seconds, timings = time.perf_counter() - begun_s, workers.timings()
    check_payloads(workers.bundle, timings)
    return _Pass(
        spans=tuple(spans),
        lost=len(samples) - len(spans),
        timings=timings,
        seconds=seconds,
        classes=tuple(classes),
        widths=tuple(widths),
    )


def _many_in_flight(
    workers: Workers, samples: Sequence[Sample], report: Callable[[], None]
) -> _Pass:
    """Keep every stage and link busy."""
    depth = in_flight(workers.bundle)
    unsent = deque(samples)
    waiting: dict[int, float] = {}
    spans = []
    begun_s = time.perf_counter()
    while unsent or waiting:
        if unsent and len(waiting) < depth:
            sent_s = time.monotonic()
            waiting[workers.send(unsent.popleft())] = sent_s
            continue
        reply = workers.receive()
        if reply is None:
            break
        if reply.request in waiting:  # otherwise it comes too late and is counted as lost
            sent_s = waiting.pop(reply.request)
            spans.append(Span(request=reply.request, start_s=sent_s, end_s=time.monotonic()))
            report()
    seconds = time.perf_counter() - begun_s
    return _Pass(
        spans=tuple(spans),
        lost=len(samples) - len(spans),
        timings=workers.timings(),
        seconds=seconds,
    )


def _payloads(
    bundle: Bundle, width: Width | None = None, timings: Sequence[Timings] = ()
) -> tuple[float, ...]:
    """Return the predicted payload of each crossing.

    The bundle knows that of the widest. At another width it follows from the shapes, or, where it
    is entropy-coded, from the calibration's requests.
    """
    payloads = []
    for index, crossing in enumerate(bundle.crossings):
        spec = parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
        payload = crossing.payload_bytes
        if spec.nested and width is not None:
            payload = payload_bytes_at(spec, width)
            if spec.entropy:
                payload = fmean(work.payload_bytes for work in timings[index].work)
        payloads.append(payload)
    return tuple(payloads)


def _links_s(workers: Workers, payloads: Sequence[float]) -> float:
    """Return the time that one request spends on all links, by the platform's figures."""
    return sum(
        link.transfer_s(payload + HEADER_BYTES)
        for link, payload in zip(workers.links, payloads, strict=True)
    )


def _crossings(
    workers: Workers, timings: Sequence[Timings], payloads: Sequence[float]
) -> tuple[CrossingRecord, ...]:
    return tuple(
        CrossingRecord(
            after=crossing.after,
            link=link.name,
            codec=crossing.codec,
            payload_bytes_predicted=payload,
            payload_bytes_measured=fmean(work.payload_bytes for work in near.work),
            wire_bytes=fmean(passage.frame_bytes for passage in near.passages),
            encode_s=median(work.encode_s for work in near.work),
            decode_s=median(work.decode_s for work in far.work),
            link_asked_s=median(passage.asked_s for passage in near.passages),
            link_observed_s=median(passage.observed_s for passage in near.passages),
            retries=near.retries,
            round_trip_s=_spread([trip.seconds for trip in near.round_trips])
            if near.round_trips
            else None,
            rate_bytes_per_s=_rate(near),
            payload_spread_bytes=(
                crossing.payload_spread_bytes if payload == crossing.payload_bytes else None
            ),
        )
        for crossing, link, payload, (near, far) in zip(
            workers.bundle.crossings, workers.links, payloads, pairwise(timings), strict=True
        )
    )


def _rate(near: Timings) -> float:
    """Return how many bytes a second a frame gets that is alone on its link."""
    seconds = median(passage.observed_s for passage in near.passages)
    if near.round_trips:
        seconds += median(trip.seconds for trip in near.round_trips)
    return fmean(passage.frame_bytes for passage in near.passages) / max(seconds, 1e-9)


def _spread(seconds: Sequence[float]) -> Spread:
    p50, p95, p99 = (float(found) for found in np.percentile(seconds, (50, 95, 99)))
    return Spread(p50=p50, p95=p95, p99=p99)


def _stages(
    workers: Workers, timings: Sequence[Timings], busy: Sequence[Timings]
) -> tuple[StageRecord, ...]:
    return tuple(
        StageRecord(
            device=device.name,
            compute_s=median(work.compute_s for work in timing.work),
            pid=process.pid,
            times_s=_times(timing),
            busy_s=_times(more),
            batch=fmean(work.batch for work in more.work) if more.work else 1.0,
        )
        for device, process, timing, more in zip(
            workers.bundle.devices, workers.processes, timings, busy, strict=True
        )
    )


def _times(timing: Timings) -> dict[str, Spread]:
    if not timing.work:  # nothing reached the device any more
        return {}
    return {name: _spread([getattr(work, f"{name}_s") for work in timing.work]) for name in STEPS}


def _adapted(adapter: Adapter, measured: _Pass) -> AdaptRecord:
    counts = Counter(measured.widths)
    return AdaptRecord(
        target_s=adapter.target_s,
        in_time=fmean(seconds <= adapter.target_s for seconds in measured.latencies_s),
        requests={str(rung.width): counts[rung.byte] for rung in adapter.rungs},
    )


def _trace(workers: Workers, measured: _Pass, flow: _Pass) -> dict[str, Any]:
    """Return both passes, one after the other."""
    spans = [*measured.spans[:MAX_REQUESTS], *flow.spans[:MAX_REQUESTS]]
    timings = [
        replace(first, work=first.work + second.work, passages=first.passages + second.passages)
        for first, second in zip(measured.timings, flow.timings, strict=True)
    ]
    names = [device.name for device in workers.bundle.devices]
    return to_trace(names, [link.name for link in workers.links], spans, timings)


def _breakdown(measured: _Pass, *, floor_per_hop_s: float = 0.0) -> Breakdown:
    pairs = list(pairwise(measured.timings))
    compute_s = sum(median(work.compute_s for work in t.work) for t in measured.timings)
    link_s = sum(median(p.observed_s for p in near.passages) for near, _ in pairs)
    codec_s = sum(
        median(work.encode_s for work in near.work) + median(work.decode_s for work in far.work)
        for near, far in pairs
    )
    latency_s = median(measured.latencies_s)
    return Breakdown(
        compute_s=compute_s,
        link_s=link_s,
        codec_s=codec_s,
        remainder_s=latency_s - compute_s - link_s - codec_s,
        floor_per_hop_s=floor_per_hop_s,
    )
