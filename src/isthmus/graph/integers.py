"""What of a trace is integers: tensors on a grid, weights of few bits, products of both.

A runtime that computes in integers fuses the rounding of a layer's input into what makes it: the
convolution before writes integers, a ReLU is where it clips them, a pooling picks among them. So
what a layer of integers makes is held in integers where all that reads it reads it on one grid, at
once or through operations that choose values or bound them; and so is what was rounded.

.. math:: round(f(x)) = round(f(round(x)))

for each such operation f: it moves values (a view, a pooling by maximum), or it clamps them.

References:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, https://arxiv.org/abs/1712.05877.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from isthmus.graph.cost import Cost
from isthmus.graph.ir import Node, Tensor
from isthmus.graph.trace import Trace, arguments, op_name

NAMESPACE = "isthmus"  # of the operators in torch that `isthmus.models.layers` defines
ROUND, RESTORE = f"{NAMESPACE}.round_to_int8", f"{NAMESPACE}.from_int8"
FLOAT = "fp32"

CHOOSING = frozenset({
    "clamp", "clone", "contiguous", "detach", "dropout", "expand", "flatten", "hardtanh",
    "identity", "max_pool1d", "max_pool2d", "max_pool3d", "permute", "relu", "relu6", "reshape",
    "slice", "squeeze", "transpose", "unsqueeze", "view",
})  # fmt: skip
_KERNELS = CHOOSING | {ROUND, "adaptive_avg_pool2d", "add", "avg_pool2d", "cat", "mean"}


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where rounded values lie: the arguments of the rounding that says so.

    Attributes:
        scale: Its step, a node of the trace.
        zero: The integer that stands for 0, another.
        bits: 8, 4 or 2.
    """

    scale: fx.Node
    zero: fx.Node
    bits: int

    @property
    def held(self) -> str:
        """The name of the integers."""
        return f"uint{self.bits}"


def find_grids(traced: Trace) -> dict[fx.Node, Grid]:
    """Return the grid of every tensor that a device holds in integers; the model's are none."""
    values = {*traced.inputs, *traced.operations}
    inner = [node for node in traced.operations if node not in set(traced.outputs)]
    asked: dict[fx.Node, Grid] = {}
    for node in reversed(inner):
        readers = [_asked(user, asked) for user in node.users if op_name(user) != "sym_size"]
        first = grid_of(node) if op_name(node) == ROUND else next(iter(readers), None)
        if first and (op_name(node) == ROUND or all(same_grid(traced, first, r) for r in readers)):
            asked[node] = first
    grids: dict[fx.Node, Grid] = {}
    for node in inner:
        read = [value for value in node.all_input_nodes if value in values]
        before = grids.get(read[0]) if op_name(node).strip("_") in CHOOSING and read else None
        grid = asked.get(node, before)
        if grid and (op_name(node) == ROUND or _computes(node, read, grids)):
            grids[node] = grid
    return grids


def packed_bits(traced: Trace) -> dict[fx.Node, int]:
    """Return in how many bits each weight is packed that is integers with a scale."""
    restored = [arguments(node) for node in traced.nodes if op_name(node) == RESTORE]
    return {given["weight"]: given["bits"] for given in restored}


def number_format(node: fx.Node, grids: Mapping[fx.Node, Grid], read: Sequence[fx.Node]) -> str:
    """Return in which format an operation can be computed.

    Args:
        node: The operation.
        grids: Of `find_grids`.
        read: The tensors that it reads, without weights.
    """
    if not _computes(node, read, grids) or not (node in grids or _restored(node)):
        return FLOAT
    bits = [*(grids[value].bits for value in read), *(given["bits"] for given in _restored(node))]
    return "int4" if max(bits) <= 4 else "int8"


def as_held(node: Node, read: Sequence[Tensor], costs: Cost) -> Node:
    """Return a node with what it costs where some tensors are held in integers.

    What rounds integers is part of what made them, and moves nothing.

    Args:
        node: Its format is known.
        read: The tensors that it reads, without weights.
        costs: As if all of these were floats; without those of what restores integer weights
            where the node computes in integers.
    """
    known = node.op not in costs.unknown
    read_bytes, written_bytes = costs.read_bytes, costs.written_bytes
    if node.op == ROUND and node.format != FLOAT:
        read_bytes = written_bytes = 0
    elif written_bytes:
        floats = sum(replace(tensor, held="").num_bytes - tensor.num_bytes for tensor in read)
        read_bytes = max(read_bytes - floats, 0)
        if node.format != FLOAT:
            read_bytes = sum(tensor.num_bytes for tensor in read) + node.weight_bytes
        if any(tensor.held for tensor in node.outputs):
            written_bytes = node.output_bytes
    return replace(
        node,
        macs=costs.macs if known else None,
        ops=costs.ops if known else None,
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        unknown=costs.unknown,
    )


def _restored(node: fx.Node) -> list[dict[str, Any]]:
    return [arguments(n) for n in node.all_input_nodes if op_name(n) == RESTORE]


def _computes(node: fx.Node, read: Sequence[fx.Node], grids: Mapping[fx.Node, Grid]) -> bool:
    """Return whether there are integers to compute with: all that is read, and any weight."""
    able = op_name(node).strip("_") in _KERNELS or bool(_restored(node))
    return able and bool(read) and all(value in grids for value in read)


def grid_of(node: fx.Node) -> Grid:
    """Return the grid on which an operation rounds."""
    given = arguments(node)
    return Grid(scale=given["scale"], zero=given["zero"], bits=given["bits"])


def _asked(user: fx.Node, asked: Mapping[fx.Node, Grid]) -> Grid | None:
    """Return the grid on which an operation reads; None where it reads what is there."""
    passes = op_name(user) == ROUND or op_name(user).strip("_") in CHOOSING
    return asked.get(user) if passes else None


def same_grid(traced: Trace, one: Grid, other: Grid | None) -> bool:
    """Return whether two grids are equal, be they of one rounding or not."""

    def values(node: fx.Node) -> torch.Tensor:
        return traced.tensors[traced.weights[node]]

    return (
        other is not None
        and one.bits == other.bits
        and all(
            a is b or torch.equal(values(a), values(b))
            for a, b in ((one.scale, other.scale), (one.zero, other.zero))
        )
    )
