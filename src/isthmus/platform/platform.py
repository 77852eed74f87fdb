"""Devices, links and platforms: frozen data, SI units in the names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from isthmus.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much a device holds: two separate memories, or one that both share.

    Attributes:
        weights_bytes: Room for weights (flash), or None where shared.
        activations_bytes: Room for activations (RAM), or None where shared.
        shared_bytes: Room for both together, or None where separate.
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
        formats: The number formats it can run, best first.
        backend: What runs its stage.
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
        links: No cycles.
        input: The device where samples arise.
        output: The device where the answer is wanted.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    input: str
    output: str

    def device(self, name: str) -> Device:
        """Return the device of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.devices)
        raise InputError(f"platform {self.name}: no device {name!r}; known: {known}")
