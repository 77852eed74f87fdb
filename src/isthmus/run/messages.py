"""What the launcher and its workers say to each other beside the frames: JSON on stdin and zenoh.

.. code-block:: none

    launcher --stdin--> worker           Job, one line; the end of stdin means stop
    launcher --query--> worker           status | timings | throttle on | throttle off |
                                         width ratio=8,bits=4
    launcher <--reply-- worker           Status | Timings
"""

from dataclasses import dataclass

from isthmus.bundle import Bundle
from isthmus.platform.platform import Link
from isthmus.run.hop import Passage

JOB_SCHEMA = "isthmus.job/1"
STATUS_SCHEMA = "isthmus.status/1"
TIMINGS_SCHEMA = "isthmus.timings/1"

STATUS = "status"
TIMINGS = "timings"
THROTTLE_ON = "throttle on"
THROTTLE_OFF = "throttle off"
WIDTH = "width "  # and which; from the next request on


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

    pid: int
    modules: tuple[str, ...]
    peers: tuple[str, ...]
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one request cost one worker.

    Attributes:
        request: Its number.
        decode_s: Unpacking of what arrived.
        compute_s: The program.
        encode_s: Packing of what leaves.
        payload_bytes: Length of the payload that leaves.
    """

    request: int
    decode_s: float
    compute_s: float
    encode_s: float
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What a worker measured since it was last asked.

    Attributes:
        work: One for each request it finished.
        passages: One for each frame it sent, repetitions included.
        retries: Repetitions since the start.
    """

    work: tuple[Work, ...]
    passages: tuple[Passage, ...]
    retries: int


def hop_key(run: str, hop: int) -> str:
    """Return the key of a hop: 0 from the client to the first device, the last one back."""
    return f"isthmus/{run}/hop/{hop}"


def device_key(run: str, device: int) -> str:
    """Return the key under which a worker answers queries."""
    return f"isthmus/{run}/device/{device}"


def hop_codec(bundle: Bundle, hop: int) -> str:
    """Return what a hop carries, as text that both ends compare."""
    if hop == 0:
        return "input " + ", ".join(f"{t.dtype}{list(t.shape)}" for t in bundle.inputs)
    if hop == len(bundle.devices):
        return "output " + ", ".join(f"{t.dtype}{list(t.shape)}" for t in bundle.outputs)
    crossing = bundle.crossings[hop - 1]
    tensors = zip(crossing.dtypes, crossing.shapes, strict=True)
    sent = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in tensors)
    by = "" if crossing.tables is None else f" by tables {bundle.files[crossing.tables]}"
    return f"{crossing.codec} of {sent}{by}"
