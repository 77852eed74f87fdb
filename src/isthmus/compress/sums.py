"""Which sums of a network can be integers: those of what layers of integers make, as in a skip.

.. code-block:: none

    int8 --> layer --> int8 --+
                              + --> int8 --> layer, and the next sum
    int8 ---------------------+

A sum is rounded once, where a module returns it, and all that read it read these integers: a
runtime then adds integers. A sum that only layers of integers read needs none of its own, as each
of these rounds what it reads; and one of what is no integer stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from isthmus.compress.technique import Options, Samples, may_change, watch
from isthmus.graph import Graph, Node
from isthmus.graph.integers import CHOOSING
from isthmus.models.layers import OUTPUT_GRID

_KEEPING = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # what they hold they run


def read_elsewhere(graph: Graph, chosen: Mapping[str, nn.Module]) -> Callable[[Node], bool]:
    """Return what tells whether something else than chosen layers reads what a node makes.

    It may stand behind a ReLU. What the model returns is left as it is.
    """
    readers = graph.readers()

    def outside(node: Node) -> bool:
        return any(
            outside(reader) if reader.op.strip("_") == "relu" else reader.module not in chosen
            for tensor in node.outputs
            for reader in (graph.nodes[k] for k in readers.get(tensor.name, []))
        )

    return outside


def find_sums(
    model: nn.Module,
    graph: Graph,
    chosen: Mapping[str, nn.Module],
    options: Options,
    samples: Samples,
) -> dict[str, str]:
    """Return the modules that return a sum to be rounded, and the tensors' names in the graph.

    Args:
        model: In evaluation.
        graph: What it computes.
        chosen: Layers of integers, by path.
        options: ``only`` and ``skip``.
        samples: Its example is run.
    """
    outside, alone = read_elsewhere(graph, chosen), _called_once(model, samples)
    integers: set[str] = set()
    sums: set[str] = set()
    found: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        made, op = node.outputs[0].name, node.op.strip("_")
        passed = op in CHOOSING and node.inputs[0] in integers | sums
        both = op == "add" and len(node.inputs) == 2 and integers.issuperset(node.inputs)
        if node.module in chosen or (passed and node.inputs[0] in integers):
            integers.add(made)
        elif both or passed:
            sums.add(made)
        if made not in sums or made in graph.outputs or not outside(node):
            continue
        for path in _around(node.module):
            inside = (
                f"{later.module}.".startswith(f"{path}.") for later in graph.nodes[index + 1 :]
            )
            if path in alone and not any(inside) and may_change(path, options):
                integers.add(made)
                found[path] = made
                break
    return found


def _around(path: str) -> Iterator[str]:
    """Yield a module's path, then those of the modules around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _called_once(model: nn.Module, samples: Samples) -> set[str]:
    """Return the modules that are called once, return one tensor, and hold what they name."""
    made: dict[str, list[Any]] = {}
    paths = {
        module: path
        for path, module in model.named_modules()
        if not isinstance(module, _KEEPING) and not hasattr(module, OUTPUT_GRID)
    }

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        del inputs
        made.setdefault(paths[module], []).append(output)

    watch(model, dict.fromkeys(paths, hook), samples.example)
    return {
        path for path, each in made.items() if len(each) == 1 and isinstance(each[0], torch.Tensor)
    }
