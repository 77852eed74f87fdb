"""What is computed: the captured model, its costs and its cuts."""

from isthmus.graph.capture import capture
from isthmus.graph.cuts import cuts, find_cut, live_bytes
from isthmus.graph.ir import Cut, Graph, Node, Tensor, Weight, fingerprint

__all__ = [
    "Cut",
    "Graph",
    "Node",
    "Tensor",
    "Weight",
    "capture",
    "cuts",
    "find_cut",
    "fingerprint",
    "live_bytes",
]
