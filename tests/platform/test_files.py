"""Platform files: presets, round trip, and everything that can be wrong in one."""

import re
from dataclasses import replace
from importlib import resources
from itertools import combinations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import InputError, UnitError
from isthmus.files import to_json, write_json
from isthmus.platform import (
    PRESETS,
    Device,
    Link,
    Memory,
    NodeTimes,
    Platform,
    dump_platform,
    load_platform,
    path,
    preset_text,
    routes,
)
from isthmus.platform.platform import FORMATS

GOOD = """
schema: isthmus.platform/1
name: pair
devices:
  a:
    kind: mcu
    memory: {weights: 96 KiB, activations: 16 KiB}
    compute: {fp32: 1 MMAC/s, int8: 4 MMAC/s}
    energy: {fp32: 5 pJ/MAC, sram: 1 pJ/byte, static: 5 mW}
  b: {memory: 1 MiB, compute: {fp32: 1 GMAC/s}}
links:
  - {between: [a, b], bandwidth: 1 Mbit/s, latency: 8 ms, energy: 50 nJ/bit,
     message: {overhead: 7 byte, mtu: 244 byte}, duplex: half}
input: a
output: b
"""


def load(tmp_path, text):
    file = tmp_path / "pair.yaml"
    file.write_text(text, encoding="utf-8")
    return load_platform(file)


def test_a_file_becomes_a_platform_in_si_units(tmp_path):
    platform = load(tmp_path, GOOD)
    a, b = platform.devices
    assert (a.name, a.kind, a.backend) == ("a", "mcu", "onnxruntime")
    assert a.memory == Memory(weights_bytes=96 * 1024, activations_bytes=16 * 1024)
    assert b.memory == Memory(shared_bytes=1 << 20)
    assert dict(a.macs_per_s) == {"fp32": 1e6, "int8": 4e6}
    assert dict(a.j_per_mac) == {"fp32": pytest.approx(5e-12)}
    assert (a.sram_j_per_byte, a.static_w) == (pytest.approx(1e-12), pytest.approx(0.005))
    assert a.formats == ("fp32", "int8")
    (link,) = platform.links
    assert (link.bytes_per_s, link.latency_s, link.duplex) == (125_000, 0.008, "half")
    assert link.j_per_byte == pytest.approx(4e-7)
    assert (link.overhead_bytes, link.mtu_bytes) == (7, 244)


def test_pins_times_clock_is_the_rate(tmp_path):
    link = "bandwidth: 1 Mbit/s"
    platform = load(tmp_path, GOOD.replace(link, "pins: 16, clock: 100 MHz"))
    assert platform.links[0].bytes_per_s == 200e6
    assert platform.links[0].pins == 16


def test_a_device_says_what_it_can_run_how_well_and_for_how_much(tmp_path):
    more = """kind: mcu
    efficiency: {10 kMAC: 0.2, 1 MMAC: 1}
    start: 20 us
    price: 4.20 USD
    unsupported: [gelu, softmax]
    codecs: []"""
    room = "activations: 16 KiB, bandwidth: 100 MB/s"
    a, b = load(
        tmp_path, GOOD.replace("kind: mcu", more).replace("activations: 16 KiB", room)
    ).devices
    assert a.efficiency == ((1e4, 0.2), (1e6, 1.0))
    assert (a.start_s, a.price, a.memory_bytes_per_s) == (pytest.approx(20e-6), 4.2, 1e8)
    assert (a.unsupported, a.codecs) == (("gelu", "softmax"), ())
    assert (b.efficiency, b.start_s, b.price, b.memory_bytes_per_s) == ((), 0, 0, None)
    assert (b.unsupported, b.codecs, b.node_s) == ((), None, None)


def test_a_bus_joins_each_of_its_devices_with_every_other(tmp_path):
    text = GOOD.replace("links:", "  c: {compute: {fp32: 1 MAC/s}}\nlinks:")
    platform = load(tmp_path, text.replace("[a, b]", "[a, b, c]").replace(", duplex: half", ""))
    assert [link.between for link in platform.links] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {link.duplex for link in platform.links} == {"half"}
    assert len({link.medium for link in platform.links}) == 1
    named = load(tmp_path, text.replace("[a, b]", "[a, b, c], medium: air"))
    assert {link.medium for link in named.links} == {"air"}


def test_two_buses_without_a_name_are_two_media(tmp_path):
    more = "".join(f"  {name}: {{compute: {{fp32: 1 MAC/s}}}}\n" for name in "cde")
    bus = "links:\n  - {between: [b, c, d], bandwidth: 1 Mbit/s}\n"
    text = GOOD.replace("links:\n", more + bus).replace("[a, b]", "[a, b, e]")
    platform = load(tmp_path, text)
    assert len(platform.links) == 6
    assert len({link.medium for link in platform.links}) == 2


def test_a_grid_is_spelled_out_and_its_neighbours_joined(tmp_path):
    text = GOOD.replace("kind: mcu", "grid: [2, 3]").replace("  b:", "  # b:")
    text = text.replace("between: [a, b]", "grid: a").replace("output: b", "output: a-1-2")
    platform = load(tmp_path, text.replace("input: a", "input: a-0-0"))
    names = [f"a-{row}-{column}" for row in range(2) for column in range(3)]
    assert [device.name for device in platform.devices] == names
    assert all(device.macs_per_s == platform.devices[0].macs_per_s for device in platform.devices)
    assert [link.between for link in platform.links] == [
        ("a-0-0", "a-0-1"), ("a-0-1", "a-0-2"), ("a-1-0", "a-1-1"), ("a-1-1", "a-1-2"),
        ("a-0-0", "a-1-0"), ("a-0-1", "a-1-1"), ("a-0-2", "a-1-2"),
    ]  # fmt: skip
    devices, _ = path(platform)  # along the row first, then down
    assert [device.name for device in devices] == ["a-0-0", "a-0-1", "a-0-2", "a-1-2"]


TIMES = NodeTimes(graph="0123456789abcdef", seconds={"conv": 0.25}, machine="a Pi", whole_s=0.3)


def test_a_measured_table_is_read_from_beside_the_file_and_not_dumped(tmp_path):
    write_json(tmp_path / "times.json", TIMES)
    platform = load(tmp_path, GOOD.replace("kind: mcu", "measured: times.json"))
    assert [device.node_s for device in platform.devices] == [TIMES, None]
    assert "times.json" not in dump_platform(platform)
    assert load(tmp_path, dump_platform(platform)).devices[0].node_s is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        (
            to_json(TIMES).replace("times/1", "graph/1"),
            "schema 'isthmus.graph/1', expected 'isthmus.times",
        ),
        (to_json(TIMES).replace("0.25", '"fast"'), "seconds.conv: "),
        (to_json(TIMES).replace("0.25", "-0.25"), "conv: found -0.25 s"),
        (to_json(TIMES).replace("0.3", "NaN"), "not JSON .found NaN, expected a number"),
        (to_json(TIMES).replace("0.3", "1e999"), "whole_s: found inf s"),
    ],
)
def test_a_table_that_is_none_of_ours_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "times.json").write_text(text)
    message = rf"devices.a: measured: .*times.json: .*{message}.*; `isthmus profile .* writes one"
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, GOOD.replace("kind: mcu", "measured: times.json"))
    assert "\n" not in str(caught.value)


def test_one_device_needs_no_link(tmp_path):
    text = GOOD[: GOOD.index("  b:")] + "input: a\noutput: a\n"
    devices, links = path(load(tmp_path, text))
    assert [device.name for device in devices] == ["a"]
    assert links == ()


# What is wrong | what to write instead | what the one line must hold.
BAD = [
    ("96 KiB", "96", r"devices.a.memory.weights: found '96', expected a number with a unit"),
    ("96 KiB", "-1 KiB", r"devices.a.memory.weights: found '-1 KiB', expected at least 1 byte"),
    ("96 KiB", "0 byte", r"devices.a.memory.weights: found '0 byte', expected at least 1 byte"),
    ("96 KiB", "1 s", r"devices.a.memory.weights: found '1 s', expected .*like '1 byte'"),
    ("96 KiB", ".nan", r"devices.a.memory.weights: found 'nan'"),
    ("96 KiB", "1e999 KiB", r"devices.a.memory.weights: .*finite"),
    ("1 MiB", "0 MiB", r"devices.b.memory.shared: found '0 MiB', expected at least 1 byte"),
    ("weights:", "wieghts:", r"devices.a.memory: found the key 'wieghts', expected weights, "),
    ("weights: 96 KiB", "shared: 1 MiB", r"devices.a.memory: found shared beside another"),
    ("fp32: 1 MMAC/s", "fp32: 0 MMAC/s", r"compute.fp32: found '0 MMAC/s', expected more than 0"),
    ("fp32: 1 MMAC/s", "fp32: 1 MHz", r"devices.a.compute.fp32: found '1 MHz', expected"),
    ("int8: 4 MMAC/s", "fp8: 4 MMAC/s", r"devices.a.compute.fp8.*found 'fp8', expected fp32 or"),
    ("{fp32: 1 GMAC/s}", "{}", r"devices.b.compute: .*at least 1"),
    (", compute: {fp32: 1 GMAC/s}", "", r"devices.b.compute: found nothing, expected a value"),
    ("fp32: 5 pJ/MAC", "fp32: -5 pJ/MAC", r"energy.fp32: found '-5 pJ/MAC', expected at least 0"),
    ("fp32: 5 pJ/MAC", "bf16: 5 pJ/MAC", r"devices.a: energy.bf16: found an energy without"),
    ("fp32: 5 pJ/MAC", "dram: 5 pJ/byte", r"devices.a.energy: found the key 'dram', expected"),
    ("kind: mcu", "formats: [fp32]", r"devices.a: formats: found \['fp32'\], expected those of"),
    ("kind: mcu", "formats: [fp64, int8]", r"devices.a.formats.0: found 'fp64', expected"),
    ("kind: mcu", "backend: tpu", r"devices.a.backend: found 'tpu', expected onnxruntime"),
    ("kind: mcu", "threads: 0", r"devices.a.threads: .*greater than or equal to 1"),
    ("kind: mcu", "batch: 0", r"devices.a.batch: .*greater than or equal to 1"),
    ("kind: mcu", "kind:", r"devices.a: kind: found nothing, expected a value"),
    ("kind: mcu", "kind: 3", r"devices.a.kind: found '3', expected a valid string"),
    ("  a:\n", "  ../a:\n", r"devices.\.\./a.*found '../a', expected up to 64 letters, digits"),
    ("  a:\n", "  1:\n", r"the key 1 in line 5, which YAML reads as a number"),
    ("[a, b]", "[a, z]", r"links: between .a, z.: found 'z', expected a device: a, b"),
    ("[a, b]", "[a, a]", r"links: between .a, a.: found 'a' twice, expected two devices"),
    ("[a, b]", "[a]", r"links.0.between: .*at least 2"),
    ("1 Mbit/s", "0 Mbit/s", r"links.0.bandwidth: found '0 Mbit/s', expected at least 0.125"),
    ("1 Mbit/s", "1 mbit/s", r"links.0.bandwidth: found '1 mbit/s', expected at least 0.125"),
    ("1 Mbit/s", "1 MHz", r"links.0.bandwidth: found '1 MHz', expected .*'1 byte/s'"),
    ("1 Mbit/s", "1 Mbit/s, pins: 4", r"links.0: found bandwidth and pins, expected either"),
    ("bandwidth: 1 Mbit/s", "pins: 4", r"links.0: found pins, expected either bandwidth or pins"),
    ("bandwidth: 1 Mbit/s, ", "", r"links.0: found neither, expected either bandwidth or pins"),
    ("bandwidth: 1 Mbit/s", "pins: 0, clock: 1 MHz", r"links.0.pins: .*greater than or equal"),
    ("bandwidth: 1 Mbit/s", "pins: 1.5, clock: 1 MHz", r"links.0.pins: .*integer"),
    ("latency: 8 ms", "latency: -8 ms", r"links.0.latency: found '-8 ms', expected at least 0 s"),
    ("latency: 8 ms", "latency: 8", r"links.0.latency: found '8', expected a number with a unit"),
    ("7 byte", "7.5 byte", r"links.0.message.overhead: found '7.5 byte', expected a whole number"),
    ("244 byte", "0 byte", r"links.0.message.mtu: "),
    ("half", "both", r"links.0.duplex: found 'both', expected full or half or one-way"),
    ("half", "half, setup: -1 us", r"links.0.setup: found '-1 us', expected at least 0 s"),
    ("half", "full, medium: air", r"links.0: link a-b: found duplex full on .* medium air"),
    ("half", "half, medium: the air", r"links.0.medium: found 'the air', expected up to 64"),
    ("[a, b]", "[a, b, a]", r"links: between .a, a.: found 'a' twice, expected two devices"),
    ("between: [a, b]", "grid: a", r"links.0: grid: found 'a', expected a device with one: none"),
    ("between: [a, b]", "between: [a, b], grid: a", r"links.0: found between and grid, expected"),
    ("between: [a, b], ", "", r"links.0: found neither, expected either between or grid"),
    ("kind: mcu", "grid: [0]", r"devices.a.grid.0: .*greater than or equal to 1"),
    ("kind: mcu", "grid: 4", r"devices.a.grid: found '4', expected a valid list"),
    ("kind: mcu", "grid: []", r"devices.a.grid: .*at least 1"),
    ("kind: mcu", "grid: [16, 16]", r"devices: found 257, expected at most 256"),
    ("kind: mcu", "grid: [2]", r"input: found 'a', expected a device: a-0, a-1, b"),
    ("  a:\n", f"  {'x' * 63}:\n    grid: [2]\n", r"devices.x+: grid: found 'x+-0', expected a"),
    ("activations: 16 KiB", "bandwidth: 0 GB/s", r"memory.bandwidth: found '0 GB/s', expected"),
    ("kind: mcu", "start: 2", r"devices.a.start: found '2', expected a number with a unit"),
    ("kind: mcu", "price: 4.20", r"devices.a.price: found '4.2', expected .* like '1 USD'"),
    ("kind: mcu", "price: 4.20 EUR", r"price: found '4.20 EUR', expected a known unit .*with k"),
    ("kind: mcu", "price: -1 USD", r"devices.a.price: found '-1 USD', expected at least 0 USD"),
    ("kind: mcu", "efficiency: 0.5", r"devices.a.efficiency: found '0.5', expected sizes and"),
    ("kind: mcu", "efficiency: {1 kB: 0.5}", r"devices.a.efficiency: found '1 kB', expected "),
    ("kind: mcu", "efficiency: {1 MAC: much}", r"efficiency: 1 MAC: found 'much', expected a num"),
    ("kind: mcu", "efficiency: {1 MAC: 1.5}", r"devices.a.efficiency: 1 MAC: found '1.5', exp"),
    ("kind: mcu", "efficiency: {1 MAC: .nan}", r"devices.a.efficiency: 1 MAC: found 'nan', exp"),
    ("kind: mcu", "efficiency: {1 kMAC: 0.5, 1000 MAC: 0.6}", r"found 1000 MAC after 1000 MAC"),
    ("kind: mcu", "unsupported: gelu", r"a.unsupported: found 'gelu', expected a valid list"),
    ("kind: mcu", "unsupported: [a b]", r"devices.a.unsupported.0: found 'a b', expected up to"),
    ("kind: mcu", "codecs: [no]", r"devices.a.codecs.0: YAML reads off, no and false as a"),
    ("kind: mcu", "measured: none.json", r"devices.a: measured: .*none.json: cannot be read"),
    ("input: a", "input: z", r"input: found 'z', expected a device: a, b"),
    ("output: b", "output: z", r"output: found 'z', expected a device: a, b"),
    ("output: b\n", "", r"output: found nothing, expected a value"),
    ("platform/1", "platform/2", r"schema: found '.*platform/2', expected 'isthmus.platform/1'"),
    ("input: a", "input: a\nspeed: 3", r"top level: found the key 'speed', expected schema, name"),
    ("input: a", "input: a\ninput: b", r"input: found twice \(again in line 15\), expected once"),
    ("  b:", "  a:", r"a: found twice \(again in line 10\), expected once"),
    ("input: a", "input: [a", r"not YAML \(.*in line"),
    ("input: a", "input: 2026-99-99", r"not YAML \("),
    ("kind: mcu", "kind: &x mcu\n    backend: *x", r"found the alias \*x, expected plain"),
    ("kind: mcu", "kind: " + "[" * 50 + "]" * 50, r"found over 16 nested levels"),
    ("kind: mcu", "kind: " + "9" * 5000, r"not YAML \("),
    ("kind: mcu", "kind: !!python/object/apply:os.system [ls]", r"not YAML \(could not determine"),
    ("links:\n", "links:\n  - {between: [b, a], bandwidth: 1 bit/s}\n",
     r"links: between .a, b.: found beside between .b, a., expected one link"),
    ("links:\n", "links: []\nunused:\n", r"top level: found the key 'unused'"),
    ("links:", "  c: {compute: {fp32: 1 MAC/s}}\nlinks:",
     r"devices.c: found no way from a, expected a link to it"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "written", "message"), BAD)
def test_what_is_wrong_in_a_file_is_named_in_one_line(tmp_path, found, written, message):
    assert found in GOOD
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, GOOD.replace(found, written, 1))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "pair.yaml") + ": ")


def test_a_file_cannot_grow_without_bound(tmp_path):
    chips = "  a:\n    grid: [64]\n    compute: {fp32: 1 MAC/s}\n"
    bus = f"  - {{between: [{', '.join(f'a-{k}' for k in range(64))}], bandwidth: 1 bit/s}}\n"
    head, _, _ = GOOD.partition("  a:")
    text = f"{head}{chips}links:\n{bus * 3}input: a-0\noutput: a-0\n"
    with pytest.raises(InputError, match=r"links.2: found 6048 with all buses, at most 4096"):
        load(tmp_path, text)


def test_a_wrong_unit_is_a_unit_error(tmp_path):
    with pytest.raises(UnitError, match="latency"):
        load(tmp_path, GOOD.replace("8 ms", "8 byte"))


@pytest.mark.parametrize("text", ["", "3", "[]", "- a", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    found = ".*'.*" if text else "nothing"
    with pytest.raises(InputError, match=f"top level: found {found}, expected the keys schema, "):
        load(tmp_path, text)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be read .*or a preset: camera-hub, camera-hub-cloud"
    ):
        load_platform("no-such-platform")
    with pytest.raises(InputError, match="cannot be read"):
        load_platform(tmp_path)
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_platform(binary)
    binary.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(InputError, match="more than 1 MiB"):
        load_platform(binary)


@pytest.mark.parametrize("name", PRESETS)
class TestEveryPreset:
    def test_loads_and_says_what_it_is(self, name):
        platform = load_platform(name)
        assert platform.name == name
        for device in platform.devices:
            assert device.macs_per_s["fp32"] > 0
            assert device.j_per_mac["fp32"] >= device.j_per_mac["int8"] > 0

    def test_has_a_way_there_and_back_again(self, name):
        platform = load_platform(name)
        devices, links = path(platform)
        assert (devices[0].name, devices[-1].name) == (platform.input, platform.output)
        assert len(devices) == len(links) + 1
        assert len(routes(platform, platform.input)) == len(platform.devices)
        assert all(platform.input in routes(platform, d.name) for d in platform.devices)

    def test_loads_as_the_same_once_dumped(self, name, tmp_path):
        assert load(tmp_path, dump_platform(load_platform(name))) == load_platform(name)

    def test_every_figure_carries_its_source(self, name):
        figure = re.compile(r":\s+[\d.]+( \S+)?\s*(#.*)?$")
        source = re.compile(r"# (measured|spec|model|assumed): .{5,}$")
        lines = [line for line in preset_text(name).splitlines() if not line.startswith("#")]
        figures = [line for line in lines if figure.search(line)]
        assert len(figures) >= 12
        for line in figures:
            assert source.search(line), line
        for line in lines:
            assert line in figures or not re.search(r"\d (byte|[KMG]iB|\w*(MAC|bit|Hz|J|W))", line)


def test_the_presets_are_the_files_of_the_folder():
    folder = resources.files("isthmus.platform") / "presets"
    assert {file.name for file in folder.iterdir()} == {f"{name}.yaml" for name in PRESETS}
    assert sorted(PRESETS) == list(PRESETS)


def test_chiplets_36_is_a_mesh_of_equal_chiplets():
    platform = load_platform("chiplets-36")
    assert len(platform.devices) == 36
    assert len(platform.links) == 2 * 6 * 5
    assert len(path(platform)[1]) == 10
    first = platform.devices[0]
    assert all(replace(device, name=first.name) == first for device in platform.devices)


def test_data_of_the_pcie_pair_come_back_to_the_host():
    platform = load_platform("pcie-pair")
    assert platform.input == platform.output == "host"


def test_an_unknown_preset_names_the_known():
    with pytest.raises(InputError, match="no platform preset 'x'; there are camera-hub"):
        preset_text("x")


@pytest.mark.parametrize("name", ["off", "On", "no", "yes", "5", "null"])
def test_a_name_that_yaml_takes_for_something_else_has_to_be_quoted(tmp_path, name):
    text = GOOD.replace("\n  b:", f"\n  {name}:").replace("[a, b]", f"[a, '{name}']")
    text = text.replace("output: b", f"output: '{name}'")
    kind = {"5": "a number", "null": "nothing"}.get(name, "a boolean")
    message = f"the key {name} in line 10, which YAML reads as {kind}; put it in quotes: '{name}'"
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, text)
    assert load(tmp_path, text.replace(f"\n  {name}:", f"\n  '{name}':")).output == name


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (GOOD.replace("[a, b]", "[a, off]"), "links.0.between.1"),
        (GOOD.replace("output: b", "output: off"), "output"),
    ],
)
def test_a_device_that_yaml_takes_for_a_boolean_has_to_be_quoted(tmp_path, text, key):
    message = f"{key}: YAML reads off, no and false as a boolean; put the name in quotes"
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, text)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_a_file_is_read_in_c_where_that_is_there(tmp_path, monkeypatch):
    monkeypatch.delattr(yaml.scanner.Scanner, "fetch_more_tokens")
    assert load(tmp_path, GOOD).name == "pair"


positive = st.floats(min_value=1, max_value=1e15)
not_negative = st.just(0.0) | st.floats(min_value=1e-24, max_value=1e6)
rooms = st.none() | positive
memories = st.builds(Memory, weights_bytes=rooms, activations_bytes=rooms) | st.builds(
    Memory, shared_bytes=positive
)
shares = st.floats(min_value=1e-24, max_value=1)
sizes = st.lists(positive, max_size=3, unique=True)
words = st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True), max_size=2).map(
    tuple
)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@st.composite
def platforms(draw):
    device_names = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    devices = []
    for name in device_names:
        formats = draw(st.lists(st.sampled_from(FORMATS), min_size=1, unique=True))
        device = Device(
            name=name,
            kind=draw(st.text(st.characters(codec="ascii"), max_size=8)),
            memory=draw(memories),
            memory_bytes_per_s=draw(rooms),
            macs_per_s={key: draw(positive) for key in formats},
            j_per_mac={key: draw(not_negative) for key in formats if draw(st.booleans())},
            efficiency=tuple((macs, draw(shares)) for macs in sorted(draw(sizes))),
            start_s=draw(not_negative),
            sram_j_per_byte=draw(not_negative),
            static_w=draw(not_negative),
            price=draw(not_negative),
            formats=tuple(formats),
            unsupported=draw(words),
            codecs=draw(st.none() | words),
        )
        devices.append(device)
    # A two-way link from each device to one before it, and any more of any kind.
    ends = [(draw(st.integers(0, index - 1)), index) for index in range(1, len(devices))]
    pairs = [pair for pair in combinations(range(len(devices)), 2) if pair not in ends]
    more = [draw(st.permutations(pair)) for pair in pairs if draw(st.booleans())]
    links = []
    for index, (first, second) in enumerate([*ends, *more]):
        clock_hz, pins = draw(positive), draw(st.none() | st.integers(1, 64))
        medium = draw(st.just("") | names)
        link = Link(
            between=(device_names[first], device_names[second]),
            bytes_per_s=clock_hz if pins is None else pins * clock_hz / 8,
            latency_s=draw(not_negative),
            setup_s=draw(not_negative),
            j_per_byte=draw(not_negative),
            overhead_bytes=draw(st.integers(0, 100)),
            mtu_bytes=draw(st.none() | st.integers(1, 2000)),
            duplex=draw(
                st.sampled_from(
                    ["half"] + ["full"] * (not medium) + ["one-way"] * (index >= len(ends))
                )
            ),
            medium=medium,
            pins=pins,
            clock_hz=None if pins is None else clock_hz,
        )
        links.append(link)
    return Platform(
        name=draw(names),
        devices=tuple(devices),
        links=tuple(links),
        input=draw(st.sampled_from(device_names)),
        output=draw(st.sampled_from(device_names)),
    )


@settings(max_examples=30, deadline=None)
@given(platform=platforms())
def test_a_dumped_platform_loads_as_the_same(tmp_path_factory, platform):
    file = tmp_path_factory.mktemp("platform") / "x.yaml"
    file.write_text(dump_platform(platform))
    loaded = load_platform(file)
    assert loaded == platform
    assert path(loaded) == path(platform)


def test_links_have_names_of_their_own():
    links = [
        Link(between=ends, bytes_per_s=1.0) for ends in (("a", "b-c"), ("a-b", "c"), ("c", "a"))
    ]
    devices = tuple(Device(name=x, macs_per_s={"fp32": 1.0}) for x in ("a", "a-b", "b-c", "c"))
    with pytest.raises(InputError, match="links: found two of the name a-b-c; rename a device"):
        Platform(name="x", devices=devices, links=tuple(links), input="a", output="c")
