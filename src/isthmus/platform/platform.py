"""Devices, links and platforms: frozen data, SI units in the names."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, inf, log

from isthmus.errors import InputError
from isthmus.platform.times import NodeTimes

FORMATS = ("fp32", "fp16", "bf16", "int8", "int4")
DUPLEXES = ("full", "half", "one-way")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""What a name may be: it is also a folder in the bundle and a part of a transport address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much a device holds: two separate memories, or one that both share.

    Attributes:
        weights_bytes: Room for weights (flash); None where shared, or without limit.
        activations_bytes: Room for activations (RAM); None where shared, or without limit.
        shared_bytes: Room for both together; None where separate, or without limit.

    Raises:
        InputError: A room is negative or no finite number.
    """

    weights_bytes: float | None = None
    activations_bytes: float | None = None
    shared_bytes: float | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "shared"):
            _check_number(f"memory.{name}", getattr(self, f"{name}_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One chip.

    Attributes:
        name: Unique in the platform.
        kind: Free text for people: mcu, camera, server ...
        memory: Its room.
        memory_bytes_per_s: How fast it reads and writes that memory; None where unlimited.
        macs_per_s: Peak multiply-accumulates per second, by format (``"fp32"``, ``"int8"``).
        efficiency: The share of the peak that a node reaches: pairs of its MACs, rising, and a
            share over 0 and up to 1; empty where every node reaches the peak.
        start_s: What each call of a stage takes before it computes.
        j_per_mac: Joules per multiply-accumulate, by format.
        sram_j_per_byte: Joules per byte of activation written.
        static_w: Watts drawn whether it computes or not.
        price: What one costs, in USD.
        formats: The number formats it can run, best first; each has a rate.
        unsupported: Names of the ops it cannot run.
        codecs: Names of the codecs it can encode and decode; None for all, ``raw`` always.
        backend: What runs its stage, a name of `isthmus.backends`.
        threads: How many threads that may use.
        batch: How many waiting requests a stage may compute in one call.
        node_s: Times measured on it; they take the place of its rates for the model they are of.

    Raises:
        InputError: The efficiency is no such curve, a rate is none, or another figure is negative.
    """

    name: str
    kind: str = "device"
    memory: Memory = field(default_factory=Memory)
    memory_bytes_per_s: float | None = None
    macs_per_s: Mapping[str, float]
    efficiency: tuple[tuple[float, float], ...] = ()
    start_s: float = 0.0
    j_per_mac: Mapping[str, float] = field(default_factory=dict)
    sram_j_per_byte: float = 0.0
    static_w: float = 0.0
    price: float = 0.0
    formats: tuple[str, ...] = ("fp32",)
    unsupported: tuple[str, ...] = ()
    codecs: tuple[str, ...] | None = None
    backend: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    node_s: NodeTimes | None = None

    def __post_init__(self) -> None:
        _check_number("memory.bandwidth", self.memory_bytes_per_s, over=True)
        for name, rate in self.macs_per_s.items():
            _check_number(f"compute.{name}", rate, over=True)
        energies = {**self.j_per_mac, "sram": self.sram_j_per_byte, "static": self.static_w}
        for name, energy in energies.items():
            _check_number(f"energy.{name}", energy)
        _check_number("start", self.start_s)
        _check_number("price", self.price)
        sizes = (0.0, *(macs for macs, _ in self.efficiency))
        for (before, macs), (_, share) in zip(pairwise(sizes), self.efficiency, strict=True):
            if not macs > before:
                raise InputError(
                    f"efficiency: found {macs:g} MAC after {before:g} MAC, expected rising sizes"
                )
            if not 0 < share <= 1:
                raise InputError(
                    f"efficiency: found {share:g} at {macs:g} MAC, expected more than 0, up to 1"
                )

    def share(self, macs: float) -> float:
        """Return the share of the peak rate that a node of so many MACs reaches, up to 1.

        It is linear in the logarithm of the MACs between two points of the curve, and flat
        outside.

        Example:
            >>> Device(name="a", macs_per_s={}, efficiency=((1e3, 0.2), (1e5, 0.8))).share(1e4)
            0.5
        """
        if not self.efficiency:
            return 1.0
        index = bisect_left(self.efficiency, macs, key=lambda point: point[0])
        if index in (0, len(self.efficiency)):
            return self.efficiency[index and index - 1][1]
        (low, share_low), (high, share_high) = self.efficiency[index - 1 : index + 1]
        return share_low + (share_high - share_low) * log(macs / low) / log(high / low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins two devices.

    Attributes:
        between: The names of the two.
        bytes_per_s: Rate; for a parallel link ``pins * clock_hz / 8``.
        latency_s: Time from the last bit sent to the last bit received.
        setup_s: Time that the link is busy before the first bit of each frame.
        j_per_byte: Energy of both ends together.
        overhead_bytes: What the medium adds to every message.
        mtu_bytes: Largest message without its overhead, or None where unlimited.
        duplex: ``"full"``: each direction has the whole rate; ``"half"``: they share it;
            ``"one-way"``: only from the first of the two to the second.
        medium: Links of one medium, a bus or a radio channel, take turns; empty for one alone.
        pins: Data lines, where the link was given as pins x clock.
        clock_hz: Clock of those lines.

    Raises:
        InputError: Pins and clock do not make the rate, a medium would be full duplex, a rate is
            none, or another figure is negative.
    """

    between: tuple[str, str]
    bytes_per_s: float
    latency_s: float = 0.0
    setup_s: float = 0.0
    j_per_byte: float = 0.0
    overhead_bytes: int = 0
    mtu_bytes: int | None = None
    duplex: str = "full"
    medium: str = ""
    pins: int | None = None
    clock_hz: float | None = None

    def __post_init__(self) -> None:
        for key in ("bytes_per_s", "mtu_bytes"):
            _check_number(f"link {self.name}: {key}", getattr(self, key), over=True)
        for key in ("latency_s", "setup_s", "j_per_byte", "overhead_bytes"):
            _check_number(f"link {self.name}: {key}", getattr(self, key))
        if self.medium and self.duplex == "full":
            raise InputError(
                f"link {self.name}: found duplex full on the shared medium {self.medium}, "
                "expected half or one-way"
            )
        if (self.pins, self.clock_hz) == (None, None):
            return
        if not self.pins or not self.clock_hz or self.pins * self.clock_hz / 8 != self.bytes_per_s:
            raise InputError(
                f"link {self.name}: found {self.bytes_per_s} byte/s with {self.pins} pins at "
                f"{self.clock_hz} Hz, expected pins * clock / 8"
            )

    @property
    def name(self) -> str:
        """The two ends, joined by a dash."""
        return "-".join(self.between)

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """From where to where a frame can go over it: one pair of names, or both."""
        return (self.between,) if self.duplex == "one-way" else (self.between, self.between[::-1])

    def clock(self, source: str) -> tuple[str, ...]:
        """Return a key that is equal for hops that take turns: those over one medium.

        Args:
            source: The end that sends.

        Returns:
            The medium; or both ends, if they share the rate; or both and the one that sends.

        Example:
            >>> Link(between=("a", "b"), bytes_per_s=1.0, duplex="half").clock("b")
            ('a', 'b')
        """
        if self.medium:
            return (self.medium,)
        return self.between if self.duplex == "half" else (*self.between, source)

    def medium_bytes(self, frame_bytes: float) -> float:
        """Return the bytes on the medium for one frame: itself plus overhead per message."""
        messages = 1 if self.mtu_bytes is None else max(1, ceil(frame_bytes / self.mtu_bytes))
        return frame_bytes + messages * self.overhead_bytes

    def occupied_s(self, frame_bytes: float) -> float:
        """Return how long one frame keeps the link busy, its set-up included, in seconds."""
        return self.setup_s + self.medium_bytes(frame_bytes) / self.bytes_per_s

    def transfer_s(self, frame_bytes: float) -> float:
        r"""Return the time from handing a frame over to having it on the far side, in seconds.

        .. math:: t = \alpha + \sigma + n / \beta

        with latency :math:`\alpha`, set-up :math:`\sigma`, rate :math:`\beta` and :math:`n` the
        bytes on the medium.

        References:
            Hockney, "The communication challenge for MPP", Parallel Computing 20(3), 1994.
        """
        return self.latency_s + self.occupied_s(frame_bytes)

    def transfer_j(self, frame_bytes: float) -> float:
        """Return the energy of one frame, in joules."""
        return self.medium_bytes(frame_bytes) * self.j_per_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Devices joined by links: a chain, a tree, a mesh or any other connected graph.

    Attributes:
        name: What people call it.
        devices: At least one.
        links: At most one between any two devices.
        input: The device where samples arise.
        output: The device where the answer is wanted.

    Raises:
        InputError: A name is none, a link, the input or the output names no device, a link joins
            a device to itself, two devices are joined twice, a device is joined to none, or no way
            leads from the input to the output.
    """

    SCHEMA = "isthmus.platform/1"
    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    input: str
    output: str

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        media = [link.medium for link in self.links if link.medium]
        for name in (self.name, *names, *media):
            if not re.fullmatch(NAME, name):
                raise InputError(
                    f"name: found {name[:60]!r}, expected at most 64 letters, digits and . _ -, a "
                    "letter or digit first"
                )
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"devices: found {name!r} twice, expected each once")
        for key, name in (("input", self.input), ("output", self.output)):
            if name not in names:
                raise InputError(f"{key}: found {name!r}, expected a device: {', '.join(names)}")
        _check_ends(names, self.links)
        pairs = [link.between for link in self.links]
        joined = _reached(names[0], [*pairs, *(ends[::-1] for ends in pairs)])
        for name in names:
            if name not in joined:
                raise InputError(
                    f"devices.{name}: found no way from {names[0]}, expected a link to it; "
                    "add one or remove the device"
                )
        hops = (ends for link in self.links for ends in link.directions)
        if self.output not in _reached(self.input, hops):
            raise InputError(
                f"output: found no way from {self.input} to {self.output}; turn a one-way link "
                "round or make it half duplex"
            )

    @property
    def source(self) -> int:
        """Index of the device where samples arise."""
        return self.index(self.input)

    @property
    def target(self) -> int:
        """Index of the device where the answer is wanted."""
        return self.index(self.output)

    @property
    def ends(self) -> frozenset[int]:
        """Indices of these two; one where they are the same."""
        return frozenset((self.source, self.target))

    def index(self, name: str) -> int:
        """Return the index of a device."""
        return [device.name for device in self.devices].index(name)

    def device(self, name: str) -> Device:
        """Return the device of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.devices)
        raise InputError(f"platform {self.name}: no device {name!r}; known: {known}")


def multiplexing(link: Link, payload_bytes: float) -> int | None:
    """Return how many ticks the pins of a link need for a payload; None without pins.

    It is the time-multiplexing factor of Lin, Zhu, Eshraghian, "Reducing Data Bottlenecks in
    Distributed, Heterogeneous Neural Networks", arXiv 2410.09650.
    """
    return None if link.pins is None else ceil(8 * payload_bytes / link.pins)


def _check_number(key: str, value: float | None, *, over: bool = False) -> None:
    """Raise unless a figure is finite and 0 or more, or over 0; None is no figure."""
    if value is not None and not (0 <= value < inf and (value or not over)):
        least = "a number over 0" if over else "0 or more"
        raise InputError(f"{key}: found {value}, expected {least}")


def _check_ends(names: list[str], links: tuple[Link, ...]) -> None:
    seen: dict[frozenset[str], str] = {}
    for link in links:
        between = f"between [{', '.join(link.between)}]"
        for name in link.between:
            if name not in names:
                known = ", ".join(names)
                raise InputError(f"links: {between}: found {name!r}, expected a device: {known}")
        ends = frozenset(link.between)
        if len(ends) == 1:
            raise InputError(
                f"links: {between}: found {link.between[0]!r} twice, expected two devices"
            )
        if ends in seen:
            raise InputError(
                f"links: {between}: found beside {seen[ends]}, expected one link between any two "
                "devices; remove one"
            )
        seen[ends] = between
    if twice := [name for name, count in Counter(x.name for x in links).items() if count > 1]:
        raise InputError(f"links: found two of the name {twice[0]}; rename a device")


def _reached(start: str, hops: Iterable[tuple[str, str]]) -> set[str]:
    """Return the devices to which hops lead from one of them, itself included."""
    far: dict[str, list[str]] = {}
    for source, target in hops:
        far.setdefault(source, []).append(target)
    reached, waiting = {start}, [start]
    while waiting:
        new = set(far.get(waiting.pop(), ())) - reached
        reached |= new
        waiting += new
    return reached
