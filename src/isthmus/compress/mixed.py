"""Integers of 8, 4 and 2 bits, as many for each layer and each tensor as two memories allow.

Weights lie in one memory (flash), packed; tensors that layers of integers hand on lie in another
(RAM), as many at once as the graph keeps alive. What crosses a link between two stages is such a
tensor, and crosses in its bits: a third limit is what may cross after a module.

References:
    Rusci, Capotondi, Benini, "Memory-Driven Mixed Low Precision Quantization for Enabling Deep
    Network Inference on Microcontrollers", MLSys 2020, https://arxiv.org/abs/1905.13082.
    Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
    NeurIPS 2020, https://arxiv.org/abs/1911.03852 (a sum of what each layer loses, kept within
    limits; here what it loses is measured).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import ceil, inf
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus.compress.integer import GRID, RANGE, SMALLER, Rounded, rounded_to_8, settled
from isthmus.compress.technique import Apply, Option, Options, Samples, Technique, names, size
from isthmus.errors import InputError
from isthmus.graph import Graph, capture, find_cut
from isthmus.graph.cuts import live_tensors
from isthmus.graph.integers import CHOOSING, ROUND
from isthmus.models.joint import first

WIDTHS = (8, 4, 2)
_NEAR = 0.05  # delta of Rusci et al.: shares of memory that count as equal
_JUDGED = 128  # samples on which losses are measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A sum of integers that has to find room.

    Attributes:
        what: ``"flash"``, ``"ram"`` or ``"link"``.
        room: Bytes, less those of what is no integer.
        sizes: How many integers of each part it holds, (P,).
    """

    what: str
    room: float
    sizes: tuple[int, ...]

    def need(self, bits: Sequence[int]) -> int:
        """Return the bytes at so many bits for each part; each part fills whole bytes."""
        return sum(ceil(n * b / 8) for n, b in zip(self.sizes, bits, strict=True))


def cut_bits(limits: Sequence[Limit]) -> tuple[int, ...]:
    """Cut bits where a limit is broken until none is: Rusci et al., algorithms 1 and 2.

    In flash it is the first of those whose share of the weights is the largest but for 5 %. In RAM
    and on links limits come in the order of the network, and the tensor of most bits is cut, of
    equals the largest.

    Args:
        limits: In order; one or more.

    Returns:
        The bits of each part.

    Raises:
        InputError: 2 bits are too many; says by how much.
    """
    _check_room(limits)
    bits = [WIDTHS[0]] * len(limits[0].sizes)
    for limit in limits:
        while limit.need(bits) > limit.room:
            able = [p for p, n in enumerate(limit.sizes) if n and bits[p] > WIDTHS[-1]]
            if limit.what == "flash":
                shares = {p: limit.sizes[p] * bits[p] / 8 / limit.need(bits) for p in able}
                part = next(p for p in able if shares[p] > max(shares.values()) - _NEAR)
            else:
                part = max(able, key=lambda p: (bits[p], limit.sizes[p]))
            bits[part] = WIDTHS[WIDTHS.index(bits[part]) + 1]
    return tuple(bits)


def least_loss(limits: Sequence[Limit], losses: Sequence[Sequence[float]]) -> tuple[int, ...]:
    r"""Choose the bits of all parts together, exactly: an integer programme.

    .. math:: \min \sum_{p, b} \lambda_{pb} x_{pb}, \quad \sum_b x_{pb} = 1, \quad
              \sum_{p, b} \lceil n_{lp} b / 8 \rceil x_{pb} \le R_l

    Args:
        limits: l, each with its room R and sizes n.
        losses: What each part loses at each of ``WIDTHS``, (P, 3).

    Returns:
        The bits of each part.

    Raises:
        InputError: 2 bits are too many; says by how much.
    """
    scipy: Any = import_module("scipy.optimize")
    excess = np.array(losses) - np.min(losses, axis=1, keepdims=True)
    rows = [[ceil(n * b / 8) for n in limit.sizes for b in WIDTHS] for limit in limits]
    once = np.kron(np.eye(len(losses)), np.ones(len(WIDTHS)))
    rooms = [limit.room for limit in limits]
    chosen = np.array([WIDTHS.index(bits) for bits in cut_bits(limits)])
    while True:  # in units of what the last answer loses: a huge loss hides no small ones
        most = sum(excess[np.arange(len(chosen)), chosen])
        found = scipy.milp(
            np.minimum(excess.reshape(-1) / max(most, 1e-30), 1),
            integrality=np.ones(excess.size),
            bounds=scipy.Bounds(0, np.where(excess.reshape(-1) <= most, 1.0, 0.0)),
            constraints=[
                scipy.LinearConstraint(once, 1, 1),
                scipy.LinearConstraint(np.array(rows), -np.inf, rooms),
            ],
            options={"mip_rel_gap": 0},
        )
        better = np.asarray(found.x).reshape(excess.shape).argmax(axis=1)
        if sum(excess[np.arange(len(chosen)), better]) >= most:
            return tuple(WIDTHS[index] for index in chosen)
        chosen = better


def _check_room(limits: Sequence[Limit]) -> None:
    """Raise where 2 bits are too many: of the limit that they miss by most."""
    needs = [limit.need([WIDTHS[-1]] * len(limit.sizes)) for limit in limits]
    limit, least = max(zip(limits, needs, strict=True), key=lambda each: each[1] - each[0].room)
    if least > limit.room:
        more = f"{least - limit.room:,.0f}"
        raise InputError(
            f"{limit.what} has room for {limit.room:,.0f} bytes of integers beside floats, "
            f"expected {least:,} or more, that is {WIDTHS[-1]} bits each; allow {more} "
            f"{'byte' if more == '1' else 'bytes'} more, or make the model smaller first"
        )


Place = tuple[str, str]  # path of a layer, and which of its grids: grid, inputs or outputs


def _with_bits(
    name: str, choose: Callable[[Sequence[Limit], Callable[[], list[list[float]]]], Sequence[int]]
) -> Apply:
    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        inputs = tuple(x[:_JUDGED] for x in samples.inputs)
        with torch.no_grad():
            wanted = first(model(*inputs)) if inputs else torch.empty(0)
        model, made, regrid = rounded_to_8(model, options, samples, technique=name)
        graph = capture(settled(copy.deepcopy(model)), samples.example)
        parts, limits = _limits(graph, made, options)

        def give(part: Sequence[Place], bits: int) -> None:
            for path, side in part:
                regrid[side](path, bits)

        @torch.no_grad()
        def loss(part: Sequence[Place], bits: int) -> float:
            """Return the squared error of the model with one part at so many bits."""
            give(part, bits)
            error: float = (first(model.eval()(*inputs)) - wanted).square().mean().item()
            give(part, WIDTHS[0])
            return error

        def losses() -> list[list[float]]:
            return [[loss(part, bits) for bits in WIDTHS] for part in parts]

        try:
            chosen = choose(limits, losses)
        except InputError as error:
            raise InputError(f"technique {name}: {error}") from error
        for part, bits in zip(parts, chosen, strict=True):
            give(part, bits)
        return model

    return apply


def _check(name: str) -> Callable[[Options], None]:
    def check(options: Options) -> None:
        if options["flash"] == options["ram"] == options["link"] == inf and not options["cut"]:
            raise InputError(f"technique {name}: found no limit; give flash=64KiB or ram=16KiB")
        if (options["link"] < inf) != bool(options["cut"]):
            found, add = ("cut=", "link=2KiB") if options["cut"] else ("link=", "cut=layer1")
            raise InputError(
                f"technique {name}: found {found} alone, expected link= and cut= together: how "
                f"much may cross, and after which modules; add such as {add}"
            )

    return check


def _limits(
    graph: Graph, made: dict[str, Rounded], options: Options
) -> tuple[list[tuple[Place, ...]], list[Limit]]:
    """Return what has bits of its own, weights first, and the limits on all of it."""
    groups, rounding = _groups(graph)
    tied = list(dict.fromkeys(groups.values()))
    parts: list[tuple[Place, ...]] = [((path, "grid"),) for path in made]
    parts += [tuple(p for p in rounding if groups[rounding[p]] == group) for group in tied]
    counts = [layer.layer.get_parameter("weight").numel() for layer in made.values()]
    limits = []
    if options["flash"] < inf:
        room = options["flash"] - (graph.weight_bytes - sum(counts))
        limits.append(Limit(what="flash", room=room, sizes=(*counts, *[0] * len(tied))))
    crossings = [find_cut(graph, after).tensors for after in options["cut"]]
    places = {"ram": live_tensors(graph) if options["ram"] < inf else (), "link": crossings}
    for what, alive in ((what, alive) for what, found in places.items() for alive in found):
        floats = sum(tensor.num_bytes for tensor in alive if tensor.name not in groups)
        held = [[t for t in alive if groups.get(t.name) == group] for group in tied]
        sizes = [sum(tensor.num_elements for tensor in each) for each in held]
        room = options[what] - floats
        limits.append(Limit(what=what, room=room, sizes=(*[0] * len(counts), *sizes)))
    return parts, list(dict.fromkeys(limits))


def _groups(graph: Graph) -> tuple[dict[str, str], dict[Place, str]]:
    """Return for each tensor held in integers one name for all that have to have its bits.

    And for each place where a layer rounds, a tensor that it makes there. All that round one
    tensor do so alike, and what a layer rounds it rounds alike in every call.
    """
    makers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    groups = {name: name for name, node in makers.items() if node.outputs[0].held}
    places: dict[Place, str] = {}
    ties = list(_ties(graph))
    for node in (node for node in graph.nodes if node.op == ROUND):
        maker = makers.get(node.inputs[0])
        own = maker is not None and maker.module == node.module and bool(maker.macs)
        place, name = (node.module, "outputs" if own else "inputs"), node.outputs[0].name
        ties.append((name, places.setdefault(place, name)))
    for one, other in ties:
        old, new = groups.get(one), groups.get(other)
        if old is None or new is None:  # one of them is held in floats
            continue
        groups |= {name: new for name, group in groups.items() if group == old}
    return groups, places


def _ties(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield pairs of tensors held on one grid; one that is also read as it is keeps its own."""
    rounded: dict[str, str] = {}  # what is asked for, and a tensor that lies on that grid
    plain = set(graph.outputs)  # what something reads as it is
    for node in reversed(graph.nodes):
        made, read = node.outputs[0].name, node.inputs
        chooses = node.op.strip("_") in CHOOSING and made in rounded and made not in plain
        if node.op == ROUND or chooses:
            yield made, rounded.setdefault(read[0], made)
            read = read[1:]
        plain.update(read)
    for node in graph.nodes:
        for tensor in node.outputs if node.op != ROUND else ():
            if tensor.held:
                asked = None if tensor.name in plain else rounded.get(tensor.name)
                yield tensor.name, asked or node.inputs[0]


_OPTIONS: Mapping[str, Option] = {
    "flash": size(),
    "ram": size(),
    "link": size(),
    "cut": names(),
    "range": RANGE,
    **GRID,
}
MIXED = (
    Technique(
        name="quantize:memory",
        does="integers of 8, 4 or 2 bits, cut where a memory is too small",
        paper="Rusci, Capotondi, Benini, MLSys 2020, https://arxiv.org/abs/1905.13082",
        level="arithmetic",
        needs="data",
        improves=(*SMALLER, "time", "energy"),
        stage="values",
        apply=_with_bits("quantize:memory", lambda limits, losses: cut_bits(limits)),
        options=_OPTIONS,
        check=_check("quantize:memory"),
    ),
    Technique(
        name="quantize:mixed",
        does="integers of 8, 4 or 2 bits, of the least measured loss within two memories",
        paper="Dong et al., NeurIPS 2020, https://arxiv.org/abs/1911.03852",
        level="arithmetic",
        needs="data",
        improves=(*SMALLER, "time", "energy"),
        stage="values",
        apply=_with_bits("quantize:mixed", lambda limits, losses: least_loss(limits, losses())),
        options=_OPTIONS,
        check=_check("quantize:mixed"),
    ),
)
