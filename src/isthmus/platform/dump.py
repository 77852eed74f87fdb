"""A platform as YAML with units, such that loading it gives an equal one."""

import yaml

from isthmus.platform.files import SCHEMA
from isthmus.platform.platform import Device, Link, Platform
from isthmus.units import exact_quantity

_BYTES = ("GiB", "MiB", "KiB", "byte")
_BYTE_RATES = ("GB/s", "MB/s", "kB/s", "B/s")
_RATES = ("Gbit/s", "Mbit/s", "kbit/s", "bit/s")
_MACS = ("GMAC", "MMAC", "kMAC", "MAC")
_MAC_RATES = ("GMAC/s", "MMAC/s", "kMAC/s", "MAC/s")
_CLOCKS = ("GHz", "MHz", "kHz", "Hz")
_TIMES = ("s", "ms", "us", "ns", "ps")
_POWERS = ("W", "mW", "uW", "nW")
_MAC_ENERGIES = ("uJ/MAC", "nJ/MAC", "pJ/MAC", "fJ/MAC")
_BYTE_ENERGIES = ("uJ/byte", "nJ/byte", "pJ/byte", "fJ/byte")
_BIT_ENERGIES = ("uJ/bit", "nJ/bit", "pJ/bit", "fJ/bit")


def dump_platform(platform: Platform) -> str:
    """Write a platform as YAML with units.

    Returns:
        Text such that loading it gives an equal platform, less the tables of measured times: they
        belong to a model and stand in files of their own. A grid or a bus is spelled out.
    """
    fields = {
        "schema": SCHEMA,
        "name": platform.name,
        "devices": {device.name: _device_fields(device) for device in platform.devices},
        "links": [_link_fields(link) for link in platform.links],
        "input": platform.input,
        "output": platform.output,
    }
    return yaml.safe_dump(fields, sort_keys=False)


def _device_fields(device: Device) -> dict[str, object]:
    compute = {
        name: exact_quantity(value, "MAC/s", written=_MAC_RATES)
        for name, value in device.macs_per_s.items()
    }
    efficiency = {
        exact_quantity(macs, "MAC", written=_MACS): share for macs, share in device.efficiency
    }
    energy = {
        name: exact_quantity(value, "J/MAC", written=_MAC_ENERGIES)
        for name, value in device.j_per_mac.items()
    }
    energy["sram"] = exact_quantity(device.sram_j_per_byte, "J/byte", written=_BYTE_ENERGIES)
    energy["static"] = exact_quantity(device.static_w, "W", written=_POWERS)
    fields: dict[str, object] = {
        "kind": device.kind,
        "memory": _memory_fields(device),
        "compute": compute,
        "efficiency": efficiency,
        "start": exact_quantity(device.start_s, "s", written=_TIMES),
        "energy": energy,
        "price": exact_quantity(device.price, "USD"),
        "formats": list(device.formats),
        "unsupported": list(device.unsupported),
        "backend": device.backend,
        "threads": device.threads,
        "batch": device.batch,
    }
    return fields if device.codecs is None else fields | {"codecs": list(device.codecs)}


def _memory_fields(device: Device) -> dict[str, str]:
    memory, rate = device.memory, device.memory_bytes_per_s
    rooms = {
        "weights": memory.weights_bytes,
        "activations": memory.activations_bytes,
        "shared": memory.shared_bytes,
    }
    fields = {
        name: exact_quantity(room, "byte", written=_BYTES)
        for name, room in rooms.items()
        if room is not None
    }
    if rate is not None:
        fields["bandwidth"] = exact_quantity(rate, "byte/s", written=_BYTE_RATES)
    return fields


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
        "setup": exact_quantity(link.setup_s, "s", written=_TIMES),
        "energy": exact_quantity(link.j_per_byte, "J/byte", written=_BIT_ENERGIES),
        "message": message,
        "duplex": link.duplex,
        **({"medium": link.medium} if link.medium else {}),
    }
