"""The load of every possible stage, as tables over what arrives and what leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from isthmus.graph import Graph, live_bytes
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import Load
from isthmus.platform import Device, Link

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A graph's choices on a chain of devices.

    Attributes:
        choices: What a link may carry, K of them.
        loads: Of each stage, for each pair of what arrives and what leaves: (1, K) for the first
            device, (K, K) between, (K, 1) for the last, (1, 1) for a single one.
        allowed: Whether that pair makes a stage; the same shapes.
        devices: In order.
        links: One fewer.
        num_nodes: Of the graph.
        objective: latency, throughput or energy.
    """

    choices: tuple[Choice, ...]
    loads: tuple[Load, ...]
    allowed: tuple[Mask, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    num_nodes: int
    objective: str


def make_problem(
    graph: Graph,
    choices: tuple[Choice, ...],
    *,
    devices: tuple[Device, ...],
    links: tuple[Link, ...],
    objective: str,
) -> Problem:
    """Work out the load of every possible stage.

    A stage lies between two different cuts, or is empty: the first may only encode, the last only
    decode, and one between passes on what it gets, codec and all.
    """
    sides: list[tuple[Choice | None, ...]] = [(None,), *(choices for _ in links), (None,)]
    known: dict[tuple[int, int], tuple[Load, Mask]] = {}
    for arrive, leave in pairwise(sides):
        if (id(arrive), id(leave)) not in known:  # those between the same choices are alike
            known[id(arrive), id(leave)] = _loads(graph, arrive, leave)
    tables = [known[id(arrive), id(leave)] for arrive, leave in pairwise(sides)]
    return Problem(
        choices=choices,
        loads=tuple(load for load, _ in tables),
        allowed=tuple(allowed for _, allowed in tables),
        devices=devices,
        links=links,
        num_nodes=len(graph.nodes),
        objective=objective,
    )


def pick_loads(problem: Problem, picks: Sequence[int]) -> tuple[Load, ...]:
    """Return the load of each stage, given the index of the choice on each link."""
    ends = pairwise((0, *picks, 0))
    return tuple(
        Load(**{field.name: float(getattr(load, field.name)[pair]) for field in fields(Load)})
        for load, pair in zip(problem.loads, ends, strict=True)
    )


def _loads(
    graph: Graph, arrive: Sequence[Choice | None], leave: Sequence[Choice | None]
) -> tuple[Load, Mask]:
    starts = np.array([choice.cut.index if choice else 0 for choice in arrive])[:, None]
    stops = np.array([choice.cut.index if choice else len(graph.nodes) for choice in leave])
    decoder = np.array([_decoder(choice) for choice in arrive], float).T[:, :, None]
    encoder = np.array([_encoder(choice) for choice in leave], float).T[:, None, :]
    halves = decoder + encoder
    node_macs = [node.macs or 0 for node in graph.nodes]
    node_bytes = [node.output_bytes for node in graph.nodes]
    peaks = _maxima(live_bytes(graph), starts, stops)
    relay = np.array([[one is other is not None for other in leave] for one in arrive])
    payload = np.array([[choice.spec.max_payload_bytes if choice else 0] for choice in arrive])
    load = Load(
        macs=np.where(relay, 0.0, _sums(node_macs, starts, stops) + halves[0]),
        weight_bytes=np.where(relay, 0.0, _weights(graph, starts, stops) + halves[1]),
        written_bytes=np.where(relay, payload, _sums(node_bytes, starts, stops) + halves[2]),
        peak_bytes=np.where(relay, payload, np.maximum(peaks, np.maximum(decoder[3], encoder[3]))),
        node_peak_bytes=peaks,
        computes=np.where(starts < stops, 1.0, 0.0),
    )
    first = np.array([[choice is None] for choice in arrive])
    last = np.array([choice is None for choice in leave])
    return load, (starts < stops) | relay | first | last


def _decoder(choice: Choice | None) -> tuple[float, float, float, float]:
    """Return MACs, weight bytes, bytes written and bytes alive of a receiver half."""
    if choice is None:
        return 0, 0, 0, 0
    alive = choice.cut.num_bytes + choice.spec.decoder_buffer_bytes
    return choice.spec.decoder_macs, choice.spec.decoder_weight_bytes, alive, alive


def _encoder(choice: Choice | None) -> tuple[float, float, float, float]:
    """Return MACs, weight bytes, bytes written and bytes alive of a sender half."""
    if choice is None:
        return 0, 0, 0, 0
    written = choice.spec.encoder_buffer_bytes
    alive = choice.cut.num_bytes + written
    return choice.spec.encoder_macs, choice.spec.encoder_weight_bytes, written, alive


def _sums(values: Sequence[float], starts: Indices, stops: Indices) -> Array:
    """Return the sum of values[start:stop] for each pair; of none where stop is before start."""
    total = np.concatenate(([0.0], np.cumsum(values, dtype=float)))
    return total[np.maximum(starts, stops)] - total[starts]


def _weights(graph: Graph, starts: Indices, stops: Indices) -> Array:
    """Return the bytes of all weights of each segment, each counted once."""
    used: dict[str, int] = {}
    repeats = []
    for index, node in enumerate(graph.nodes):
        for weight in {weight.name: weight for weight in node.weights}.values():
            if weight.name in used:
                repeats.append((used[weight.name], index, weight.num_bytes))
            used[weight.name] = index
    unique = [
        sum({weight.name: weight.num_bytes for weight in node.weights}.values())
        for node in graph.nodes
    ]
    total = _sums(unique, starts, stops)
    for earlier, later, num_bytes in repeats:
        total -= num_bytes * ((starts <= earlier) & (stops > later))
    return total


def _maxima(values: Sequence[float], starts: Indices, stops: Indices) -> Array:
    """Return the largest of values[start:stop] for each pair; 0 for none."""
    rows = {}
    for start in np.unique(starts):
        tail = np.maximum.accumulate(np.array(values[start:], float))
        rows[start] = np.concatenate(([0.0], tail))[np.maximum(stops - start, 0)]
    return np.array([rows[start] for start in starts[:, 0]])
