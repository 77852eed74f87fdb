"""What a service answered, and how it is, for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from isthmus.backends import TensorSpec
from isthmus.report.tables import add_row, new_table
from isthmus.report.words import quantity
from isthmus.run.messages import About


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one input.

    Attributes:
        name: Of the input.
        outputs: The model's outputs; empty where there are none.
        width: What the request was given of nested crossings; empty where that is not chosen.
        error: Why there are none, in one line; else empty.
        reason: The same in one word.
        early_exit: The device whose early exit answered; empty where the whole network did.
        seconds: From asking to the answer.
    """

    name: str
    outputs: tuple[npt.NDArray[Any], ...] = ()
    width: str = ""
    error: str = ""
    reason: str = ""
    early_exit: str = ""
    seconds: float


def finite(values: npt.NDArray[Any]) -> list[Any]:
    """Return an array as JSON can hold it: None where it is no finite number."""
    nothing: Any = None
    return np.where(np.isfinite(values), values, nothing).tolist()


def answers_table(answers: Sequence[Answer], about: About) -> Table:
    """Return a row for each input: where the first output is largest, or why there is none."""
    title = f"{' -> '.join(about.devices)}, bundle {about.bundle[:12]}"
    chosen = any(answer.width for answer in answers)
    table = new_table(
        title, ("input", "l"), ("largest", "l"), ("value", "r"), ("time", "r"),
        *((("width", "l"),) if chosen else ()),
    )  # fmt: skip
    for answer in answers:
        seconds = quantity(answer.seconds, "s")
        if answer.error:
            add_row(table, answer.name, answer.error, answer.reason, seconds)
            continue
        first = answer.outputs[0]
        place = np.unravel_index(int(np.argmax(first)), first.shape)
        where = ", ".join(str(int(index)) for index in place)
        where += f" (early exit of {answer.early_exit})" if answer.early_exit else ""
        width = (answer.width,) if chosen else ()
        add_row(table, answer.name, where, f"{first[place]:.4g}", seconds, *width)
    return table


def about_table(about: About, host: str) -> Table:
    """Return what a service is and how it is: devices, tensors, queues."""
    table = new_table(f"Service at {host}", ("what", "l"), ("is", "l"))
    devices = [
        f"{name} (away)" if name in about.away else f"{name} (here)" for name in about.devices
    ]
    rows = {
        "bundle": about.bundle[:12],
        "Isthmus": about.version,
        "devices": " -> ".join(devices),
        "takes": _tensors(about.inputs),
        "returns": _tensors(about.outputs),
        "requests": f"{about.waiting} waiting, {about.in_flight} in flight, {about.ended} ended, "
        f"{about.retries} sent once more",
    }
    for name, value in rows.items():
        add_row(table, name, value)
    return table


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return "; ".join(f"{each.name} {each.dtype}{list(each.shape)}" for each in tensors)
