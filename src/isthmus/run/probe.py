"""Measure a real link: round trips over the hop that carries a bundle's frames.

.. code-block:: none

    prober                                              who answers
      hello, with an id  -------------------------->      busy, or: takes this one prober
      what it is: rates, node times  <--------------      (measured before, not asked for)
      frame: how many bytes to send back, filler --->
      frame of so many bytes  <----------------------
      ...                                                 until told to end, or silent for 10 s

A bundle's time on a link is that of this hop: its lock, checksum and acknowledgements, zenoh, TCP
or TLS, and the medium, with whatever its buffers and its congestion control do. So it is measured
whole. All times are round trips by the prober's clock; the clock of the other side is never read.
Large frames there and small ones back, then the other way round, tell the rates of both directions
apart. The constant part of a round trip cannot be told apart so: each way is taken to be half.
"""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import zenoh

from isthmus import __version__
from isthmus.errors import InputError, RunError
from isthmus.files import from_json, to_json
from isthmus.progress import Report, silent
from isthmus.run.client import open_client
from isthmus.run.hop import Receiver, Sender
from isthmus.run.line import fit_line
from isthmus.run.messages import WINDOW, read_refusal
from isthmus.run.probed import (
    END,
    KEY,
    MAX_FRAME_BYTES,
    NOTHING,
    ORDER,
    PORT,
    SILENCE_S,
    SMALLEST,
    TERMS,
    Greeting,
    Hello,
    Probed,
    check_name,
)
from isthmus.run.rates import Quartiles, figure
from isthmus.run.service import address
from isthmus.run.session import closing
from isthmus.wire import HEADER_BYTES

_POLL_S = 0.2
_LONGEST_GREETING = 4 << 20
_TRIP_S = 30.0  # within which a frame must be back
_LONG_TRIP_S = 0.125  # larger frames than those that take so long are not sent
_PASSES = 3  # over all sizes
_SIZE_S = 0.05  # for each size and direction in a pass, or
_TRIPS = (2, 40)  # at least and at most so many round trips
_WARM_UP = 20
_BURSTS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """Round trips with frames of one size one way and the smallest the other way.

    Attributes:
        frame_bytes: Their length, header included.
        count: How many were timed.
        seconds: What they took.
    """

    frame_bytes: int
    count: int
    seconds: Quartiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a link.

    Attributes:
        trips: By size, rising.
        bytes_per_s: Rate of frame bytes: one over the slope of the line through the medians; low
            and high are those of the lines through the slow and the fast quartiles.
        rest_s: The line's intercept: what a round trip takes besides its bytes.
    """

    trips: tuple[Trips, ...]
    bytes_per_s: Quartiles
    rest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRecord:
    """What a probe measured.

    Attributes:
        host: Who was probed.
        near: This end.
        far: That end.
        there: From this end to that one.
        back: From that end to this one.
        round_trip_s: With the smallest frames both ways.
        message_s: Time between two of the smallest frames that are sent one right after another.
        retries: Frames that were sent again.
        secured: Whether by TLS.
        version: Of Isthmus.
    """

    SCHEMA = "isthmus.probe/1"
    host: str
    near: Probed
    far: Probed
    there: Direction
    back: Direction
    round_trip_s: Quartiles
    message_s: Quartiles
    retries: int
    secured: bool
    version: str = __version__

    @property
    def setup_s(self) -> float:
        """How long a message keeps the link busy besides its bytes."""
        smallest_s = SMALLEST / self.there.bytes_per_s.median
        return max(0.0, self.message_s.median - smallest_s)

    @property
    def latency_s(self) -> float:
        """Half of what a round trip takes besides its bytes, without the set-up."""
        return max(0.0, (self.there.rest_s + self.back.rest_s) / 4 - self.setup_s)


def probe(
    host: str, near: Probed, *, keys: Path | None = None, report: Report = silent
) -> ProbeRecord:
    """Measure the link to a host on which probes are answered.

    Args:
        host: ``HOST`` or ``HOST:PORT``.
        near: This end.
        keys: The folder of one's own certificate and key; None for a host without.
        report: Told of every size.

    Raises:
        InputError: Both ends have the same name, or have measured different models.
        RunError: Nobody answers, it answers another prober, or it fell silent.
    """
    place = address(host, PORT)
    identity = uuid.uuid4().hex
    with ExitStack() as stack:
        session = stack.enter_context(closing(open_client(place, keys)))
        key = f"{KEY}/{identity}"
        receiver = Receiver(session, f"{key}/back", TERMS)
        stack.callback(receiver.close)
        far = _greet(session, place, identity)
        _check_ends(near, far)
        sender = Sender(session, f"{key}/there", crossing=0, timeout_s=_TRIP_S)
        trips = _Prober(stack.enter_context(sender), receiver, place)
        sender.agree(TERMS)
        stack.callback(trips.end)
        for _ in range(_WARM_UP):
            trips.trip(SMALLEST, SMALLEST)
        there, back = _directions(trips, report)
        bursts = [trips.burst() for _ in range(_BURSTS)]
        round_trip_s = there.trips[0].seconds
        between = [max(0.0, burst - round_trip_s.median) / (WINDOW - 1) for burst in bursts]
        return ProbeRecord(
            host=place,
            near=near,
            far=far,
            there=there,
            back=back,
            round_trip_s=round_trip_s,
            message_s=figure(between),
            retries=sender.retries,
            secured=keys is not None,
        )


def wait_for_host(host: str, *, keys: Path | None = None) -> None:
    """Wait until somebody answers probes at a host, without asking him.

    Raises:
        InputError: The address is none, or the keys are wrong.
        RunError: Nobody does.
    """
    place = address(host, PORT)
    end_s = time.monotonic() + SILENCE_S
    with closing(open_client(place, keys)) as session:
        asking = session.declare_querier(f"{KEY}/hello")
        while not asking.matching_status.matching:  # type: ignore[attr-defined]  # zenoh's mistake
            if time.monotonic() > end_s:
                raise _nobody(place)
            time.sleep(_POLL_S)
        asking.undeclare()


def _greet(session: zenoh.Session, place: str, identity: str) -> Probed:
    """Ask who is there, and to be the one who is answered."""
    hello = to_json(Hello(id=identity))
    end_s = time.monotonic() + SILENCE_S
    while time.monotonic() < end_s:
        for reply in session.get(f"{KEY}/hello", payload=hello, timeout=SILENCE_S):
            if reply.ok is not None and len(reply.ok.payload) <= _LONGEST_GREETING:
                data = reply.ok.payload.to_bytes()
                greeting = from_json(data, Greeting, where=place)
                check_name(greeting.probed.name)
                return greeting.probed
            if reply.err is not None:
                refusal = read_refusal(reply.err.payload.to_bytes(), where=place)
                if refusal is not None:
                    raise RunError(f"{place}: {refusal.message}")
        time.sleep(_POLL_S)
    raise _nobody(place)


def _nobody(place: str) -> RunError:
    return RunError(
        f"{place}: nobody answers within {SILENCE_S:g} s; is `isthmus probe --listen` running "
        "there, and with keys if this side has some?"
    )


def _check_ends(near: Probed, far: Probed) -> None:
    if near.name == far.name:
        raise InputError(f"--name: both ends are called {near.name}; name one of them otherwise")
    if near.times and far.times and near.times.graph != far.times.graph:
        raise InputError(
            f"--model: found graph {near.times.graph} here and {far.times.graph} there; "
            "give both ends the same model and the same --input"
        )


class _Prober:
    """Sends frames and waits for those that come back.

    Args:
        sender: There.
        receiver: Back.
        place: The other side, for people.
    """

    def __init__(self, sender: Sender, receiver: Receiver, place: str) -> None:
        self._sender = sender
        self._receiver = receiver
        self._place = place
        self._numbers = count()
        self._filler = os.urandom(MAX_FRAME_BYTES)  # so that nothing on the way compresses it

    def trip(self, there_bytes: int, back_bytes: int) -> float:
        """Return how long a frame there and one back take together."""
        start_s = time.perf_counter()
        self._wait(self._send(there_bytes, back_bytes), back_bytes)
        return time.perf_counter() - start_s

    def burst(self) -> float:
        """Return how long the smallest frames take that are sent at once, and one back."""
        start_s = time.perf_counter()
        for _ in range(WINDOW - 1):
            self._send(SMALLEST, NOTHING)
        self._wait(self._send(SMALLEST, SMALLEST), SMALLEST)
        return time.perf_counter() - start_s

    def end(self) -> None:
        """Let the other side go, if it still listens."""
        self._send(SMALLEST, END)
        self._sender.flush(1.0)

    def _send(self, frame_bytes: int, order: int) -> int:
        number = next(self._numbers)
        filler = memoryview(self._filler)[: frame_bytes - SMALLEST]
        self._sender.send(number, b"".join((ORDER.pack(order), filler)))
        return number

    def _wait(self, number: int, frame_bytes: int) -> None:
        end_s = time.monotonic() + _TRIP_S
        while (left_s := end_s - time.monotonic()) > 0:
            frame = self._receiver.receive(left_s)
            if frame is not None and frame.request == number:
                if len(frame.payload) != frame_bytes - HEADER_BYTES:
                    raise RunError(f"{self._place}: sends {len(frame.payload)} bytes unasked")
                return
        raise RunError(
            f"{self._place}: a frame has not come back for {_TRIP_S:g} s; is the link cut, or the "
            "other side stopped?"
        )


def _directions(trips: _Prober, report: Report) -> tuple[Direction, Direction]:
    """Time round trips of rising size until they take long, then all sizes again.

    Both directions go in turns, and each size comes up several times, so that what slows the
    machines or the link for a while slows no size alone.
    """
    sizes = [SMALLEST, *(1 << power for power in range(6, MAX_FRAME_BYTES.bit_length()))]
    found: list[tuple[list[float], list[float]]] = []
    for number, size in enumerate(sizes, start=1):
        trips.trip(size, size)  # finds buffers that are not yet wide enough
        found.append(([], []))
        _time(trips, size, found[-1])
        enough = number > 1 and max(map(median, found[-1])) > _LONG_TRIP_S
        report("send frames", len(sizes) if enough else number, len(sizes))
        if enough:
            break
    sizes = sizes[: len(found)]
    for again in range(1, _PASSES):
        for number, (size, both) in enumerate(zip(sizes, found, strict=True), start=1):
            _time(trips, size, both)
            report(
                "send them again", (again - 1) * len(sizes) + number, (_PASSES - 1) * len(sizes)
            )
    there, back = (_direction(sizes, way) for way in zip(*found, strict=True))
    return there, back


def _time(trips: _Prober, size: int, found: tuple[list[float], list[float]]) -> None:
    """Add the times of some round trips with a frame of that size there, or back."""
    fewest, most = _TRIPS
    end_s = time.monotonic() + 2 * _SIZE_S
    for turn in range(most):
        if turn >= fewest and time.monotonic() > end_s:
            break
        found[0].append(trips.trip(size, SMALLEST))
        found[1].append(trips.trip(SMALLEST, size))


def _direction(sizes: Sequence[int], seconds: Sequence[list[float]]) -> Direction:
    trips = tuple(
        Trips(frame_bytes=size, count=len(way), seconds=figure(way))
        for size, way in zip(sizes, seconds, strict=True)
    )
    slope, rest_s = fit_line(sizes, [each.seconds.median for each in trips])
    fast, _ = fit_line(sizes, [each.seconds.low for each in trips])
    slow, _ = fit_line(sizes, [each.seconds.high for each in trips])
    if min(slope, fast, slow) <= 0:
        raise RunError(
            "the link: large frames are as quick as small ones; something else takes more time "
            "than it, so probe again when both machines are at rest"
        )
    low, high = sorted((1 / slow, 1 / fast))
    rate = Quartiles(median=1 / slope, low=min(low, 1 / slope), high=max(high, 1 / slope))
    return Direction(trips=trips, bytes_per_s=rate, rest_s=rest_s)
