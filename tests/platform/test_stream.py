"""Platforms in Stream's format: its keys, its cycles, and what becomes of links and media."""

import pytest
import yaml

from isthmus.errors import InputError
from isthmus.platform import (
    PRESETS,
    Device,
    Link,
    Platform,
    load_platform,
    plan_to_stream,
    to_stream,
)

# The keys of stream/inputs/examples/hardware/simba.yaml and cores/pooling.yaml there.
ACCELERATOR = {"name", "cores", "offchip_core_id", "unit_energy_cost", "core_connectivity"}
CORE = {"name", "type", "memories", "operational_array"}
MEMORY = {"size", "r_cost", "w_cost", "area", "latency", "operands", "ports", "served_dimensions"}
PORT = {"name", "type", "bandwidth_min", "bandwidth_max", "allocation"}
ARRAY = {"unit_energy", "unit_area", "dimensions", "sizes"}


def parsed(platform):
    return {name: yaml.safe_load(text) for name, text in to_stream(platform).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_keys_of_streams_own_examples(name):
    platform = load_platform(name)
    files = parsed(platform)
    accelerator = files.pop("accelerator.yaml")
    assert set(accelerator) == ACCELERATOR
    assert list(accelerator["cores"]) == list(range(len(platform.devices) + 1))
    assert {f"./{file}" for file in files} == set(accelerator["cores"].values())
    for core in files.values():
        assert set(core) == CORE
        assert set(core["operational_array"]) == ARRAY
        for memory in core["memories"].values():
            assert set(memory) == MEMORY
            assert all(set(port) == PORT for port in memory["ports"])
        held = [
            way for m in core["memories"].values() for p in m["ports"] for way in p["allocation"]
        ]
        assert sorted(held) == [
            "I1, fh", "I1, tl", "I2, fh", "I2, tl", "O, fh", "O, fl", "O, th", "O, tl",
        ]  # fmt: skip
    for connection in accelerator["core_connectivity"]:
        assert connection["bandwidth"] > 0
        assert set(connection["cores"]) <= set(accelerator["cores"])


def test_alike_devices_share_a_file_of_a_core():
    files = parsed(load_platform("chiplets-36"))
    assert set(files) == {"accelerator.yaml", "cores/core_0.yaml", "cores/offchip.yaml"}
    *links, outside = files["accelerator.yaml"]["core_connectivity"]
    assert [link["type"] for link in links] == ["link"] * 60
    assert outside["cores"] == list(range(37))


def device(name, rate, **more):
    return Device(name=name, macs_per_s={"fp32": rate}, **more)


def test_rates_and_energies_are_kept_in_cycles_and_picojoules():
    platform = Platform(
        name="pair",
        devices=(
            device("slow", 256e6, j_per_mac={"fp32": 5e-12}),  # 256 MACs in a cycle of 1 us
            device("fast", 1e9, memory_bytes_per_s=1e6, sram_j_per_byte=2e-12),
        ),
        links=(Link(between=("slow", "fast"), bytes_per_s=1e6, j_per_byte=8e-12),),
        input="slow",
        output="fast",
    )
    text = to_stream(platform)["accelerator.yaml"]
    assert text.startswith("# One cycle is 1 us; all in fp32.\n")
    files = parsed(platform)
    slow, fast = files["cores/core_0.yaml"], files["cores/core_1.yaml"]
    assert slow["operational_array"]["sizes"] == [8, 32]
    assert slow["operational_array"]["unit_energy"] == pytest.approx(5)
    assert fast["operational_array"]["sizes"] == [8, 125]  # 1,000 in a cycle
    memory = fast["memories"]["memory"]
    assert [port["bandwidth_max"] for port in memory["ports"]] == [8, 8]  # 1 byte in a cycle
    assert memory["w_cost"] == pytest.approx(2)
    link = files["accelerator.yaml"]["core_connectivity"][0]
    assert (link["type"], link["cores"]) == ("link", [0, 1])
    assert link["bandwidth"] == pytest.approx(8)
    assert link["unit_energy_cost"] == pytest.approx(8)  # 8 bits in a cycle, 1 pJ each


def test_what_shares_a_rate_becomes_a_bus():
    platform = Platform(
        name="bus",
        devices=tuple(device(name, 1e6) for name in "abc"),
        links=(
            Link(between=("a", "b"), bytes_per_s=2e6, medium="air", duplex="half"),
            Link(between=("b", "c"), bytes_per_s=1e6, medium="air", duplex="half"),
            Link(between=("c", "a"), bytes_per_s=1e6, duplex="half"),
        ),
        input="a",
        output="c",
    )
    air, half, _ = parsed(platform)["accelerator.yaml"]["core_connectivity"]
    assert (air["type"], air["cores"]) == ("bus", [0, 1, 2])
    assert (half["type"], half["cores"]) == ("bus", [0, 2])
    assert air["bandwidth"] == half["bandwidth"]


def test_a_plan_gives_each_node_its_one_core():
    platform = load_platform("two-mcu-spi")
    mapping = yaml.safe_load(plan_to_stream(platform, {"conv": "mcu-a", "fc": "mcu-b"}))
    assert mapping == {
        "layers": [
            {"name": "conv", "core_allocation": [[0]]},
            {"name": "fc", "core_allocation": [[1]]},
        ]
    }
    with pytest.raises(InputError, match="no device 'moon'; known: mcu-a, mcu-b"):
        plan_to_stream(platform, {"conv": "moon"})


def test_a_format_that_a_device_has_not_is_named():
    with pytest.raises(
        InputError, match="mcu-a: found no rate in bf16, expected one of int8, fp32"
    ):
        to_stream(load_platform("two-mcu-spi"), number_format="bf16")
