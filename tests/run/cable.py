"""A real link: two network namespaces, and a cable between them that can be pulled and shaped."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

HOSTS = ("10.77.31.1", "10.77.31.2")
MSS = 1448  # bytes of a TCP segment with time stamps, at Ethernet's 1,500
SEGMENT_BYTES = 14 + 20 + 32  # of Ethernet, IPv4, and TCP with time stamps


@dataclass(frozen=True, kw_only=True)
class Cable:
    """Two namespaces; the first has address ``HOSTS[0]``, the second ``HOSTS[1]``."""

    spaces: tuple[str, str]
    ends: tuple[str, str]

    def inside(self, end: int) -> list[str]:
        """Return what a command begins with that runs at one end."""
        return ["ip", "netns", "exec", self.spaces[end]]

    def pull(self) -> None:
        """Pull the cable."""
        ip("-n", self.spaces[1], "link", "set", self.ends[1], "down")

    def plug(self) -> None:
        """Plug it in again."""
        ip("-n", self.spaces[1], "link", "set", self.ends[1], "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def laid_cable() -> Iterator[Cable]:
    """Lay a cable until the context ends; skip the test where the machine does not allow it."""
    name = f"is{os.getpid() % 100_000}"
    spaces, ends = (f"{name}a", f"{name}b"), (f"{name}x", f"{name}y")
    try:
        for space in spaces:
            ip("netns", "add", space)
        ip("link", "add", ends[0], "netns", spaces[0], "type", "veth",
           "peer", "name", ends[1], "netns", spaces[1])  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(spaces)
        why = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"no network namespaces here: {why.strip()}")
    try:
        for space, end, host in zip(spaces, ends, HOSTS, strict=True):
            ip("-n", space, "addr", "add", f"{host}/24", "dev", end)
            ip("-n", space, "link", "set", end, "gso_max_segs", "1")  # the count is of segments
            ip("-n", space, "link", "set", end, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield Cable(spaces=spaces, ends=ends)
    finally:
        _remove(spaces)


def _remove(spaces: tuple[str, str]) -> None:
    for space in spaces:
        with suppress(OSError, subprocess.CalledProcessError):
            ip("netns", "del", space)
