"""Parts of a model as modules of their own, to be timed or to be run behind a codec."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from isthmus.errors import InputError
from isthmus.graph import Graph, capture, fingerprint
from isthmus.graph.modes import Modes, in_eval_form
from isthmus.graph.stage import write_stage
from isthmus.graph.trace import results, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A model that can be taken apart.

    Attributes:
        model: The model; its parts share its weights.
        modes: What it does in evaluation.
        values: The tensors of its graph in the trace, by name.
    """

    model: nn.Module
    modes: Modes
    values: Mapping[str, fx.Node]

    def part(self, nodes: range, reads: Sequence[str], makes: Sequence[str]) -> nn.Module:
        """Return some nodes as a module in evaluation.

        Args:
            nodes: Indices of the graph's nodes.
            reads: Names of the tensors that it takes, each with the batch in dimension 0.
            makes: Names of those that it returns, as a tuple.
        """
        arriving, leaving = (tuple(map(self.values.__getitem__, side)) for side in (reads, makes))
        operations = self.modes.trace.operations[nodes.start : nodes.stop]
        return write_stage(
            self.model, self.modes, operations, arriving=arriving, grids=({}, {}), leaving=leaving
        ).eval()


def take_apart(model: nn.Module, graph: Graph, example: tuple[Tensor, ...]) -> Parts:
    """Trace a model, to run parts of its graph.

    Args:
        model: The model.
        graph: Its capture.
        example: One tensor for each argument of forward.

    Raises:
        InputError: The graph is another model's.
        CaptureError: The model cannot be traced.
    """
    found, expected = fingerprint(graph), fingerprint(capture(model, example))
    if found != expected:
        raise InputError(
            f"found a graph {found}, but that of the model is {expected}; capture the model anew"
        )
    traced = trace(model, example)
    made = (value for node in traced.operations for value in results(node))
    return Parts(
        model=model,
        modes=in_eval_form(traced, model),
        values={value.name: value for value in (*traced.inputs, *made)},
    )
