"""The way in: every request ends once, in a result or in a typed error, by its deadline.

.. code-block:: none

    submit --> waiting --> in flight --> result            the first one that comes
      |         ^  |          |   |----> failed            a device says so
      busy      |  deadline   |   |----> result            of the early exit, shortly before
      refused   '-------------'   '----> deadline          there is none
                 a device is back: what was under way may be lost, so it is sent again

Requests wait in the order of their priority, then of their arrival. Each is known by its number,
and has another each time that it is sent; a number that is not known any more is ignored, so a
request never has two results. Both queues are bounded.
"""

import heapq
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Self

import numpy as np
import zenoh

from isthmus.bundle import Bundle
from isthmus.errors import InputError, IsthmusError, RequestError, RunError
from isthmus.files import from_json
from isthmus.run import border
from isthmus.run.adapt import Adapter
from isthmus.run.early import EarlyExit, Result
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import Failure, error_key, hop_key, hop_terms, in_flight

MAX_WAITING = 256
MAX_DEADLINE_S = 3600.0
_ROOM_S = 0.05
_RECEIVE_S = 0.2
_NUMBERS = 1 << 32


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """One request until it ends.

    Attributes:
        id: What its client calls it, after ``client``; else a number of our own.
        payload: Its input.
        deadline_s: When it ends at the latest, in seconds of `time.monotonic`.
        limit_s: How long that was, for people.
        priority: Higher goes first.
        future: What its result is told to.
        numbers: Under which it was sent.
        waits: Whether it is to be sent.
        tried: Whether the early exit is known not to be sure of it.
        sent_s: When it was last sent, as ``deadline_s``.
    """

    id: bytes
    payload: bytes
    deadline_s: float
    limit_s: float
    priority: int
    future: Future[Result]
    numbers: list[int] = field(default_factory=list)
    waits: bool = False
    tried: bool = False
    sent_s: float = 0.0


@dataclass(eq=False)
class Ingress:
    """Takes requests for a chain of devices; owns two threads. Use it as a context manager.

    ``on_end`` is told of each request how it ended, ``"done"``, ``"early exit"`` or a
    `RequestError`'s reason, and after how many seconds; by whichever thread ends it.

    Attributes:
        bundle: What the devices run.
        identity: Its id.
        session: Of this process.
        run: Id of the service, part of every key.
        early_exit: What answers shortly before a deadline; None: nobody.
        switch_at: How many requests may wait before the early exit answers the newest of them, as
            long as no more may be in flight (model switching, Zhang et al., HotCloud 2020); None:
            all.
        adapter: Chooses the width of nested crossings; None leaves it to their senders.
    """

    bundle: Bundle
    identity: str
    session: zenoh.Session
    run: str
    _: KW_ONLY
    early_exit: EarlyExit | None = None
    switch_at: int | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        self.away: Callable[[], Sequence[str]] = tuple  # names of devices that are not there
        self.on_end: Callable[[str, float], None] = lambda outcome, seconds: None
        self.retries = 0
        self.num_ended = 0
        self._depth = in_flight(self.bundle)
        self._waiting: list[tuple[int, int, _Request]] = []  # a heap
        self._in_flight: dict[int, _Request] = {}
        self._known: dict[bytes, _Request] = {}
        self._turn = 0
        self._has_room = True  # the hop, at this turn
        self._number = random.randrange(_NUMBERS)  # so that none is known from an earlier life
        self.is_open = True  # whether requests are taken
        self._closed = False
        self._changed = threading.Condition()
        near, last = hop_key(self.run, 0), len(self.bundle.devices)
        self._sender = Sender(self.session, near, crossing=0, timeout_s=MAX_DEADLINE_S)
        terms = hop_terms(self.bundle, self.identity, last)
        self._receiver = Receiver(self.session, hop_key(self.run, last), terms)
        self._errors = self.session.declare_subscriber(error_key(self.run), self._on_error)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._feed, self._collect)
        ]

    def __enter__(self) -> Self:
        self._sender.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self.is_open, self._closed = False, True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.stop()
        self._errors.undeclare()
        self._receiver.close()
        self._sender.__exit__()

    def submit(
        self, payload: bytes, *, deadline_s: float, priority: int = 0, id_: bytes = b""
    ) -> Future[Result]:
        """Take one request.

        Args:
            payload: The bundle's inputs, as `isthmus.run.border.to_bytes` joins them.
            deadline_s: How long it may take, in seconds.
            priority: Higher goes first.
            id_: What the client calls it: asked again under the same name while it is under way,
                it is the same request. Empty for one that is asked once.

        Returns:
            What becomes a result, or a `RequestError`, by the deadline.

        Raises:
            RequestError: The input is wrong, or as many requests wait as may.
        """
        return self.submit_all([payload], deadline_s=deadline_s, priority=priority, id_=id_)[0]

    def submit_all(
        self, payloads: Sequence[bytes], *, deadline_s: float, priority: int = 0, id_: bytes = b""
    ) -> list[Future[Result]]:
        """Do as `submit` for several requests: all of them are taken, or none."""
        try:
            for payload in payloads:
                self._check(payload, deadline_s)
            with self._changed:
                known = self._known.get(b"client" + id_) if id_ else None
                if known is not None:
                    if [known.payload] != [*payloads]:
                        raise RequestError(
                            "its id is that of another request that is under way; give each its "
                            "own",
                            reason="refused",
                        )
                    return [known.future]
                self._check_room(len(payloads))
                return [self._take_in(each, deadline_s, priority, id_) for each in payloads]
        except RequestError as error:
            for _ in payloads:
                self.on_end(error.reason, 0.0)
            raise

    def send_again(self) -> None:
        """Send all that is in flight once more: a device came back, and what it had is lost."""
        with self._changed:
            for request in {id(each): each for each in self._in_flight.values()}.values():
                if not request.waits:
                    self.retries += 1
                    self._wait(request, first=True)

    def drain(self) -> bool:
        """Take no more requests; return whether those that are known have ended."""
        with self._changed:
            self.is_open = False
            return not self._known

    def stop(self) -> None:
        """Take no more requests, and end those that are known."""
        with self._changed:
            self.is_open = False
            requests = list(self._known.values())
        for request in requests:
            self._end(request, RequestError("the service was stopped", reason="busy"))

    def hop_faults(self) -> tuple[int, int]:
        """Return how many frames were sent again, and how many arrived damaged."""
        return self._sender.retries, self._receiver.damaged

    def depth(self) -> tuple[int, int]:
        """Return how many requests wait, and how many are in flight."""
        with self._changed:
            return len(self._waiting), len(self._known) - len(self._waiting)

    def _check_room(self, count: int) -> None:
        if not self.is_open:
            raise RequestError("the service is being stopped; ask again later", reason="busy")
        if len(self._waiting) + count > MAX_WAITING:
            raise RequestError(
                f"{len(self._waiting)} requests wait already, of {MAX_WAITING} that may; "
                "ask again later",
                reason="busy",
            )

    def _take_in(
        self, payload: bytes, deadline_s: float, priority: int, id_: bytes
    ) -> Future[Result]:
        request = _Request(
            id=b"client" + id_ if id_ else self._turn.to_bytes(8, "little"),
            payload=payload,
            deadline_s=time.monotonic() + deadline_s,
            limit_s=deadline_s,
            priority=priority,
            future=Future(),
        )
        request.future.set_running_or_notify_cancel()  # so that nobody can cancel it
        self._known[request.id] = request
        self._wait(request)
        return request.future

    def _check(self, payload: bytes, deadline_s: float) -> None:
        if not 0 < deadline_s <= MAX_DEADLINE_S:
            raise RequestError(
                f"deadline: found {deadline_s:g} s, expected over 0 and at most 3600 s",
                reason="refused",
            )
        try:
            arrays = border.from_bytes(payload, self.bundle.inputs)
        except RunError as error:
            raise RequestError(str(error), reason="refused") from error
        for tensor, array in zip(self.bundle.inputs, arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RequestError(
                    f"input {tensor.name}: found NaN or infinity, expected finite numbers",
                    reason="refused",
                )

    def _wait(self, request: _Request, *, first: bool = False) -> None:
        rank = -(1 << 62) if first else -request.priority
        request.waits = True
        heapq.heappush(self._waiting, (rank, self._turn, request))
        self._turn += 1
        self._changed.notify_all()

    def _feed(self) -> None:
        """Send what waits, as long as there is room, and end what is late, or sure."""
        while not self._closed:
            self._has_room = bool(self._sender.wait_for_room(0.0))
            self._end_late()
            self._end_crowding()
            with self._changed:
                request = self._next()
                if request is None and (self._full() or not self._waiting):
                    self._changed.wait(0.0 if self._crowded() else self._left_s())
                    continue
            if request is None:
                self._sender.wait_for_room(_ROOM_S)
            elif not self._leaves_early(request) and self._has_room and not self._full():
                self._send(request)

    def _next(self) -> _Request | None:
        """Return which request to send; where none may go, one that the exit may be sure of."""
        if self._waiting and self._has_room and not self._full():
            return self._waiting[0][2]
        if self.early_exit is None or self.bundle.exit_confidence is None:
            return None
        return next((each for *_, each in self._waiting if not each.tried), None)

    def _send(self, request: _Request) -> None:
        """Send the first of those that wait, if this is it still."""
        with self._changed:
            if not self._waiting or self._waiting[0][2] is not request:
                return
            heapq.heappop(self._waiting)
            request.waits = False
            number = self._number
            self._number = (number + 1) % _NUMBERS
            self._in_flight[number] = request
            request.numbers.append(number)
        request.sent_s = time.monotonic()
        width = 0 if self.adapter is None else self.adapter.choose().byte
        try:
            self._sender.send(number, request.payload, width)
        except IsthmusError as error:
            self._end(request, RequestError(str(error), reason="failed"))

    def _full(self) -> bool:
        """Whether as many requests are in flight as may."""
        return len(self._known) - len(self._waiting) >= self._depth

    def _crowded(self) -> bool:
        """Whether so many wait, and none may go, that the early exit is to answer one."""
        return (
            self.early_exit is not None
            and self.switch_at is not None
            and len(self._waiting) > self.switch_at
            and (self._full() or not self._has_room)
        )

    def _end_crowding(self) -> None:
        """Let the early exit answer the newest of those that wait, until few do."""
        while self.early_exit is not None and not self._closed:
            with self._changed:
                if not self._crowded():
                    return
                newest = max(self._waiting)
                self._waiting.remove(newest)
                heapq.heapify(self._waiting)
                newest[2].waits = False
            self._end(newest[2], _answered(self.early_exit, newest[2].payload))

    def _leaves_early(self, request: _Request) -> bool:
        """End a request that the early exit is sure of; one that was sent before goes on."""
        if self.early_exit is None or request.tried or request.numbers:
            return False
        request.tried = True
        try:
            result = self.early_exit.answer_if_sure(request.payload)
        except RunError:  # the whole network may do better
            result = None
        if result is not None:
            self._end(request, result)
        return result is not None

    def _left_s(self) -> float | None:
        """Return how long it is to the next deadline; None without one."""
        if not self._known:
            return None
        soonest_s = min(map(self._last_s, self._known.values()))
        return max(0.0, soonest_s - time.monotonic())

    def _end_late(self) -> None:
        with self._changed:
            now_s = time.monotonic()
            late = [each for each in self._known.values() if self._last_s(each) <= now_s]
        for request in late:
            if self.early_exit is not None and time.monotonic() < request.deadline_s:
                self._end(request, _answered(self.early_exit, request.payload))
                continue
            away = self.away()
            why = f"; {', '.join(away)} {'is' if len(away) == 1 else 'are'} away" if away else ""
            message = f"no result within {request.limit_s:.3g} s{why}"
            device = away[0] if away else ""
            self._end(request, RequestError(message, reason="deadline", device=device))

    def _last_s(self, request: _Request) -> float:
        """Return when a request is given up: at its deadline, or in time for the early exit."""
        if self.early_exit is None:
            return request.deadline_s
        return request.deadline_s - self.early_exit.begin_s(request.limit_s)

    def _collect(self) -> None:
        while not self._closed:
            frame, width = self._receiver.receive(_RECEIVE_S), ""
            if frame is None:
                continue
            with self._changed:
                request = self._in_flight.get(frame.request)
            if request is not None and self.adapter is not None:
                width = self.adapter.text(frame.width)
                if len(request.numbers) == 1:  # else it is not known which sending is answered
                    self.adapter.learn(frame.width, frame.arrived_s - request.sent_s)
            self._end_number(frame.request, Result(payload=frame.payload, width=width))

    def _on_error(self, sample: zenoh.Sample) -> None:
        with suppress(InputError, IndexError):  # what is not ours is not answered
            said = from_json(sample.payload.to_bytes(), Failure, where="failure")
            device = self.bundle.devices[said.device].name
            message = f"device {device}: {said.message}"
            self._end_number(said.request, RequestError(message, reason="failed", device=device))

    def _end_number(self, number: int, result: Result | RequestError) -> None:
        with self._changed:
            request = self._in_flight.get(number)
        if request is not None:
            self._end(request, result)

    def _end(self, request: _Request, result: Result | RequestError) -> None:
        """Tell the result, once, and forget the request."""
        with self._changed:
            if self._known.pop(request.id, None) is None:
                return
            for number in request.numbers:
                self._in_flight.pop(number, None)
            if request.waits:
                self._waiting = [entry for entry in self._waiting if entry[2] is not request]
                heapq.heapify(self._waiting)
            self.num_ended += 1
            self._changed.notify_all()
        self.on_end(_outcome(result), time.monotonic() - request.deadline_s + request.limit_s)
        if isinstance(result, RequestError):
            request.future.set_exception(result)
        else:
            request.future.set_result(result)


def _answered(early_exit: EarlyExit, payload: bytes) -> Result | RequestError:
    try:
        return early_exit.answer(payload)
    except RunError as error:
        return RequestError(f"early exit: {error}", reason="failed")


def _outcome(result: Result | RequestError) -> str:
    if isinstance(result, RequestError):
        return result.reason
    return "early exit" if result.early_exit else "done"
