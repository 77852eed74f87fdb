"""A platform, and who computes what on it, as input of Stream, for a second opinion.

Stream plans at a finer grain, with its own models of cores and links. What it knows by other names
is kept: rates, memories, energies, links and buses. What it has no place for is left out: latency,
set-up and overhead of messages, static power, start-up, efficiency curves, unsupported ops. A link
goes both ways there. Weights come from a memory outside, over a bus that costs nothing: here each
device holds its own.

References:
    Symons et al., "Stream: Design Space Exploration of Layer-Fused DNNs on Heterogeneous Dataflow
    Accelerators", IEEE Transactions on Computers 74(1), 2025. The format is that of
    https://github.com/KULeuven-MICAS/stream at revision 0324c1f.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from isthmus.errors import InputError
from isthmus.platform.platform import Device, Link, Platform
from isthmus.units import format_quantity

_ROWS, _COLUMNS = 8, 32  # the array of the slowest device: rates are rounded to 2 % and better
_OPERAND_BITS = 32
_FREE_BITS = 1 << 30  # per cycle: no bottleneck
_UNLIMITED_BITS = 1 << 50
_PICO = 1e12
_ALL = ("I1", "I2", "O")  # activations, weights and outputs, in Stream's words


def to_stream(platform: Platform, *, number_format: str = "fp32") -> dict[str, str]:
    """Write a platform as Stream's accelerator.

    Stream counts in cycles. The cycle is chosen such that the slowest device does 256 MACs in one;
    the accelerator's first line says how long it is.

    Args:
        platform: Devices become cores 0, 1 ... in their order; the memory outside is the last.
        number_format: Whose rates and energies to take.

    Returns:
        File name to YAML text: ``accelerator.yaml``, and under ``cores/`` a file for each kind of
        device.

    Raises:
        InputError: A device does not compute in that format.
    """
    cycle_s = _ROWS * _COLUMNS / min(_rate(device, number_format) for device in platform.devices)
    kinds: list[Device] = []
    names, files = [], {}
    for device in platform.devices:
        kind = replace(device, name="", kind="")
        if kind not in kinds:
            kinds.append(kind)
            core = _core(device, number_format, cycle_s)
            files[f"cores/core_{len(kinds) - 1}.yaml"] = _text(core)
        names.append(f"./cores/core_{kinds.index(kind)}.yaml")
    fields = {
        "name": platform.name,
        "cores": dict(enumerate((*names, "./cores/offchip.yaml"))),
        "offchip_core_id": len(names),
        "unit_energy_cost": 0.0,
        "core_connectivity": _connectivity(platform, cycle_s),
    }
    head = f"# One cycle is {format_quantity(cycle_s, 's')}; all in {number_format}.\n"
    offchip = _text(_offchip())
    return {"accelerator.yaml": head + _text(fields), **files, "cores/offchip.yaml": offchip}


def plan_to_stream(platform: Platform, devices: Mapping[str, str]) -> str:
    """Write who computes what as Stream's mapping.

    Args:
        platform: As for `to_stream`.
        devices: The name of the device of each node, by the node's name in the ONNX file that
            Stream is given.

    Returns:
        The text of a mapping file in YAML: each node may run on its one core only.

    Raises:
        InputError: No device has such a name.
    """
    ids = [device.name for device in platform.devices]
    layers = [
        {"name": node, "core_allocation": [[ids.index(platform.device(device).name)]]}
        for node, device in devices.items()
    ]
    return _text({"layers": layers})


def _rate(device: Device, number_format: str) -> float:
    if number_format not in device.macs_per_s:
        known = ", ".join(device.macs_per_s)
        raise InputError(
            f"{device.name}: found no rate in {number_format}, expected one of {known}"
        )
    return device.macs_per_s[number_format]


def _core(device: Device, number_format: str, cycle_s: float) -> dict[str, object]:
    columns = round(_rate(device, number_format) * cycle_s / _ROWS)
    width = len(_ALL) * _OPERAND_BITS * _ROWS * columns
    if device.memory_bytes_per_s is not None:
        width = max(1, round(8 * device.memory_bytes_per_s * cycle_s))
    write_pj = device.sram_j_per_byte * _PICO * width / 8
    memory = device.memory
    if (memory.weights_bytes, memory.activations_bytes) == (None, None):
        memories = {"memory": _memory(_ALL, memory.shared_bytes, width, write_pj)}
    else:
        memories = {
            "weights": _memory(("I2",), memory.weights_bytes, width, 0.0),
            "activations": _memory(("I1", "O"), memory.activations_bytes, width, write_pj),
        }
    return {
        "name": device.name,
        "type": "zigzag.compute",
        "memories": memories,
        "operational_array": {
            "unit_energy": device.j_per_mac.get(number_format, 0.0) * _PICO,
            "unit_area": 1.0,
            "dimensions": ["D1", "D2"],
            "sizes": [_ROWS, columns],
        },
    }


def _memory(
    operands: Sequence[str], room_bytes: float | None, width: int, write_pj: float
) -> dict[str, object]:
    """Return a memory with a port to read and one to write, each of ``width`` bits per cycle."""
    ports = [
        {
            "name": f"{kind[0]}_port_1",
            "type": kind,
            "bandwidth_min": min(8, width),
            "bandwidth_max": width,
            "allocation": [way for way in _ways(operands) if way[-2] in direction],
        }
        for kind, direction in (("read", "t"), ("write", "f"))
    ]
    return {
        "size": _UNLIMITED_BITS if room_bytes is None else int(8 * room_bytes),
        "r_cost": 0.0,
        "w_cost": write_pj,
        "area": 0.0,
        "latency": 1,
        "operands": list(operands),
        "ports": ports,
        "served_dimensions": ["D1", "D2"],
    }


def _ways(operands: Sequence[str]) -> list[str]:
    """Return from and to where operands go: from above, to below; outputs also back again."""
    back = [f"O, {way}" for way in ("fl", "th") if "O" in operands]
    return [f"{operand}, {way}" for operand in operands for way in ("fh", "tl")] + back


def _offchip() -> dict[str, object]:
    port = {
        "name": "rw_port_1",
        "type": "read_write",
        "bandwidth_min": 8,
        "bandwidth_max": _FREE_BITS,
        "allocation": _ways(_ALL),
    }
    memory = _memory(_ALL, None, _FREE_BITS, 0.0) | {"ports": [port]}
    array = {"unit_energy": 0.0, "unit_area": 0.0, "dimensions": ["D1", "D2"], "sizes": [0, 0]}
    return {
        "name": "offchip",
        "type": "zigzag.offchip",
        "memories": {"dram": memory},
        "operational_array": array,
    }


def _connectivity(platform: Platform, cycle_s: float) -> list[dict[str, object]]:
    """Return the links; those that share one rate are a bus, as quick as the slowest of them."""
    ids = {device.name: index for index, device in enumerate(platform.devices)}
    shared: dict[object, list[Link]] = {}
    for link in platform.links:
        shared.setdefault(link.medium or link.between, []).append(link)
    connections: list[dict[str, object]] = []
    for links in shared.values():
        bits = min(8 * link.bytes_per_s * cycle_s for link in links)
        energy_pj = max(link.j_per_byte / 8 * _PICO for link in links) * bits
        connections.append(
            {
                "type": "bus" if links[0].medium or links[0].duplex == "half" else "link",
                "cores": sorted({ids[name] for link in links for name in link.between}),
                "bandwidth": bits,
                "unit_energy_cost": energy_pj,  # of a cycle
            }
        )
    everyone = list(range(len(ids) + 1))
    outside: dict[str, object] = {"type": "bus", "cores": everyone, "bandwidth": float(_FREE_BITS)}
    return [*connections, outside]


def _text(fields: Mapping[str, object]) -> str:
    return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=99)
