"""Who serves the other devices: each holds a token, which goes when its process does."""

import threading
from collections.abc import Callable

import zenoh

from isthmus.run.messages import alive_key


class Watch:
    """Knows which devices of a service are there.

    Args:
        session: Of this process.
        service: Its name.
        names: Of its devices.
        index: Of this one.
        token: What a device that agrees with this one holds.
        say: Told in words what changes.
        came: Called with the index of a device that came, or came back.
    """

    def __init__(
        self,
        session: zenoh.Session,
        service: str,
        names: tuple[str, ...],
        index: int,
        token: str,
        *,
        say: Callable[[str], None],
        came: Callable[[int], None],
    ) -> None:
        self._names = names
        self._index = index
        self._token = token
        self._say = say
        self._came = came
        self._there: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        mine = alive_key(service, index, f"{token}/{session.zid()}")
        self._held = session.liveliness().declare_token(mine)
        self._subscriber = session.liveliness().declare_subscriber(
            alive_key(service, "*", "**"), self._on_change, history=True
        )

    def away(self) -> tuple[str, ...]:
        """Return the names of devices that are not there."""
        with self._lock:
            return tuple(
                name
                for index, name in enumerate(self._names)
                if index != self._index and not self._there.get(index)
            )

    def _on_change(self, sample: zenoh.Sample) -> None:
        parts = str(sample.key_expr).split("/")
        *_, device, token, zid = parts
        if not device.isdecimal() or int(device) >= len(self._names):
            return
        index, put = int(device), sample.kind == zenoh.SampleKind.PUT
        if index == self._index:
            return
        name = self._names[index]
        if token != self._token:
            if put:
                self._say(
                    f"device {name}: serves bundle and protocol {token}, this one {self._token}; "
                    "it is not heard: give both the same bundle and the same Isthmus"
                )
            return
        with self._lock:
            there = self._there.setdefault(index, set())
            before = bool(there)
            (there.add if put else there.discard)(zid)
            after = bool(there)
        if before != after:
            self._say(f"device {name} is {'here' if after else 'away'}")
        if put:
            self._came(index)
