r"""The best assignment of nodes to devices for a graph of any shape, by constraint programming.

What a placement costs is what `isthmus.plan.placement` says, in whole bytes, and in whole ns and
pJ or finer units for models that take less than 1 s or 1 mJ; all rounded up, so that no limit is
exceeded. A boolean :math:`x_{n,d}` says whether node n runs on device d. A tensor that node p
makes and node c reads *flows*: with :math:`e_{a,b}` true where p is on a and c on b,

.. math:: \sum_b e_{a,b} = x_{p,a} \qquad \sum_a e_{a,b} = x_{c,b} \qquad m_{a,b} \ge e_{a,b}

where m says that the tensor is sent from a to b, once for all its readers there. These sums are
what makes the linear relaxation tight: it has no gap on a chain or a tree without limits, and a
small one on most networks. Nodes that nothing can part are one from the start.

References:
    Werner, "A linear programming approach to max-sum problem: a review", IEEE Transactions on
    Pattern Analysis and Machine Intelligence 29(7), 2007 (the relaxation). Perron, Didier, Gay,
    "The CP-SAT-LP solver", CP 2023.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import ceil, floor, inf, log10
from time import monotonic

import numpy as np
from ortools.sat.python import cp_model

from isthmus.plan.estimate import Array, Clock, codec_s, halves_load, stage_j
from isthmus.plan.orders import classes_of
from isthmus.plan.placement import Message, Placement, Setting, needed, picks_for
from isthmus.plan.plan import Limits

_MILLIONTH = 1e-6
_MOST = 1 << 60

Bool = cp_model.IntVar
Sum = list[tuple[Bool, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        placement: The best one seen; None where there is none.
        gap: By which share of its cost another one may be better; 0 where none can.
        proven: Whether the search came to its end.
    """

    placement: Placement | None = None
    gap: float = 1.0
    proven: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What it costs if a boolean is true: times by device and medium, in s, and energy, in J."""

    chosen: Bool
    seconds: float
    joules: float
    busy_s: Mapping[Clock, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """The programme as it grows.

    Attributes:
        cp: All constraints so far.
        unit_s: What is 1 in sums of times.
        unit_j: What is 1 in sums of energy.
        x: For each node, the caller who takes the answers, and the caller who gives the samples:
            a boolean for each device that may have it. Nodes that are one share theirs.
        messages: Whether a parcel goes from one device to another by one of its choices.
        parts: What adds up to latency, energy and interval.
        on: Whether a device is paid for, where that is open and matters.
    """

    cp: cp_model.CpModel
    unit_s: float
    unit_j: float
    x: Sequence[Mapping[int, Bool]]
    messages: dict[Message, Bool] = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    on: dict[int, Bool] = field(default_factory=dict)


def search(
    setting: Setting,
    *,
    objective: str,
    limits: Limits,
    time_limit_s: float,
) -> Found:
    """Return the best placement within the limits; of those that cost the same the fastest.

    Args:
        setting: What there is to choose from.
        objective: latency, throughput, energy or price.
        limits: What a placement must not exceed.
        time_limit_s: When to stop with the best one so far.
    """
    stop_s = monotonic() + time_limit_s
    model = _make_model(setting)
    _add_limits(model, setting, limits)
    inner = [k for k in range(len(setting.sites)) if k not in setting.platform.ends]
    classes = classes_of(setting.platform, setting.legs, inner)
    _add_order(model, setting, classes)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.linearization_level = 2
    solver.parameters.cp_model_probing_level = 0  # this and cuts cost more than they save here
    solver.parameters.cut_level = 0
    # Else OR-Tools 9.15 now and then proves what is not the best (its issue 5293).
    solver.parameters.presolve_inclusion_work_limit = 0
    found = Found()
    for goal in dict.fromkeys((objective, "latency")):
        figure = _figure(model, setting, goal)
        model.cp.minimize(figure)
        # Loads that are even all but in the last digits: many ways to look find them far sooner.
        solver.parameters.interleave_search = goal == "throughput"
        solver.parameters.max_time_in_seconds = max(0.0, stop_s - monotonic())
        status = solver.solve(model.cp)
        assert status != cp_model.MODEL_INVALID, model.cp.validate()
        if status == cp_model.INFEASIBLE:
            return Found(proven=True)
        if status == cp_model.UNKNOWN:
            return found
        placement, proven = _read(model, setting, solver), status == cp_model.OPTIMAL
        if found.placement is None:
            cost, least = solver.objective_value, solver.best_objective_bound
            found = Found(gap=0.0 if proven else (cost - least) / cost, proven=proven)
        found = replace(found, placement=placement)
        if not proven:
            return found
        model.cp.add(figure <= round(solver.objective_value))
        for chosen in {one.index: one for x in model.x for one in x.values()}.values():
            model.cp.add_hint(chosen, solver.boolean_value(chosen))
    return found


def _make_model(setting: Setting) -> _Model:
    cp = cp_model.CpModel()
    model = _Model(
        cp=cp,
        unit_s=_unit(1e-9, [site.seconds for site in setting.sites]),
        unit_j=_unit(1e-12, [site.joules for site in setting.sites]),
        x=_places(cp, setting),
    )
    _add_nodes(model, setting)
    _add_messages(model, setting)
    _add_devices(model, setting)
    _add_memories(model, setting)
    return model


def _unit(coarsest: float, sums: Iterable[Array]) -> float:
    """Return a unit of which a model on one device takes some 1e9, but none that is coarser."""
    least = min((float(one[-1]) for one in sums if one[-1] > 0), default=inf)
    return min(coarsest, 10.0 ** (floor(log10(least)) - 9)) if least < inf else coarsest


def _places(cp: cp_model.CpModel, setting: Setting) -> list[dict[int, Bool]]:
    """Make the booleans that say where nodes and callers are; nodes that are one share theirs."""
    end = len(setting.graph.nodes)
    able: list[set[int]] = [
        {d for d, site in enumerate(setting.sites) if site.barred[n + 1] == site.barred[n]}
        for n in range(end)
    ]
    able += [{setting.platform.target}, {setting.platform.source}]
    one = list(range(end + 2))
    for parcel in setting.parcels:
        if not parcel.picks and not parcel.answers:
            joined = {one[n] for n in (parcel.maker, *parcel.readers)}
            one = [min(joined) if label in joined else label for label in one]
    x: dict[int, dict[int, Bool]] = {}
    for label in dict.fromkeys(one):
        devices = set.intersection(*(able[n] for n, other in enumerate(one) if other == label))
        x[label] = {device: cp.new_bool_var("") for device in sorted(devices)}
        cp.add_exactly_one(x[label].values())
    return [x[label] for label in one]


def _add_nodes(model: _Model, setting: Setting) -> None:
    """Let every node cost what it does where it runs."""
    for index, site in enumerate(setting.sites):
        nodes_s, nodes_j = (np.diff(sums).tolist() for sums in (site.seconds, site.joules))
        for x, seconds, joules in zip(model.x, nodes_s, nodes_j, strict=False):
            if index in x:
                busy_s: dict[Clock, float] = {site.device.name: seconds}
                part = _Part(chosen=x[index], seconds=seconds, joules=joules, busy_s=busy_s)
                model.parts.append(part)


def _add_messages(model: _Model, setting: Setting) -> None:
    """Let every parcel flow from its maker to its readers, by messages where these are apart."""
    cp = model.cp
    for index, parcel in enumerate(setting.parcels):
        makers = model.x[parcel.maker]
        readers = {id(x): x for x in (model.x[reader] for reader in parcel.readers)}
        readers.pop(id(makers), None)
        flows: dict[tuple[int, int], list[Bool]] = {}
        for x in readers.values():
            flow = {
                (a, b): cp.new_bool_var("")
                for a in makers
                for b in x
                if a == b or picks_for(setting, parcel, a, b)
            }
            for a, made in makers.items():
                cp.add(sum(e for (source, _), e in flow.items() if source == a) == made)
            for b, read in x.items():
                cp.add(sum(e for (_, target), e in flow.items() if target == b) == read)
            for ends, e in flow.items():
                flows.setdefault(ends, []).append(e)
        for (a, b), needing in flows.items():
            if a != b:
                _add_message(model, setting, index, (a, b), needing)


def _add_message(
    model: _Model, setting: Setting, index: int, ends: tuple[int, int], needing: Sequence[Bool]
) -> None:
    """Send a parcel from one device to another, by one choice, if a flow needs it."""
    picks = picks_for(setting, setting.parcels[index], *ends)
    single = len(needing) == len(picks) == 1
    sent = needing if single else [model.cp.new_bool_var("") for _ in picks]
    if not single:
        for e in needing:
            model.cp.add_at_least_one(e.negated(), *sent)
    for pick, chosen in zip(picks, sent, strict=True):
        message = Message(parcel=index, source=ends[0], target=ends[1], pick=pick)
        model.messages[message] = chosen
        model.parts.append(_message_part(setting, message, chosen))


def _message_part(setting: Setting, message: Message, chosen: Bool) -> _Part:
    leg, choice = setting.legs[message.source, message.target], setting.choices[message.pick]
    busy_s = {clock: float(busy[message.pick]) for clock, busy in leg.busy_s.items()}
    seconds, joules = float(leg.seconds[message.pick]), float(leg.joules[message.pick])
    for index, load in (
        (message.source, halves_load(None, choice)),
        (message.target, halves_load(choice, None)),
    ):
        site = setting.sites[index]
        busy_s[site.device.name] = float(codec_s(site.device, load))
        seconds += busy_s[site.device.name]
        joules += float(stage_j(site, load))
    return _Part(chosen=chosen, seconds=seconds, joules=joules, busy_s=busy_s)


def _add_devices(model: _Model, setting: Setting) -> None:
    """Let devices start up where they have nodes, and be paid where they are on the way."""
    cp = model.cp
    for index, site in enumerate(setting.sites):
        device = site.device
        open_ = index not in setting.platform.ends
        paid = open_ and (device.price > 0 or device.static_w > 0)
        if not paid and not device.start_s:
            continue
        used = cp.new_bool_var("")
        for x in {id(x): x for x in model.x[: len(setting.graph.nodes)]}.values():
            if index in x:
                cp.add_implication(x[index], used)
        name, start_s = device.name, device.start_s
        model.parts.append(_Part(chosen=used, seconds=start_s, joules=0.0, busy_s={name: start_s}))
        if paid:
            model.on[index] = cp.new_bool_var("")
            relayed = (
                chosen
                for message, chosen in model.messages.items()
                if index in setting.legs[message.source, message.target].devices[1:-1]
            )
            for needing in (used, *relayed):
                cp.add_implication(needing, model.on[index])


def _add_memories(model: _Model, setting: Setting) -> None:
    """Keep what devices hold within their memories."""
    for index, site in enumerate(setting.sites):
        memory = site.device.memory
        weights = _weights(model, setting, index)
        _at_most(model.cp, weights, memory.weights_bytes)
        if memory.activations_bytes is None and memory.shared_bytes is None:
            continue
        for moment in _moments(model, setting, index):
            _at_most(model.cp, moment, memory.activations_bytes)
            _at_most(model.cp, weights + moment, memory.shared_bytes)


def _weights(model: _Model, setting: Setting, device: int) -> Sum:
    """Return the weights that a device holds: those of its nodes, each once, and codec halves."""
    users: dict[str, dict[int, Bool]] = {}
    sizes: dict[str, int] = {}
    for node, x in zip(setting.graph.nodes, model.x, strict=False):
        for weight in node.weights if device in x else ():
            users.setdefault(weight.name, {})[x[device].index] = x[device]
            sizes[weight.name] = weight.num_bytes
    held = [(_any(model.cp, users[name].values()), float(size)) for name, size in sizes.items()]
    for message, chosen in model.messages.items():
        choice = setting.choices[message.pick]
        if message.source == device:
            held.append((chosen, float(halves_load(None, choice).weight_bytes)))
        if message.target == device:
            held.append((chosen, float(halves_load(choice, None).weight_bytes)))
    return held


def _moments(model: _Model, setting: Setting, device: int) -> Iterator[Sum]:
    """Yield what a device holds while each node runs there and while each message passes it."""
    held = _held(model, setting, device)
    made = Counter[int]()
    for parcel in setting.parcels:
        made[parcel.maker] += parcel.tensor.num_bytes
    for index, node in enumerate(setting.graph.nodes):
        if device in model.x[index]:
            kept = [one for ones in held[index].values() for one in ones]
            yield [*kept, (model.x[index][device], float(node.output_bytes))]
    for message, sent in model.messages.items():
        choice, parcel = setting.choices[message.pick], setting.parcels[message.parcel]
        kept_by = held[parcel.maker + 1]
        if device == message.source:  # all that the node made waits until the last of it is sent
            kept_by = {maker: ones for maker, ones in kept_by.items() if maker != parcel.maker}
            peak = made[parcel.maker] + choice.spec.encoder_buffer_bytes
        elif device == message.target:
            peak = choice.spec.decoder_buffer_bytes
        elif device in setting.legs[message.source, message.target].devices:
            peak = choice.spec.max_payload_bytes
        else:
            continue
        kept = [one for ones in kept_by.values() for one in ones]
        yield [*kept, (sent, float(peak))]


def _held(model: _Model, setting: Setting, device: int) -> list[dict[int, Sum]]:
    """Return which tensors a device holds when the turn comes to each node, by their makers."""
    held: list[dict[int, Sum]] = [{} for _ in range(len(setting.graph.nodes) + 1)]
    for parcel in setting.parcels:
        start = parcel.maker + 1
        for position, reader in enumerate(parcel.readers):
            late = (model.x[other] for other in parcel.readers[position:])
            readers = {x[device].index: x[device] for x in late if device in x}
            if readers:
                here = (_any(model.cp, readers.values()), float(parcel.tensor.num_bytes))
                for index in range(start, reader + 1):
                    held[index].setdefault(parcel.maker, []).append(here)
            start = reader + 1
    return held


def _add_order(model: _Model, setting: Setting, classes: Sequence[Sequence[int]]) -> None:
    """Let devices that are alike get their first nodes in the order of the file."""
    cp = model.cp
    for earlier, later in chain.from_iterable(pairwise(members) for members in classes):
        begun: list[Bool] = []
        for x in model.x[: len(setting.graph.nodes)]:
            if later in x:
                cp.add_bool_or(x[later].negated(), *begun)
            if earlier in x:
                begins = cp.new_bool_var("")
                cp.add_bool_or(begins.negated(), x[earlier], *begun)
                begun = [begins]


def _any(cp: cp_model.CpModel, bools: Iterable[Bool]) -> Bool:
    """Return a boolean that is true where one of some is."""
    first, *others = bools
    if not others:
        return first
    any_ = cp.new_bool_var("")
    for one in (first, *others):
        cp.add_implication(one, any_)
    return any_


def _at_most(cp: cp_model.CpModel, terms: Sum, room: float | None) -> None:
    if room is not None and sum(size for _, size in terms) > room:
        cp.add(_total(terms, 1.0) <= floor(room))


def _total(terms: Sum, unit: float) -> cp_model.LinearExpr:
    """Add up in whole units, each term rounded up."""
    sizes = [_whole(size, unit) for _, size in terms]
    return cp_model.LinearExpr.weighted_sum([one for one, _ in terms], sizes)


def _whole(value: float, unit: float) -> int:
    """Round up, but for what is a rounding error itself."""
    return ceil(value / unit - 1e-6)


def _figure(model: _Model, setting: Setting, name: str) -> cp_model.LinearExpr:
    """Return what an objective makes small, or what is limited, in whole units."""
    devices = setting.platform.devices
    if name == "latency":
        return _total([(part.chosen, part.seconds) for part in model.parts], model.unit_s)
    if name == "throughput":
        return _interval(model)
    if name == "energy":
        return _energy(model, setting)
    if name == "price":
        paid = sum(devices[index].price for index in setting.platform.ends)
        open_ = [(on, devices[index].price) for index, on in model.on.items()]
        return _total(open_, _MILLIONTH) + _whole(paid, _MILLIONTH)
    drops = ((sent, setting.choices[m.pick].drop or 0.0) for m, sent in model.messages.items())
    return _total(list(drops), _MILLIONTH)


def _interval(model: _Model) -> cp_model.LinearExpr:
    """Return how long the busiest device or medium is busy."""
    busy: dict[Clock, Sum] = {}
    for part in model.parts:
        for clock, seconds in part.busy_s.items():
            busy.setdefault(clock, []).append((part.chosen, seconds))
    longest = model.cp.new_int_var(0, _MOST, "")
    for terms in busy.values():
        model.cp.add(_total(terms, model.unit_s) <= longest)
    return longest


def _energy(model: _Model, setting: Setting) -> cp_model.LinearExpr:
    """Return the energy, with the static power of devices on the way for the whole latency.

    Both ends are on the way in any case. For every other device it is either all or none.
    """
    devices = setting.platform.devices
    always_w = sum(devices[index].static_w for index in setting.platform.ends)
    total = _total(
        [(p.chosen, p.joules + always_w * p.seconds) for p in model.parts], model.unit_j
    )
    for index, on in model.on.items():
        watts = devices[index].static_w
        if watts:
            static = model.cp.new_int_var(0, _MOST, "")
            whole = _total(
                [(part.chosen, watts * part.seconds) for part in model.parts], model.unit_j
            )
            model.cp.add(whole <= static).only_enforce_if(on)
            total += static
    return total


def _add_limits(model: _Model, setting: Setting, limits: Limits) -> None:
    for name, most, unit in (
        ("latency", limits.latency_s, model.unit_s),
        ("throughput", limits.interval_s, model.unit_s),
        ("energy", limits.energy_j, model.unit_j),
        ("price", limits.price, _MILLIONTH),
        ("drop", limits.drop, _MILLIONTH),
    ):
        if most is not None:
            model.cp.add(_figure(model, setting, name) <= floor(min(most / unit + 1e-6, _MOST)))


def _read(model: _Model, setting: Setting, solver: cp_model.CpSolver) -> Placement:
    """Return the nodes' devices and the messages that these call for."""
    places = tuple(
        next(device for device, here in x.items() if solver.boolean_value(here))
        for x in model.x[: len(setting.graph.nodes)]
    )
    sent: dict[tuple[int, int, int], Message] = {}
    for message, chosen in model.messages.items():
        if solver.boolean_value(chosen):
            sent.setdefault((message.parcel, message.source, message.target), message)
    return Placement(places=places, messages=tuple(sent[one] for one in needed(setting, places)))
