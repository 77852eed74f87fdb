"""The reliable hop: every frame arrives once, with bounded memory, or an error says so.

.. code-block:: none

    Sender                                             Receiver
      ask for the terms  ------------------------->      protocol, bundle, codec: equal or refuse
      frame n (reliable, blocks when congested) --->     no header or no room: drop at once
                                                         checksum wrong: drop
      up to WINDOW frames without an ack                 taken by the reader, oldest arrival first
      sent again after a while without an ack,           known already: acknowledge again
      or when a later one is acknowledged
      forget frame n  <----------------------------      ack n

zenoh drops under congestion unless told to block, and acknowledges nothing from end to end, so the
credits, the acknowledgements and the repetitions are here. Frames are told apart by the number of
their request alone, so that either end may be another process than before. zenoh's threads only
note when a frame came and put it into a queue, or drop it if that is full: they do not wait, so
that a slow stage cannot stall a session. Whoever receives a frame checks it and takes it apart.
"""

import queue
import struct
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Self

import zenoh

from isthmus.errors import RunError
from isthmus.files import to_json
from isthmus.run.messages import WINDOW, Passage, RoundTrip, Terms, check_terms
from isthmus.run.session import publisher
from isthmus.run.throttle import Throttle, wait_until
from isthmus.wire.frames import HEADER_BYTES, decode_header, encode_header

_JOINED_BYTES = 16 << 10  # a payload of at most so many is copied to stand behind its header
_ACK_FRAMES = 8  # are acknowledged together,
_ACK_BYTES = 256 << 10  # or fewer of so many bytes,
_ACK_S = 0.02  # or after so long a pause
_SLOW_S = 0.1
_SPAN = 256  # how many frames may overtake one that is not acknowledged
MAX_TIMINGS = 100_000  # kept until somebody asks; the oldest go first
_JOIN_S = 1.0
_RESEND_S = 1.0
_LONGEST_RESEND_S = 4.0
_LONGEST_USUAL_S = 30.0
_POLL_S = 0.01
_ACK = struct.Struct("<II")  # a request, and for how many microseconds its frame was kept
_MOST = 0xFFFFFFFF


class Arrival(NamedTuple):
    """A frame that arrived.

    Attributes:
        request: Its request.
        payload: What the codec sent.
        width: What nested crossings of the request are to take; 0 leaves it to each sender.
        arrived_s: When it did, by this machine's monotonic clock.
    """

    request: int
    payload: bytes
    width: int
    arrived_s: float


@dataclass(slots=True)
class _Parcel:
    """A frame until it is acknowledged; times are those of `time.monotonic`."""

    request: int
    header: bytes
    payload: bytes
    num_bytes: int
    turn: int
    handed_over_s: float
    release_s: float
    put_s: float = 0.0
    put: int = 0  # when it was last given to the transport, counted in frames; 0 while it waits
    times: int = 0  # that it was given to the transport
    overdue: bool = False  # whether it was sent again since nothing was acknowledged for long
    asked_s: float = 0.0


class Receiver:
    """The far end of a hop; owns a subscription.

    Args:
        session: Of this process.
        key: Of the hop.
        terms: What its sender must agree to.
    """

    def __init__(self, session: zenoh.Session, key: str, terms: Terms) -> None:
        self._malformed = self._damaged = 0  # told apart as zenoh's thread counts the first
        self._frames: queue.SimpleQueue[tuple[zenoh.ZBytes, zenoh.ZBytes | None, float]] = (
            queue.SimpleQueue()
        )
        self._known: dict[int, None] = {}  # requests whose frames were taken; oldest first
        self._owed: list[tuple[int, float]] = []  # to acknowledge: requests, and when they came
        self._owed_bytes = 0
        self._acknowledged_s = 0.0
        self._acks = publisher(session, f"{key}/ack")
        arrivals = self._arrivals()
        next(arrivals)
        self._subscriber = session.declare_subscriber(
            f"{key}/frame", zenoh.handlers.Callback(arrivals.send, indirect=False)
        )
        own, own_key = to_json(terms), f"{key}/terms"
        self._queryable = session.declare_queryable(own_key, lambda each: each.reply(own_key, own))

    @property
    def damaged(self) -> int:
        """How many frames were no longer what had been sent."""
        return self._malformed + self._damaged

    def receive(self, timeout_s: float) -> Arrival | None:
        """Take the next frame; None if there is none in time.

        Frames come in the order in which they were sent, but for those that were lost on the way
        and sent again. They are acknowledged together, every few frames or when no more come, so
        that who waits for the result does not wait for that too; at once where the last time is
        long ago, as with a reader that takes long.
        """
        if len(self._owed) >= _ACK_FRAMES or self._owed_bytes >= _ACK_BYTES:
            self._acknowledge()
        frame = self._take(_ACK_S) if self._owed and timeout_s > _ACK_S else None
        if frame is None:
            self._acknowledge()
            frame = self._take(timeout_s)
        if self._owed and time.monotonic() - self._acknowledged_s > _SLOW_S:
            self._acknowledge()
        return frame

    def receive_batch(self, timeout_s: float, most: int) -> list[Arrival]:
        """Do as `receive`, and take with the next frame up to so many in all as wait already."""
        found, frame = [], self.receive(timeout_s)
        while frame is not None:
            found.append(frame)
            frame = self._take(0.0) if len(found) < most else None
        if most > 1:
            self._acknowledge()
        return found

    def _arrivals(self) -> Generator[None, zenoh.Sample, None]:
        """Put the messages sent into this generator into the queue, unless it is full.

        zenoh's own thread sends them, without the change to another one. For a function, such a
        thread makes room and gives it back at each call, which takes longer than all the rest; so
        this calls none. What cannot be a frame takes no place.
        """
        frames = self._frames
        while True:
            sample = yield
            body, beside = sample.payload, sample.attachment
            if len(body) < HEADER_BYTES if beside is None else len(beside) != HEADER_BYTES:
                self._malformed += 1
            elif frames.qsize() < WINDOW:
                frames.put((body, beside, time.monotonic()))

    def _take(self, timeout_s: float) -> Arrival | None:
        """Return the next frame that is whole and new."""
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                body, beside, arrived_s = self._frames.get(timeout=timeout_s)
            except queue.Empty:
                return None
            payload = body.to_bytes()
            if beside is not None:
                header = beside.to_bytes()
            else:
                header, payload = payload[:HEADER_BYTES], payload[HEADER_BYTES:]
            try:
                request, _, width = decode_header(header, payload)
            except RunError:
                self._damaged += 1  # not acknowledged, so it comes again
            else:
                if request not in self._known:
                    self._known[request] = None
                    self._owed.append((request, arrived_s))
                    self._owed_bytes += len(payload)
                    return Arrival(request, payload, width, arrived_s)
                self._acks.put(_ack(request, 0.0))  # the first one was lost
            timeout_s = end_s - time.monotonic()
            if timeout_s <= 0:
                return None

    def close(self) -> None:
        """Take no more frames; what was not taken is not acknowledged."""
        self._subscriber.undeclare()
        self._queryable.undeclare()
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._owed:
            now_s = time.monotonic()
            self._acks.put(
                b"".join(_ack(request, now_s - arrived_s) for request, arrived_s in self._owed)
            )
            self._owed.clear()
            self._owed_bytes = 0
            self._acknowledged_s = now_s
        while len(self._known) > _SPAN + 2 * WINDOW:
            del self._known[next(iter(self._known))]


@dataclass(eq=False)
class Sender:
    """The near end of a hop; owns a thread that releases frames when their link lets them go.

    Use it as a context manager.

    Attributes:
        session: Of this process.
        key: Of the hop.
        crossing: Number that its frames carry.
        timeout_s: Longest wait for an acknowledgement.
        resend_s: Least wait before a frame is sent again; it doubles each time that nothing is
            acknowledged. If frames take more than half of that, it is twice what one took that
            was sent once, as a link may take long for a frame, and a receiver to take it.
    """

    session: zenoh.Session
    key: str
    _: KW_ONLY
    crossing: int
    timeout_s: float
    resend_s: float = _RESEND_S

    def __post_init__(self) -> None:
        self.throttle: Throttle | None = None
        self.retries = 0
        self._passed: deque[tuple[int, int, float, float, float]] = deque(maxlen=MAX_TIMINGS)
        self._round_trips: deque[tuple[int, float]] = deque(maxlen=MAX_TIMINGS)
        self._usual_s = self._patience_s = self.resend_s
        self._parcels: dict[int, _Parcel] = {}  # not yet acknowledged, oldest first
        self._unsent: deque[_Parcel] = deque()  # those to give to the transport
        self._resend_at_s = 0.0
        self._num_turns = self._num_puts = 0  # frames handed over, and given to the transport
        self._free = 0  # frames that certainly have room; it is counted when they are sent
        self._putting: int | None = None  # what is put before it is noted, unless acknowledged
        self._early_s = 0.0  # for how long the receiver kept what it acknowledged before that
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for the thread that releases frames
        self._room = threading.Condition(self._lock)  # for those who wait until frames arrived
        self._publisher = publisher(self.session, f"{self.key}/frame")
        self._subscriber = self.session.declare_subscriber(f"{self.key}/ack", self._on_ack)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._thread.join(_JOIN_S)

    def agree(self, terms: Terms) -> None:
        """Wait for the receiver and compare terms.

        Raises:
            RunError: It does not answer in time, or its terms are others.
        """
        deadline_s = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline_s:
            for reply in self.session.get(f"{self.key}/terms", timeout=1.0):
                if reply.ok is not None:
                    check_terms(terms, reply.ok.payload.to_bytes(), crossing=self.crossing)
                    return
            time.sleep(_POLL_S)
        raise RunError(f"hop {self.crossing}: nobody receives after {self.timeout_s:g} s")

    def wait_for_room(self, timeout_s: float) -> bool | None:
        """Wait until a frame can be handed over at once; None if none can in time."""
        if not self._free:
            with self._lock:
                self._free = self._room.wait_for(self._num_free, timeout_s)
        return self._free > 0 or None

    def _num_free(self) -> int:
        oldest = next(iter(self._parcels.values()), None)
        overtaken = 0 if oldest is None else self._num_turns - oldest.turn
        return max(0, min(WINDOW - len(self._parcels), _SPAN - overtaken))

    def send(self, request: int, payload: bytes, width: int = 0) -> int:
        """Hand over one frame; waits while ``WINDOW`` frames are not acknowledged.

        One thread at a time may call it. Where nothing is before the frame, it is given to the
        transport first, and noted while it is on its way.

        Args:
            request: A number that no frame of this hop had lately.
            payload: What the frame carries.
            width: What nested crossings of the request are to take; 0 leaves it to each sender.

        Returns:
            Length of the frame in bytes.

        Raises:
            RunError: Nothing was acknowledged in time.
        """
        header = encode_header(request, self.crossing, payload, width)
        if not (self._free or self.wait_for_room(self.timeout_s)):
            raise RunError(
                f"hop {self.crossing}: request {next(iter(self._parcels))} has no "
                f"acknowledgement after {self.timeout_s:g} s"
            )
        self._free -= 1
        num_bytes, now_s = HEADER_BYTES + len(payload), time.monotonic()
        at_once = self.throttle is None and not self._unsent
        if at_once:
            self._putting = request
            self._transmit(header, payload)
        # Nothing is called here that need not be: the transport's threads want this core.
        with self._lock:
            turn = self._num_turns = self._num_turns + 1
            if at_once:
                put = self._num_puts = self._num_puts + 1
                self._parcels[request] = _Parcel(
                    request, header, payload, num_bytes, turn, now_s, now_s, now_s, put, 1
                )
                self._resend_at_s = now_s + self._patience_s
                if self._putting is None:
                    self._forget(request, self._early_s)
            else:
                parcel = _Parcel(request, header, payload, num_bytes, turn, now_s, now_s)
                self._parcels[request] = parcel
                self._schedule(parcel)
                self._unsent.append(parcel)
                self._changed.notify()
        if at_once:
            self._passed.append((request, num_bytes, 0.0, 0.0, now_s))
        return num_bytes

    def send_again(self) -> None:
        """Send what is not acknowledged at once, as to a receiver that is another process now."""
        with self._lock:
            self._repeat(list(self._parcels.values()))

    def flush(self, timeout_s: float) -> bool:
        """Wait until every frame is acknowledged; return whether it is."""
        with self._lock:
            return self._room.wait_for(lambda: not self._parcels, timeout_s)

    def passages(self) -> tuple[Passage, ...]:
        """Return every frame that was sent since the last call, repetitions included."""
        found = [self._passed.popleft() for _ in range(len(self._passed))]
        return tuple(Passage(*each) for each in found)

    def round_trips(self) -> tuple[RoundTrip, ...]:
        """Return those of the frames that were acknowledged since the last call and sent once."""
        found = [self._round_trips.popleft() for _ in range(len(self._round_trips))]
        return tuple(RoundTrip(*each) for each in found)

    def _repeat(self, parcels: Sequence[_Parcel]) -> None:
        for parcel in parcels:
            if parcel.put:
                parcel.put = 0
                self._unsent.append(parcel)
                self.retries += 1
        self._patience_s = self._usual_s
        self._changed.notify()

    def _schedule(self, parcel: _Parcel) -> None:
        """Give a frame its span on the link."""
        parcel.handed_over_s = parcel.release_s = time.monotonic()
        if self.throttle is not None:
            parcel.asked_s = self.throttle.link.transfer_s(parcel.num_bytes)
            parcel.release_s = self.throttle.reserve(parcel.num_bytes)

    def _work(self) -> None:
        """Give to the transport what has to wait for its link, or was there before."""
        with suppress(zenoh.ZError):  # the session is closed: the process is on its way out
            while (parcel := self._next_parcel()) is not None:
                wait_until(parcel.release_s)
                self._put(parcel)

    def _put(self, parcel: _Parcel) -> None:
        start_s, put_s = parcel.handed_over_s, time.monotonic()
        parcel.put_s = put_s
        self._transmit(parcel.header, parcel.payload)
        observed_s = put_s - start_s if parcel.asked_s else 0.0
        self._passed.append(
            (parcel.request, parcel.num_bytes, parcel.asked_s, observed_s, start_s)
        )

    def _transmit(self, header: bytes, payload: bytes) -> None:
        if len(payload) <= _JOINED_BYTES:
            self._publisher.put(header + payload)
        else:
            self._publisher.put(payload, attachment=header)

    def _next_parcel(self) -> _Parcel | None:
        """Wait for a frame to release: a new one, one that was lost, or the oldest if overdue."""
        with self._lock:
            while not self._closed:
                now_s = time.monotonic()
                if self._unsent:
                    parcel = self._unsent.popleft()
                    if parcel.request in self._parcels:
                        return self._released(parcel)
                elif not self._parcels:
                    self._changed.wait(self.resend_s)  # nobody says that one was sent at once
                elif now_s < self._resend_at_s:
                    self._changed.wait(self._resend_at_s - now_s)
                else:
                    self._patience_s = min(
                        2 * self._patience_s, max(self._usual_s, _LONGEST_RESEND_S)
                    )
                    self.retries += 1
                    parcel = next(iter(self._parcels.values()))
                    parcel.overdue = True
                    return self._released(parcel)
        return None

    def _released(self, parcel: _Parcel) -> _Parcel:
        """Note that a frame goes to the transport next; a second time, it takes its span again."""
        if parcel.times:
            self._schedule(parcel)
        parcel.times += 1
        self._num_puts += 1
        parcel.put = self._num_puts
        self._resend_at_s = parcel.release_s + self._patience_s
        return parcel

    def _on_ack(self, sample: zenoh.Sample) -> None:
        data = sample.payload.to_bytes()
        if len(data) % _ACK.size:
            return
        with self._lock:
            for request, kept_us in _ACK.iter_unpack(data):
                self._forget(request, 1e-6 * kept_us)
            self._room.notify_all()

    def _forget(self, request: int, kept_s: float) -> None:
        """Note that a frame arrived, and which frames did not that were sent before it."""
        parcel = self._parcels.pop(request, None)
        if parcel is None:
            if request == self._putting:
                self._putting, self._early_s = None, kept_s
            return
        now_s = time.monotonic()
        if parcel.times == 1:
            took_s = now_s - parcel.put_s
            self._usual_s = max(self.resend_s, min(2 * took_s, _LONGEST_USUAL_S))
            self._round_trips.append((parcel.num_bytes, max(0.0, took_s - kept_s)))
        elif parcel.overdue:  # it is not known which one is acknowledged: was it sent too early?
            self._usual_s = min(1.5 * self._usual_s, _LONGEST_USUAL_S)
        self._patience_s = self._usual_s
        self._resend_at_s = now_s + self._patience_s
        # Frames arrive in the order in which they are sent, unless they are lost.
        lost = [each for each in self._parcels.values() if 0 < each.put < parcel.put]
        if lost and parcel.times == 1:
            self._repeat(lost)


def _ack(request: int, kept_s: float) -> bytes:
    return _ACK.pack(request, min(_MOST, round(1e6 * kept_s)))
