"""From a PyTorch model to a `Graph`."""

from collections.abc import Mapping
from math import ceil

import torch
from torch import fx, nn

from isthmus.errors import CaptureError
from isthmus.graph.cost import cost, total
from isthmus.graph.integers import FLOAT, Grid, as_held, find_grids, number_format, packed_bits
from isthmus.graph.ir import DTYPES, Graph, Node, Tensor, Weight
from isthmus.graph.trace import (
    Trace,
    is_batched,
    module_path,
    op_name,
    results,
    size_at,
    trace,
    where,
)


def capture(model: nn.Module, example: tuple[torch.Tensor, ...]) -> Graph:
    """Write down what a model computes in evaluation.

    Nodes are the operations on the model's inputs. What is made from weights, constants and the
    batch size alone (a mask, a first hidden state) is no node of its own: its weights belong to
    the nodes that read it and its cost to the first of them, and every stage makes it anew.

    Args:
        model: Takes and returns tensors; it is left as it was.
        example: One tensor for each argument of forward; dimension 0 of each is the batch, which
            the graph leaves free. Values do not matter, shapes and dtypes do.

    Returns:
        The graph; all its figures are for one sample.

    Raises:
        InputError: The example is not a tuple of tensors with one batch size.
        CaptureError: The model cannot be traced or not be divided: which operation, in which
            module, and what to try.

    Example:
        >>> graph = capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (torch.zeros(1, 4),))
        >>> [(node.name, node.module, node.macs) for node in graph.nodes]
        [('linear', '0', 32), ('relu', '1', 0)]
    """
    traced = trace(model, example)
    values = set(traced.inputs).union(*(results(node) for node in traced.operations))
    counted: set[fx.Node] = set()
    grids, packed = find_grids(traced), packed_bits(traced)
    nodes = []
    for node in traced.operations:
        reads = _reads(traced, node, values)
        free = [n for n in reads if n not in values and n not in traced.weights]
        new = [n for n in (node, *free) if n not in counted]
        counted.update(new)
        read = [n for n in reads if n in values]
        made = Node(
            name=node.name,
            op=op_name(node),
            module=module_path(node),
            inputs=tuple(n.name for n in read),
            outputs=tuple(_tensor(n, traced.batch, grids) for n in results(node)),
            weights=tuple(_weight(traced, n, packed) for n in reads if n in traced.weights),
            format=number_format(node, grids, read),
        )
        inside = (n for n in new if made.format == FLOAT or n is node)
        costs = total(cost(n, traced.batch) for n in inside)
        nodes.append(as_held(made, [_tensor(n, traced.batch, grids) for n in read], costs))
    return Graph(
        inputs=tuple(_tensor(node, traced.batch, grids) for node in traced.inputs),
        nodes=tuple(nodes),
        outputs=tuple(node.name for node in traced.outputs),
    )


def _reads(traced: Trace, node: fx.Node, values: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the tensors and weights that a node reads, itself or through free nodes."""
    found: dict[fx.Node, None] = {}
    waiting = list(reversed(traced.needs[node]))
    while waiting:
        read = waiting.pop()
        if read in traced.needs and read not in found:
            found[read] = None
            if read not in values:
                waiting.extend(reversed(traced.needs[read]))
    return tuple(found)


def _tensor(node: fx.Node, batch: torch.SymInt, grids: Mapping[fx.Node, Grid]) -> Tensor:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CaptureError(
            f"{where(node)}: makes a tensor of {dtype}; expected one of {', '.join(DTYPES)}"
        )
    batched = is_batched(node, batch)
    shape = tuple(size_at(size, batch) for size in value.shape)
    return Tensor(
        name=node.name,
        shape=shape[1:] if batched else shape,
        dtype=dtype,
        batched=batched,
        held=grids[node].held if node in grids else "",
    )


def _weight(traced: Trace, node: fx.Node, packed: Mapping[fx.Node, int]) -> Weight:
    tensor = traced.tensors[traced.weights[node]]
    return Weight(
        name=traced.weights[node],
        num_elements=tensor.numel(),
        num_bytes=ceil(tensor.numel() * packed.get(node, 8 * tensor.element_size()) / 8),
        trainable=isinstance(tensor, nn.Parameter),
    )
