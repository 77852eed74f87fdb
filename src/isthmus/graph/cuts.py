"""Where a graph may be divided, and what is alive there."""

from difflib import get_close_matches

from isthmus.errors import InputError
from isthmus.graph.ir import Cut, Graph, Tensor

_START = "input"


def cuts(graph: Graph) -> tuple[Cut, ...]:
    """List every place in execution order where the graph can be divided.

    Args:
        graph: What is to be divided.

    Returns:
        ``len(graph.nodes) + 1`` cuts: before the first node the inputs cross, after the last the
        outputs. Each has a place (`Cut.after`) of its own.
    """
    last = _last_reads(graph)
    names = _places(graph)
    alive, found = list(graph.inputs), []
    for k, name in enumerate(names):
        alive = [tensor for tensor in alive if k <= last.get(tensor.name, -1)]
        stuck = [tensor.name for tensor in alive if not tensor.batched]
        obstacle = f"dimension 0 of {', '.join(stuck)} is not the batch" if stuck else ""
        found.append(Cut(index=k, after=name, tensors=tuple(alive), obstacle=obstacle))
        alive += graph.nodes[k].outputs if k < len(graph.nodes) else ()
    return tuple(found)


def find_cut(graph: Graph, after: str) -> Cut:
    """Return the cut after a module or a node.

    Args:
        graph: What is to be divided.
        after: Path of a module, whose last operation the cut follows; or the name of a node; or
            ``"input"``.

    Returns:
        The cut.

    Raises:
        InputError: Nothing has that name; lists near ones.
    """
    every = cuts(graph)
    nodes = {node.name: k + 1 for k, node in enumerate(graph.nodes)}
    modules = {path: k + 1 for path, k in _module_ends(graph).items()}
    known = nodes | modules | {cut.after: cut.index for cut in every}
    if after not in known:
        near = get_close_matches(after, known, n=5, cutoff=0.4) or list(known)[:5]
        raise InputError(
            f"no module or node {after!r} to cut after; near names: {', '.join(near)}"
        )
    return every[known[after]]


def live_bytes(graph: Graph) -> tuple[int, ...]:
    """Return for each node the bytes of all tensors alive while it runs, one sample.

    These are what it reads and makes, and what later nodes or the caller still need. A view
    counts like a tensor of its own, as for runtimes that copy slices and transposes. What an
    operation needs inside, and what is made from weights alone (a mask), is not counted.
    """
    return tuple(sum(tensor.num_bytes for tensor in alive) for alive in live_tensors(graph))


def live_tensors(graph: Graph) -> tuple[tuple[Tensor, ...], ...]:
    """Return for each node the tensors alive while it runs, as `live_bytes` counts them."""
    last = _last_reads(graph)
    alive: dict[str, Tensor] = {tensor.name: tensor for tensor in graph.inputs}
    found = []
    for k, node in enumerate(graph.nodes):
        alive = {name: tensor for name, tensor in alive.items() if last.get(name, -1) >= k}
        alive |= {tensor.name: tensor for tensor in node.outputs}
        found.append(tuple(alive.values()))
    return tuple(found)


def _last_reads(graph: Graph) -> dict[str, int]:
    """Return for each tensor the index of the last node that reads it; outputs stay to the end."""
    last = {name: k for k, node in enumerate(graph.nodes) for name in node.inputs}
    return last | dict.fromkeys(graph.outputs, len(graph.nodes))


def _module_ends(graph: Graph) -> dict[str, int]:
    """Return for each module, outer ones first, the index of its last node."""
    ends: dict[str, int] = {}
    for k, node in enumerate(graph.nodes):
        parts = node.module.split(".") if node.module else []
        ends |= {".".join(parts[: depth + 1]): k for depth in range(len(parts))}
    return dict(sorted(ends.items(), key=lambda item: item[0].count(".")))


def _places(graph: Graph) -> list[str]:
    """Name each cut by the outermost module that ends there, else by the node before it.

    A node whose name is taken by a module that ends elsewhere is written with parentheses.
    """
    ends = {path: end for path, end in _module_ends(graph).items() if path != _START}
    places = [_START]
    for k, node in enumerate(graph.nodes):
        taken = node.name == _START or ends.get(node.name, k) != k
        places.append(f"{node.name}()" if taken else node.name)
    for path, end in reversed(ends.items()):
        places[end + 1] = path
    return places
