"""Plans that branch: from a placement to what is written down of it, and back to check it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from isthmus.graph import Cut, Graph, cuts
from isthmus.plan.accuracy import AccuracyTable
from isthmus.plan.choices import Choice, carried, known, make_crossing, other_model
from isthmus.plan.estimate import make_inputs, make_stage, needs
from isthmus.plan.limits import WHOLE, narrower, smaller, too_large, whole_limit
from isthmus.plan.placement import (
    Message,
    Placement,
    Setting,
    Weighed,
    hops,
    make_setting,
    needed,
    weigh,
)
from isthmus.plan.plan import Asked, Limits, Plan, Stage, Violation, exceeds
from isthmus.platform import Link, Platform
from isthmus.units import format_quantity

_NOTE = (
    "branched: tensors go between devices as messages of their own and not from each stage to the "
    "next; to split, export or run a plan use method chain"
)


def make_branched(
    setting: Setting, placement: Placement, *, objective: str, limits: Limits, gap: float
) -> Plan:
    """Write down a placement that is no walk.

    Args:
        setting: What it was chosen from.
        placement: What was chosen.
        objective: What was made small.
        limits: What it was not to exceed.
        gap: As `Plan` says.
    """
    weighed = weigh(setting, placement)
    devices = setting.platform.devices
    return Plan(
        objective=objective,
        split=len(set(placement.places)) > 1,
        stages=tuple(_stage(setting, placement, weighed, index) for index in weighed.devices),
        crossings=tuple(
            make_crossing(link, setting.choices[message.pick])
            for message in placement.messages
            for _, link in hops(setting, message)
        ),
        predicted=weighed.prediction,
        inputs=make_inputs(setting.graph),
        platform=setting.platform,
        unused=tuple(d.name for k, d in enumerate(devices) if k not in weighed.devices),
        notes=(_NOTE,),
        limits=limits,
        gap=gap,
        branched=True,
    )


def check_branched(
    plan: Plan,
    graph: Graph,
    platform: Platform,
    *,
    limits: Limits,
    accuracy: AccuracyTable | None,
) -> tuple[Violation, ...]:
    """Return every limit that a plan breaks.

    Arguments and errors are those of `isthmus.plan.check`.
    """
    setting, placement = _read(plan, graph, platform, accuracy)
    found = [*_memories(setting, placement)]
    inner = _inner(setting, placement)
    for message in placement.messages:
        choice, most = setting.choices[message.pick], limits.link_bytes
        if most is not None and exceeds(choice.spec.payload_bytes, most):
            fewer = smaller(choice) if message.pick in inner else []
            _, link = next(hops(setting, message))
            found.append(too_large(choice, most, f"link {link.name}", fewer))
    for figure in WHOLE:
        found += _whole(setting, placement, figure, getattr(limits, figure))
    return tuple(found)


def _memories(setting: Setting, placement: Placement) -> Iterator[Violation]:
    weighed, devices = weigh(setting, placement), setting.platform.devices
    for index in weighed.devices:
        for which, (what, need, room) in enumerate(needs(devices[index], weighed.loads[index])):
            if room is None or need <= room:
                continue
            enough = (
                f"a narrower codec such as {other.codec} after {other.cut.after}"
                for pick in _inner(setting, placement)
                for other in narrower(setting.choices[pick])
                for loads in [weigh(_with_choice(setting, pick, other), placement).loads]
                if needs(devices[index], loads[index])[which][1] <= room
            )
            size = f"use a device with >= {format_quantity(float(need), 'byte')} for it"
            yield Violation(
                where=devices[index].name,
                what=what,
                need=float(need),
                limit=room,
                unit="byte",
                remedy=", or ".join([size, *islice(enough, 1)]),
            )


def _whole(
    setting: Setting, placement: Placement, figure: str, limit: float | None
) -> Iterator[Violation]:
    """Yield a limit on the whole plan that it breaks."""

    def value(setting: Setting) -> float | None:
        return getattr(weigh(setting, placement).prediction, figure)

    def with_link(link: Link, other: Link) -> float | None:
        legs = {
            ends: replace(leg, links=tuple(other if one == link else one for one in leg.links))
            for ends, leg in setting.legs.items()
        }
        return value(replace(setting, legs=legs))

    inner = {setting.choices[pick]: pick for pick in _inner(setting, placement)}
    yield from whole_limit(
        value(setting),
        figure,
        limit,
        choices=[setting.choices[message.pick] for message in placement.messages],
        links=[link for message in placement.messages for _, link in hops(setting, message)],
        inner=inner,
        with_link=with_link,
        with_choice=lambda one, other: value(_with_choice(setting, inner[one], other)),
    )


def _inner(setting: Setting, placement: Placement) -> list[int]:
    """Return the picks of messages that carry neither an input of the model nor its answer."""
    end = len(setting.graph.nodes)
    return [
        message.pick
        for message in placement.messages
        for parcel in [setting.parcels[message.parcel]]
        if parcel.maker >= 0
        and not (message.target == setting.platform.target and parcel.readers[-1] == end)
    ]


def _with_choice(setting: Setting, pick: int, other: Choice) -> Setting:
    choices = (*setting.choices[:pick], other, *setting.choices[pick + 1 :])
    return replace(setting, choices=choices)


def _stage(setting: Setting, placement: Placement, weighed: Weighed, index: int) -> Stage:
    site, load = setting.sites[index], weighed.loads[index]
    mine = [k for k, place in enumerate(placement.places) if place == index]
    time_s, joules = weighed.busy_s[site.device.name], weighed.joules[index]
    return make_stage(site, mine, setting.graph, load, time_s=time_s, joules=joules)


def _read(
    plan: Plan, graph: Graph, platform: Platform, accuracy: AccuracyTable | None
) -> tuple[Setting, Placement]:
    """Return the placement that a plan is, with the codecs that it names."""
    setting = make_setting(graph, platform, Asked())
    device_of = {name: stage.device for stage in plan.stages for name in stage.nodes}
    if device_of.keys() != {node.name for node in graph.nodes}:
        raise other_model("other operations")
    places = tuple(setting.platform.index(device_of[node.name]) for node in graph.nodes)
    for index, place in enumerate(places):
        site = setting.sites[place]
        if site.barred[index + 1] > site.barred[index]:
            raise other_model(f"{graph.nodes[index].name} on {site.device.name}, which lacks it")
    crossings, own_cuts = list(plan.crossings), cuts(graph)
    messages: list[Message] = []
    choices: list[Choice] = []
    for parcel, source, target in needed(setting, places):
        tensor = setting.parcels[parcel].tensor
        leg = setting.legs.get((source, target))
        mine = crossings[: len(leg.links)] if leg else []
        ways = [(crossing.link, crossing.tensors) for crossing in mine]
        if leg is None or ways != [(link.name, (tensor.name,)) for link in leg.links]:
            raise other_model(f"no way for {tensor.name} to {platform.devices[target].name}")
        del crossings[: len(mine)]
        messages.append(Message(parcel=parcel, source=source, target=target, pick=len(choices)))
        cut = Cut(index=mine[0].cut, after=mine[0].after, tensors=(tensor,))
        choices.append(known(carried(mine[0], cut), accuracy if cut in own_cuts else None))
    if crossings:
        raise other_model(f"a crossing of {', '.join(crossings[0].tensors)} that nothing reads")
    placement = Placement(places=places, messages=tuple(messages))
    return replace(setting, choices=tuple(choices)), placement
