"""The captured model as plain data: tensors, weights, nodes, graph. No torch here."""

import hashlib
import json
from dataclasses import dataclass
from math import ceil, prod

DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
HELD_BITS = {"uint8": 8, "uint4": 4, "uint2": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that a node or the caller makes.

    Attributes:
        name: Unique in the graph.
        shape: Sizes for one sample, without the batch.
        dtype: A numpy name such as ``"float32"``.
        batched: Whether dimension 0 of the real tensor is the batch, and no other depends on it.
            Only such a tensor can cross a link.
        held: A key of ``HELD_BITS`` where its values lie on a grid of so many bits, or are read
            on one alone, so that a device holds them as integers; else empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    batched: bool = True
    held: str = ""

    @property
    def num_elements(self) -> int:
        """Elements of one sample."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of one sample in memory, as it is held."""
        if self.held:
            return ceil(self.num_elements * HELD_BITS[self.held] / 8)
        return self.num_elements * DTYPES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter, buffer or constant of the model.

    Attributes:
        name: Its path in the model; tied weights carry one name.
        num_elements: Its size.
        num_bytes: Its size in memory; integers of fewer than 8 bits count packed.
        trainable: True for a parameter.
    """

    name: str
    num_elements: int
    num_bytes: int
    trainable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation.

    Attributes:
        name: Unique in the graph.
        op: The ATen name without its overload, e.g. ``"conv2d"``.
        module: Path of the module that called it, e.g. ``"layer1.0.conv1"``; empty at the top.
        inputs: Names of the tensors it reads.
        outputs: The tensors it makes.
        weights: The weights it reads, itself or through what is made of weights alone.
        macs: Multiply-accumulates for one sample; None where no cost rule for ``op`` is known.
        ops: Other arithmetic operations for one sample; None where no cost rule is known.
        read_bytes: Bytes of the tensors and weights that it reads, one sample; 0 for a view.
        written_bytes: Bytes that it writes, one sample; 0 for a view.
        format: In which it can be computed: ``"fp32"``, ``"int8"`` or ``"int4"``.
        unknown: Operations without a cost rule, not in ``macs`` and ``ops``: its own, one inside
            it, or one that makes what it reads of weights and constants.
    """

    name: str
    op: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Weight, ...] = ()
    macs: int | None = 0
    ops: int | None = 0
    read_bytes: int = 0
    written_bytes: int = 0
    format: str = "fp32"
    unknown: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights it reads."""
        return sum(weight.num_bytes for weight in self.weights)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors it makes, one sample."""
        return sum(tensor.num_bytes for tensor in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A captured model, nodes in execution order.

    Attributes:
        inputs: The model's inputs, in the order of its forward.
        nodes: The operations.
        outputs: Names of the tensors that the model returns, in order.
    """

    SCHEMA = "isthmus.graph/1"
    inputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, where known."""
        return sum(node.macs or 0 for node in self.nodes)

    @property
    def ops(self) -> int:
        """Other arithmetic operations of one sample, where known."""
        return sum(node.ops or 0 for node in self.nodes)

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """Operations without a cost rule, each named once."""
        found = {node.op for node in self.nodes if node.macs is None and not node.unknown}
        return tuple(sorted(found.union(*(node.unknown for node in self.nodes))))

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight once, in order of first use."""
        return tuple(
            {weight.name: weight for node in self.nodes for weight in node.weights}.values()
        )

    @property
    def num_parameters(self) -> int:
        """Trainable elements, tied ones counted once."""
        return sum(weight.num_elements for weight in self.weights if weight.trainable)

    @property
    def weight_bytes(self) -> int:
        """Bytes of every weight, tied ones counted once."""
        return sum(weight.num_bytes for weight in self.weights)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: the inputs, then what the nodes make."""
        made = (tensor for node in self.nodes for tensor in node.outputs)
        return {tensor.name: tensor for tensor in (*self.inputs, *made)}

    def readers(self) -> dict[str, list[int]]:
        """Return, by name of each tensor that a node reads, the indices of those nodes."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(index)
        return found


def fingerprint(graph: Graph) -> str:
    """Return 16 hexadecimal digits that tell one graph from another, the same in every run.

    They follow from the nodes' names, operations, inputs, shapes and MACs, not from the values of
    weights.
    """
    facts = [
        [[tensor.name, tensor.shape, tensor.dtype] for tensor in graph.inputs],
        [
            [
                node.name,
                node.op,
                node.inputs,
                [[tensor.name, tensor.shape, tensor.dtype] for tensor in node.outputs],
                node.macs,
            ]
            for node in graph.nodes
        ],
        graph.outputs,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A place where the graph may be divided.

    Attributes:
        index: Number of nodes before it: 0 before the first node, ``len(nodes)`` after the last.
        after: Where it is, in the user's words: the outermost module that ends here, or the name
            of the last node before it; ``"input"`` for cut 0.
        tensors: The crossing: every tensor alive across the cut, in order of making.
        obstacle: Why nothing can be sent here; empty for a cut that can be used.
    """

    index: int
    after: str
    tensors: tuple[Tensor, ...]
    obstacle: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes that cross for one sample, as the tensors are held."""
        return sum(tensor.num_bytes for tensor in self.tensors)
