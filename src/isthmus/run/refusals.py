"""Who was not let in, in words and once: zenoh says it in its own log alone, again and again.

That log goes to the process's standard output and has no other way out. So while a device serves
with keys, standard output is a pipe that is read here; what is no refusal is handed on as it came.
zenoh does not say from which address somebody tried.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import zenoh

_FILTER = "off,zenoh_link_tls=warn"
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_REFUSAL = re.compile(rb"WARN .*zenoh_link_tls\S*: (?P<why>.*?)\.?(?: Hint: .*)?\s*$")
_WORDS = (
    ("sent no certificates", "it shows no certificate"),
    ("BadSignature", "its certificate is of another authority"),
    ("UnknownIssuer", "its certificate is of another authority"),
    ("Expired", "its certificate has ended"),
    ("fatal alert", "it does not believe this device's certificate"),
    ("corrupt message", "it does not speak TLS"),
)
_AGAIN_S = 3600.0


@contextmanager
def telling_refusals(say: Callable[[str], None]) -> Iterator[None]:
    """Say who was refused, each reason once an hour, until the context ends.

    Where ``RUST_LOG`` is set, zenoh's log is wanted as it is, and nothing is done.

    Args:
        say: Told in words; may print.
    """
    if "RUST_LOG" in os.environ:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)  # zenoh shall never wait for us; it drops what has no room
    os.dup2(write_end, 1)
    os.close(write_end)
    thread = threading.Thread(target=_read, args=(read_end, kept, say), daemon=True)
    with os.fdopen(os.dup(kept), "w", encoding=sys.stdout.encoding) as out, redirect_stdout(out):
        zenoh.init_log_from_env_or(_FILTER)
        thread.start()
        try:
            yield
        finally:
            os.dup2(kept, 1)  # closes the pipe, which ends the thread
            thread.join()
            os.close(kept)


def _read(read_end: int, kept: int, say: Callable[[str], None]) -> None:
    told_s: dict[str, float] = {}
    with os.fdopen(read_end, "rb") as lines:
        for line in lines:
            why = refusal(line)
            if why is None:
                os.write(kept, line)
            elif time.monotonic() - told_s.get(why, -_AGAIN_S) >= _AGAIN_S:
                told_s[why] = time.monotonic()
                say(
                    f"refused somebody: {why}; who belongs has a certificate of "
                    "`isthmus keys issue` (said once an hour)"
                )


def refusal(line: bytes) -> str | None:
    """Return why somebody was refused, if a line of zenoh's log says so.

    Example:
        >>> refusal(b" WARN acc-0 zenoh_link_tls::unicast: peer sent no certificates. Hint: x")
        'it shows no certificate'
    """
    found = _REFUSAL.search(_COLOURS.sub(b"", line))
    if found is None:
        return None
    why = found["why"].decode(errors="replace")
    return next((words for sign, words in _WORDS if sign in why), why)
