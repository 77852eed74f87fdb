"""A real link: network namespaces in a row, and cables between them to pull and to shape."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest

HOSTS = ("10.77.31.1", "10.77.31.2")  # the ends of the first cable
MSS = 1448  # bytes of a TCP segment with time stamps, at Ethernet's 1,500
SEGMENT_BYTES = 14 + 20 + 32  # of Ethernet, IPv4, and TCP with time stamps
_ETHERNET_BYTES = 14
_LATE_S = 2.5e-3
_QUEUE_BYTES = 4 << 20  # nothing is dropped


class CannotLayError(Exception):
    """The machine does not allow network namespaces, or to shape what is between them."""


@dataclass(frozen=True, kw_only=True)
class Cable:
    """A cable between two namespaces; the first has address ``hosts[0]``."""

    spaces: tuple[str, str]
    ends: tuple[str, str]
    hosts: tuple[str, str] = HOSTS

    def inside(self, end: int) -> list[str]:
        """Return what a command begins with that runs at one end."""
        return ["ip", "netns", "exec", self.spaces[end]]

    def pull(self) -> None:
        """Pull the cable."""
        ip("-n", self.spaces[1], "link", "set", self.ends[1], "down")

    def plug(self) -> None:
        """Plug it in again."""
        ip("-n", self.spaces[1], "link", "set", self.ends[1], "up")

    def shape(self, bits_per_s: float, *, mtu: int = 1500) -> int:
        """Let the kernel hold both directions to a rate, by a bucket of tokens.

        The bucket holds one packet, and what passes in 2.5 ms: with less, a timer that the kernel
        serves late costs some of the rate.

        Returns:
            How many bytes pass at once after a pause.

        Raises:
            CannotLayError: It cannot.
        """
        burst_bytes = mtu + _ETHERNET_BYTES + round(bits_per_s / 8 * _LATE_S)
        for space, end in zip(self.spaces, self.ends, strict=True):
            ip("-n", space, "link", "set", end, "mtu", str(mtu))
            bucket = f"rate {round(bits_per_s)}bit burst {burst_bytes} limit {_QUEUE_BYTES}"
            run("tc", "-n", space, "qdisc", "replace", "dev", end, "root", "tbf", *bucket.split())
        return burst_bytes

    def counted(self, end: int) -> int:
        """Return how many bytes the kernel has sent from one end."""
        path = f"/sys/class/net/{self.ends[end]}/statistics/tx_bytes"
        return int(run(*self.inside(end), "cat", path))


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or str(error)
        raise CannotLayError(f"{command[0]}: {why.strip()}") from error
    return done.stdout


@contextmanager
def laid_cable() -> Iterator[Cable]:
    """Lay a cable until the context ends; skip the test where the machine does not allow it."""
    with laid_or_skipped(1) as cables:
        yield cables[0]


@contextmanager
def laid_or_skipped(number: int) -> Iterator[tuple[Cable, ...]]:
    """Do as `laid_cables`; skip the test where the machine does not allow it."""
    with ExitStack() as stack:
        try:
            cables = stack.enter_context(laid_cables(number))
        except CannotLayError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield cables


@contextmanager
def laid_cables(number: int) -> Iterator[tuple[Cable, ...]]:
    """Lay cables in a row until the context ends; those in the middle pass on what is for others.

    Raises:
        CannotLayError: The machine does not allow it.
    """
    name = f"is{os.getpid() % 100_000}"
    spaces = [f"{name}{letter}" for letter in "abcdefgh"[: number + 1]]
    cables = tuple(
        Cable(
            spaces=(spaces[k], spaces[k + 1]),
            ends=(f"{name}x{k}", f"{name}y{k}"),
            hosts=(f"10.77.{31 + k}.1", f"10.77.{31 + k}.2"),
        )
        for k in range(number)
    )
    try:
        for space in spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        for cable in cables:
            _lay(cable)
        for k, cable in enumerate(cables):
            for space in spaces[:k]:  # what is farther away lies behind the next cable
                _route(space, cable.hosts[0], cables[spaces.index(space)].hosts[1])
            for space in spaces[k + 2 :]:
                _route(space, cable.hosts[0], cables[spaces.index(space) - 1].hosts[0])
        for space in spaces[1:-1]:
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            ip("netns", "exec", space, "sh", "-c", forward)
        yield cables
    finally:
        for space in spaces:
            with suppress(CannotLayError):
                ip("netns", "del", space)


def _lay(cable: Cable) -> None:
    near, far = cable.spaces
    ip("link", "add", cable.ends[0], "netns", near, "type", "veth",
       "peer", "name", cable.ends[1], "netns", far)  # fmt: skip
    for space, end, host in zip(cable.spaces, cable.ends, cable.hosts, strict=True):
        ip("-n", space, "addr", "add", f"{host}/24", "dev", end)
        ip("-n", space, "link", "set", end, "gso_max_segs", "1")  # the count is of segments
        ip("-n", space, "link", "set", end, "up")


def _route(space: str, host: str, by: str) -> None:
    ip("-n", space, "route", "add", f"{host.rpartition('.')[0]}.0/24", "via", by)
