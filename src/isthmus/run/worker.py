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
from pathlib import Path

import zenoh

from isthmus.bundle import bundle_id, read_bundle
from isthmus.errors import IsthmusError, RunError
from isthmus.files import from_json, to_json
from isthmus.machine import keep_freed_memory
from isthmus.run.hop import MAX_TIMINGS, Receiver, Sender
from isthmus.run.messages import (
    THROTTLE_OFF,
    THROTTLE_ON,
    TIMINGS,
    WIDTH,
    Job,
    Status,
    Timings,
    Work,
    device_key,
    hop_key,
    hop_terms,
)
from isthmus.run.session import closing, open_session
from isthmus.run.stage import apply_each, load_stage
from isthmus.run.throttle import Throttle
from isthmus.signals import raise_at
from isthmus.wire.nested import Width, parse_width

_IDLE_S = 1.0
_GRACE_S = 2.0


def main() -> None:
    """Read the job, then work until told to stop."""
    raise_at(signal.SIGTERM, lambda: SystemExit(0))
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's; it ends our input
    try:
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            job = from_json(stdin.readline(), Job, where="job")
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
    stage = load_stage(path, bundle, job.device)
    before, after = job.device, job.device + 1
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(closing(open_session(connect=job.connect)))
        throttle = stack.enter_context(Throttle(job.link, Path(job.clock))) if job.link else None
        receiver = Receiver(
            session, hop_key(job.run, before), hop_terms(bundle, job.bundle_id, before)
        )
        sender = Sender(session, hop_key(job.run, after), crossing=after, timeout_s=job.timeout_s)
        stack.enter_context(sender)
        sender.agree(hop_terms(bundle, job.bundle_id, after))
        done: deque[Work] = deque(maxlen=MAX_TIMINGS)
        key = device_key(job.run, job.device)
        width: Width | None = None
        ready_s = time.monotonic()

        def answer(query: zenoh.Query) -> None:
            nonlocal width
            question = query.payload.to_string() if query.payload else ""
            if question == TIMINGS:
                reply = to_json(_timings(done, sender))
            else:
                if question.startswith(WIDTH):
                    width = parse_width(question.removeprefix(WIDTH))
                if question in (THROTTLE_ON, THROTTLE_OFF):
                    sender.throttle = throttle if question == THROTTLE_ON else None
                reply = to_json(_status(session))
            query.reply(key, reply)

        stack.callback(session.declare_queryable(key, answer).undeclare)
        while True:
            frames = receiver.receive_batch(_IDLE_S, stage.batch)
            if frames:
                for frame, result in apply_each(stage, frames, width, ready_s=ready_s):
                    if isinstance(result, IsthmusError):
                        raise result
                    payload, cost = result
                    done.append(cost)
                    sender.send(frame.request, payload, frame.width)
                ready_s = time.monotonic()


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
        passages=sender.passages(),
        round_trips=sender.round_trips(),
        retries=sender.retries,
    )


def _watch_parent() -> None:
    """Stop when standard input ends: at once if the main thread can, hard if it cannot."""
    while os.read(0, 1024):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
