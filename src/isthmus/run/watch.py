"""Who serves the other devices: each holds a token, which goes when its process does."""

import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import zenoh

from isthmus.run.messages import alive_key


@dataclass(eq=False)
class Watch:
    """Knows which devices of a service are there.

    Attributes:
        session: Of this process.
        service: Its name.
        names: Of its devices.
        index: Of this one.
        token: What a device that agrees with this one holds.
        say: Told in words what changes.
        came: Called with the index of a device that came, or came back.
    """

    session: zenoh.Session
    service: str
    names: tuple[str, ...]
    index: int
    token: str
    _: KW_ONLY
    say: Callable[[str], None]
    came: Callable[[int], None]

    def __post_init__(self) -> None:
        self._there: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        liveliness = self.session.liveliness()
        mine = alive_key(self.service, self.index, f"{self.token}/{self.session.zid()}")
        self._held = liveliness.declare_token(mine)
        self._subscriber = liveliness.declare_subscriber(
            alive_key(self.service, "*", "**"), self._on_change, history=True
        )

    def away(self) -> tuple[str, ...]:
        """Return the names of devices that are not there."""
        with self._lock:
            return tuple(
                name
                for index, name in enumerate(self.names)
                if index != self.index and not self._there.get(index)
            )

    def _on_change(self, sample: zenoh.Sample) -> None:
        *_, device, token, zid = str(sample.key_expr).split("/")
        if not device.isdecimal() or int(device) >= len(self.names):
            return
        index, put = int(device), sample.kind == zenoh.SampleKind.PUT
        if index == self.index:
            return
        name = self.names[index]
        if token != self.token:
            if put:
                self.say(
                    f"device {name}: serves bundle and protocol {token}, this one {self.token}; "
                    "it is not heard: give both the same bundle and the same Isthmus"
                )
            return
        with self._lock:
            there = self._there.setdefault(index, set())
            before = bool(there)
            (there.add if put else there.discard)(zid)
            after = bool(there)
        if put:
            self.came(index)
        if before != after:
            self.say(f"device {name} is {'here' if after else 'away'}")
