"""One device of a service: a stage of a bundle that answers for as long as it is wanted.

.. code-block:: none

    client --query--> ingress -> stage 0 --hop--> stage 1 --hop--> ... stage N-1
                         ^        (the first device's process)            |
                         '---------------------- hop N -------------------'

Devices start in any order, and find each other by a token that each holds while it serves. Those
with another bundle or another version never hear each other, and both sides say so. A device
that ends takes what it was computing with it: when it is back, the hop before it sends again what
was not acknowledged, and the ingress what was in flight.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import zenoh

from isthmus import __version__
from isthmus.bundle import PLATFORM_FILE, Bundle, bundle_id, read_bundle
from isthmus.errors import InputError, IsthmusError, RequestError
from isthmus.files import from_json, to_json
from isthmus.platform import load_platform
from isthmus.run.access import access_settings
from isthmus.run.adapt import Adapter, bundle_links, empty_s, rungs
from isthmus.run.early import EarlyExit, Result, load_exit
from isthmus.run.hop import Arrival, Receiver, Sender
from isthmus.run.ingress import MAX_DEADLINE_S, Ingress
from isthmus.run.messages import (
    About,
    Ask,
    Failure,
    How,
    Refusal,
    Work,
    about_key,
    error_key,
    hop_key,
    hop_terms,
    infer_key,
    run_of,
)
from isthmus.run.session import closing, open_session
from isthmus.run.stage import LoadedStage, apply_each, load_stage
from isthmus.run.watch import Watch
from isthmus.wire.spec import SYMBOLS

PORT = 7447  # of the first device; the next ones have the next ports
SERVICE = "main"

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_ROOM_BYTES = 16 << 20
_ASK_BYTES = 4096
_IDLE_S = 0.1
_GRACE_S = 5.0  # of what is under way when the service is asked to stop
_RECONNECT_MS = {"period_init_ms": 50, "period_max_ms": 1000, "period_increase_factor": 2}


_Asked = dict[Future[Result], zenoh.Query]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Where the devices of a service are.

    Attributes:
        addresses: ``HOST:PORT`` or ``HOST`` of devices by name; those left out are on this
            machine's loopback, at port 7447 and the following in the bundle's order.
        service: Its name, where one network has several.
        keys: The folder of this device's certificate and key, as `isthmus.run.keys` issues them;
            without one, devices are on loopback only.
        config: A file of zenoh's settings that are taken as they are, in place of all these.
        target_s: How long a request may take, in seconds, of which the first device chooses the
            width of nested crossings; None leaves them at the widest.
        switch_at: How many requests may wait on the first device before its early exit answers the
            newest of them; None: all.
    """

    addresses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    service: str = SERVICE
    keys: Path | None = None
    config: Path | None = None
    target_s: float | None = None
    switch_at: int | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """One device at work; made by `open_service`.

    Attributes:
        bundle: What it serves.
        identity: Id of the bundle.
        index: Of the device.
        stage: What it computes.
        session: Of this process.
        receiver: From the device before.
        sender: To the next one.
        ingress: On the first device, None on the others.
        watch: Says who else is there.
        run: Id of the service, part of every key.
        name: Of the service.
        place: Where it listens, for people.
        on_frame: Told of each frame what it cost; None where it could not be computed.
        ready_s: Since when no frame is computed.
    """

    bundle: Bundle
    identity: str
    index: int
    stage: LoadedStage
    session: zenoh.Session
    receiver: Receiver
    sender: Sender
    ingress: Ingress | None
    watch: Watch
    run: str
    name: str
    place: str
    on_frame: Callable[[Work | None], None] = lambda work: None
    ready_s: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """The device's name."""
        return self.bundle.devices[self.index].name

    def work(self, stop: threading.Event) -> None:
        """Compute what arrives until told to stop; then finish what is under way."""
        while not stop.is_set():
            self._turn(stop)
        end_s = time.monotonic() + _GRACE_S
        if self.ingress is not None:
            while not self.ingress.drain() and time.monotonic() < end_s:
                self._turn(stop)
            self.ingress.stop()
        self.receiver.close()
        self.sender.flush(max(0.0, end_s - time.monotonic()))

    def about(self) -> About:
        """Say what the service is, and how it is; asked of the first device."""
        assert self.ingress is not None
        waiting, in_flight = self.ingress.depth()
        return About(
            bundle=self.identity,
            version=__version__,
            devices=tuple(device.name for device in self.bundle.devices),
            away=self.watch.away(),
            inputs=self.bundle.inputs,
            outputs=self.bundle.outputs,
            waiting=waiting,
            in_flight=in_flight,
            ended=self.ingress.num_ended,
            retries=self.ingress.retries,
        )

    def hop_faults(self) -> tuple[int, int]:
        """Return how many frames this process sent again, and how many reached it damaged."""
        more = (0, 0) if self.ingress is None else self.ingress.hop_faults()
        return self.sender.retries + more[0], self.receiver.damaged + more[1]

    def _turn(self, stop: threading.Event) -> None:
        """Compute what comes, and hand it on as soon as there is room."""
        frames = self.receiver.receive_batch(_IDLE_S, self.stage.batch)
        if frames:
            self._compute(frames, stop)
            self.ready_s = time.monotonic()

    def _compute(self, frames: Sequence[Arrival], stop: threading.Event) -> None:
        for frame, result in apply_each(self.stage, frames, None, ready_s=self.ready_s):
            if isinstance(result, IsthmusError):
                self._fail(frame, result)
                continue
            payload, work = result
            self.on_frame(work)
            while not self.sender.wait_for_room(_IDLE_S):
                if stop.is_set() and not self.sender.wait_for_room(_GRACE_S):
                    return  # nobody takes it; the ingress asks for it again
            try:
                self.sender.send(frame.request, payload, frame.width)
            except InputError as error:  # longer than a frame may be
                self._fail(frame, error)

    def _fail(self, frame: Arrival, error: IsthmusError) -> None:
        """Tell the first device that a request cannot be computed."""
        self.on_frame(None)
        message = " ".join(str(error).split())
        failure = Failure(request=frame.request, device=self.index, message=message)
        self.session.put(
            error_key(self.run),
            to_json(failure),
            congestion_control=zenoh.CongestionControl.BLOCK,
        )


@contextmanager
def open_service(
    path: Path,
    device: str,
    *,
    site: ServiceConfig | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> Iterator[Service]:
    """Begin to serve one device of a bundle; see `Service.work`.

    Args:
        path: The bundle.
        device: The device's name.
        site: Where the devices are; all on loopback if None.
        say: Told in words who comes and goes.

    Yields:
        The device, heard by the others.

    Raises:
        InputError: The bundle has no such device, or an address is none.
        BundleError: The bundle is damaged.
        RunError: The program cannot be loaded, or the port is taken.
    """
    site = site or ServiceConfig()
    bundle, identity = read_bundle(path), bundle_id(path)
    names = tuple(entry.name for entry in bundle.devices)
    if device not in names:
        raise InputError(f"{path}: has no device {device!r}; there are {', '.join(names)}")
    check_service(site.service)
    index = names.index(device)
    stage = load_stage(path, bundle, index)
    early_exit = _exit_of(path, bundle, index, site)
    run = run_of(site.service, identity)
    token = run.rpartition("/")[2]
    with ExitStack() as stack:
        session = stack.enter_context(closing(_session(site, bundle, index)))
        receiver = Receiver(session, hop_key(run, index), hop_terms(bundle, identity, index))
        sender = Sender(
            session, hop_key(run, index + 1), crossing=index + 1, timeout_s=MAX_DEADLINE_S
        )
        stack.enter_context(sender)
        ingress = None
        if index == 0:
            adapter = None
            if site.target_s is not None:
                links = bundle_links(bundle, load_platform(path / PLATFORM_FILE))
                rest_s = sum(map(empty_s, links))
                adapter = Adapter(rungs(bundle, links), site.target_s, rest_s=rest_s)
            ingress = Ingress(
                bundle,
                identity,
                session,
                run,
                early_exit=early_exit,
                switch_at=site.switch_at,
                adapter=adapter,
            )
            stack.enter_context(ingress)

        def came(other: int) -> None:
            if other == (index + 1) % len(names):
                sender.send_again()
            if ingress is not None:
                ingress.send_again()

        watch = Watch(session, site.service, names, index, token, say=say, came=came)
        if ingress is not None:
            ingress.away = watch.away
        service = Service(
            bundle=bundle,
            identity=identity,
            index=index,
            stage=stage,
            session=session,
            receiver=receiver,
            sender=sender,
            ingress=ingress,
            watch=watch,
            run=run,
            name=site.service,
            place=_place(site, names, index),
        )
        if ingress is not None:
            infer, about = infer_key(site.service), about_key(site.service)
            for key, answer in (
                (infer, partial(_infer, ingress, infer, {})),
                (about, partial(_tell, service, about)),
            ):
                stack.callback(session.declare_queryable(key, answer).undeclare)
        yield service


def _exit_of(path: Path, bundle: Bundle, index: int, site: ServiceConfig) -> EarlyExit | None:
    if index:
        if (site.target_s, site.switch_at) != (None, None):
            raise InputError(f"--adapt, --switch-at: give them to {bundle.devices[0].name} alone")
        return None
    found = load_exit(path, bundle)
    if site.switch_at is not None and found is None:
        raise InputError(
            f"{path}: found no early exit to switch to; export it with --early-exit or "
            "--early-model"
        )
    return found


def check_service(name: str) -> None:
    """Raise an `InputError` unless a name can stand in a key."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise InputError(
            f"service {name!r}: expected at most 64 letters, digits, dots, dashes, underscores"
        )


def address(text: str, port: int) -> str:
    """Return ``HOST:PORT`` for ``HOST:PORT`` or ``HOST``, with brackets around IPv6.

    Raises:
        InputError: It is neither.
    """
    host, colon, number = text.rpartition(":")
    if not colon or text.endswith("]") or (host.count(":") and not host.endswith("]")):
        host, number = text, str(port)  # no port: a name, or IPv6 without one
    if not host or not number.isdecimal() or not 0 < int(number) < 1 << 16 or " " in host:
        raise InputError(f"address {text!r}: expected HOST or HOST:PORT, such as 10.0.0.5:7447")
    if host.count(":") and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{number}"


def secured(
    place: str, keys: Path | None, *, who: str, name: str = ""
) -> tuple[str, dict[str, Any]]:
    """Return zenoh's scheme and settings for who may listen at a place.

    Args:
        place: ``HOST:PORT``.
        keys: The folder of its certificate and key; None where it has none.
        who: It, for people.
        name: Whose the certificate must be; anybody's if left out.

    Raises:
        InputError: It has no keys and the place is not on loopback, or the keys are wrong.
    """
    host = place.rpartition(":")[0]
    if keys is not None:
        from isthmus.run.keys import tls_settings  # noqa: PLC0415  needs the extra `serve`

        return "tls", tls_settings(keys, name=name)
    if host not in LOOPBACK:
        raise InputError(
            f"{who}: found address {host}, expected 127.0.0.1, as without keys everybody could "
            "use it; make some with `isthmus keys init`"
        )
    return "tcp", {}


def _place(site: ServiceConfig, names: tuple[str, ...], index: int) -> str:
    if site.config is not None:
        return f"the addresses of {site.config}"
    place = _places(site, names)[index]
    return place if site.keys else f"{place} (this machine only: there are no keys)"


def _places(site: ServiceConfig, names: tuple[str, ...]) -> list[str]:
    return [
        address(site.addresses.get(name, "127.0.0.1"), PORT + place)
        for place, name in enumerate(names)
    ]


def _session(site: ServiceConfig, bundle: Bundle, index: int) -> zenoh.Session:
    """Listen at this device's address, and connect to those before it, whenever they come."""
    names = tuple(entry.name for entry in bundle.devices)
    unknown = sorted(set(site.addresses) - set(names))
    if unknown:
        raise InputError(
            f"address of {unknown[0]!r}: the bundle has no such device; there are "
            f"{', '.join(names)}"
        )
    places = _places(site, names)
    if site.config is not None:
        return open_session(config=site.config)
    scheme, belonging = secured(
        places[index], site.keys, who=f"device {names[index]}", name=names[index]
    )
    if site.keys is not None:
        belonging |= access_settings(site.service, names, names[index])
    more = {
        "connect/endpoints": [f"{scheme}/{place}" for place in places[:index]],
        "connect/exit_on_failure": False,
        "connect/timeout_ms": -1,
        "connect/retry": _RECONNECT_MS,
        "adminspace/enabled": False,
        "transport/link/rx/max_message_size": _message_limit(bundle),
        **belonging,
    }
    return open_session(listen=f"{scheme}/{places[index]}", more=more)


def _message_limit(bundle: Bundle) -> int:
    """Return how long a message may be in bytes; zenoh drops longer ones before it holds them.

    Twice what passes by right, and room in which a mistake still has its answer.
    """
    border = (bundle.inputs, bundle.outputs)
    sides = [[(each.shape, each.dtype) for each in side] for side in border]
    sides += [list(zip(each.shapes, each.dtypes, strict=True)) for each in bundle.crossings]
    longest = max(
        sum(prod(shape) * np.dtype(SYMBOLS.get(dtype, dtype)).itemsize for shape, dtype in side)
        for side in sides
    )
    return 2 * longest + _ROOM_BYTES


def _infer(ingress: Ingress, key: str, asked: _Asked, query: zenoh.Query) -> None:
    """Answer a client's request when it has ended: the last query, if several have its id."""

    def reply(future: Future[Result]) -> None:
        query, error = asked.pop(future, None), future.exception()
        if query is None:
            return
        if isinstance(error, RequestError):
            refuse(query, error)
            return
        result = future.result()
        how = How(width=result.width, early_exit=result.early_exit)
        with query:
            said = None if how == How() else to_json(how)
            query.reply(key, result.payload, attachment=said)

    try:
        attachment = query.attachment.to_bytes() if query.attachment else b""
        if len(attachment) > _ASK_BYTES:
            raise InputError(f"request: found over {_ASK_BYTES} bytes beside the input")
        ask = from_json(attachment, Ask, where="request")
        if ask.bundle not in ("", ingress.identity):
            raise InputError(f"request: is for bundle {ask.bundle[:12]}, another is served now")
        future = ingress.submit(
            query.payload.to_bytes() if query.payload else b"",
            deadline_s=ask.deadline_s,
            priority=ask.priority,
            id_=ask.id.encode(errors="surrogatepass"),
        )
    except IsthmusError as error:
        refuse(query, error)
    else:
        older = asked.pop(future, None)
        asked[future] = query
        future.add_done_callback(reply)  # again: it may have ended meanwhile
        if older is not None:
            older.drop()


def refuse(query: zenoh.Query, error: IsthmusError) -> None:
    """Answer a query with why it has no result."""
    reason = error.reason if isinstance(error, RequestError) else "refused"
    device = error.device if isinstance(error, RequestError) else ""
    refusal = Refusal(reason=reason, message=str(error), device=device)
    with query:
        query.reply_err(to_json(refusal))


def _tell(service: Service, key: str, query: zenoh.Query) -> None:
    with query:
        query.reply(key, to_json(service.about()))
