"""What a run measured, beside what was predicted."""

from dataclasses import dataclass

from isthmus.wire.nested import Width

RUN_FILE = "run.json"
STEPS = ("wait", "queue", "decode", "compute", "encode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How one figure is spread over the requests: its median and upper percentiles."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingRecord:
    """One crossing; bytes are per request.

    Attributes:
        after: Where the cut is.
        link: Name of the link.
        codec: What carried it.
        payload_bytes_predicted: From the bundle.
        payload_bytes_measured: Mean length of the payloads the sender's process sent.
        wire_bytes: Mean length of the frames handed to the transport.
        encode_s: Median time of the packing half.
        decode_s: Median time of the unpacking half.
        link_asked_s: Median time the emulated link should take; 0 with the throttle off.
        link_observed_s: Median time it took.
        retries: Frames sent more than once.
        round_trip_s: From giving a frame to the transport to its acknowledgement, less what the
            receiver kept it for, by the sender's clock alone; None if none was acknowledged.
        rate_bytes_per_s: Bytes on the wire over the median of the emulated link and this.
        payload_spread_bytes: Standard deviation of the payload, predicted; None at a fixed rate.
    """

    after: str
    link: str
    codec: str
    payload_bytes_predicted: float
    payload_bytes_measured: float
    wire_bytes: float
    encode_s: float
    decode_s: float
    link_asked_s: float
    link_observed_s: float
    retries: int
    round_trip_s: Spread | None
    rate_bytes_per_s: float
    payload_spread_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage.

    Attributes:
        device: Its name.
        compute_s: Median time of its program.
        pid: Process id of its worker.
        times_s: One request in flight: ``"wait"`` is how long the device waited for a frame,
            ``"queue"`` how long a frame waited for the device, then ``"decode"``, ``"compute"``
            and ``"encode"``.
        busy_s: The same with as many requests in flight as stages and links; empty if none of
            them reached the device.
        batch: Mean number of requests that were computed in one call then.
    """

    device: str
    compute_s: float
    pid: int
    times_s: dict[str, Spread]
    busy_s: dict[str, Spread]
    batch: float = 1.0

    def __post_init__(self) -> None:
        for times in (self.times_s, self.busy_s or self.times_s):
            if set(times) != set(STEPS):
                raise ValueError(f"found times {', '.join(times)}; expected {', '.join(STEPS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRecord:
    """How the width of nested crossings was chosen, where it was, one request in flight.

    Attributes:
        target_s: How long a request may take.
        in_time: Share of the answered requests that took no longer.
        requests: How many asked for each width, the narrowest first.
    """

    target_s: float
    in_time: float
    requests: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the median latency went, in seconds; the first four add up to it.

    Attributes:
        compute_s: Programs of all stages.
        link_s: Emulated links, as observed.
        codec_s: Packing and unpacking.
        remainder_s: What is left: transport, scheduling, the client's two hops.
        floor_per_hop_s: The remainder with the throttle off, per hop (crossings + 2): what this
            machine adds to every hop. Measured before the first request, from other inputs.
    """

    compute_s: float
    link_s: float
    codec_s: float
    remainder_s: float
    floor_per_hop_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run of a bundle.

    Attributes:
        crossings: In order.
        stages: In order.
        accuracy: Share of replies whose largest output is the label; None without labels.
        latency_s: Round trip of one request as the client saw it, one in flight.
        predicted_here_s: Median latency predicted before the first request: programs, codecs
            and the floor of every hop, which add up to the median latency on this machine with
            the links free and other inputs; plus the time each link takes for its frame by the
            platform's figures, with the throttle on.
        breakdown: Of the median latency.
        throughput_per_s: As many requests in flight as stages and links.
        requests: Answered requests of the latency pass.
        lost: Requests without an answer.
        retries: Frames sent more than once.
        emulated: How the devices and links were stood in for, in words.
        machine: The machine that ran it.
        versions: Of Isthmus and the libraries that matter.
        width: That nested crossings had; None is the widest.
        adapted: How it was chosen for each request, where it was.
    """

    SCHEMA = "isthmus.run/2"
    crossings: tuple[CrossingRecord, ...]
    stages: tuple[StageRecord, ...]
    accuracy: float | None
    latency_s: Spread
    predicted_here_s: float
    breakdown: Breakdown
    throughput_per_s: float
    requests: int
    lost: int
    retries: int
    emulated: str
    machine: str
    versions: dict[str, str]
    width: Width | None = None
    adapted: AdaptRecord | None = None

    def __post_init__(self) -> None:
        if len(self.stages) != len(self.crossings) + 1:
            raise ValueError(
                f"found {len(self.stages)} stages around {len(self.crossings)} crossings, "
                "expected one more"
            )
        if self.requests and not self.latency_s.p50 > 0:
            raise ValueError(f"found a latency of {self.latency_s.p50:g} s, expected more than 0")
