"""The limits that a plan breaks, and what would mend each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from math import ceil, inf

from isthmus.errors import InputError
from isthmus.plan.choices import Choice, can_code
from isthmus.plan.estimate import (
    Estimate,
    Load,
    Site,
    computing_format,
    estimate,
    halves_load,
    needs,
)
from isthmus.plan.plan import NO_LIMITS, Limits, Prediction, Violation, exceeds
from isthmus.platform import Link
from isthmus.units import format_quantity

MOST_RATE = 1e18  # bytes per second: as good as no limit

WHOLE = {
    "latency_s": ("latency", "s"),
    "interval_s": ("interval", "s"),
    "energy_j": ("energy", "J"),
    "price": ("price", "USD"),
    "drop": ("accuracy drop", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A plan before it is put into words.

    Attributes:
        sites: The device of each stage, in order.
        links: One fewer.
        route: What each link carries.
        loads: Of each stage.
    """

    sites: tuple[Site, ...]
    links: tuple[Link, ...]
    route: tuple[Choice, ...]
    loads: tuple[Load, ...]

    @property
    def places(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The devices, and the index of the cut on each link."""
        cuts = tuple(choice.cut.index for choice in self.route)
        return tuple(site.device.name for site in self.sites), cuts

    def estimate(self) -> Estimate:
        """Work out what it costs."""
        return estimate(self.loads, self.route, self.sites, self.links)


def violations(walk: Walk, limits: Limits = NO_LIMITS) -> tuple[Violation, ...]:
    """Return every limit that a plan breaks: of its devices, then its own.

    A narrower codec or a faster link is a remedy only where there is one that suffices.
    """
    found: list[Violation] = []
    for stage in range(len(walk.sites)):
        found += _memories(walk, stage)
        found += _lacking(walk, stage)
    found += _payloads(walk, limits)
    predicted = walk.estimate().prediction
    for figure in WHOLE:
        found += _whole(walk, predicted, figure, getattr(limits, figure))
    return tuple(found)


def _memories(walk: Walk, stage: int) -> Iterator[Violation]:
    device, load = walk.sites[stage].device, walk.loads[stage]
    for index, (what, need, room) in enumerate(needs(device, load)):
        if room is None or need <= room:
            continue
        narrower = (
            choice.codec
            for choice, other in _narrower_loads(walk, stage)
            if needs(device, other)[index][1] <= room
        )
        size = f"{ceil(need)} bytes" if need < 1024 else f"{ceil(float(need) / 1024)} KiB"
        ways = [f"use a device with >= {size} for it"]
        if what != "activations" and load.start < load.stop:
            ways.append("one more device on the way")
        ways += [f"a narrower codec such as {codec}" for codec in [next(narrower, None)] if codec]
        yield Violation(
            where=device.name,
            what=what,
            need=float(need),
            limit=room,
            unit="byte",
            remedy=", or ".join(ways),
        )


def _lacking(walk: Walk, stage: int) -> Iterator[Violation]:
    """Yield what the device of a stage cannot do at all."""
    site, load = walk.sites[stage], walk.loads[stage]
    device = site.device
    barred = float(site.barred[load.stop] - site.barred[load.start])
    formats = dict.fromkeys(site.formats[load.start : load.stop])
    lacking = next((name for name in formats if not computing_format(device, name)), None)
    found = []
    if barred and lacking:
        remedy = f"give its {lacking} rate under compute, or use a device that has one"
        found.append((f"{lacking} arithmetic", barred, remedy))
    elif barred:
        what = f"operations that it lacks ({', '.join(device.unsupported)})"
        remedy = "use a device that has them, or take them off unsupported if it does"
        found.append((what, barred, remedy))
    arrives, leaves = (None, *walk.route, None)[stage : stage + 2]
    for choice in (arrives, leaves):
        if choice and arrives != leaves and not can_code(device, choice):
            remedy = "use raw or another codec, or add it under codecs if the device has it"
            found.append((f"codec {choice.spec.name}", 1.0, remedy))
    for what, need, remedy in found:
        yield Violation(where=device.name, what=what, need=need, limit=0.0, unit="", remedy=remedy)


def _payloads(walk: Walk, limits: Limits) -> Iterator[Violation]:
    for choice, hops in groupby(zip(walk.route, walk.links, strict=True), key=lambda hop: hop[0]):
        payload, most = choice.spec.payload_bytes, limits.link_bytes
        if most is None or not exceeds(payload, most):
            continue
        fewer = smaller(choice) if _inside(walk, choice) else []
        yield too_large(choice, most, f"link {next(hops)[1].name}", fewer)


def too_large(choice: Choice, most: float, where: str, fewer: Sequence[Choice]) -> Violation:
    """Return the limit that a payload breaks, and which of some smaller ones would not."""
    payload = choice.spec.payload_bytes
    enough = (one.codec for one in fewer if one.spec.payload_bytes <= most)
    ways = [f"a narrower codec such as {codec}" for codec in [next(enough, None)] if codec]
    return Violation(
        where=where,
        what="payload",
        need=payload,
        limit=most,
        unit="byte",
        remedy=" or ".join((*ways, f"allow {ceil(payload)} bytes")),
    )


def _whole(
    walk: Walk, predicted: Prediction, figure: str, limit: float | None
) -> Iterator[Violation]:
    """Yield a limit on the whole plan that it breaks."""

    def with_link(link: Link, other: Link) -> float | None:
        links = tuple(other if one == link else one for one in walk.links)
        return _figure(replace(walk, links=links), figure)

    yield from whole_limit(
        getattr(predicted, figure),
        figure,
        limit,
        choices=walk.route,
        links=walk.links,
        inner=[choice for choice in dict.fromkeys(walk.route) if _inside(walk, choice)],
        with_link=with_link,
        with_choice=lambda one, other: _figure(_with_choice(walk, one, other), figure),
    )


def whole_limit(
    need: float | None,
    figure: str,
    limit: float | None,
    *,
    choices: Iterable[Choice],
    links: Iterable[Link],
    inner: Iterable[Choice],
    with_link: Callable[[Link, Link], float | None],
    with_choice: Callable[[Choice, Choice], float | None],
) -> Iterator[Violation]:
    """Yield a limit on the whole of a plan that it breaks, with what would mend it.

    Args:
        need: The figure that is limited; None where it is unknown.
        figure: Its name, a key of `WHOLE`.
        limit: To what; None is no limit.
        choices: All that the plan's links carry.
        links: Those that it uses.
        inner: What those of its crossings carry that lie inside the network.
        with_link: Returns the figure with another link in place of one.
        with_choice: Returns the figure with another choice in place of one.
    """
    what, unit = WHOLE[figure]
    if limit is None or (need is not None and not exceeds(need, limit)):
        return
    if need is None:
        unknown = next(choice for choice in choices if choice.drop is None)
        what += f" of {unknown.codec} after {unknown.cut.after} is unknown and"
        need, remedy = 1.0, "measure it (isthmus plan --data), or use raw"
    else:
        ways = (
            *_faster_link(links, figure, limit, with_link),
            *_narrower_codec(inner, figure, limit, with_choice),
            f"allow {format_quantity(need, unit)}",
        )
        remedy = ", or ".join(ways)
    yield Violation(where="plan", what=what, need=need, limit=limit, unit=unit, remedy=remedy)


def _figure(walk: Walk, figure: str) -> float | None:
    return getattr(walk.estimate().prediction, figure)


def _faster_link(
    links: Iterable[Link],
    figure: str,
    limit: float,
    with_link: Callable[[Link, Link], float | None],
) -> Iterator[str]:
    """Yield the link that has to become faster by the least factor, where one suffices.

    Arguments are those of `whole_limit`.
    """
    if figure not in ("latency_s", "interval_s"):
        return

    def keeps(link: Link, other: Link) -> bool:
        return not exceeds(with_link(link, other) or 0.0, limit)

    rates = [(least_rate(link, partial(keeps, link)), link) for link in dict.fromkeys(links)]
    found = [(rate / link.bytes_per_s, link.name, rate) for rate, link in rates if rate < inf]
    for _, name, rate in sorted(found)[:1]:
        yield f"a rate of {format_quantity(rate, 'byte/s')} on link {name}"


def least_rate(link: Link, keeps: Callable[[Link], bool]) -> float:
    """Return the least rate over its own at which a link keeps something; infinity if none does.

    Args:
        link: As it is.
        keeps: Whether another in its place does; a faster one does if a slower one does.
    """
    low, high = link.bytes_per_s, MOST_RATE
    if not keeps(with_rate(link, high)):
        return inf
    while high > low * 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if keeps(with_rate(link, middle)) else (middle, high)
    return high


def with_rate(link: Link, bytes_per_s: float) -> Link:
    """Return a link at another rate."""
    return replace(link, bytes_per_s=bytes_per_s, pins=None, clock_hz=None)


def _narrower_codec(
    inner: Iterable[Choice],
    figure: str,
    limit: float,
    with_choice: Callable[[Choice, Choice], float | None],
) -> Iterator[str]:
    """Yield the widest codec that suffices at one of the crossings inside the network.

    Arguments are those of `whole_limit`.
    """
    if figure in ("price", "drop"):
        return
    for choice in inner:
        for other in smaller(choice):
            if not exceeds(with_choice(choice, other) or 0.0, limit):
                yield f"a narrower codec such as {other.codec} after {choice.cut.after}"
                return


def _with_choice(walk: Walk, choice: Choice, other: Choice) -> Walk:
    """Return the walk with another choice in place of one."""
    route = tuple(other if one == choice else one for one in walk.route)
    old, new = (pairwise((None, *carried, None)) for carried in (walk.route, route))
    loads = []
    for load, before, after in zip(walk.loads, old, new, strict=True):
        halves = halves_load(*after)
        made = replace(
            load,
            codec_macs=halves.codec_macs,
            codec_bytes=halves.codec_bytes,
            weight_bytes=load.weight_bytes
            - halves_load(*before).weight_bytes
            + halves.weight_bytes,
            peak_bytes=max(float(load.node_peak_bytes), float(halves.peak_bytes)),
        )
        loads.append(made)
    return replace(walk, route=route, loads=tuple(loads))


def _narrower_loads(walk: Walk, stage: int) -> Iterator[tuple[Choice, Load]]:
    """Yield what a stage would ask if fewer channels arrived or left, and the codec for that."""
    for choice in dict.fromkeys(walk.route[max(stage - 1, 0) : stage + 1]):
        if _inside(walk, choice):
            for other in narrower(choice):
                yield other, _with_choice(walk, choice, other).loads[stage]


def _inside(walk: Walk, choice: Choice) -> bool:
    """Return whether a choice is an inner crossing, neither the input nor the output."""
    return bool(0 < choice.cut.index < walk.loads[-1].stop)


def narrower(choice: Choice) -> Iterator[Choice]:
    """Yield the same crossing through half as many channels, a quarter, and so on."""
    ratio, bits = 2 * choice.spec.ratio, min(max(choice.spec.bits, 2), 8)
    while True:
        try:
            spec = replace(
                choice.spec,
                name="bottleneck",
                ratio=ratio,
                bits=bits,
                per="channel",  # this and what follows a bottleneck is never told
                range="minmax",
                symmetric=False,
                format="",
            )
        except InputError:  # no channel would be left, or nothing can be narrowed
            return
        yield Choice(cut=choice.cut, spec=spec)
        ratio *= 2


def smaller(choice: Choice) -> list[Choice]:
    """Return the same crossing with fewer channels or bits or both, the widest first."""
    named = [choice] if choice.spec.name in ("uniform", "bottleneck") else []
    found = [
        replace(one, spec=replace(one.spec, bits=bits))
        for one in (*named, *narrower(choice))
        for bits in (8, 4, 2)
    ]
    less = [one for one in found if one.spec.payload_bytes < choice.spec.payload_bytes]
    return sorted(less, key=lambda one: -one.spec.payload_bytes)
