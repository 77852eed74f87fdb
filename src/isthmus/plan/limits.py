"""The limits that a plan breaks, and what would mend each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

from isthmus.errors import InputError
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import FORMAT, Load, halves_load, needs
from isthmus.plan.plan import Violation
from isthmus.platform import Device


def violations(
    devices: Sequence[Device], loads: Sequence[Load], route: Sequence[Choice]
) -> tuple[Violation, ...]:
    """Return every limit that the stages break.

    Args:
        devices: One for each stage, in order.
        loads: Of each stage.
        route: What each link carries.

    Returns:
        The broken limits. A narrower codec is a remedy only where there is one that suffices.
    """
    found: list[Violation] = []
    for stage, (device, load) in enumerate(zip(devices, loads, strict=True)):
        for index, (what, need, room) in enumerate(needs(device, load)):
            if room is not None and need > room:
                narrower = (
                    codec
                    for codec, other in _narrower_loads(loads, route, stage)
                    if needs(device, other)[index][1] <= room
                )
                violation = Violation(
                    where=device.name,
                    what=what,
                    need=float(need),
                    limit=room,
                    unit="byte",
                    remedy=_remedy(what, load, float(need), next(narrower, None)),
                )
                found.append(violation)
        if load.computes and FORMAT not in device.macs_per_s:
            found.append(_lacking_format(device, load))
    return tuple(found)


def _remedy(what: str, load: Load, need: float, narrower: str | None) -> str:
    size = f"{ceil(need)} bytes" if need < 1024 else f"{ceil(need / 1024)} KiB"
    ways = [f"use a device with >= {size} for it"]
    if what != "activations" and load.computes:
        ways.append("one more device on the way")
    if narrower:
        ways.append(f"a narrower codec such as {narrower}")
    return ", or ".join(ways)


def _lacking_format(device: Device, load: Load) -> Violation:
    return Violation(
        where=device.name,
        what=f"{FORMAT} arithmetic",
        need=float(load.macs),
        limit=0.0,
        unit="MAC",
        remedy=f"give its {FORMAT} rate under compute, or use a device that has one",
    )


def _narrower_loads(
    loads: Sequence[Load], route: Sequence[Choice], stage: int
) -> Iterator[tuple[str, Load]]:
    """Yield what a stage would ask if fewer channels arrived or left, and the codec for that."""
    load, ends = loads[stage], (None, *route, None)[stage : stage + 2]
    node_weight_bytes = load.weight_bytes - halves_load(*ends).weight_bytes
    for link in (stage - 1, stage):
        if not _inside(loads, link):
            continue
        for choice in _narrower(route[link]):
            halves = halves_load(*(choice if end == route[link] else end for end in ends))
            yield (
                choice.codec,
                replace(
                    load,
                    weight_bytes=node_weight_bytes + halves.weight_bytes,
                    peak_bytes=max(float(load.node_peak_bytes), float(halves.peak_bytes)),
                ),
            )


def _inside(loads: Sequence[Load], link: int) -> bool:
    """Return whether a link carries an inner crossing, neither the input nor the output."""
    sides = (loads[: link + 1], loads[link + 1 :])
    return all(any(load.computes for load in side) for side in sides)


def _narrower(choice: Choice) -> Iterator[Choice]:
    """Yield the same crossing through half as many channels, a quarter, and so on."""
    ratio, bits = 2 * choice.spec.ratio, min(choice.spec.bits, 8)
    while True:
        try:
            spec = replace(choice.spec, name="bottleneck", ratio=ratio, bits=bits)
        except InputError:  # no channel would be left, or nothing can be narrowed
            return
        yield replace(choice, spec=spec)
        ratio *= 2
