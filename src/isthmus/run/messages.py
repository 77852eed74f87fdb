"""What the launcher and its workers say to each other beside the frames: JSON on stdin and zenoh.

.. code-block:: none

    launcher --stdin--> worker           Job, one line; the end of stdin means stop
    launcher --query--> worker           status | timings | throttle on | throttle off |
                                         width ratio=8,bits=4
    launcher <--reply-- worker           Status | Timings

    sender --query--> receiver           nothing, before the first frame of a hop
    sender <--reply-- receiver           Terms

    client --query--> first device       the input, with an Ask | nothing
    client <--reply-- first device       the outputs, or a Refusal | About
    device --put--> first device         Failure
"""

from dataclasses import dataclass

from isthmus.backends import TensorSpec
from isthmus.bundle import Bundle
from isthmus.errors import InputError, Reason, RunError
from isthmus.files import from_json
from isthmus.platform.platform import Link

STATUS = "status"
TIMINGS = "timings"
THROTTLE_ON = "throttle on"
THROTTLE_OFF = "throttle off"
WIDTH = "width "  # and which; from the next request on

PROTOCOL = 5  # of `isthmus.run.hop`
WINDOW = 16  # frames of a hop without an ack; over what a chain of eight devices has in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one worker is to do.

    Attributes:
        bundle: Path of the bundle.
        bundle_id: What it must be.
        device: Index of its device in the bundle.
        run: Id of the run, part of every key.
        connect: Address of the launcher.
        link: What the crossing to the next device is like; None on the last device.
        clock: The file that the link's users share; empty on the last device.
        timeout_s: Longest wait for another process.
    """

    SCHEMA = "isthmus.job/1"
    bundle: str
    bundle_id: str
    device: int
    run: str
    connect: str
    link: Link | None
    clock: str
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A worker that is ready, and what it has loaded.

    Attributes:
        pid: Its process.
        modules: Top-level packages in its interpreter.
        peers: Ids of the zenoh sessions that it is directly connected to.
        session: Id of its own.
    """

    SCHEMA = "isthmus.status/1"
    pid: int
    modules: tuple[str, ...]
    peers: tuple[str, ...]
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one request cost one worker; the times are those of all that it was computed with.

    Attributes:
        request: Its number.
        decode_s: Unpacking of what arrived.
        compute_s: The program.
        encode_s: Packing of what leaves.
        payload_bytes: Length of the payload that leaves.
        start_s: When it was taken, by the device's monotonic clock.
        queue_s: How long it had waited to be taken.
        wait_s: How long the device had waited for it.
        batch: How many requests were computed in one call, this one counted.
    """

    request: int
    decode_s: float
    compute_s: float
    encode_s: float
    payload_bytes: int
    start_s: float
    queue_s: float
    wait_s: float
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Passage:
    """One frame on its link.

    Attributes:
        request: Its request.
        frame_bytes: Its length, header included.
        asked_s: How long the emulated link should take for it; 0 without one.
        observed_s: Time from handing it over to giving it to the transport; 0 without one.
        start_s: When it was handed over, by this machine's monotonic clock.
    """

    request: int
    frame_bytes: int
    asked_s: float
    observed_s: float
    start_s: float


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One frame and its acknowledgement, by the sender's clock alone.

    Attributes:
        frame_bytes: Length of the frame.
        seconds: From giving it to the transport to its acknowledgement, less what the receiver
            says it kept it for.
    """

    frame_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What a worker measured since it was last asked.

    Attributes:
        work: One for each request it finished.
        passages: One for each frame it sent, repetitions included.
        round_trips: One for each frame that was sent once and acknowledged.
        retries: Repetitions since the start.
    """

    SCHEMA = "isthmus.timings/1"
    work: tuple[Work, ...]
    passages: tuple[Passage, ...]
    round_trips: tuple[RoundTrip, ...]
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both ends of a hop must agree on before the first frame.

    Attributes:
        bundle: Id of the bundle.
        codec: What carries the crossing, tensors included.
        protocol: Version of the rules of `isthmus.run.hop`.
    """

    SCHEMA = "isthmus.terms/1"
    bundle: str
    codec: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What goes with the input of a request to a service.

    Attributes:
        id: What the client calls it; asked again, it is the same request.
        deadline_s: How long it may take, in seconds.
        priority: Higher goes first.
        bundle: Id of the bundle that the input was made for; empty: of any.
    """

    SCHEMA = "isthmus.ask/1"
    id: str
    deadline_s: float
    priority: int = 0
    bundle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What goes with the outputs of a request, where there is something to say.

    Attributes:
        width: What it was given of nested crossings.
        early_exit: The device whose early exit answered.
    """

    SCHEMA = "isthmus.how/1"
    width: str = ""
    early_exit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a device says that could not compute a request.

    Attributes:
        request: Its number.
        device: Index of the device.
        message: One line.
    """

    SCHEMA = "isthmus.failure/1"
    request: int
    device: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a service has no result for a request; see `isthmus.errors.RequestError`."""

    SCHEMA = "isthmus.refusal/1"
    reason: Reason
    message: str
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a service is, and how it is.

    Attributes:
        bundle: Id of its bundle.
        version: The Isthmus that serves it.
        devices: Their names, in the order in which a sample visits them.
        away: Those that are not there.
        inputs: What it takes.
        outputs: What it returns.
        waiting: Requests that are not sent yet.
        in_flight: Requests that are under way.
        ended: Requests that ended, in whichever way, since it started.
        retries: Requests that were sent once more, since it started.
    """

    SCHEMA = "isthmus.about/1"
    bundle: str
    version: str
    devices: tuple[str, ...]
    away: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    waiting: int
    in_flight: int
    ended: int
    retries: int


def read_refusal(data: bytes, *, where: str) -> Refusal | None:
    """Read what a service says; None for an error of the transport, after which to try again."""
    try:
        return from_json(data, Refusal, where=where)
    except InputError:
        return None


def infer_key(service: str) -> str:
    """Return the key under which a service takes requests."""
    return f"isthmus/{service}/infer"


def about_key(service: str) -> str:
    """Return the key under which a service says what it is."""
    return f"isthmus/{service}/about"


def alive_key(service: str, device: int | str, token: str) -> str:
    """Return the key of the token that a device holds while it serves."""
    return f"isthmus/{service}/alive/{device}/{token}"


def run_of(service: str, bundle: str) -> str:
    """Return the id under which those devices of a service find each other that agree."""
    return f"{service}/{PROTOCOL}-{bundle[:16]}"


def in_flight(bundle: Bundle) -> int:
    """Return how many requests keep all busy: one for each crossing, for each device its batch."""
    return min(sum(device.batch for device in bundle.devices) + len(bundle.crossings), WINDOW)


def hop_key(run: str, hop: int) -> str:
    """Return the key of a hop: 0 from the client to the first device, the last one back."""
    return f"isthmus/{run}/hop/{hop}"


def device_key(run: str, device: int) -> str:
    """Return the key under which a worker answers queries."""
    return f"isthmus/{run}/device/{device}"


def error_key(run: str) -> str:
    """Return the key on which a device says that it could not compute a request."""
    return f"isthmus/{run}/error"


def hop_terms(bundle: Bundle, identity: str, hop: int) -> Terms:
    """Return what both ends of a hop must agree on; ``identity`` is the bundle's id."""
    if hop == 0:
        codec = "input " + ", ".join(f"{t.dtype}{list(t.shape)}" for t in bundle.inputs)
    elif hop == len(bundle.devices):
        codec = "output " + ", ".join(f"{t.dtype}{list(t.shape)}" for t in bundle.outputs)
    else:
        crossing = bundle.crossings[hop - 1]
        tensors = zip(crossing.dtypes, crossing.shapes, strict=True)
        sent = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in tensors)
        by = "" if crossing.tables is None else f" by tables {bundle.files[crossing.tables]}"
        codec = f"{crossing.codec} of {sent}{by}"
    return Terms(bundle=identity, codec=codec)


def check_terms(own: Terms, answer: bytes, *, crossing: int) -> None:
    """Compare a sender's terms with those that its receiver answered with.

    Raises:
        RunError: They differ; says in what.
    """
    other = from_json(answer, Terms, where=f"hop {crossing}")
    for name in ("protocol", "bundle", "codec"):
        mine, theirs = getattr(own, name), getattr(other, name)
        if mine != theirs:
            raise RunError(
                f"hop {crossing}: the sender has {name} {mine!r}, the receiver {theirs!r}; give "
                "both the same bundle and the same Isthmus"
            )
