"""The way of a frame through a platform, over as many links as it takes."""

from heapq import heappop, heappush

from isthmus.errors import InputError
from isthmus.platform.platform import Device, Link, Platform

_FRAME_BYTES = 1024


def routes(platform: Platform, source: str) -> dict[str, tuple[Link, ...]]:
    """Return the way from one device to every other that a frame from it can reach.

    Args:
        platform: Devices and links.
        source: The name of the device that sends.

    Returns:
        By the name of the device that receives: the links in order, such that a frame of 1 KiB
        takes the least time over all of them; of equally quick ways the one whose links stand
        first in the file. ``source`` itself needs no link.

    References:
        Dijkstra, "A note on two problems in connexion with graphs", Numerische Mathematik 1, 1959.
    """
    hops: dict[str, list[tuple[int, str, float]]] = {}
    for index, link in enumerate(platform.links):
        for near, far in link.directions:
            hops.setdefault(near, []).append((index, far, link.transfer_s(_FRAME_BYTES)))
    found: dict[str, tuple[Link, ...]] = {}
    waiting: list[tuple[float, tuple[int, ...], str]] = [(0.0, (), source)]
    while waiting:
        seconds, passed, name = heappop(waiting)
        if name in found:
            continue
        found[name] = tuple(platform.links[index] for index in passed)
        for index, far, more_s in hops.get(name, ()):
            if far not in found:
                heappush(waiting, (seconds + more_s, (*passed, index), far))
    return found


def route(platform: Platform, source: str, target: str) -> tuple[Link, ...]:
    """Return the links over which a frame goes from one device to another, as `routes` says.

    Raises:
        InputError: One-way links leave no way.
    """
    found = routes(platform, platform.device(source).name)
    if platform.device(target).name not in found:
        raise InputError(
            f"platform {platform.name}: found no way from {source} to {target}; turn a one-way "
            "link round or make it half duplex"
        )
    return found[target]


def stops(source: str, links: tuple[Link, ...]) -> tuple[str, ...]:
    """Return the names of the devices on a way, in order: one more than links.

    Args:
        source: Where it begins.
        links: As `route` gives them.
    """
    names = [source]
    for link in links:
        first, second = link.between
        names.append(second if first == names[-1] else first)
    return tuple(names)


def path(platform: Platform) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Return the devices and the links on the way from input to output, in order."""
    links = route(platform, platform.input, platform.output)
    names = stops(platform.input, links)
    return tuple(platform.device(name) for name in names), links
