"""What a codec may be told, and how people write it: ``bottleneck:ratio=8,bits=4+entropy``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.errors import InputError
from isthmus.wire.formats import CROSSING

_Allowed = Sequence[int] | Sequence[str]

# What an option says where neither a text nor its codec's defaults set it.
_UNSET: Mapping[str, int | str] = {
    "ratio": 1,
    "stride": 1,
    "hidden": 0,
    "sender": "dense",
    "sender_hidden": 0,
    "bits": 32,
    "per": "channel",
    "range": "minmax",
    "symmetric": False,
    "format": "",
    "nested": False,
    "joint": False,
}
ALL_OPTIONS = (*_UNSET, "entropy")
_FLAGS = ("symmetric", "nested", "joint")  # written 0 or 1
_WRITTEN = ("ratio", "bits")  # even where they say nothing new

_RANGES = (
    "minmax",
    "average",
    "percentile",
    "mse",
    "kl",
    "aciq-laplace",
    "aciq-gauss",
    "octav",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What a codec may be told.

    Attributes:
        options: What the text may set, in the order of writing, and to which values.
        defaults: What is set where the text is silent.
        entropy: Whether ``+entropy`` may follow.
    """

    options: Mapping[str, _Allowed] = field(default_factory=dict)
    defaults: Mapping[str, int | str] = field(default_factory=dict)
    entropy: bool = False

    def allowed(self, option: str) -> _Allowed:
        """Return the values that an option of any codec may have in this one."""
        if option == "entropy":
            return (False, True) if self.entropy else (False,)
        if option in self.options:
            return self.options[option]
        fixed: Any = self.defaults.get(option, _UNSET[option])
        return (fixed,)


_RULES: Mapping[str, _Rule] = {
    "raw": _Rule(options={"bits": (32, 16)}),
    "uniform": _Rule(
        options={
            "bits": range(1, 9),
            "per": ("channel", "tensor", "vector"),
            "range": _RANGES,
            "symmetric": (0, 1),
        },
        defaults={"bits": 8},
        entropy=True,
    ),
    "bottleneck": _Rule(
        options={
            "ratio": range(1, 1 << 20),
            "stride": range(1, 17),
            "hidden": range(1 << 12),
            "sender": ("dense", "separable"),
            "sender_hidden": range(1 << 12),
            "bits": range(2, 9),
            "nested": (0, 1),
            "joint": (0, 1),
        },
        defaults={"ratio": 8, "bits": 8},
        entropy=True,
    ),
    "float": _Rule(
        options={"format": tuple(CROSSING)},
        defaults={"format": "fp8-e4m3"},
        entropy=True,
    ),
    "pixels": _Rule(defaults={"bits": 8}),
    "png": _Rule(defaults={"bits": 8}),
    "label": _Rule(),
}


def parse_options(text: str) -> tuple[str, dict[str, Any]]:
    """Read a codec as people write it, bound to no crossing.

    Args:
        text: A name and its options, ``"bottleneck:ratio=8,bits=4"``.

    Returns:
        The name, and the fields of `CodecSpec` that it sets.

    Raises:
        InputError: An unknown name or option, or one out of bounds.

    Example:
        >>> parse_options("uniform:bits=4,range=mse")
        ('uniform', {'bits': 4, 'range': 'mse'})
    """
    quantized, plus, stage = text.partition("+")
    name, _, rest = quantized.partition(":")
    rule = _rule(name)
    values: dict[str, Any] = dict(rule.defaults)
    given: set[str] = set()
    for item in rest.split(",") if rest else ():
        option, _, value = item.partition("=")
        if option in given:
            raise InputError(f"codec {text!r}: found option {option!r} twice, expected once")
        given.add(option)
        words = option in rule.options and isinstance(rule.options[option][0], str)
        if option not in rule.options or not (words or value.isdecimal()):
            known = ", ".join(map(_known, rule.options.items())) or "none"
            raise InputError(f"codec {text!r}: found option {item!r}; {name} takes {known}")
        values[option] = value if words else int(value)
    if plus and stage != "entropy":
        raise InputError(f"codec {text!r}: found '+{stage}', expected '+entropy' or nothing")
    if plus:
        if True not in rule.allowed("entropy"):
            raise InputError(f"codec {text!r}: {name} has no entropy stage; leave '+entropy' out")
        values["entropy"] = True
    check_options(name, values)
    if "format" in values:
        values["bits"] = CROSSING[values["format"]].bits
    return name, {k: bool(v) if k in _FLAGS else v for k, v in values.items()}


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Raise unless a codec exists and may be told these values.

    Raises:
        InputError: No such codec, or an option out of bounds.
    """
    rule = _rule(name)
    for option, value in values.items():
        allowed = rule.allowed(option)
        if option == "bits" and values.get("format") in CROSSING:
            allowed = (CROSSING[values["format"]].bits,)
        if value not in allowed:
            raise InputError(
                f"codec {name}: found {option}={value!r}, expected {' or '.join(_bounds(allowed))}"
            )


def option_names(name: str) -> tuple[str, ...]:
    """Return what a text of this codec may set, in the order of writing."""
    return tuple(_rule(name).options)


def write_options(name: str, values: Mapping[str, Any], *, entropy: bool) -> str:
    """Write a codec so that `parse_options` reads it back, without options that say nothing."""
    said = {
        option: value
        for option, value in values.items()
        if value != _UNSET[option] or (option in _WRITTEN and name != "raw")
    }
    written = (f"{k}={int(v) if k in _FLAGS else v}" for k, v in said.items())
    return name + (":" if said else "") + ",".join(written) + ("+entropy" if entropy else "")


def _rule(name: str) -> _Rule:
    if name not in _RULES:
        raise InputError(f"no codec {name!r}; there are {', '.join(_RULES)}")
    return _RULES[name]


def _known(option: tuple[str, _Allowed]) -> str:
    name, allowed = option
    return f"{name}=" + ("NUMBER" if isinstance(allowed, range) else "|".join(_bounds(allowed)))


def _bounds(allowed: _Allowed) -> list[str]:
    if isinstance(allowed, range):
        return [f"{allowed[0]} to {allowed[-1]}"]
    return [str(value) for value in allowed]
