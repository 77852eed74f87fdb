"""Start, ask, watch and stop the workers of a bundle."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import zenoh

from isthmus.backends import Array
from isthmus.bundle import PLATFORM_FILE, Bundle, bundle_id, read_bundle
from isthmus.errors import InputError, RunError
from isthmus.files import Written, from_json, to_json
from isthmus.platform import Link, load_platform
from isthmus.run import border
from isthmus.run.adapt import bundle_links
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import (
    STATUS,
    THROTTLE_OFF,
    THROTTLE_ON,
    TIMINGS,
    WIDTH,
    Job,
    Status,
    Timings,
    device_key,
    hop_key,
    hop_terms,
)
from isthmus.run.session import closing, locator, open_session
from isthmus.wire import HEADER_BYTES, parse_codec
from isthmus.wire.nested import Width, check_width

T = TypeVar("T")
M = TypeVar("M", bound=Written)

_WATCH_S = 0.05
_SILENCE_S = 1.0  # then every worker is asked for a sign of life
_ANSWER_S = 2.0  # a worker answers while it computes: the question is taken by zenoh's thread
_GRACE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of the last device.

    Attributes:
        request: What it answers.
        outputs: The bundle's outputs, one sample.
        width: What the request asked of nested crossings; 0 where it asked nothing.
    """

    request: int
    outputs: tuple[Array, ...]
    width: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Workers:
    """The running processes of a bundle; made by `start_workers`, which also ends them.

    Attributes:
        bundle: What they run.
        links: What each crossing passes over.
        processes: One for each device.
        logs: Where each writes its errors.
        session: The launcher's.
        run: Id of the run.
        sender: To the first device.
        receiver: From the last device.
        timeout_s: Longest wait for an answer.
        num_sent: How many requests were sent.
    """

    bundle: Bundle
    links: tuple[Link, ...]
    processes: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]
    session: zenoh.Session
    run: str
    sender: Sender
    receiver: Receiver
    timeout_s: float
    num_sent: int = 0

    def send(self, sample: Sequence[Array], width: int = 0) -> int:
        """Send one sample to the first device and return the number of the request.

        Args:
            sample: One array for each input of the bundle, without a batch.
            width: What nested crossings are to take; 0 for what `use_width` said.

        Raises:
            RunError: A worker has died or does not answer any more; names its device. Or no
                request was taken on in time although all workers are well.
        """
        self.check_alive()
        if self._watch(self.sender.wait_for_room) is None:
            raise RunError(f"the first device takes no request for {self.timeout_s:g} s")
        request = self.num_sent
        self.sender.send(request, border.to_bytes(sample, self.bundle.inputs), width)
        self.num_sent += 1
        return request

    def receive(self) -> Reply | None:
        """Wait for the next reply; None if none comes in time although all workers are well.

        Raises:
            RunError: A worker has died or does not answer any more; names its device.
        """
        frame = self._watch(self.receiver.receive)
        if frame is None:
            return None
        outputs = border.from_bytes(frame.payload, self.bundle.outputs)
        return Reply(request=frame.request, outputs=outputs, width=frame.width)

    def ask(self, sample: Sequence[Array]) -> tuple[Array, ...] | None:
        """Run one sample through all devices; None if the answer does not come in time."""
        reply = self.wait(self.send(sample))
        return None if reply is None else reply.outputs

    def wait(self, request: int) -> Reply | None:
        """Wait for the reply to one request; None if it does not come in time."""
        while (reply := self.receive()) is not None:
            if reply.request == request:
                return reply
        return None

    def throttle(self, on: bool) -> None:
        """Make the links behave like the platform's, or as fast as they are."""
        self._query_all(THROTTLE_ON if on else THROTTLE_OFF, Status)

    def use_width(self, width: Width) -> None:
        """Let nested crossings take this width from the next request on; nothing is loaded anew.

        Args:
            width: A width of every nested crossing.

        Raises:
            InputError: No crossing is nested, or one has no such width; the others stay too.
        """
        specs = [
            parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
            for crossing in self.bundle.crossings
        ]
        nested = [index for index, spec in enumerate(specs) if spec.nested]
        if not nested:
            raise InputError(
                f"width {width}: no crossing of this bundle is nested; plan with a codec such as "
                "bottleneck:ratio=1,bits=8,nested=1"
            )
        for index in nested:
            check_width(specs[index], width)
        for index in nested:
            self._query(index, f"{WIDTH}{width}", Status)

    def statuses(self) -> tuple[Status, ...]:
        """Return what each worker says of itself."""
        return self._query_all(STATUS, Status)

    def timings(self) -> tuple[Timings, ...]:
        """Return what each worker has measured since it was last asked."""
        self.sender.passages()  # nobody asks for those of the client, but they take memory
        self.sender.round_trips()
        return self._query_all(TIMINGS, Timings)

    def check_alive(self) -> None:
        """Raise a `RunError` that names the first device whose process has ended."""
        for device, process, log in zip(
            self.bundle.devices, self.processes, self.logs, strict=True
        ):
            code = process.poll()
            if code is not None:
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                lines = log.read_text(errors="replace").strip().splitlines()
                why = f": {lines[-1]}" if lines else ""
                raise RunError(
                    f"device {device.name}: its worker ended ({how}){why}", device=device.name
                )

    def _watch(self, wait: Callable[[float], T | None]) -> T | None:
        """Wait for something, up to the limit, and look after the workers meanwhile.

        Args:
            wait: Waits for as many seconds as it is told; None means not yet.

        Raises:
            RunError: A worker has died or does not answer any more; names its device.
        """
        start_s = heard_s = time.monotonic()
        while (now_s := time.monotonic()) < start_s + self.timeout_s:
            found = wait(_WATCH_S)
            if found is not None:
                return found
            self.check_alive()
            if now_s > heard_s + _SILENCE_S:
                self.statuses()
                heard_s = time.monotonic()
        return None

    def wait_ready(self) -> None:
        """Wait until every worker has agreed with the next one and answers."""
        deadline_s = time.monotonic() + self.timeout_s
        for index in range(len(self.processes)):
            while self._answer(index, STATUS) is None:
                self.check_alive()
                if time.monotonic() > deadline_s:
                    raise self._silent(index)
                time.sleep(0.01)

    def _query_all(self, question: str, kind: type[M]) -> tuple[M, ...]:
        return tuple(self._query(index, question, kind) for index in range(len(self.processes)))

    def _query(self, index: int, question: str, kind: type[M]) -> M:
        answer = self._answer(index, question)
        if answer is None:
            self.check_alive()
            raise self._silent(index)
        return from_json(answer, kind, where=self.bundle.devices[index].name)

    def _answer(self, index: int, question: str) -> bytes | None:
        key = device_key(self.run, index)
        for reply in self.session.get(key, payload=question, timeout=_ANSWER_S):
            if reply.ok is not None:
                return reply.ok.payload.to_bytes()
        return None

    def _silent(self, index: int) -> RunError:
        """End a worker that would not end if it were asked, and return what to say of it."""
        self.processes[index].kill()
        name = self.bundle.devices[index].name
        return RunError(
            f"device {name}: its worker does not answer for {_ANSWER_S:g} s; it hung or was "
            "stopped, and is ended: start the run again",
            device=name,
        )


@contextmanager
def start_workers(
    path: Path, *, port: int | None = None, timeout_s: float = 30.0
) -> Iterator[Workers]:
    """Start one process for each device of a bundle, joined by zenoh on loopback TCP.

    Args:
        path: The bundle.
        port: Where the launcher listens; None lets the system choose.
        timeout_s: Longest wait for another process, beside the links' own time.

    Yields:
        The workers, ready for requests, links not throttled. They end with the context.

    Raises:
        BundleError: The bundle is damaged.
        RunError: The port is taken, or a worker does not start; names its device.
    """
    bundle = read_bundle(path)
    links = bundle_links(bundle, load_platform(path / PLATFORM_FILE))
    identity, run = bundle_id(path), uuid.uuid4().hex
    patience_s = timeout_s + 2 * sum(
        link.transfer_s(crossing.payload_bytes + HEADER_BYTES)
        for link, crossing in zip(links, bundle.crossings, strict=True)
    )
    last = len(bundle.devices)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-run-")))
        opened = open_session(listen=f"tcp/127.0.0.1:{port or 0}")
        session = stack.enter_context(closing(opened))
        address = locator(session)
        receiver = Receiver(session, hop_key(run, last), hop_terms(bundle, identity, last))
        logs = tuple(folder / f"{index}.log" for index in range(last))
        clocks = [  # all users of a link share one
            str(folder / f"{'+'.join(link.clock(crossing.source))}.clock")
            for link, crossing in zip(links, bundle.crossings, strict=True)
        ]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_stop, processes)
        for index, log in enumerate(logs):
            processes.append(_start(log))
            job = Job(
                bundle=str(path.resolve()),
                bundle_id=identity,
                device=index,
                run=run,
                connect=address,
                link=(*links, None)[index],
                clock=(*clocks, "")[index],
                timeout_s=patience_s,
            )
            _hand_over(processes[index], job)
        sender = Sender(session, hop_key(run, 0), crossing=0, timeout_s=patience_s)
        workers = Workers(
            bundle=bundle,
            links=links,
            processes=tuple(processes),
            logs=logs,
            session=session,
            run=run,
            sender=stack.enter_context(sender),
            receiver=receiver,
            timeout_s=patience_s,
        )
        workers.wait_ready()
        sender.agree(hop_terms(bundle, identity, 0))
        yield workers


def _start(log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "isthmus.run.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )


def _hand_over(process: subprocess.Popen[bytes], job: Job) -> None:
    """Write the job as one line; a process that is dead already is found by `wait_ready`."""
    line = to_json(job).replace("\n", " ") + "\n"
    with suppress(BrokenPipeError):
        _stdin(process).write(line.encode())
        _stdin(process).flush()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the workers: their standard input, then SIGTERM, then SIGKILL, each with its limit."""
    for process in processes:
        with suppress(BrokenPipeError):
            _stdin(process).close()
    for process in processes:
        for harder in (process.terminate, process.kill):
            try:
                process.wait(_GRACE_S)
                break
            except subprocess.TimeoutExpired:
                harder()
        process.wait(_GRACE_S)


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
