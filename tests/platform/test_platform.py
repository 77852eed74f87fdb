"""Devices and links as data: what they refuse, and what they work out."""

import pytest

from isthmus.errors import InputError
from isthmus.platform import Device, Link, Memory, Platform, multiplexing


def device(*points):
    return Device(name="a", macs_per_s={"fp32": 1.0}, efficiency=points)


def test_efficiency_is_linear_in_the_logarithm_and_flat_outside():
    curve = device((1e4, 0.2), (1e6, 0.8), (1e8, 0.6))
    sizes = (0, 1e4, 1e5, 1e6, 1e7, 1e8, 1e12)
    assert [curve.share(macs) for macs in sizes] == pytest.approx(
        [0.2, 0.2, 0.5, 0.8, 0.7, 0.6, 0.6]
    )
    assert device().share(5) == 1
    assert device((100, 0.5)).share(3) == device((100, 0.5)).share(300) == 0.5


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1e6, 0.2), (1e4, 0.8)], "found 10000 MAC after 1e.06 MAC, expected rising sizes"),
        ([(1e4, 0.2), (1e4, 0.8)], "expected rising sizes"),
        ([(0, 0.2)], "found 0 MAC after 0 MAC"),
        ([(1e4, 1.2)], "found 1.2 at 10000 MAC, expected more than 0, up to 1"),
        ([(1e4, 0)], "found 0 at 10000 MAC"),
    ],
)
def test_an_efficiency_that_cannot_be_is_refused(points, message):
    with pytest.raises(InputError, match=message):
        device(*points)


def test_a_frame_waits_for_the_set_up_and_keeps_the_link_busy_meanwhile():
    link = Link(
        between=("a", "b"), bytes_per_s=100.0, latency_s=2.0, setup_s=0.5, overhead_bytes=10,
        mtu_bytes=40,
    )  # fmt: skip
    assert link.occupied_s(80) == 0.5 + (80 + 2 * 10) / 100
    assert link.transfer_s(80) == 2.0 + link.occupied_s(80)


def test_pins_take_a_payload_in_turns():
    link = Link(between=("a", "b"), bytes_per_s=25e6, pins=16, clock_hz=12.5e6)
    assert [multiplexing(link, payload) for payload in (0, 1, 2, 3, 3072)] == [0, 1, 1, 2, 1536]
    assert multiplexing(Link(between=("a", "b"), bytes_per_s=1.0), 5) is None


@pytest.mark.parametrize("name", ["../a", "a b", "", ".a", "a/b", "x" * 65, "a\n"])
def test_a_name_that_no_folder_or_file_may_have_is_refused_in_python_too(name):
    for board, chip in ((name, "a"), ("board", name)):
        with pytest.raises(InputError, match="expected at most 64 letters, digits"):
            Platform(
                name=board,
                devices=(Device(name=chip, macs_per_s={"fp32": 1.0}),),
                links=(),
                input=chip,
                output=chip,
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Device(name="a", macs_per_s={"fp32": 0.0}),
            "compute.fp32: found 0.0, expected a",
        ),
        (lambda: Device(name="a", macs_per_s={"fp32": float("inf")}), "compute.fp32: found inf"),
        (lambda: Device(name="a", macs_per_s={}, static_w=-1.0), "energy.static: found -1.0"),
        (
            lambda: Memory(shared_bytes=float("nan")),
            "memory.shared: found nan, expected 0 or more",
        ),
        (lambda: Link(between=("a", "b"), bytes_per_s=0.0), "link a-b: bytes_per_s: found 0.0"),
        (
            lambda: Link(between=("a", "b"), bytes_per_s=1.0, latency_s=-1.0),
            "link a-b: latency_s: found -1.0, expected 0 or more",
        ),
        (lambda: Link(between=("a", "b"), bytes_per_s=1.0, mtu_bytes=0), "mtu_bytes: found 0"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_in_python_too(make, message):
    with pytest.raises(InputError, match=message):
        make()
