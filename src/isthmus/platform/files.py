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
        unsupported: [gelu]
        codecs: [uniform]                                # all, if left out
        backend: onnxruntime                             # or openvino, torch
        threads: 1
      hub:
        memory: {shared: 1 GiB, bandwidth: 4 GB/s}
        compute: {fp32: 1.5 GMAC/s}
        efficiency: {10 kMAC: 0.2, 1 MMAC: 0.8}
        start: 20 us
        price: 35 USD
        measured: times.json                             # beside this file
      core: {grid: [2, 2], compute: {int8: 1 GMAC/s}}    # core-0-0, core-0-1, core-1-0, core-1-1
    links:
      - {between: [camera, hub], bandwidth: 1 Mbit/s, latency: 8 ms, energy: 50 nJ/bit,
         message: {overhead: 7 byte, mtu: 244 byte}, duplex: half}   # or pins: 16, clock: 100 MHz
      - {between: [hub, core-0-0, core-1-0], bandwidth: 1 Gbit/s, setup: 1 us}   # a bus
      - {grid: core, bandwidth: 8 Gbit/s}                # each core and its neighbours
    input: camera
    output: hub
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

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

from isthmus.backends import BACKENDS, MAX_BATCH, MAX_THREADS
from isthmus.errors import InputError, UnitError, naming
from isthmus.files import first_problem, refusing
from isthmus.platform.platform import DUPLEXES, FORMATS, NAME, Device, Link, Memory, Platform
from isthmus.platform.strict_yaml import read_yaml
from isthmus.platform.times import NodeTimes, load_times
from isthmus.units import parse_quantity

PRESETS = (
    "camera-hub",
    "camera-hub-cloud",
    "chiplets-36",
    "chiplets-4",
    "manycore-mesh",
    "pcie-pair",
    "two-mcu-ble",
    "two-mcu-spi",
    "two-phones-wifi",
    "two-pi-ethernet",
    "ucie-pair",
)

_MAX_BYTES = 1 << 20
_MAX_DEVICES = 256
_MAX_BUS = 64
_MAX_LINKS = 4096
_MAX_PINS = 1 << 20
_MOST = 1e30  # of any quantity, in SI units, so that products of several are floats


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
        return _parse(preset_text(str(source)), where=str(source), folder=Path())
    path = Path(source)
    remedy = f"expected a platform file or a preset: {', '.join(PRESETS)}"
    with refusing(source, "cannot be read", remedy), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"{source}: found more than 1 MiB, expected a platform file")
    try:
        return _parse(data.decode(), where=str(source), folder=path.parent)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: found bytes that are not UTF-8, expected YAML") from error


def _parse(text: str, *, where: str, folder: Path) -> Platform:
    try:
        return _File.model_validate(read_yaml(text)).platform(folder)
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        kind = UnitError if isinstance(cause, UnitError) else InputError
        raise kind(f"{where}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise InputError(f"{where}: not YAML ({problem}{line})") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _problem(error: ValidationError) -> str:
    """Return the first problem as one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "top level"
    if first["type"] == "string_type" and isinstance(first["input"], bool):
        words = "on, yes and true" if first["input"] else "off, no and false"
        return f"{key}: YAML reads {words} as a boolean; put the name in quotes"
    return first_problem(error)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, value: object) -> object:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(value, dict):
            found = "nothing" if value is None else repr(str(value)[:60])
            raise InputError(f"found {found}, expected the keys {', '.join(known)}")
        for key, content in value.items():
            if key not in known:
                raise InputError(f"found the key {key!r}, expected {', '.join(known)}")
            if content is None:
                raise InputError(f"{key}: found nothing, expected a value")
        return value


def _quantity(unit: str, *, at_least: float = 0.0, over: float | None = None) -> BeforeValidator:
    """Parse a quantity of ``unit`` and bound it."""

    def parse(text: object) -> float:
        value = _figure(text, unit)
        if value < at_least or (over is not None and value <= over):
            bound = f"at least {at_least:g}" if over is None else f"more than {over:g}"
            raise InputError(f"found {text!r}, expected {bound} {unit}")
        return value

    return BeforeValidator(parse)


def _figure(text: object, unit: str) -> float:
    value = parse_quantity(text, unit)
    if value and not 1 / _MOST <= abs(value) <= _MOST:
        raise InputError(f"found {text!r}, expected {1 / _MOST:g} to {_MOST:g} {unit}")
    return value


def _whole_bytes(text: object) -> int:
    value = _figure(text, "byte")
    if value < 0 or value != int(value):
        raise InputError(f"found {text!r}, expected a whole number of bytes, 0 or more")
    return int(value)


def _points(value: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, dict):
        raise InputError(f"found {str(value)[:60]!r}, expected sizes and shares like 1 MMAC: 0.8")
    for size, share in value.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 1 / _MOST <= share <= 1:
            found = repr(str(share)[:60])
            raise InputError(f"{size}: found {found}, expected a number over 0, up to 1")
    return tuple((_figure(size, "MAC"), float(share)) for size, share in value.items())


def _one_of(known: tuple[str, ...]) -> BeforeValidator:
    def check(text: object) -> object:
        if text not in known:
            raise InputError(f"found {text!r}, expected {' or '.join(known)}")
        return text

    return BeforeValidator(check)


_Name = Annotated[str, Field(pattern=NAME)]
_MAX_NAME = 64
_Room = Annotated[float, _quantity("byte", at_least=1)]
_Bytes = Annotated[int, BeforeValidator(_whole_bytes)]
_MacRate = Annotated[float, _quantity("MAC/s", over=0)]
_MacEnergy = Annotated[float, _quantity("J/MAC")]
_ByteRate = Annotated[float, _quantity("byte/s", at_least=0.125)]
_Time = Annotated[float, _quantity("s")]
_Format = Annotated[str, _one_of(FORMATS)]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
_Size = Annotated[int, Field(ge=1, le=_MAX_DEVICES)]


class _Memory(_Strict):
    weights: _Room | None = None
    activations: _Room | None = None
    shared: _Room | None = None
    bandwidth: _ByteRate | None = None

    @model_validator(mode="after")
    def _is_shared_or_separate(self) -> Self:
        if self.shared is not None and (self.weights, self.activations) != (None, None):
            raise InputError("found shared beside another, expected one figure or two separate")
        return self


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
    grid: list[_Size] | None = Field(default=None, min_length=1, max_length=3)
    kind: str = "device"
    memory: _Memory = _Memory()
    compute: dict[_Format, _MacRate] = Field(min_length=1)
    efficiency: Annotated[tuple[tuple[float, float], ...], BeforeValidator(_points)] = ()
    start: _Time = 0.0
    energy: _Energy = _Energy()
    price: Annotated[float, _quantity("USD")] = 0.0
    formats: list[_Format] | None = None
    unsupported: list[_Word] = []
    codecs: list[_Word] | None = None
    measured: str | None = None
    backend: Annotated[str, _one_of(tuple(BACKENDS))] = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] = 1
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1

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

    def devices(self, name: str, folder: Path) -> Iterator[Device]:
        """Yield the device of a name, or those of its grid."""
        device = Device(
            name=name,
            kind=self.kind,
            memory=Memory(
                weights_bytes=self.memory.weights,
                activations_bytes=self.memory.activations,
                shared_bytes=self.memory.shared,
            ),
            memory_bytes_per_s=self.memory.bandwidth,
            macs_per_s=self.compute,
            efficiency=self.efficiency,
            start_s=self.start,
            j_per_mac=self.energy.j_per_mac(),
            sram_j_per_byte=self.energy.sram,
            static_w=self.energy.static,
            price=self.price,
            formats=tuple(self.formats or self.compute),
            unsupported=tuple(self.unsupported),
            codecs=None if self.codecs is None else tuple(self.codecs),
            backend=self.backend,
            threads=self.threads,
            batch=self.batch,
            node_s=None if self.measured is None else _measured(folder / self.measured),
        )
        for place in product(*map(range, self.grid or ())):
            cell = _cell_name(name, place)
            if len(cell) > _MAX_NAME:
                raise InputError(f"grid: found {cell!r}, expected a shorter name of the device")
            yield replace(device, name=cell)


def _measured(path: Path) -> NodeTimes:
    try:
        return load_times(path)
    except InputError as error:
        remedy = "`isthmus profile MODEL --measure` writes one"
        raise InputError(f"measured: {error}; {remedy}") from error


def _cell_name(name: str, cell: tuple[int, ...]) -> str:
    return "-".join((name, *map(str, cell)))


def _neighbours(name: str, sizes: list[int]) -> Iterator[tuple[str, str]]:
    """Yield the names of neighbours in a grid, those along its last axis first."""
    for axis in reversed(range(len(sizes))):
        for cell in product(*map(range, sizes)):
            if cell[axis] + 1 < sizes[axis]:
                after = (*cell[:axis], cell[axis] + 1, *cell[axis + 1 :])
                yield _cell_name(name, cell), _cell_name(name, after)


class _Message(_Strict):
    overhead: _Bytes = 0
    mtu: Annotated[int, Field(ge=1), BeforeValidator(_whole_bytes)] | None = None


class _Link(_Strict):
    between: list[str] | None = Field(default=None, min_length=2, max_length=_MAX_BUS)
    grid: str | None = None
    bandwidth: _ByteRate | None = None
    pins: Annotated[int, Field(ge=1, le=_MAX_PINS)] | None = None
    clock: Annotated[float, _quantity("Hz", over=0)] | None = None
    latency: _Time = 0.0
    setup: _Time = 0.0
    energy: Annotated[float, _quantity("J/byte")] = 0.0
    message: _Message = _Message()
    duplex: Annotated[str, _one_of(DUPLEXES)] | None = None
    medium: _Name | None = None

    @model_validator(mode="after")
    def _has_ends_and_one_rate(self) -> Self:
        if (self.between is None) == (self.grid is None):
            found = "neither" if self.grid is None else "between and grid"
            raise InputError(f"found {found}, expected either between or grid")
        given = [key for key in ("bandwidth", "pins", "clock") if getattr(self, key) is not None]
        if given not in (["bandwidth"], ["pins", "clock"]):
            found = " and ".join(given) or "neither"
            raise InputError(f"found {found}, expected either bandwidth or pins and clock")
        return self

    def links(self, grids: dict[str, list[int]], bus: str) -> Iterator[Link]:
        """Yield the link, or those between the devices of a bus or a grid.

        Args:
            grids: The sizes of every grid of devices.
            bus: What to call the medium of a bus that has no name.
        """
        medium = self.medium or (bus if self.between and len(self.between) > 2 else "")
        pairs: Iterable[tuple[str, str]] = combinations(self.between or (), 2)
        if self.grid is not None:
            if self.grid not in grids:
                known = ", ".join(grids) or "none"
                raise InputError(f"grid: found {self.grid!r}, expected a device with one: {known}")
            pairs = _neighbours(self.grid, grids[self.grid])
        rate = self.bandwidth or (self.pins or 0) * (self.clock or 0.0) / 8
        for ends in pairs:
            yield Link(
                between=ends,
                bytes_per_s=rate,
                latency_s=self.latency,
                setup_s=self.setup,
                j_per_byte=self.energy,
                overhead_bytes=self.message.overhead,
                mtu_bytes=self.message.mtu,
                duplex=self.duplex or ("half" if medium else "full"),
                medium=medium,
                pins=self.pins,
                clock_hz=self.clock,
            )


class _File(_Strict):
    layout: Literal["isthmus.platform/1"] = Field(alias="schema")
    name: _Name
    devices: dict[_Name, _Device] = Field(min_length=1, max_length=_MAX_DEVICES)
    links: list[_Link] = Field(default=[], max_length=_MAX_LINKS)
    input: str
    output: str

    @model_validator(mode="after")
    def _has_not_too_many_devices(self) -> Self:
        number = sum(prod(device.grid or ()) for device in self.devices.values())
        if number > _MAX_DEVICES:
            raise InputError(f"devices: found {number}, expected at most {_MAX_DEVICES}")
        return self

    def platform(self, folder: Path) -> Platform:
        """Return what the file says; the tables that it names are looked for in the folder."""
        grids = {name: device.grid for name, device in self.devices.items() if device.grid}
        devices: list[Device] = []
        links: list[Link] = []
        for name, device in self.devices.items():
            with naming(f"devices.{name}"):
                devices += device.devices(name, folder)
        for index, link in enumerate(self.links):
            with naming(f"links.{index}"):
                links += link.links(grids, bus=f"bus-{index}")
                if len(links) > _MAX_LINKS:
                    raise InputError(f"found {len(links)} with all buses, at most {_MAX_LINKS}")
        return Platform(
            name=self.name,
            devices=tuple(devices),
            links=tuple(links),
            input=self.input,
            output=self.output,
        )
