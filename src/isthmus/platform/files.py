"""Platform files: YAML with units, checked key by key.

.. code-block:: yaml

    schema: isthmus.platform/1
    name: camera-hub
    devices:
      camera:
        kind: mcu
        memory: {weights: 1 MiB, activations: 320 KiB}   # or one shared figure; none: no limit
        compute: {int8: 0.4 GMAC/s, fp32: 0.05 GMAC/s}
        energy: {int8: 0.23 pJ/MAC, fp32: 4.6 pJ/MAC, sram: 1.25 pJ/byte, static: 5 mW}
        formats: [int8, fp32]                            # as in compute, if left out
        backend: onnxruntime
      hub: {memory: 1 GiB, compute: {fp32: 1.5 GMAC/s}}
    links:
      - {between: [camera, hub], bandwidth: 1 Mbit/s, latency: 8 ms, energy: 50 nJ/bit,
         message: {overhead: 7 byte, mtu: 244 byte}, duplex: half}   # or pins: 16, clock: 100 MHz
    input: camera
    output: hub
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from isthmus.errors import InputError, UnitError
from isthmus.files import first_problem
from isthmus.platform.platform import BACKENDS, FORMATS, Device, Link, Memory, Platform
from isthmus.units import exact_quantity, parse_quantity

SCHEMA = "isthmus.platform/1"
PRESETS = ("camera-hub", "chiplets-4", "two-mcu-spi")

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16
_MAX_DEVICES = 64
_NOT_TEXT = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
}


def preset_text(name: str) -> str:
    """Return the YAML of a preset, with the source of each figure in its comments."""
    if name not in PRESETS:
        raise InputError(f"no platform preset {name!r}; there are {', '.join(PRESETS)}")
    folder = resources.files("isthmus.platform") / "presets"
    return (folder / f"{name}.yaml").read_text("utf-8")


def load_platform(source: str | Path) -> Platform:
    """Read a platform.

    Args:
        source: The name of a preset, or the path of a YAML file.

    Returns:
        The platform, checked.

    Raises:
        UnitError: A quantity has no unit, or one of another kind.
        InputError: Anything else is wrong; names the file, the key, what was found, what is
            expected.

    Example:
        >>> load_platform("camera-hub").output
        'hub'
    """
    if source in PRESETS:
        return _parse(preset_text(str(source)), where=str(source))
    path = Path(source)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{source}: cannot be read ({error.strerror}), expected a platform file or a preset: "
            f"{', '.join(PRESETS)}"
        ) from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{source}: found more than 1 MiB, expected a platform file")
    try:
        return _parse(data.decode(), where=str(source))
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: found bytes that are not UTF-8, expected YAML") from error


def dump_platform(platform: Platform) -> str:
    """Write a platform as YAML with units, such that loading it gives an equal one."""
    fields = {
        "schema": SCHEMA,
        "name": platform.name,
        "devices": {device.name: _device_fields(device) for device in platform.devices},
        "links": [_link_fields(link) for link in platform.links],
        "input": platform.input,
        "output": platform.output,
    }
    return yaml.safe_dump(fields, sort_keys=False)


def _parse(text: str, *, where: str) -> Platform:
    try:
        return _File.model_validate(_read_yaml(text)).platform()
    except ValidationError as error:
        kind = UnitError if _unit_error(error) else InputError
        raise kind(f"{where}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise InputError(f"{where}: not YAML ({problem}{line})") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _problem(error: ValidationError) -> str:
    """Return the first problem as one line; a message of ours says itself what was found."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "top level"
    if first["type"] == "missing":
        return f"{key}: found nothing, expected a value"
    if first["type"] == "string_type" and isinstance(first["input"], bool):
        words = "on, yes and true" if first["input"] else "off, no and false"
        return f"{key}: YAML reads {words} as a boolean; put the name in quotes"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    return first_problem(error)


def _unit_error(error: ValidationError) -> bool:
    return isinstance(error.errors()[0].get("ctx", {}).get("error"), UnitError)


def _read_yaml(text: str) -> Any:
    """Load YAML without what can make it large or ambiguous: aliases, depth, double keys."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"found the alias *{event.anchor}, expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InputError(f"found over {_MAX_DEPTH} nested levels, expected a platform file")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    _check_keys(root)
    try:
        return yaml.safe_load(text)
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise InputError(f"not YAML ({error})") from error


def _check_keys(node: yaml.Node | None) -> None:
    """Raise where a key is no text, or named twice: YAML itself would silently keep the last."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if key.tag in _NOT_TEXT:
                raise InputError(
                    f"found the key {name} in line {line}, which YAML reads as "
                    f"{_NOT_TEXT[key.tag]}; put it in quotes: {name!r}"
                )
            if name in seen:
                raise InputError(f"{name}: found twice (again in line {line}), expected once")
            seen.add(name)
            children.append(value)
    for child in children:
        _check_keys(child)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, value: object) -> object:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(value, dict):
            raise InputError(f"found {str(value)[:60]!r}, expected the keys {', '.join(known)}")
        for key, content in value.items():
            if key not in known:
                raise InputError(f"found the key {key!r}, expected {', '.join(known)}")
            if content is None:
                raise InputError(f"{key}: found nothing, expected a value")
        return value


def _quantity(unit: str, *, at_least: float = 0.0, over: float | None = None) -> BeforeValidator:
    """Parse a quantity of ``unit`` and bound it."""

    def parse(text: object) -> float:
        value = parse_quantity(text, unit)
        if value < at_least or (over is not None and value <= over):
            bound = f"at least {at_least:g}" if over is None else f"more than {over:g}"
            raise InputError(f"found {text!r}, expected {bound} {unit}")
        return value

    return BeforeValidator(parse)


def _whole_bytes(text: object) -> int:
    value = parse_quantity(text, "byte")
    if value < 0 or value != int(value):
        raise InputError(f"found {text!r}, expected a whole number of bytes, 0 or more")
    return int(value)


def _one_of(known: tuple[str, ...]) -> BeforeValidator:
    def check(text: object) -> object:
        if text not in known:
            raise InputError(f"found {text!r}, expected {' or '.join(known)}")
        return text

    return BeforeValidator(check)


# The name is also a folder in the bundle and a part of a transport address.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
_Room = Annotated[float, _quantity("byte", at_least=1)]
_Bytes = Annotated[int, BeforeValidator(_whole_bytes)]
_MacRate = Annotated[float, _quantity("MAC/s", over=0)]
_MacEnergy = Annotated[float, _quantity("J/MAC")]
_Format = Annotated[str, _one_of(FORMATS)]


class _Memory(_Strict):
    weights: _Room | None = None
    activations: _Room | None = None
    shared: _Room | None = None

    @model_validator(mode="after")
    def _is_shared_or_separate(self) -> Self:
        if self.shared is not None and (self.weights, self.activations) != (None, None):
            raise InputError("found shared beside another, expected one figure or two separate")
        return self

    def memory(self) -> Memory:
        return Memory(
            weights_bytes=self.weights,
            activations_bytes=self.activations,
            shared_bytes=self.shared,
        )


class _Energy(_Strict):
    fp32: _MacEnergy | None = None
    fp16: _MacEnergy | None = None
    bf16: _MacEnergy | None = None
    int8: _MacEnergy | None = None
    int4: _MacEnergy | None = None
    sram: Annotated[float, _quantity("J/byte")] = 0.0
    static: Annotated[float, _quantity("W")] = 0.0

    def j_per_mac(self) -> dict[str, float]:
        energies = {name: getattr(self, name) for name in FORMATS}
        return {name: energy for name, energy in energies.items() if energy is not None}


class _Device(_Strict):
    kind: str = "device"
    memory: _Memory = _Memory()
    compute: dict[_Format, _MacRate] = Field(min_length=1)
    energy: _Energy = _Energy()
    formats: list[_Format] | None = None
    backend: Annotated[str, _one_of(BACKENDS)] = BACKENDS[0]

    @field_validator("memory", mode="before")
    @classmethod
    def _one_figure_is_shared(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"shared": value}

    @model_validator(mode="after")
    def _formats_have_rates(self) -> Self:
        formats = self.formats or list(self.compute)
        if sorted(formats) != sorted(self.compute):
            raise InputError(f"formats: found {formats}, expected those of compute, each once")
        for name in self.energy.j_per_mac():
            if name not in self.compute:
                raise InputError(f"energy.{name}: found an energy without a rate under compute")
        return self

    def device(self, name: str) -> Device:
        return Device(
            name=name,
            kind=self.kind,
            memory=self.memory.memory(),
            macs_per_s=self.compute,
            j_per_mac=self.energy.j_per_mac(),
            sram_j_per_byte=self.energy.sram,
            static_w=self.energy.static,
            formats=tuple(self.formats or self.compute),
            backend=self.backend,
        )


class _Message(_Strict):
    overhead: _Bytes = 0
    mtu: Annotated[int, Field(ge=1), BeforeValidator(_whole_bytes)] | None = None


class _Link(_Strict):
    between: list[str] = Field(min_length=2, max_length=2)
    bandwidth: Annotated[float, _quantity("byte/s", at_least=0.125)] | None = None
    pins: Annotated[int, Field(ge=1)] | None = None
    clock: Annotated[float, _quantity("Hz", over=0)] | None = None
    latency: Annotated[float, _quantity("s")] = 0.0
    energy: Annotated[float, _quantity("J/byte")] = 0.0
    message: _Message = _Message()
    duplex: Annotated[str, _one_of(("full", "half"))] = "full"

    @model_validator(mode="after")
    def _has_one_rate(self) -> Self:
        given = [key for key in ("bandwidth", "pins", "clock") if getattr(self, key) is not None]
        if given not in (["bandwidth"], ["pins", "clock"]):
            found = " and ".join(given) or "neither"
            raise InputError(f"found {found}, expected either bandwidth or pins and clock")
        return self

    def link(self) -> Link:
        first, second = self.between
        rate = self.bandwidth or (self.pins or 0) * (self.clock or 0.0) / 8
        return Link(
            between=(first, second),
            bytes_per_s=rate,
            latency_s=self.latency,
            j_per_byte=self.energy,
            overhead_bytes=self.message.overhead,
            mtu_bytes=self.message.mtu,
            duplex=self.duplex,
            pins=self.pins,
            clock_hz=self.clock,
        )


class _File(_Strict):
    layout: Literal["isthmus.platform/1"] = Field(alias="schema")
    name: _Name
    devices: dict[_Name, _Device] = Field(min_length=1, max_length=_MAX_DEVICES)
    links: list[_Link] = Field(default=[], max_length=_MAX_DEVICES)
    input: str
    output: str

    def platform(self) -> Platform:
        return Platform(
            name=self.name,
            devices=tuple(device.device(name) for name, device in self.devices.items()),
            links=tuple(link.link() for link in self.links),
            input=self.input,
            output=self.output,
        )


_BYTES = ("GiB", "MiB", "KiB", "byte")
_RATES = ("Gbit/s", "Mbit/s", "kbit/s", "bit/s")
_MAC_RATES = ("GMAC/s", "MMAC/s", "kMAC/s", "MAC/s")
_CLOCKS = ("GHz", "MHz", "kHz", "Hz")
_TIMES = ("s", "ms", "us", "ns", "ps")
_POWERS = ("W", "mW", "uW", "nW")
_MAC_ENERGIES = ("uJ/MAC", "nJ/MAC", "pJ/MAC", "fJ/MAC")
_BYTE_ENERGIES = ("uJ/byte", "nJ/byte", "pJ/byte", "fJ/byte")
_BIT_ENERGIES = ("uJ/bit", "nJ/bit", "pJ/bit", "fJ/bit")


def _device_fields(device: Device) -> dict[str, object]:
    energy = {
        name: exact_quantity(value, "J/MAC", written=_MAC_ENERGIES)
        for name, value in device.j_per_mac.items()
    }
    energy["sram"] = exact_quantity(device.sram_j_per_byte, "J/byte", written=_BYTE_ENERGIES)
    energy["static"] = exact_quantity(device.static_w, "W", written=_POWERS)
    compute = {
        name: exact_quantity(value, "MAC/s", written=_MAC_RATES)
        for name, value in device.macs_per_s.items()
    }
    return {
        "kind": device.kind,
        "memory": _memory_fields(device.memory),
        "compute": compute,
        "energy": energy,
        "formats": list(device.formats),
        "backend": device.backend,
    }


def _memory_fields(memory: Memory) -> str | dict[str, str]:
    if memory.shared_bytes is not None:
        return exact_quantity(memory.shared_bytes, "byte", written=_BYTES)
    rooms = {"weights": memory.weights_bytes, "activations": memory.activations_bytes}
    return {
        name: exact_quantity(room, "byte", written=_BYTES)
        for name, room in rooms.items()
        if room is not None
    }


def _link_fields(link: Link) -> dict[str, object]:
    if link.pins is not None and link.clock_hz is not None:
        clock = exact_quantity(link.clock_hz, "Hz", written=_CLOCKS)
        rate: dict[str, object] = {"pins": link.pins, "clock": clock}
    else:
        rate = {"bandwidth": exact_quantity(link.bytes_per_s, "byte/s", written=_RATES)}
    message = {"overhead": f"{link.overhead_bytes} byte"}
    if link.mtu_bytes is not None:
        message["mtu"] = f"{link.mtu_bytes} byte"
    return {
        "between": list(link.between),
        **rate,
        "latency": exact_quantity(link.latency_s, "s", written=_TIMES),
        "energy": exact_quantity(link.j_per_byte, "J/byte", written=_BIT_ENERGIES),
        "message": message,
        "duplex": link.duplex,
    }
