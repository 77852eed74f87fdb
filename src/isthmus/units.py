"""Text with units to SI numbers and back, by pint; the only place where units are parsed.

The registry knows only what a platform file needs, and keeps information (bit, byte) and
computation (MAC) as dimensions of their own: ``100 MHz`` is no data rate here.
"""

import pint

from isthmus.errors import UnitError

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

_REGISTRY = pint.UnitRegistry(None)
for _definition in _DEFINITIONS:
    _REGISTRY.define(_definition)


def parse_quantity(text: object, unit: str) -> float:
    """Parse a quantity and convert it.

    Args:
        text: A number and a unit, e.g. ``"1 Mbit/s"``; anything else is an error.
        unit: The unit of the result, e.g. ``"byte/s"``.

    Returns:
        The number of ``unit`` in ``text``.

    Raises:
        UnitError: There is no number, no unit, or a unit of another kind.

    Example:
        >>> parse_quantity("1 Mbit/s", "byte/s")
        125000.0
        >>> parse_quantity("320 KiB", "byte")
        327680.0
    """
    if not isinstance(text, str):
        raise UnitError(f"found {text!r}, expected a number with a unit such as '1 {unit}'")
    try:
        quantity = _REGISTRY.Quantity(text)
    except Exception as error:  # pint raises many types, tokenizer errors among them
        raise UnitError(
            f"found {text!r}, expected a number with a unit like '1 {unit}'"
        ) from error
    if not quantity.is_compatible_with(unit):
        raise UnitError(f"found {text!r}, expected a unit like '{unit}', e.g. '1 {unit}'")
    return float(quantity.to(unit).magnitude)


def format_quantity(value: float, unit: str) -> str:
    """Write a number of SI units as people read it, three significant digits.

    Example:
        >>> format_quantity(0.00325, "s")
        '3.25 ms'
        >>> format_quantity(125000.0, "byte/s")
        '125 kB/s'
    """
    if value == 0:
        return f"0 {_REGISTRY.Unit(unit):~P}"
    return f"{_REGISTRY.Quantity(value, unit).to_compact():.4g~P}"
