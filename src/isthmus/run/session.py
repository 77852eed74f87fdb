"""This process's way to the others: a zenoh peer."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import zenoh

from isthmus.errors import RunError

_CLOSE_S = 5.0
_PAUSE_S = 0.005
_PLACE = r" at /\S+\.rs:\d+\.?"  # in zenoh's source


def open_session(
    *,
    listen: str = "tcp/127.0.0.1:0",
    connect: str = "",
    more: Mapping[str, object] = MappingProxyType({}),
    config: Path | None = None,
) -> zenoh.Session:
    """Open a zenoh peer on loopback TCP that finds other peers by gossip alone.

    Args:
        listen: Where to listen; port 0 lets the system choose, empty is nowhere.
        connect: A peer that must be there; empty for the first one.
        more: Other settings of zenoh; they go before those of here.
        config: A file of zenoh's settings that are taken as they are, in place of all these.

    Raises:
        RunError: The port is taken, the peer does not answer, or zenoh refuses a setting.
    """
    settings = {
        "mode": "peer",
        "listen/endpoints": [listen] if listen else [],
        "connect/endpoints": [connect] if connect else [],
        "connect/exit_on_failure": True,
        "connect/timeout_ms": 5000,
        "scouting/multicast/enabled": False,
        "scouting/gossip/autoconnect_strategy": "greater-zid",  # one connection for each pair
        "transport/shared_memory/enabled": False,  # a link is TCP, also on one machine
        "adminspace/enabled": True,  # tells which port the system chose
        **more,
    }
    try:
        if config is not None:
            return zenoh.open(zenoh.Config.from_file(str(config)))
        found = zenoh.Config()
        for key, value in settings.items():
            found.insert_json5(key, json.dumps(value))
        return zenoh.open(found)
    except zenoh.ZError as error:
        if "in use" in str(error):
            raise RunError(f"{listen}: the port is taken; name another or leave it out") from error
        where = f"listening on {listen}" + (f", connecting to {connect}" if connect else "")
        where = where if config is None else f"by {config}"
        words = re.sub(_PLACE, "", " ".join(str(error).split()))
        raise RunError(f"zenoh cannot start {where}: {words}") from error


@contextmanager
def closing(session: zenoh.Session) -> Iterator[zenoh.Session]:
    """Close a session with the context, also while another thread still sends something by it."""
    try:
        yield session
    finally:
        close_session(session)


def close_session(session: zenoh.Session) -> None:
    """Close a session as soon as no other thread is within a call of it, which zenoh refuses."""
    end_s = time.monotonic() + _CLOSE_S
    while True:
        try:
            session.close()
            return
        except RuntimeError:  # of the binding: "Already borrowed"
            if time.monotonic() > end_s:
                raise
            time.sleep(_PAUSE_S)


def locator(session: zenoh.Session) -> str:
    """Return the address on which a session listens."""
    for reply in session.get(f"@/{session.zid()}/peer", timeout=5.0):
        if reply.ok is not None:
            return str(json.loads(reply.ok.payload.to_bytes())["locators"][0])
    raise RunError("zenoh does not say on which port it listens")


def publisher(session: zenoh.Session, key: str) -> zenoh.Publisher:
    """Return what puts messages under a key: at once, in order, and never dropped on the way."""
    return session.declare_publisher(
        key,
        congestion_control=zenoh.CongestionControl.BLOCK,
        reliability=zenoh.Reliability.RELIABLE,
        express=True,
    )
