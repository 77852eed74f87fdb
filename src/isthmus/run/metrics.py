"""What a device of a service counts, as Prometheus reads it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from isthmus import __version__
from isthmus.run.ingress import Ingress
from isthmus.run.messages import Work
from isthmus.run.service import Service

_OUTCOMES = ("done", "early exit", "busy", "deadline", "failed", "refused")
_BUCKETS_S = (
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


def count_service(service: Service) -> CollectorRegistry:
    """Begin to count what a service does; once for each service.

    Args:
        service: One device; on the first one, requests are counted too.

    Returns:
        The counts, for `prometheus_client.generate_latest`.
    """
    registry = CollectorRegistry()
    registry.register(_State(service))
    _count_frames(service, registry)
    if service.ingress is not None:
        _count_requests(service.ingress, registry)
    return registry


def _count_requests(ingress: Ingress, registry: CollectorRegistry) -> None:
    ended = Counter(
        "isthmus_requests", "Requests that ended, by outcome.", ["outcome"], registry=registry
    )
    seconds = Histogram(
        "isthmus_request_seconds",
        "From taking a request to the result of the whole network, of those that have one.",
        buckets=_BUCKETS_S,
        registry=registry,
    )
    counts = {outcome: ended.labels(outcome) for outcome in _OUTCOMES}

    def on_end(outcome: str, request_s: float) -> None:
        counts[outcome].inc()
        if outcome == "done":
            seconds.observe(request_s)

    ingress.on_end = on_end


def _count_frames(service: Service, registry: CollectorRegistry) -> None:
    frames = Counter(
        "isthmus_stage_frames", "Frames computed here, by outcome.", ["outcome"], registry=registry
    )
    done, failed = frames.labels("done"), frames.labels("failed")
    payload_bytes = Counter(
        "isthmus_stage_payload_bytes", "Payloads that left the stage.", registry=registry
    )
    frame_bytes = Counter(
        "isthmus_hop_frame_bytes",
        "Frames to the next device that were sent once and acknowledged.",
        registry=registry,
    )
    round_trip = Histogram(
        "isthmus_hop_round_trip_seconds",
        "From sending such a frame to its acknowledgement, less what the receiver kept it for.",
        buckets=_BUCKETS_S,
        registry=registry,
    )
    steps = {
        f"{name}_s": Histogram(
            f"isthmus_stage_{name}_seconds", text, buckets=_BUCKETS_S, registry=registry
        )
        for name, text in (
            ("decode", "Unpacking of what arrived."),
            ("compute", "The stage's program."),
            ("encode", "Packing of what leaves."),
            ("queue", "How long a frame waited for the stage."),
            ("wait", "How long the stage waited for a frame."),
        )
    }

    def on_frame(work: Work | None) -> None:
        if work is None:
            failed.inc()
            return
        done.inc()
        payload_bytes.inc(work.payload_bytes)
        for step, seconds in steps.items():
            seconds.observe(getattr(work, step))
        for trip in service.sender.round_trips():
            frame_bytes.inc(trip.frame_bytes)
            round_trip.observe(trip.seconds)

    service.on_frame = on_frame


class _State(Collector):
    """Reads what a service knows anyway, when it is asked."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that nothing is read before it is asked for."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield what is so now."""
        service, ingress = self._service, self._service.ingress
        about = {"device": service.device, "service": service.name, "version": __version__}
        yield InfoMetricFamily(
            "isthmus_device", "What serves here.", {**about, "bundle": service.identity}
        )
        away = GaugeMetricFamily(
            "isthmus_device_away", "Whether another device is not there.", labels=["device"]
        )
        names = service.watch.away()
        for device in service.bundle.devices:
            if device.name != service.device:
                away.add_metric([device.name], device.name in names)
        yield away
        retries, damaged = service.hop_faults()
        yield CounterMetricFamily("isthmus_hop_retries", "Frames sent once more.", retries)
        yield CounterMetricFamily("isthmus_hop_damaged", "Frames that came damaged.", damaged)
        if ingress is not None:
            waiting, in_flight = ingress.depth()
            yield GaugeMetricFamily("isthmus_requests_waiting", "Not sent yet.", waiting)
            yield GaugeMetricFamily("isthmus_requests_in_flight", "Under way.", in_flight)
            yield CounterMetricFamily(
                "isthmus_request_retries", "Requests sent once more.", ingress.retries
            )
