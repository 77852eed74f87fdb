"""Which plan wins where: one or two figures of a platform over a range of values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from isthmus.errors import InputError, naming
from isthmus.graph import Graph
from isthmus.plan.estimate import OBJECTIVES
from isthmus.plan.limits import with_rate
from isthmus.plan.partition import partition_anyway
from isthmus.plan.plan import Plan
from isthmus.platform import Device, Link, Platform
from isthmus.units import parse_quantity

VALUES = {1: 25, 2: 13}

_MEMORIES = ("weights", "activations", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One figure and its values.

    Attributes:
        figure: A device or a link and its key in the platform file: ``"hub.compute.fp32"``,
            ``"camera-hub.bandwidth"``; ``"link.pins"`` means every link that has pins at once.
        unit: Of the values.
        values: Rising.
    """

    figure: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCell:
    """The plan that wins at one value of each figure.

    Attributes:
        values: One for each axis.
        what: The plan in words; where nothing fits, what is lacking.
        cost: What the objective makes small; of what nearly fits where nothing does.
        payload_bytes: Payload over all links.
        fits: Whether anything does.
    """

    values: tuple[float, ...]
    what: str
    cost: float
    payload_bytes: float
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The map: a cell for each combination of values, the last axis running fastest."""

    SCHEMA = "isthmus.sweep/1"
    objective: str
    axes: tuple[Axis, ...]
    cells: tuple[SweepCell, ...]


def parse_axis(text: str, platform: Platform, *, num_values: int) -> Axis:
    """Read a range as people write it.

    Args:
        text: ``FIGURE=LOW..HIGH``, e.g. ``"link.bandwidth=10 kbit/s..1 Gbit/s"``.
        platform: Has the figure.
        num_values: How many values, in equal ratios.

    Raises:
        InputError: No such figure, or no rising range of positive quantities.
    """
    figure, _, bounds = text.partition("=")
    low_text, dots, high_text = bounds.partition("..")
    if not dots:
        raise InputError(f"--sweep {text!r}: expected FIGURE=LOW..HIGH, with units")
    _, (unit, _) = _figure(figure, platform)
    with naming(f"--sweep {text!r}"):
        low, high = (_parse(part, unit) for part in (low_text, high_text))
    if not 0 < low < high:
        raise InputError(f"--sweep {text!r}: expected a rising range over zero")
    with_figure(platform, figure, high)
    return Axis(
        figure=figure, unit=unit, values=tuple(np.geomspace(low, high, num_values).tolist())
    )


def with_figure(platform: Platform, figure: str, value: float) -> Platform:
    """Return the platform with another value of one figure.

    Args:
        platform: As it is.
        figure: As in `Axis`.
        value: In the unit of the figure.

    Raises:
        InputError: No such figure.
    """
    owners, (_, change) = _figure(figure, platform)

    def changed(one: Any) -> Any:
        return change(one, value) if any(one is owner for owner in owners) else one

    return replace(
        platform,
        devices=tuple(map(changed, platform.devices)),
        links=tuple(map(changed, platform.links)),
    )


def sweep(
    graph: Graph,
    platform: Platform,
    axes: Sequence[Axis],
    *,
    objective: str = "latency",
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Sweep:
    """Plan at every combination of values.

    Args:
        graph: What to compute.
        platform: Of which some figures are changed.
        axes: One or two.
        objective: As in `isthmus.plan.partition`.
        progress: Is told how many of all cells are done.
        **options: Others of `isthmus.plan.partition`.

    Returns:
        The map.
    """
    cells = []
    total = prod(len(axis.values) for axis in axes)
    for values in product(*(axis.values for axis in axes)):
        changed = platform
        for axis, value in zip(axes, values, strict=True):
            changed = with_figure(changed, axis.figure, value)
        plan = partition_anyway(graph, changed, objective=objective, **options)
        cells.append(
            SweepCell(
                values=values,
                what=_what(plan),
                cost=float(getattr(plan.predicted, OBJECTIVES[objective])),
                payload_bytes=sum(crossing.payload_bytes for crossing in plan.crossings),
                fits=not plan.violations,
            )
        )
        progress(len(cells), total)
    return Sweep(objective=objective, axes=tuple(axes), cells=tuple(cells))


_Kind = tuple[str, Callable[[Any, float], Any]]  # the unit, and what sets another value


def _set(name: str) -> Callable[[Any, float], Any]:
    return lambda owner, value: replace(owner, **{name: value})


def _set_whole(name: str) -> Callable[[Any, float], Any]:
    return lambda owner, value: replace(owner, **{name: max(1, round(value))})


def _set_item(name: str, key: str) -> Callable[[Any, float], Any]:
    return lambda owner, value: replace(owner, **{name: {**getattr(owner, name), key: value}})


def _set_memory(key: str) -> Callable[[Any, float], Any]:
    field = f"{key}_bytes"
    return lambda owner, value: replace(owner, memory=replace(owner.memory, **{field: value}))


def _set_pins(link: Link, value: float) -> Link:
    pins = max(1, round(value))
    return replace(link, pins=pins, bytes_per_s=pins * (link.clock_hz or 0.0) / 8)


def _set_clock(link: Link, value: float) -> Link:
    return replace(link, clock_hz=value, bytes_per_s=(link.pins or 0) * value / 8)


def _device_figures(device: Device) -> dict[str, _Kind]:
    rooms = {m: getattr(device.memory, f"{m}_bytes") for m in _MEMORIES}
    free = all(room is None for room in rooms.values())
    return {
        **{f"compute.{f}": ("MAC/s", _set_item("macs_per_s", f)) for f in device.macs_per_s},
        **{f"energy.{f}": ("J/MAC", _set_item("j_per_mac", f)) for f in device.macs_per_s},
        **{f"memory.{m}": ("byte", _set_memory(m)) for m in rooms if free or rooms[m] is not None},
        "energy.sram": ("J/byte", _set("sram_j_per_byte")),
        "energy.static": ("W", _set("static_w")),
        "memory.bandwidth": ("byte/s", _set("memory_bytes_per_s")),
        "efficiency": ("", lambda owner, value: replace(owner, efficiency=((1.0, value),))),
        "start": ("s", _set("start_s")),
        "price": ("USD", _set("price")),
    }


def _link_figures(link: Link) -> dict[str, _Kind]:
    found: dict[str, _Kind] = {
        "bandwidth": ("byte/s", with_rate),
        "latency": ("s", _set("latency_s")),
        "energy": ("J/byte", _set("j_per_byte")),
        "setup": ("s", _set("setup_s")),
        "message.overhead": ("byte", _set_whole("overhead_bytes")),
        "message.mtu": ("byte", _set_whole("mtu_bytes")),
    }
    if link.pins is not None:
        found |= {"clock": ("Hz", _set_clock), "pins": ("", _set_pins)}
    return found


def _figure(text: str, platform: Platform) -> tuple[Sequence[Device | Link], _Kind]:
    """Find a figure by its name: that of a device or link, ``device`` or ``link``, and a key.

    Returns:
        The devices or links that are meant: those that have it; and what it is.
    """
    owners: dict[str, Sequence[Device | Link]] = {
        "link": platform.links,
        "device": platform.devices,
        **{link.name: (link,) for link in platform.links},
        **{device.name: (device,) for device in platform.devices},
    }
    for name, members in sorted(owners.items(), key=lambda owner: -len(owner[0])):
        if text.startswith(f"{name}.") and members:
            figures = [
                _device_figures(one) if isinstance(one, Device) else _link_figures(one)
                for one in members
            ]
            key = text.removeprefix(f"{name}.")
            kinds = [known[key] for known in figures if key in known]
            if not kinds:
                known = dict.fromkeys(key for keys in figures for key in keys)
                raise InputError(f"figure {text!r}: {name} has {', '.join(known)}")
            return [m for m, keys in zip(members, figures, strict=True) if key in keys], kinds[0]
    raise InputError(
        f"figure {text!r}: expected a device or a link and a key, like link.bandwidth or "
        f"{platform.devices[0].name}.compute.fp32; there are {', '.join(owners)}"
    )


def _parse(text: str, unit: str) -> float:
    """Read one end of a range; pins and shares are plain numbers."""
    if unit:
        return parse_quantity(text.strip(), unit)
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"found {text!r}, expected a number without a unit") from error


def _what(plan: Plan) -> str:
    """Name a plan: who computes, and after which places it is cut; or say what it lacks."""
    if plan.violations:
        return f"nothing fits: {plan.violations[0].where} {plan.violations[0].what}"
    computing = [stage.device for stage in plan.stages if stage.nodes]
    if len(computing) < 2:
        return f"all on {(computing or [plan.stages[-1].device])[0]}"
    end = sum(len(stage.nodes) for stage in plan.stages)
    inner = [f"{c.after} ({c.codec})" for c in plan.crossings if 0 < c.cut < end]
    return f"{', '.join(computing)}: cut after {' and '.join(dict.fromkeys(inner))}"
