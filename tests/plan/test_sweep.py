"""Maps of which plan wins where."""

from dataclasses import replace
from math import isclose

import pytest
import torch

from isthmus.errors import InputError
from isthmus.graph import capture
from isthmus.models import digits_resnet
from isthmus.plan import partition
from isthmus.plan.sweep import parse_axis, sweep, with_figure
from isthmus.platform import load_platform
from tests.plan.nets import chain, pair


@pytest.fixture(scope="module")
def graph():
    return capture(digits_resnet(), (torch.zeros(1, 1, 8, 8),))


@pytest.fixture(scope="module")
def hub():
    return load_platform("camera-hub")


def test_every_cell_is_what_planning_there_gives(graph, hub):
    axes = [
        parse_axis("link.bandwidth=10kbit/s..1 Gbit/s", hub, num_values=4),
        parse_axis("camera.compute.fp32=1 MMAC/s..100 GMAC/s", hub, num_values=3),
    ]
    found = sweep(graph, hub, axes)
    assert len(found.cells) == 12
    assert [cell.values[1] for cell in found.cells[:3]] == list(axes[1].values)
    for cell in found.cells:
        changed = with_figure(hub, "link.bandwidth", cell.values[0])
        changed = with_figure(changed, "camera.compute.fp32", cell.values[1])
        plan = partition(graph, changed)
        assert isclose(cell.cost, plan.predicted.latency_s)
        assert cell.payload_bytes == sum(c.payload_bytes for c in plan.crossings)
    assert {cell.what for cell in found.cells} >= {"all on camera", "all on hub"}


def test_a_device_that_is_named_like_a_link_is_not_that_link(hub):
    (link,) = hub.links
    extra = replace(hub.device("hub"), name=link.name)
    links = (link, replace(link, between=("hub", extra.name)))
    both = replace(hub, devices=(*hub.devices, extra), links=links)
    changed = with_figure(both, "device.start", 1.0)
    assert [device.start_s for device in changed.devices] == [1.0, 1.0, 1.0]
    assert changed.links == links


def test_a_model_without_operations_has_a_map():
    platform = pair()
    cells = sweep(chain(), platform, [parse_axis("link.latency=1ms..9ms", platform, num_values=2)])
    assert [cell.what for cell in cells.cells] == ["all on far", "all on far"]


def test_where_nothing_fits_the_map_says_what_is_lacking(graph):
    boards = load_platform("two-mcu-spi")
    axis = parse_axis("device.memory.weights=1 byte..10 MiB", boards, num_values=3)
    first, *_, last = sweep(graph, boards, [axis]).cells
    assert not first.fits
    assert "weights" in first.what
    assert last.fits


def test_the_platform_itself_is_left_as_it_was(hub):
    before = load_platform("camera-hub")
    changed = with_figure(hub, "hub.compute.fp32", 1.0)
    assert changed.device("hub").macs_per_s["fp32"] == 1.0
    assert hub == before


def test_pins_and_clock_make_the_rate():
    chips = load_platform("chiplets-4")
    name = chips.links[0].name
    halved = with_figure(chips, f"{name}.pins", (chips.links[0].pins or 0) / 2)
    assert halved.links[0].bytes_per_s == chips.links[0].bytes_per_s / 2
    assert halved.links[1] == chips.links[1]


def test_a_figure_of_all_is_that_of_those_that_have_it(tmp_path):
    (tmp_path / "mixed.yaml").write_text(
        "schema: isthmus.platform/1\nname: mixed\ndevices:\n"
        "  a: {compute: {fp32: 1 MMAC/s}}\n"
        "  b: {memory: 1 MiB, compute: {fp32: 1 MMAC/s, int8: 4 MMAC/s}}\n"
        "  c: {compute: {fp32: 1 MMAC/s}}\n"
        "links:\n  - {between: [a, b], bandwidth: 1 Mbit/s}\n"
        "  - {between: [b, c], pins: 8, clock: 1 MHz}\ninput: a\noutput: c\n"
    )
    mixed = load_platform(tmp_path / "mixed.yaml")
    axis = parse_axis("link.pins=2..32", mixed, num_values=3)
    assert axis.values == pytest.approx((2, 8, 32))
    wider = with_figure(mixed, "link.pins", 32)
    assert wider.links == (mixed.links[0], replace(mixed.links[1], pins=32, bytes_per_s=4e6))
    faster = with_figure(mixed, "device.compute.int8", 9.0)
    assert [d.macs_per_s.get("int8") for d in faster.devices] == [None, 9.0, None]
    with pytest.raises(InputError, match=r"a-b has bandwidth, (?!.*pins)"):
        parse_axis("a-b.pins=2..32", mixed, num_values=3)
    with pytest.raises(InputError, match="expected a number without a unit"):
        parse_axis("link.pins=2..32 MHz", mixed, num_values=3)


FIGURES = [
    ("hub.memory.bandwidth", "byte/s", lambda p: p.device("hub").memory_bytes_per_s),
    ("hub.memory.shared", "byte", lambda p: p.device("hub").memory.shared_bytes),
    ("hub.energy.fp32", "J/MAC", lambda p: p.device("hub").j_per_mac["fp32"]),
    ("hub.energy.sram", "J/byte", lambda p: p.device("hub").sram_j_per_byte),
    ("hub.energy.static", "W", lambda p: p.device("hub").static_w),
    ("hub.start", "s", lambda p: p.device("hub").start_s),
    ("hub.price", "USD", lambda p: p.device("hub").price),
    ("camera-hub.latency", "s", lambda p: p.links[0].latency_s),
    ("camera-hub.energy", "J/byte", lambda p: p.links[0].j_per_byte),
    ("camera-hub.setup", "s", lambda p: p.links[0].setup_s),
    ("camera-hub.message.overhead", "byte", lambda p: p.links[0].overhead_bytes),
    ("camera-hub.message.mtu", "byte", lambda p: p.links[0].mtu_bytes),
]


@pytest.mark.parametrize(("figure", "unit", "read"), FIGURES)
def test_any_figure_of_a_platform_can_be_swept(hub, figure, unit, read):
    axis = parse_axis(f"{figure}=2 {unit}..8 {unit}", hub, num_values=3)
    assert axis.values == pytest.approx((2, 4, 8))
    assert [read(with_figure(hub, figure, value)) for value in (2, 8)] == [2, 8]


def test_the_share_of_the_peak_that_nodes_reach_can_be_swept(hub):
    assert with_figure(hub, "hub.efficiency", 0.5).device("hub").share(7) == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hub.efficiency=0.5..2", "efficiency: found 2 at 1 MAC, expected more than 0, up to 1"),
        ("link.bandwidth", "expected FIGURE=LOW..HIGH"),
        ("link.bandwidth=1 kbit/s", "expected FIGURE=LOW..HIGH"),
        ("link.bandwidth=2 kbit/s..1 kbit/s", "rising range"),
        ("link.speed=1 kbit/s..2 kbit/s", "link has bandwidth, latency"),
        ("moon.compute.fp32=1 MAC/s..2 MAC/s", "there are link, device, camera-hub, camera, hub"),
    ],
)
def test_a_range_that_means_nothing_is_one_line(hub, text, says):
    with pytest.raises(InputError, match=says):
        parse_axis(text, hub, num_values=3)


def test_the_longest_name_that_fits_is_meant(hub):
    camera, other = hub.devices
    named = replace(
        hub,
        devices=(camera, replace(other, name="camera.b")),
        links=(replace(hub.links[0], between=("camera", "camera.b")),),
        output="camera.b",
    )
    changed = with_figure(named, "camera.b.compute.fp32", 7.0)
    assert [d.macs_per_s["fp32"] for d in changed.devices] == [camera.macs_per_s["fp32"], 7.0]


def test_a_range_of_another_unit_is_refused(hub):
    with pytest.raises(InputError, match=r"^--sweep 'link.*1 ms\.\.2 ms': found '1 ms', .*byte/s"):
        parse_axis("link.bandwidth=1 ms..2 ms", hub, num_values=3)
