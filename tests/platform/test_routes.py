"""Ways through a platform: the quickest, over one-way links, and which hops take turns."""

import pytest

from isthmus.errors import InputError
from isthmus.platform import Device, Link, Platform, path, route, routes, stops


def platform(*links, names="abcd", target="d"):
    return Platform(
        name="any",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1.0}) for name in names),
        links=links,
        input=names[0],
        output=target,
    )


def link(ends, bytes_per_s=1024.0, **more):
    return Link(between=(ends[0], ends[1]), bytes_per_s=bytes_per_s, **more)


def way(platform, source, target):
    return "".join(stops(source, route(platform, source, target)))


def test_a_frame_takes_the_quickest_way_not_the_shortest():
    square = platform(link("ad", 256.0), link("ab"), link("bc"), link("cd"))
    assert way(square, "a", "d") == "abcd"  # 3 x 1 s against 4 s
    slow = platform(link("ad", 256.0), link("ab", setup_s=1.5), link("bc"), link("cd"))
    assert way(slow, "a", "d") == "ad"  # 4.5 s against 4 s


def test_of_equally_quick_ways_the_first_of_the_file_wins():
    sides = [link("ab"), link("bd"), link("ac"), link("cd")]
    assert way(platform(*sides), "a", "d") == "abd"
    assert way(platform(*sides[2:], *sides[:2]), "a", "d") == "acd"


def test_a_way_respects_one_way_links():
    ring = platform(*(link(ends, duplex="one-way") for ends in ("ab", "bc", "cd", "da")))
    assert way(ring, "a", "c") == "abc"
    assert way(ring, "c", "b") == "cdab"
    dead_end = platform(link("ab"), link("bc"), link("bd", duplex="one-way"))
    assert sorted(routes(dead_end, "d")) == ["d"]
    with pytest.raises(InputError, match="no way from d to a; turn a one-way link round"):
        route(dead_end, "d", "a")
    with pytest.raises(InputError, match="output: found no way from a to d"):
        platform(link("ab"), link("bc"), link("db", duplex="one-way"))


def test_the_way_from_input_to_output_leaves_out_side_branches():
    star = platform(link("dc"), link("eb"), link("ba"), link("bc"), names="abcde")
    devices, links = path(star)
    assert [device.name for device in devices] == ["a", "b", "c", "d"]
    assert [link.between for link in links] == [("b", "a"), ("b", "c"), ("d", "c")]


def test_a_device_reaches_itself_over_no_link():
    assert route(platform(link("ab"), names="ab", target="b"), "a", "a") == ()


def test_an_unknown_device_has_no_way():
    with pytest.raises(InputError, match="no device 'z'; known: a, b"):
        route(platform(link("ab"), names="ab", target="b"), "a", "z")


def test_hops_take_turns_on_a_medium_and_on_a_half_duplex_link():
    links = (
        link("ab", medium="bus", duplex="half"),
        link("bc", medium="bus", duplex="one-way"),
        link("ca", duplex="half"),
        link("cd"),
    )
    clocks = {ends: one.clock(ends[0]) for one in links for ends in one.directions}
    assert ("c", "b") not in clocks
    assert clocks["a", "b"] == clocks["b", "a"] == clocks["b", "c"]
    assert clocks["c", "a"] == clocks["a", "c"]
    assert len(set(clocks.values())) == 4  # the bus, c-a, c-d and d-c


def test_a_medium_cannot_be_full_duplex():
    with pytest.raises(InputError, match="link a-b: found duplex full on the shared medium bus"):
        link("ab", medium="bus")
