"""What is computed: the captured model, its costs and its cuts."""

from isthmus.graph.ir import Cut, Graph, Node, Tensor, Weight

__all__ = ["Cut", "Graph", "Node", "Tensor", "Weight"]
