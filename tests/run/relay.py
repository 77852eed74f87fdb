"""A link of tun devices whose packets a relay loses, repeats, swaps, damages and delays."""

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

import pytest

from tests.run.cable import HOSTS, Cable, CannotLayError, ip

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000  # IP packets, and nothing before them
_IP_HEADER_BYTES = 20
_OVERTAKEN_S = 0.02
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What befalls packets: shares of them, and how long all of them take."""

    lost: float = 0.0
    repeated: float = 0.0
    swapped: float = 0.0
    damaged: float = 0.0
    delay_s: float = 0.0


class Relay:
    """Hands packets from one file of a tun device to the other; owns a thread.

    Args:
        files: The two.
        cable: What leads into the namespaces at both ends.
    """

    def __init__(self, files: tuple[int, int], cable: Cable) -> None:
        self.harm = Harm()
        self.counts: Counter[str] = Counter()
        self.cable = cable
        self._files = files
        self._waiting: list[tuple[float, int, int, bytes]] = []  # a heap, by when they are due
        self._turn = count()
        self._chance = random.Random(0)
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._thread.join()

    def _work(self) -> None:
        other = dict(zip(self._files, reversed(self._files), strict=True))
        while not self._closed:
            now_s = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now_s:
                _, _, file, packet = heapq.heappop(self._waiting)
                with suppress(OSError):  # the device is not up
                    os.write(file, packet)
            wait_s = self._waiting[0][0] - now_s if self._waiting else _POLL_S
            for file in select.select(self._files, [], [], min(wait_s, _POLL_S))[0]:
                with suppress(OSError):
                    self._take(other[file], os.read(file, 1 << 16))

    def _take(self, file: int, packet: bytes) -> None:
        harm = self.harm
        due_s = time.monotonic() + harm.delay_s
        self.counts["passed"] += 1
        if self._befalls("lost", harm.lost):
            return
        if self._befalls("damaged", harm.damaged) and len(packet) > _IP_HEADER_BYTES:
            place = self._chance.randrange(_IP_HEADER_BYTES, len(packet))
            packet = packet[:place] + bytes([packet[place] ^ 0x10]) + packet[place + 1 :]
        if self._befalls("swapped", harm.swapped):
            due_s += _OVERTAKEN_S
        for _ in range(2 if self._befalls("repeated", harm.repeated) else 1):
            heapq.heappush(self._waiting, (due_s, next(self._turn), file, packet))

    def _befalls(self, what: str, share: float) -> bool:
        found = self._chance.random() < share
        self.counts[what] += found
        return found


@contextmanager
def laid_relay() -> Iterator[Relay]:
    """Lay a link with a relay in it; skip the test where the machine does not allow it."""
    name = f"ir{os.getpid() % 100_000}"
    spaces, ends = (f"{name}a", f"{name}b"), (f"{name}x", f"{name}y")
    files: list[int] = []
    try:
        for space, end, host, far in zip(spaces, ends, HOSTS, reversed(HOSTS), strict=True):
            ip("netns", "add", space)
            files.append(_open_tun(end))
            ip("link", "set", end, "netns", space)
            ip("-n", space, "addr", "add", host, "peer", far, "dev", end)
            ip("-n", space, "link", "set", end, "up")
            ip("-n", space, "link", "set", "lo", "up")
        relay = Relay((files[0], files[1]), Cable(spaces=spaces, ends=ends))
        try:
            yield relay
        finally:
            relay.close()
    except CannotLayError as error:
        pytest.skip(f"no tun devices in network namespaces here: {error}")
    finally:
        for file in files:
            os.close(file)
        for space in spaces:
            with suppress(CannotLayError):
                ip("netns", "del", space)


def _open_tun(name: str) -> int:
    """Return the file of a new tun device; it stays open wherever the device is moved."""
    try:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise CannotLayError(f"/dev/net/tun: {error.strerror}") from error
    return file
