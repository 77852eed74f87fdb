"""The side of a link that is probed: it says what it is, and sends frames back.

Nobody can ask for more than `MAX_FRAME_BYTES` at once, one prober is answered at a time, and none
for longer than ten minutes.
"""

import os
import queue
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zenoh

from isthmus.errors import InputError, IsthmusError, RunError
from isthmus.files import from_json, to_json
from isthmus.platform import NodeTimes
from isthmus.platform.platform import NAME
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import PROTOCOL, Terms
from isthmus.run.rates import Rates
from isthmus.run.service import address, refuse, secured
from isthmus.run.session import closing, open_session
from isthmus.wire import HEADER_BYTES

PORT = 7446
MAX_FRAME_BYTES = 1 << 20

KEY = "isthmus/probe"
TERMS = Terms(bundle="probe", codec="echo")
ORDER = struct.Struct("<I")  # how long a frame to send back, its header included
NOTHING, END = 0, 1  # in place of a length
SMALLEST = HEADER_BYTES + ORDER.size
SILENCE_S = 10.0

_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_S = 600.0  # for one prober
_POLL_S = 0.2


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
class Hello:
    """What a prober says first.

    Attributes:
        id: A random one, part of its keys.
        protocol: Version of the hop's rules.
    """

    SCHEMA = "isthmus.hello/1"
    id: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What it hears."""

    SCHEMA = "isthmus.greeting/1"
    probed: Probed


def check_name(name: str) -> str:
    """Return a name that a platform file can hold.

    Raises:
        InputError: It is none.
    """
    if not re.fullmatch(NAME, name):
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
    greeting = to_json(Greeting(probed=own))

    def hello(query: zenoh.Query) -> None:
        try:
            visitor = _visitor(query.payload.to_bytes() if query.payload else b"")
            with lock:
                if answered.is_set():
                    raise RunError("answers another prober; try again in a minute")
                answered.set()
        except IsthmusError as error:
            refuse(query, error)
            return
        visitors.put_nowait(visitor)
        with query:
            query.reply(f"{KEY}/hello", greeting)

    opened = open_session(listen=f"{scheme}/{place}", more=more)
    with closing(opened) as session, ExitStack() as stack:
        stack.callback(session.declare_queryable(f"{KEY}/hello", hello).undeclare)

        def answer(stop: threading.Event, say: Callable[[str], None]) -> None:
            while not stop.is_set():
                try:
                    visitor = visitors.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                say(f"probed by {visitor[:8]}")
                try:
                    say(f"{visitor[:8]}: {_echo(session, visitor, stop)} frames, then it ended")
                except IsthmusError as error:
                    say(f"{visitor[:8]}: {error}")
                answered.clear()

        yield answer


def _visitor(data: bytes) -> str:
    if len(data) > 1 << 10:
        raise RunError(f"hello: found {len(data)} bytes, expected a short one")
    hello = from_json(data, Hello, where="hello")
    if hello.protocol != PROTOCOL or not _ID.fullmatch(hello.id):
        raise RunError(
            f"speaks protocol {PROTOCOL}, the prober {hello.protocol}; give both the same Isthmus"
        )
    return hello.id


def _echo(session: zenoh.Session, visitor: str, stop: threading.Event) -> int:
    """Answer one prober until it ends, falls silent or the time is up; return its frames."""
    key = f"{KEY}/{visitor}"
    receiver = Receiver(session, f"{key}/there", TERMS)
    number, filler = 0, os.urandom(MAX_FRAME_BYTES)
    try:
        with Sender(session, f"{key}/back", crossing=1, timeout_s=SILENCE_S) as sender:
            sender.agree(TERMS)
            for request, order in _orders(receiver, stop):
                number += 1
                if order != NOTHING:
                    sender.send(request, filler[: max(0, order - HEADER_BYTES)])
    finally:
        receiver.close()
    return number


def _orders(receiver: Receiver, stop: threading.Event) -> Iterator[tuple[int, int]]:
    """Yield of each frame its number, and how long a one to send back."""
    begun_s = heard_s = time.monotonic()
    while not stop.is_set() and time.monotonic() < min(heard_s + SILENCE_S, begun_s + _LONGEST_S):
        frame = receiver.receive(_POLL_S)
        if frame is None:
            continue
        heard_s = time.monotonic()
        if len(frame.payload) < ORDER.size:
            raise RunError(f"sends a frame of {len(frame.payload)} bytes, which asks for nothing")
        (order,) = ORDER.unpack_from(frame.payload)
        if order == END:
            return
        if order > MAX_FRAME_BYTES:
            raise RunError(f"asks for {order} bytes, expected at most {MAX_FRAME_BYTES}")
        yield frame.request, order
