"""Any assignment of nodes to devices: what travels, and what all of it costs.

The nodes run one after another in the graph's order, each on its device. A tensor goes from the
device that makes it to every other one that reads it, each time as a *message* of its own, by one
codec, on the platform's route between the two. It is sent as soon as it is made, and everything
else waits until it is there. Samples arise on the platform's input before the first node, and the
answers are wanted on its output after the last. Branches do not run at the same time: of a plan
that branches, the latency is an upper bound.

What a node, a codec half or a hop costs is what `isthmus.plan.estimate` says, and so are latency,
interval, energy, price and drop. A device holds every weight that its nodes read, once, and the
codec halves of all its messages; and a tensor from the moment when it is made there or arrives
until the last node there has read it. While a tensor is sent, all that its node made is held
beside the codec's buffers; a relay holds the payload.

Where every message goes from one run of consecutive nodes to the next, all of this is what holds
for a chain of stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isthmus.errors import InputError
from isthmus.graph import Cut, Graph, Tensor, cuts
from isthmus.plan.accuracy import AccuracyTable
from isthmus.plan.choices import Choice, can_code, check_inner, choices_at, undominated, within
from isthmus.plan.estimate import (
    Clock,
    Load,
    Site,
    codec_s,
    halves_load,
    in_all,
    make_site,
    stage_j,
)
from isthmus.plan.plan import Asked, Prediction
from isthmus.plan.table import Leg, make_legs
from isthmus.platform import Device, Link, Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A tensor that may have to travel.

    Attributes:
        tensor: What it is.
        maker: Index of the node that makes it; -1 for an input of the model.
        readers: Indices of the nodes that read it, rising; the number of nodes for the caller.
        picks: Indices of the choices by which nodes can get it.
        answers: Indices of those by which the caller can, if it is an output of the model.
    """

    tensor: Tensor
    maker: int
    readers: tuple[int, ...]
    picks: range
    answers: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A graph, a platform, and all that a placement is made of.

    Attributes:
        graph: What is computed.
        platform: On what.
        sites: What the nodes cost on each device.
        parcels: In the order in which they are made.
        choices: By which parcels travel.
        legs: By the indices of two devices, where there is a way from one to the other.
    """

    graph: Graph
    platform: Platform
    sites: tuple[Site, ...]
    parcels: tuple[Parcel, ...]
    choices: tuple[Choice, ...]
    legs: Mapping[tuple[int, int], Leg]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A parcel on its way, all by index: the parcel, two devices, and the choice it goes by."""

    parcel: int
    source: int
    target: int
    pick: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each node runs, and what is sent.

    Attributes:
        places: Index of the device of each node.
        messages: In the order of sending.
    """

    places: tuple[int, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What a placement costs.

    Attributes:
        devices: Indices of those that compute, code or relay, and of both ends; rising.
        loads: Of every device of the platform; their ranges of nodes are empty.
        busy_s: How long each device, by its name, and each medium, by its clock, is busy.
        joules: Of every device, without static power.
        prediction: The sums.
    """

    devices: tuple[int, ...]
    loads: tuple[Load, ...]
    busy_s: Mapping[Clock, float]
    joules: tuple[float, ...]
    prediction: Prediction


def make_setting(graph: Graph, platform: Platform, asked: Asked) -> Setting:
    """Work out what may travel, how, and what nodes and ways cost.

    Args:
        graph: What is computed.
        platform: On what.
        asked: Its codec is for every tensor that is neither input nor output, its accuracies hold
            for one that crosses alone at their cut; choices that break a limit by themselves are
            left out.

    Raises:
        InputError: The codec is unknown or not one for inner cuts, or a device's times were
            measured for another model.
    """
    if asked.codec is not None:
        check_inner(asked.codec)
    exact = asked.accuracy is not None or asked.limits.drop is not None

    def find(cut: Cut, table: AccuracyTable | None, *, raw: bool = False) -> tuple[Choice, ...]:
        try:
            found = choices_at(
                cut, len(graph.nodes), replace(asked, accuracy=table), lossless=exact
            )
        except InputError:  # it can cross no link
            return ()
        found = tuple(choice for choice in found if not raw or choice.spec.name == "raw")
        return undominated(within(found, asked.limits), platform.devices)

    places = cuts(graph)
    parcels: list[Parcel] = []
    choices: list[Choice] = []
    for tensor, maker, readers in _travellers(graph):
        alone = [cut for cut in places if cut.tensors == (tensor,)]
        made = Cut(
            index=maker + 1,
            after=places[maker + 1].after,
            tensors=(tensor,),
            obstacle="" if tensor.batched else "dimension 0 is not the batch",
        )
        inner = next((cut for cut in alone if 0 < cut.index < len(graph.nodes)), None)
        start = len(choices)
        to_nodes: tuple[Choice, ...] = ()
        to_caller: tuple[Choice, ...] = ()
        if maker < 0 and readers[0] < len(graph.nodes):
            to_nodes = find(made, asked.accuracy, raw=places[0] not in alone)
        elif readers[0] < len(graph.nodes):
            to_nodes = find(inner, asked.accuracy) if inner else find(made, None)
        if readers[-1] == len(graph.nodes):
            last = replace(made, index=len(graph.nodes), after=places[-1].after)
            shared = maker < 0 or len(readers) > 1 or places[-1] not in alone
            to_caller = find(last, asked.accuracy, raw=shared)
        choices += (*to_nodes, *to_caller)
        parcels.append(
            Parcel(
                tensor=tensor,
                maker=maker,
                readers=readers,
                picks=range(start, start + len(to_nodes)),
                answers=range(start + len(to_nodes), len(choices)),
            )
        )
    return Setting(
        graph=graph,
        platform=platform,
        sites=tuple(make_site(graph, device) for device in platform.devices),
        parcels=tuple(parcels),
        choices=tuple(choices),
        legs=make_legs(platform, choices),
    )


def picks_for(setting: Setting, parcel: Parcel, source: int, target: int) -> tuple[int, ...]:
    """Return the choices by which a parcel can go from one device to another.

    One that the caller wants, too, goes to the platform's output as the caller can have it.
    """
    devices = setting.platform.devices
    if (source, target) not in setting.legs:
        return ()
    wanted = target == setting.platform.target and parcel.readers[-1] == len(setting.graph.nodes)
    return tuple(
        pick
        for pick in (parcel.answers if wanted else parcel.picks)
        if can_code(devices[source], setting.choices[pick])
        and can_code(devices[target], setting.choices[pick])
    )


def needed(setting: Setting, places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return what has to be sent where nodes are on some devices, in the order of sending.

    Returns:
        Of each message the indices of the parcel, the sender and the receiver.
    """
    # As a maker the caller's index is -1.
    every = (*places, setting.platform.target, setting.platform.source)
    return [
        (index, every[parcel.maker], target)
        for index, parcel in enumerate(setting.parcels)
        for target in sorted({every[reader] for reader in parcel.readers})
        if target != every[parcel.maker]
    ]


def hops(setting: Setting, message: Message) -> Iterator[tuple[Device, Link]]:
    """Yield the links that a message passes, each with the device that sends on it."""
    leg = setting.legs[message.source, message.target]
    for index, link in zip(leg.devices, leg.links, strict=False):
        yield setting.platform.devices[index], link


def weigh(setting: Setting, placement: Placement) -> Weighed:
    """Work out what a placement costs."""
    loads = _loads(setting, placement)
    taken = {*setting.platform.ends, *placement.places}
    busy_s: dict[Clock, float] = {}
    links_s = links_j = 0.0
    for message in placement.messages:
        taken.update(setting.legs[message.source, message.target].devices)
        frame = setting.choices[message.pick].frame_bytes
        for sender, link in hops(setting, message):
            clock = link.clock(sender.name)
            busy_s[clock] = busy_s.get(clock, 0.0) + link.occupied_s(frame)
            links_s += link.transfer_s(frame)
            links_j += link.transfer_j(frame)
    computing_s, joules = [], []
    for index, (site, load) in enumerate(zip(setting.sites, loads, strict=True)):
        mine = [node for node, place in enumerate(placement.places) if place == index]
        nodes_s = sum(site.seconds[node + 1] - site.seconds[node] for node in mine)
        nodes_j = sum(site.joules[node + 1] - site.joules[node] for node in mine)
        start_s = site.device.start_s if mine else 0.0
        computing_s.append(float(nodes_s + start_s + codec_s(site.device, load)))
        joules.append(float(nodes_j + stage_j(site, load)))
        busy_s[site.device.name] = computing_s[-1]
    devices = [setting.platform.devices[index] for index in sorted(taken)]
    drops = [setting.choices[message.pick].drop for message in placement.messages]
    return Weighed(
        devices=tuple(sorted(taken)),
        loads=loads,
        busy_s=busy_s,
        joules=tuple(joules),
        prediction=in_all(
            devices,
            latency_s=sum(computing_s) + links_s,
            joules=sum(joules) + links_j,
            busy_s=busy_s,
            drops=drops,
        ),
    )


def _travellers(graph: Graph) -> Iterator[tuple[Tensor, int, tuple[int, ...]]]:
    """Yield every tensor that is read, the node that makes it, and what reads it."""
    readers = graph.readers()
    for name in dict.fromkeys(graph.outputs):
        readers.setdefault(name, []).append(len(graph.nodes))
    made = [graph.inputs, *(node.outputs for node in graph.nodes)]
    for maker, tensors in enumerate(made, start=-1):
        for tensor in tensors:
            if tensor.name in readers:
                yield tensor, maker, tuple(readers[tensor.name])


def _loads(setting: Setting, placement: Placement) -> tuple[Load, ...]:
    """Return what each device holds, and what its codec halves ask."""
    peaks = _peaks(setting, placement)
    halves: list[list[Load]] = [[] for _ in setting.sites]
    for message in placement.messages:
        choice = setting.choices[message.pick]
        source, *relays, target = setting.legs[message.source, message.target].devices
        halves[source].append(halves_load(None, choice))
        halves[target].append(halves_load(choice, None))
        for relay in relays:
            halves[relay].append(halves_load(choice, choice))
    weights: list[dict[str, int]] = [{} for _ in setting.sites]
    for node, place in zip(setting.graph.nodes, placement.places, strict=True):
        weights[place] |= {weight.name: weight.num_bytes for weight in node.weights}
    return tuple(
        Load(
            codec_macs=sum(float(half.codec_macs) for half in halves[index]),
            codec_bytes=sum(float(half.codec_bytes) for half in halves[index]),
            weight_bytes=sum(weights[index].values())
            + sum(float(half.weight_bytes) for half in halves[index]),
            peak_bytes=peaks[index],
        )
        for index in range(len(setting.sites))
    )


def _peaks(setting: Setting, placement: Placement) -> list[float]:
    """Return the largest sum of tensors and buffers that each device holds at one moment."""
    nodes = setting.graph.nodes
    places = (*placement.places, setting.platform.target, setting.platform.source)
    lasts = [{places[reader]: reader for reader in parcel.readers} for parcel in setting.parcels]
    held = np.zeros((len(setting.sites), len(nodes) + 1))
    for parcel, last in zip(setting.parcels, lasts, strict=True):
        for device, reader in last.items():
            held[device, parcel.maker + 1 : reader + 1] += parcel.tensor.num_bytes
    peaks = [0.0] * len(setting.sites)
    for index, place in enumerate(placement.places):
        peaks[place] = max(peaks[place], held[place, index] + nodes[index].output_bytes)
    for message in placement.messages:
        parcel, choice = setting.parcels[message.parcel], setting.choices[message.pick]
        source, *relays, target = setting.legs[message.source, message.target].devices
        made = sum(  # what is not held any longer once all of it is sent
            other.tensor.num_bytes
            for other, last in zip(setting.parcels, lasts, strict=True)
            if other.maker == parcel.maker and source not in last
        )
        beside = {
            source: made + float(halves_load(None, choice).peak_bytes) - parcel.tensor.num_bytes,
            target: float(halves_load(choice, None).peak_bytes) - parcel.tensor.num_bytes,
            **dict.fromkeys(relays, float(halves_load(choice, choice).peak_bytes)),
        }
        for device, more in beside.items():
            peaks[device] = max(peaks[device], float(held[device, parcel.maker + 1] + more))
    return peaks
