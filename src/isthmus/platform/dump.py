"""A platform as YAML with units, such that loading it gives an equal one."""

from collections.abc import Mapping, Sequence

import yaml

from isthmus.platform.platform import Device, Link, Platform
from isthmus.units import exact_quantity

_WRITTEN: Mapping[str, Sequence[str]] = {
    "byte": ("GiB", "MiB", "KiB", "byte"),
    "byte/s": ("GB/s", "MB/s", "kB/s", "B/s"),
    "MAC": ("GMAC", "MMAC", "kMAC", "MAC"),
    "MAC/s": ("GMAC/s", "MMAC/s", "kMAC/s", "MAC/s"),
    "Hz": ("GHz", "MHz", "kHz", "Hz"),
    "s": ("s", "ms", "us", "ns", "ps"),
    "W": ("W", "mW", "uW", "nW"),
    "J/MAC": ("uJ/MAC", "nJ/MAC", "pJ/MAC", "fJ/MAC"),
    "J/byte": ("uJ/byte", "nJ/byte", "pJ/byte", "fJ/byte"),
}
# Of a link, whose figures people give by the bit.
_RATES = ("Gbit/s", "Mbit/s", "kbit/s", "bit/s")
_BIT_ENERGIES = ("uJ/bit", "nJ/bit", "pJ/bit", "fJ/bit")


def dump_platform(platform: Platform) -> str:
    """Write a platform as YAML with units.

    Returns:
        Text such that loading it gives an equal platform, less the tables of measured times: they
        belong to a model and stand in files of their own. A grid or a bus is spelled out.
    """
    fields = {
        "schema": Platform.SCHEMA,
        "name": platform.name,
        "devices": {device.name: _device_fields(device) for device in platform.devices},
        "links": [_link_fields(link) for link in platform.links],
        "input": platform.input,
        "output": platform.output,
    }
    return yaml.safe_dump(fields, sort_keys=False)


def _device_fields(device: Device) -> dict[str, object]:
    energy = {name: _exact(value, "J/MAC") for name, value in device.j_per_mac.items()}
    energy["sram"] = _exact(device.sram_j_per_byte, "J/byte")
    energy["static"] = _exact(device.static_w, "W")
    rooms = {
        name: getattr(device.memory, f"{name}_bytes")
        for name in ("weights", "activations", "shared")
    }
    memory = {name: _exact(room, "byte") for name, room in rooms.items() if room is not None}
    if device.memory_bytes_per_s is not None:
        memory["bandwidth"] = _exact(device.memory_bytes_per_s, "byte/s")
    fields: dict[str, object] = {
        "kind": device.kind,
        "memory": memory,
        "compute": {name: _exact(rate, "MAC/s") for name, rate in device.macs_per_s.items()},
        "efficiency": {_exact(macs, "MAC"): share for macs, share in device.efficiency},
        "start": _exact(device.start_s, "s"),
        "energy": energy,
        "price": exact_quantity(device.price, "USD"),
        "formats": list(device.formats),
        "unsupported": list(device.unsupported),
        "backend": device.backend,
        "threads": device.threads,
        "batch": device.batch,
    }
    return fields if device.codecs is None else fields | {"codecs": list(device.codecs)}


def _link_fields(link: Link) -> dict[str, object]:
    if link.pins is not None and link.clock_hz is not None:
        rate: dict[str, object] = {"pins": link.pins, "clock": _exact(link.clock_hz, "Hz")}
    else:
        rate = {"bandwidth": exact_quantity(link.bytes_per_s, "byte/s", written=_RATES)}
    message = {"overhead": f"{link.overhead_bytes} byte"}
    if link.mtu_bytes is not None:
        message["mtu"] = f"{link.mtu_bytes} byte"
    return {
        "between": list(link.between),
        **rate,
        "latency": _exact(link.latency_s, "s"),
        "setup": _exact(link.setup_s, "s"),
        "energy": exact_quantity(link.j_per_byte, "J/byte", written=_BIT_ENERGIES),
        "message": message,
        "duplex": link.duplex,
        **({"medium": link.medium} if link.medium else {}),
    }


def _exact(value: float, unit: str) -> str:
    return exact_quantity(value, unit, written=_WRITTEN[unit])
