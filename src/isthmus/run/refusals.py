"""Who was not let in, in words and once: zenoh says it in its own log alone, again and again.

That log goes to the process's standard output and has no other way out. So while a device serves
with keys, standard output is a pipe that is read here; what is no refusal is handed on as it came.
zenoh does not say from which address somebody tried; Linux remembers for a while which connections
were closed, and those are named.
"""

import ipaddress
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

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
    ("handshake eof", "it left before it showed a certificate"),
)
_AGAIN_S = 3600.0
_PAUSE_S = 1.0  # between two looks at who it was
_MOST_NAMED = 16
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS, _ESTABLISHED = "0A", "01"  # states of a connection, as those tables write them


@contextmanager
def telling_refusals(say: Callable[[str], None]) -> Iterator[None]:
    """Say who was refused, each reason and address once an hour, until the context ends.

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
    told: dict[str, set[str]] = {}  # from where, by the reason
    begun_s = looked_s = time.monotonic()
    with os.fdopen(read_end, "rb") as lines:
        for line in lines:
            why, now_s = refusal(line), time.monotonic()
            if why is None:
                with suppress(OSError):  # a full disk stops nobody
                    os.write(kept, line)
                continue
            if now_s - begun_s >= _AGAIN_S:
                told, begun_s = {}, now_s
            if why in told and (now_s - looked_s < _PAUSE_S or len(told[why]) >= _MOST_NAMED):
                continue
            found, looked_s = closed_addresses()[:_MOST_NAMED], now_s
            if why in told and told[why].issuperset(found):
                continue
            told[why] = told.get(why, set()).union(found)
            whence = f" from {' or '.join(found)}" if found else ""
            say(
                f"refused somebody{whence}: {why}; who belongs has a certificate of "
                "`isthmus keys issue` (said once an hour)"
            )


def closed_addresses() -> list[str]:
    """Return the addresses whose connections to ports of this process were closed just now.

    Linux keeps them for about a minute; empty elsewhere.
    """
    rows = []
    with suppress(OSError, ValueError):
        own = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
        for table in _TABLES:
            rows += [line.split() for line in table.read_text().splitlines()[1:]]
    ports = {
        row[1].rpartition(":")[2]
        for row in rows
        if row[3] == _LISTENS and f"socket:[{row[9]}]" in own
    }
    closed = [
        row[2].rpartition(":")[0]
        for row in rows
        if row[3] not in (_LISTENS, _ESTABLISHED) and row[1].rpartition(":")[2] in ports
    ]
    return sorted({_address(text) for text in closed})


def _address(text: str) -> str:
    """Return an address that is written as 32-bit words in the machine's order, in hexadecimal."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    found = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    return str(getattr(found, "ipv4_mapped", None) or found)


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
