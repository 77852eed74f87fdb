"""Devices, links and platforms: frozen data, SI units in the names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from isthmus.errors import InputError

FORMATS = ("fp32", "fp16", "bf16", "int8", "int4")
BACKENDS = ("onnxruntime",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much a device holds: two separate memories, or one that both share.

    Attributes:
        weights_bytes: Room for weights (flash); None where shared, or without limit.
        activations_bytes: Room for activations (RAM); None where shared, or without limit.
        shared_bytes: Room for both together; None where separate, or without limit.
    """

    weights_bytes: float | None = None
    activations_bytes: float | None = None
    shared_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One chip.

    Attributes:
        name: Unique in the platform.
        kind: Free text for people: mcu, camera, server ...
        memory: Its room.
        macs_per_s: Multiply-accumulates per second, by format (``"fp32"``, ``"int8"``).
        j_per_mac: Joules per multiply-accumulate, by format.
        sram_j_per_byte: Joules per byte of activation written.
        static_w: Watts drawn whether it computes or not.
        formats: The number formats it can run, best first; each has a rate.
        backend: What runs its stage, one of ``BACKENDS``.
    """

    name: str
    kind: str = "device"
    memory: Memory = field(default_factory=Memory)
    macs_per_s: Mapping[str, float]
    j_per_mac: Mapping[str, float] = field(default_factory=dict)
    sram_j_per_byte: float = 0.0
    static_w: float = 0.0
    formats: tuple[str, ...] = ("fp32",)
    backend: str = "onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins two devices.

    Attributes:
        between: The names of the two.
        bytes_per_s: Rate; for a parallel link ``pins * clock_hz / 8``.
        latency_s: Time from the last bit sent to the last bit received.
        j_per_byte: Energy of both ends together.
        overhead_bytes: What the medium adds to every message.
        mtu_bytes: Largest message without its overhead, or None where unlimited.
        duplex: ``"full"``: each direction has the whole rate; ``"half"``: they share it.
        pins: Data lines, where the link was given as pins x clock.
        clock_hz: Clock of those lines.

    Raises:
        InputError: Pins and clock do not make the rate.
    """

    between: tuple[str, str]
    bytes_per_s: float
    latency_s: float = 0.0
    j_per_byte: float = 0.0
    overhead_bytes: int = 0
    mtu_bytes: int | None = None
    duplex: str = "full"
    pins: int | None = None
    clock_hz: float | None = None

    def __post_init__(self) -> None:
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

    def medium_bytes(self, frame_bytes: float) -> float:
        """Return the bytes on the medium for one frame: itself plus overhead per message."""
        messages = 1 if self.mtu_bytes is None else max(1, ceil(frame_bytes / self.mtu_bytes))
        return frame_bytes + messages * self.overhead_bytes

    def occupied_s(self, frame_bytes: float) -> float:
        """Return how long one frame keeps the link busy, in seconds."""
        return self.medium_bytes(frame_bytes) / self.bytes_per_s

    def transfer_s(self, frame_bytes: float) -> float:
        r"""Return the time from handing a frame over to having it on the far side, in seconds.

        .. math:: t = \alpha + n / \beta

        with latency :math:`\alpha`, rate :math:`\beta` and :math:`n` the bytes on the medium.

        References:
            Hockney, "The communication challenge for MPP", Parallel Computing 20(3), 1994.
        """
        return self.latency_s + self.occupied_s(frame_bytes)

    def transfer_j(self, frame_bytes: float) -> float:
        """Return the energy of one frame, in joules."""
        return self.medium_bytes(frame_bytes) * self.j_per_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Devices joined by links in the shape of a tree.

    Attributes:
        name: What people call it.
        devices: At least one.
        links: One fewer; every device can be reached, by one way only.
        input: The device where samples arise.
        output: The device where the answer is wanted.

    Raises:
        InputError: A link, the input or the output names no device, or it is not a tree.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    input: str
    output: str

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"devices: found {name!r} twice, expected each once")
        for key, name in (("input", self.input), ("output", self.output)):
            if name not in names:
                raise InputError(f"{key}: found {name!r}, expected a device: {', '.join(names)}")
        _check_tree(names, self.links)

    def device(self, name: str) -> Device:
        """Return the device of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.devices)
        raise InputError(f"platform {self.name}: no device {name!r}; known: {known}")


def path(platform: Platform) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Return the devices and the links on the way from input to output, in order."""
    ways: dict[str, _Way] = {platform.input: ((platform.input,), ())}
    _walk(platform.links, ways)
    names, links = ways[platform.output]
    return tuple(platform.device(name) for name in names), links


_Way = tuple[tuple[str, ...], tuple[Link, ...]]


def _walk(links: tuple[Link, ...], ways: dict[str, _Way]) -> None:
    """Extend ``ways``, the devices and links to every device reached so far, along the links."""
    grown = True
    while grown:
        grown = False
        for link in links:
            for near, far in (link.between, link.between[::-1]):
                if near in ways and far not in ways:
                    names, passed = ways[near]
                    ways[far] = ((*names, far), (*passed, link))
                    grown = True


def _check_tree(names: list[str], links: tuple[Link, ...]) -> None:
    for index, link in enumerate(links):
        where = f"links.{index}.between"
        for name in link.between:
            if name not in names:
                raise InputError(f"{where}: found {name!r}, expected a device: {', '.join(names)}")
        first, second = link.between
        if first == second:
            raise InputError(f"{where}: found {first!r} twice, expected two devices")
        ways: dict[str, _Way] = {first: ((first,), ())}
        _walk(links[:index], ways)
        if second in ways:
            other = "-".join(ways[second][0])
            raise InputError(
                f"{where}: found {first}-{second} beside {other}, expected one way between any "
                "two devices; remove a link"
            )
    ways = {names[0]: ((names[0],), ())}
    _walk(links, ways)
    for name in names:
        if name not in ways:
            raise InputError(
                f"devices.{name}: found no way from {names[0]}, expected a link to it; "
                "add one or remove the device"
            )
