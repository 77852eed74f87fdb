"""One device's process: receive, unpack, compute, pack, send.

Started by the launcher as ``python -m isthmus.run.worker`` with a `Job` on its standard input. It
ends when that input ends (the launcher is gone), at SIGTERM, and at its first error, which is the
last line on its standard error.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import zenoh

from isthmus.bundle import Bundle, bundle_id, read_bundle
from isthmus.errors import IsthmusError, RunError
from isthmus.files import from_json, to_json
from isthmus.run import border
from isthmus.run.backends import Program, load_program
from isthmus.run.hop import MAX_TIMINGS, Receiver, Sender, Terms, open_session
from isthmus.run.messages import (
    JOB_SCHEMA,
    STATUS_SCHEMA,
    THROTTLE_OFF,
    THROTTLE_ON,
    TIMINGS,
    TIMINGS_SCHEMA,
    WIDTH,
    Job,
    Status,
    Timings,
    Work,
    device_key,
    hop_codec,
    hop_key,
)
from isthmus.run.throttle import Throttle
from isthmus.wire import CodecSpec, Frame, pack, parse_codec, unpack
from isthmus.wire.nested import Width, parse_width
from isthmus.wire.pack import read_tables
from isthmus.wire.tables import Tables

Array = npt.NDArray[Any]

_IDLE_S = 1.0
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """What makes symbols of a payload, and a payload of symbols."""

    spec: CodecSpec
    tables: tuple[Tables, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What turns a payload into the next one.

    Attributes:
        bundle: Says what passes its border.
        program: None where the device passes payloads on.
        before: The codec of what arrives; None for the model's inputs.
        after: The codec of what leaves; None for the model's outputs.
    """

    bundle: Bundle
    program: Program | None
    before: _Codec | None
    after: _Codec | None


def main() -> None:
    """Read the job, then work until told to stop."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's; it ends our input
    try:
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            job = from_json(stdin.readline(), Job, schema=JOB_SCHEMA, where="job")
        threading.Thread(target=_watch_parent, daemon=True).start()
        work(job)
    except IsthmusError as error:
        sys.exit(str(error))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", " "))


def work(job: Job) -> None:
    """Serve one device of a bundle; returns only by an exception.

    Raises:
        IsthmusError: The bundle is damaged or another one, a neighbour disagrees or does not
            answer, the program fails.
    """
    path = Path(job.bundle)
    bundle = read_bundle(path)
    if bundle_id(path) != job.bundle_id:
        raise RunError(f"{path}: is not the bundle that the launcher read; start the run again")
    stage = _load(path, bundle, job.device)
    before, after = job.device, job.device + 1
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(connect=job.connect))
        throttle = _throttle(job, stack)
        receiver = Receiver(session, hop_key(job.run, before), _terms(job, bundle, before))
        sender = Sender(session, hop_key(job.run, after), crossing=after, timeout_s=job.timeout_s)
        stack.enter_context(sender)
        sender.agree(_terms(job, bundle, after))
        done: deque[Work] = deque(maxlen=MAX_TIMINGS)
        key = device_key(job.run, job.device)
        width: Width | None = None

        def answer(query: zenoh.Query) -> None:
            nonlocal width
            question = query.payload.to_string() if query.payload else ""
            if question == TIMINGS:
                reply = to_json(_timings(done, sender), schema=TIMINGS_SCHEMA)
            else:
                if question.startswith(WIDTH):
                    width = parse_width(question.removeprefix(WIDTH))
                if question in (THROTTLE_ON, THROTTLE_OFF):
                    sender.throttle = throttle if question == THROTTLE_ON else None
                reply = to_json(_status(session), schema=STATUS_SCHEMA)
            query.reply(key, reply)

        stack.callback(session.declare_queryable(key, answer).undeclare)
        while True:
            frame = receiver.receive(_IDLE_S)
            if frame is not None:
                payload, cost = _apply(stage, frame, width)
                done.append(cost)
                sender.send(frame.request, payload)


def _apply(stage: _Stage, frame: Frame, width: Width | None) -> tuple[bytes, Work]:
    """Return the payload that leaves for one that arrived, and what that cost."""
    start_s = decoded_s = computed_s = time.perf_counter()
    if stage.program is None:
        payload = bytes(frame.payload)
    else:
        inputs = _unpack(stage, frame.payload)
        decoded_s = time.perf_counter()
        outputs = stage.program([array[np.newaxis] for array in inputs])
        computed_s = time.perf_counter()
        payload = _pack(stage, [np.squeeze(array, 0) for array in outputs], width)
    return payload, Work(
        request=frame.request,
        decode_s=decoded_s - start_s,
        compute_s=computed_s - decoded_s,
        encode_s=time.perf_counter() - computed_s,
        payload_bytes=len(payload),
    )


def _unpack(stage: _Stage, payload: memoryview) -> tuple[Array, ...]:
    if stage.before is None:
        return border.from_bytes(payload, stage.bundle.inputs)
    return unpack(stage.before.spec, payload, stage.before.tables)


def _pack(stage: _Stage, outputs: list[Array], width: Width | None) -> bytes:
    if stage.after is None:
        return border.to_bytes(outputs, stage.bundle.outputs)
    spec = stage.after.spec
    return pack(spec, outputs, stage.after.tables, width=width if spec.nested else None)


def _load(path: Path, bundle: Bundle, index: int) -> _Stage:
    device = bundle.devices[index]
    return _Stage(
        bundle=bundle,
        program=None
        if device.program is None
        else load_program(path / device.program, backend=device.backend, threads=device.threads),
        before=_codec(path, bundle, index - 1) if index > 0 else None,
        after=_codec(path, bundle, index) if index < len(bundle.crossings) else None,
    )


def _throttle(job: Job, stack: contextlib.ExitStack) -> Throttle | None:
    if job.link is None:
        return None
    return stack.enter_context(Throttle(job.link, Path(job.clock)))


def _codec(path: Path, bundle: Bundle, index: int) -> _Codec:
    crossing = bundle.crossings[index]
    spec = parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
    tables = () if crossing.tables is None else read_tables(path / crossing.tables, spec)
    return _Codec(spec=spec, tables=tables)


def _terms(job: Job, bundle: Bundle, hop: int) -> Terms:
    return Terms(bundle=job.bundle_id, codec=hop_codec(bundle, hop))


def _status(session: zenoh.Session) -> Status:
    return Status(
        pid=os.getpid(),
        modules=tuple(sorted({name.partition(".")[0] for name in list(sys.modules)})),
        peers=tuple(str(peer) for peer in session.info.peers_zid()),
        session=str(session.zid()),
    )


def _timings(done: deque[Work], sender: Sender) -> Timings:
    """Take what has been measured since the last question."""
    return Timings(
        work=tuple(done.popleft() for _ in range(len(done))),
        passages=tuple(sender.passages.popleft() for _ in range(len(sender.passages))),
        retries=sender.retries,
    )


def _watch_parent() -> None:
    """Stop when standard input ends: at once if the main thread can, hard if it cannot."""
    while os.read(0, 1024):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    main()
