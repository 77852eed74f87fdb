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

Nobody can ask for more than `MAX_FRAME_BYTES` at once, one prober is answered at a time, and none
for longer than ten minutes.
"""

import os
import queue
import re
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import zenoh

from isthmus import __version__
from isthmus.errors import InputError, IsthmusError, RunError
from isthmus.files import from_json, to_json
from isthmus.platform import NodeTimes
from isthmus.progress import Report, silent
from isthmus.run.client import open_client
from isthmus.run.hop import PROTOCOL, WINDOW, Receiver, Sender, Terms, open_session
from isthmus.run.line import fit_line
from isthmus.run.messages import REFUSAL_SCHEMA, Refusal
from isthmus.run.rates import Figure, Rates, figure
from isthmus.run.service import address, secured
from isthmus.wire import HEADER_BYTES

SCHEMA = "isthmus.probe/1"
PORT = 7446
MAX_FRAME_BYTES = 1 << 20

_HELLO_SCHEMA, _GREETING_SCHEMA = "isthmus.hello/1", "isthmus.greeting/1"
_KEY = "isthmus/probe"
_TERMS = Terms(bundle="probe", codec="echo")
_ORDER = struct.Struct("<I")  # how long a frame to send back, its header included
_NOTHING, _END = 0, 1  # in place of a length
_SMALLEST = HEADER_BYTES + _ORDER.size
_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # as of a device in a platform file
_LONGEST_GREETING = 4 << 20
_LONGEST_S = 600.0  # for one prober
_SILENCE_S = 10.0
_POLL_S = 0.2

_TRIP_S = 30.0  # within which a frame must be back
_LONG_TRIP_S = 0.125  # larger frames than those that take so long are not sent
_SIZE_S = 0.15  # for each size and direction, or
_TRIPS = (5, 100)  # at least and at most so many round trips
_WARM_UP = 20
_BURSTS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One end of a link.

    Attributes:
        name: Of the device in the platform file.
        machine: What it is, in words.
        rates: How fast it computes.
        times: Of the nodes of one model; None where none was measured.
    """

    name: str
    machine: str
    rates: Rates
    times: NodeTimes | None = None


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
    seconds: Figure


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
    bytes_per_s: Figure
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

    host: str
    near: Probed
    far: Probed
    there: Direction
    back: Direction
    round_trip_s: Figure
    message_s: Figure
    retries: int
    secured: bool
    version: str = __version__

    @property
    def setup_s(self) -> float:
        """How long a message keeps the link busy besides its bytes."""
        smallest_s = _SMALLEST / self.there.bytes_per_s.median
        return max(0.0, self.message_s.median - smallest_s)

    @property
    def latency_s(self) -> float:
        """Half of what a round trip takes besides its bytes, without the set-up."""
        return max(0.0, (self.there.rest_s + self.back.rest_s) / 4 - self.setup_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hello:
    id: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Greeting:
    probed: Probed
    version: str


def check_name(name: str) -> str:
    """Return a name that a platform file can hold.

    Raises:
        InputError: It is none.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"name {name!r}: expected up to 64 letters, digits, '-', '_' or '.', such as camera"
        )
    return name


def check_listen(listen: str, keys: Path | None) -> str:
    """Return ``HOST:PORT`` for ``HOST`` or ``HOST:PORT`` where probes may be answered.

    Raises:
        InputError: The address is none, or not on loopback and there are no keys, or they are
            wrong.
    """
    place = address(listen, PORT)
    secured(place, keys, who="--listen")
    return place


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
        session = stack.enter_context(open_client(place, keys))
        key = f"{_KEY}/{identity}"
        receiver = Receiver(session, f"{key}/back", _TERMS)
        stack.callback(receiver.close)
        far = _greet(session, place, identity)
        _check_ends(near, far)
        sender = Sender(session, f"{key}/there", crossing=0, timeout_s=_TRIP_S)
        trips = _Prober(stack.enter_context(sender), receiver, place)
        sender.agree(_TERMS)
        stack.callback(trips.end)
        for _ in range(_WARM_UP):
            trips.trip(_SMALLEST, _SMALLEST)
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


def _greet(session: zenoh.Session, place: str, identity: str) -> Probed:
    """Ask who is there, and to be the one who is answered."""
    hello = to_json(_Hello(id=identity), schema=_HELLO_SCHEMA)
    end_s = time.monotonic() + _SILENCE_S
    while time.monotonic() < end_s:
        for reply in session.get(f"{_KEY}/hello", payload=hello, timeout=_SILENCE_S):
            if reply.ok is not None and len(reply.ok.payload) <= _LONGEST_GREETING:
                data = reply.ok.payload.to_bytes()
                greeting = from_json(data, _Greeting, schema=_GREETING_SCHEMA, where=place)
                check_name(greeting.probed.name)
                return greeting.probed
            if reply.err is not None:
                _refuse(reply.err.payload.to_bytes(), place)
        time.sleep(_POLL_S)
    raise RunError(
        f"{place}: nobody answers within {_SILENCE_S:g} s; is `isthmus probe --listen` running "
        "there, and with keys if this side has some?"
    )


def _refuse(data: bytes, place: str) -> None:
    """Raise what the other side says; an error of the transport is none, and is tried again."""
    try:
        said = from_json(data, Refusal, schema=REFUSAL_SCHEMA, where=place)
    except InputError:
        return
    raise RunError(f"{place}: {said.message}")


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
            self._send(_SMALLEST, _NOTHING)
        self._wait(self._send(_SMALLEST, _SMALLEST), _SMALLEST)
        return time.perf_counter() - start_s

    def end(self) -> None:
        """Let the other side go, if it still listens."""
        self._send(_SMALLEST, _END)
        self._sender.flush(1.0)

    def _send(self, frame_bytes: int, order: int) -> int:
        number = next(self._numbers)
        filler = memoryview(self._filler)[: frame_bytes - _SMALLEST]
        self._sender.send(number, b"".join((_ORDER.pack(order), filler)))
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
    """Time round trips of rising size, both directions in turns, until they take long."""
    found: tuple[list[Trips], list[Trips]] = ([], [])
    size = _SMALLEST
    sizes = [_SMALLEST, *(1 << power for power in range(6, MAX_FRAME_BYTES.bit_length()))]
    for number, size in enumerate(sizes, start=1):
        for way, way_s in zip(found, _timed(trips, size), strict=True):
            way.append(Trips(frame_bytes=size, count=len(way_s), seconds=figure(way_s)))
        longest_s = max(way[-1].seconds.median for way in found)
        enough = number > 1 and longest_s > _LONG_TRIP_S
        report("send frames", len(sizes) if enough else number, len(sizes))
        if enough:
            break
    there, back = (_direction(tuple(way)) for way in found)
    return there, back


def _timed(trips: _Prober, size: int) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = ([], [])
    fewest, most = _TRIPS
    end_s = time.monotonic() + 2 * _SIZE_S
    for turn in range(most + 1):
        pair = trips.trip(size, _SMALLEST), trips.trip(_SMALLEST, size)
        if turn:  # the first one finds buffers that are not yet wide enough
            for way, seconds in zip(found, pair, strict=True):
                way.append(seconds)
        if turn >= fewest and time.monotonic() > end_s:
            break
    return found


def _direction(trips: tuple[Trips, ...]) -> Direction:
    sizes = [each.frame_bytes for each in trips]
    slope, rest_s = fit_line(sizes, [each.seconds.median for each in trips])
    fast, _ = fit_line(sizes, [each.seconds.low for each in trips])
    slow, _ = fit_line(sizes, [each.seconds.high for each in trips])
    if min(slope, fast, slow) <= 0:
        raise RunError(
            "the link: large frames are as quick as small ones; something else takes more time "
            "than it, so probe again when both machines are at rest"
        )
    low, high = sorted((1 / slow, 1 / fast))
    rate = Figure(median=1 / slope, low=min(low, 1 / slope), high=max(high, 1 / slope))
    return Direction(trips=trips, bytes_per_s=rate, rest_s=rest_s)


@contextmanager
def open_answering(
    place: str, own: Probed, *, keys: Path | None = None
) -> Iterator[Callable[[threading.Event, Callable[[str], None]], None]]:
    """Listen for probers.

    Args:
        place: As `check_listen` returns it.
        own: This end, as it tells each prober.
        keys: The folder of this device's certificate and key.

    Yields:
        What answers one prober after another until told to stop, and says in words who came.

    Raises:
        InputError: The address is not on loopback and there are no keys, or they are wrong.
        RunError: The port is taken.
    """
    scheme, belonging = secured(place, keys, who="--listen")
    more = {
        "scouting/gossip/enabled": False,
        "adminspace/enabled": False,
        "transport/link/rx/max_message_size": 2 * MAX_FRAME_BYTES,
        **belonging,
    }
    visitors: queue.Queue[str] = queue.Queue(maxsize=1)
    answered = threading.Event()  # set while one is answered
    lock = threading.Lock()
    greeting = to_json(_Greeting(probed=own, version=__version__), schema=_GREETING_SCHEMA)

    def hello(query: zenoh.Query) -> None:
        try:
            visitor = _visitor(query.payload.to_bytes() if query.payload else b"")
            with lock:
                if answered.is_set():
                    raise RunError("answers another prober; try again in a minute")
                answered.set()
        except IsthmusError as error:
            refusal = Refusal(reason="refused", message=str(error))
            with query:
                query.reply_err(to_json(refusal, schema=REFUSAL_SCHEMA))
            return
        visitors.put_nowait(visitor)
        with query:
            query.reply(f"{_KEY}/hello", greeting)

    with open_session(listen=f"{scheme}/{place}", more=more) as session, ExitStack() as stack:
        stack.callback(session.declare_queryable(f"{_KEY}/hello", hello).undeclare)

        def answer(stop: threading.Event, say: Callable[[str], None]) -> None:
            while not stop.is_set():
                try:
                    visitor = visitors.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                say(f"probed by {visitor[:8]}")
                try:
                    say(f"{visitor[:8]}: {_echo(session, visitor, stop)} frames, then it ended")
                except RunError as error:
                    say(f"{visitor[:8]}: {error}")
                answered.clear()

        yield answer


def _visitor(data: bytes) -> str:
    if len(data) > 1 << 10:
        raise RunError(f"hello: found {len(data)} bytes, expected a short one")
    hello = from_json(data, _Hello, schema=_HELLO_SCHEMA, where="hello")
    if hello.protocol != PROTOCOL or not _ID.fullmatch(hello.id):
        raise RunError(
            f"speaks protocol {PROTOCOL}, the prober {hello.protocol}; give both the same Isthmus"
        )
    return hello.id


def _echo(session: zenoh.Session, visitor: str, stop: threading.Event) -> int:
    """Answer one prober until it ends, falls silent or the time is up; return its frames."""
    key = f"{_KEY}/{visitor}"
    receiver = Receiver(session, f"{key}/there", _TERMS)
    number, filler = 0, os.urandom(MAX_FRAME_BYTES)
    try:
        with Sender(session, f"{key}/back", crossing=1, timeout_s=_SILENCE_S) as sender:
            sender.agree(_TERMS)
            for request, order in _orders(receiver, stop):
                number += 1
                if order != _NOTHING:
                    sender.send(request, filler[: max(0, order - HEADER_BYTES)])
    finally:
        receiver.close()
    return number


def _orders(receiver: Receiver, stop: threading.Event) -> Iterator[tuple[int, int]]:
    """Yield of each frame its number, and how long a one to send back."""
    begun_s = heard_s = time.monotonic()
    while not stop.is_set() and time.monotonic() < min(heard_s + _SILENCE_S, begun_s + _LONGEST_S):
        frame = receiver.receive(_POLL_S)
        if frame is None:
            continue
        heard_s = time.monotonic()
        if len(frame.payload) < _ORDER.size:
            raise RunError(f"sends a frame of {len(frame.payload)} bytes, which asks for nothing")
        (order,) = _ORDER.unpack_from(frame.payload)
        if order == _END:
            return
        if order > MAX_FRAME_BYTES:
            raise RunError(f"asks for {order} bytes, expected at most {MAX_FRAME_BYTES}")
        yield frame.request, order
