"""Text with units to SI numbers and back, by pint; the only place where units are parsed.

The registry knows only what a platform file needs, and keeps information (bit, byte) and
computation (MAC) as dimensions of their own: ``100 MHz`` is no data rate here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING

from isthmus.errors import UnitError

if TYPE_CHECKING:
    import pint

_DEFINITIONS = (
    "byte = [information] = B",
    "bit = byte / 8",
    "second = [time] = s",
    "minute = 60 second = min",
    "hour = 3600 second = h",
    "hertz = 1 / second = Hz",
    "joule = [energy] = J",
    "watt = joule / second = W",
    "mac = [computation] = MAC",
    "USD = [money]",
    "femto- = 1e-15 = f-",
    "pico- = 1e-12 = p-",
    "nano- = 1e-9 = n-",
    "micro- = 1e-6 = u-",
    "milli- = 1e-3 = m-",
    "kilo- = 1e3 = k-",
    "mega- = 1e6 = M-",
    "giga- = 1e9 = G-",
    "tera- = 1e12 = T-",
    "kibi- = 1024 = Ki-",
    "mebi- = 1048576 = Mi-",
    "gibi- = 1073741824 = Gi-",
)

# One number, one unit or one unit over another. pint itself evaluates any expression, powers of
# powers included, so nothing else may reach it.
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *[A-Za-z]+(/[A-Za-z]+)?", re.ASCII)
_MAX_LENGTH = 64


@cache
def _registry() -> pint.UnitRegistry[float]:
    import pint  # noqa: PLC0415  a worker starts sooner without, and reads no units

    registry: pint.UnitRegistry[float] = pint.UnitRegistry(None)
    for definition in _DEFINITIONS:
        registry.define(definition)
    return registry


def parse_quantity(text: object, unit: str) -> float:
    """Parse a quantity and convert it.

    Args:
        text: A number and a unit, e.g. ``"1 Mbit/s"``; anything else is an error.
        unit: The unit of the result, e.g. ``"byte/s"``.

    Returns:
        The number of ``unit`` in ``text``; finite.

    Raises:
        UnitError: There is no number, no unit, or a unit of another kind.

    Example:
        >>> parse_quantity("1 Mbit/s", "byte/s")
        125000.0
        >>> parse_quantity("320 KiB", "byte")
        327680.0
    """
    import pint  # noqa: PLC0415  see `_registry`

    found = f"found {str(text)[:_MAX_LENGTH]!r}"
    if not isinstance(text, str) or len(text) > _MAX_LENGTH or not _QUANTITY.fullmatch(text):
        raise UnitError(f"{found}, expected a number with a unit like '1 {unit}'")
    try:
        quantity: pint.Quantity[float] = _registry().Quantity(text)
    except pint.UndefinedUnitError as error:
        raise UnitError(
            f"{found}, expected a known unit like '1 {unit}', or with k, M, Ki, Mi, m, u before it"
        ) from error
    if not quantity.is_compatible_with(unit):
        raise UnitError(f"{found}, expected a quantity of another kind, like '1 {unit}'")
    value = float(quantity.to(unit).magnitude)
    if not isfinite(value):
        raise UnitError(f"{found}, expected a finite number of {unit}")
    return value


def format_quantity(value: float, unit: str) -> str:
    """Write a number of SI units as people read it, four significant digits.

    Example:
        >>> format_quantity(0.00325, "s")
        '3.25 ms'
        >>> format_quantity(125000.0, "byte/s")
        '125 kB/s'
    """
    if value == 0:
        return f"0 {_registry().Unit(unit):~P}"
    return f"{_registry().Quantity(value, unit).to_compact():.4g~P}"


def exact_quantity(value: float, unit: str, *, written: Sequence[str] = ()) -> str:
    """Write a number so that `parse_quantity` gives the very same one back.

    Args:
        value: The number of ``unit``, finite.
        unit: As `parse_quantity` takes it.
        written: Units to write it in; the first that keeps the number exact and at least 1 is
            taken, else the first that keeps it exact.

    Example:
        >>> exact_quantity(327680.0, "byte", written=("MiB", "KiB"))
        '320 KiB'
    """
    small = ""
    for other in (*written, unit):
        number = _registry().Quantity(value, unit).to(other).magnitude
        text = f"{number:.15g} {other}"
        if parse_quantity(text, unit) == value:
            if number >= 1:
                return text
            small = small or text
    return small or f"{value!r} {unit}"
