"""A plan as a picture: boxes and arrows with their places, for the page to draw as SVG.

.. code-block:: none

    input -> [ device ] -- link: codec, bytes, time --> [ device ] -> answer
"""

from dataclasses import dataclass

from isthmus.plan import Plan
from isthmus.report.words import num_bytes, quantity, raw_bytes, rooms, span

_BORDER, _BOX, _GAP = 76, 220, 172


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """How full one memory of a device is.

    Attributes:
        label: In words, with the limit.
        share: Of the limit, 0 .. 1; None where there is none.
        over: Whether it is too small.
    """

    label: str
    share: float | None
    over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One device with its stage; ``x`` is its left edge."""

    x: int
    device: str
    kind: str
    computes: tuple[str, ...]
    macs: str
    time: str
    bars: tuple[Bar, ...]
    empty: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """One link with its crossing, from ``x`` to the next box."""

    x: int
    link: str
    codec: str
    options: str
    payload: str
    instead: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A plan's boxes and arrows from left to right, and the size of the whole."""

    width: int
    box: int
    gap: int
    border: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def picture(plan: Plan) -> Picture:
    """Place a plan's devices and links."""
    step = _BOX + _GAP
    return Picture(
        width=2 * _BORDER + len(plan.stages) * step - _GAP,
        box=_BOX,
        gap=_GAP,
        border=_BORDER,
        boxes=tuple(_box(plan, k, _BORDER + k * step) for k in range(len(plan.stages))),
        arrows=tuple(
            _arrow(plan, k, _BORDER + _BOX + k * step) for k in range(len(plan.crossings))
        ),
    )


def _box(plan: Plan, index: int, x: int) -> Box:
    stage = plan.stages[index]
    device = plan.platform.device(stage.device)
    bars = []
    for room in rooms(stage, device.memory):
        share = room.used_bytes / room.limit_bytes if room.limit_bytes else None
        full = share is not None and share > 1
        share = None if share is None else min(share, 1.0)
        bars.append(Bar(label=f"{room.what} {room}", share=share, over=full))
    begin, dots, end = span(plan, index).partition(" .. ")
    return Box(
        x=x,
        device=device.name,
        kind=device.kind,
        computes=(f"{begin} ..", end) if dots else (begin,),
        macs=f"{quantity(stage.macs, 'MAC')}, {stage.format}" if stage.nodes else "no MACs",
        time=f"predicted compute {quantity(stage.compute_s, 's')}",
        bars=tuple(bars),
        empty=not stage.nodes,
    )


def _arrow(plan: Plan, index: int, x: int) -> Arrow:
    crossing = plan.crossings[index]
    codec, _, options = crossing.codec.partition(":")
    raw, payload = num_bytes(raw_bytes(crossing)), num_bytes(crossing.payload_bytes)
    return Arrow(
        x=x,
        link=crossing.link,
        codec=codec,
        options=options.replace(",", ", "),
        payload=f"{payload} bytes",
        instead=f"instead of {raw}" if raw != payload else "as they are",
        time=f"predicted {quantity(crossing.transfer_s, 's')}",
    )
