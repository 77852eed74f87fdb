"""A stage as weights and a list of calls, for the backend torch; see `isthmus.backends.torch`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from isthmus.backends.torch import METADATA, OPERATORS, PART, SIZES, Call, Calls, Input
from isthmus.errors import CaptureError
from isthmus.files import to_json, write_bytes


def write_calls(exported: ExportedProgram, path: Path) -> None:
    """Write a program that the backend torch runs.

    Args:
        exported: What it computes; its outputs are its only effect.
        path: The file.

    Raises:
        CaptureError: It holds an operation that is not among those allowed; names it.
    """
    program = exported.run_decompositions()
    weights, inputs = {}, []
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(_input(node))
            continue
        target = spec.target or ""
        found = program.state_dict.get(target, program.constants.get(target))
        if not isinstance(found, torch.Tensor):
            raise CaptureError(f"{target} is no tensor")
        weights[node.name] = found.detach().clone().contiguous()
    signature = program.graph_signature.output_specs
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature):
        raise CaptureError("it changes what it holds")
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    results = [node.name for node in output.args[0]]
    calls = Calls(inputs=tuple(inputs), calls=tuple(_calls(program)), outputs=tuple(results))
    metadata = {METADATA: to_json(calls)}
    write_bytes(path, save(weights, metadata))


def _input(node: Node) -> Input:
    tensor = node.meta["val"]
    shape = (size if isinstance(size, int) else None for size in tensor.shape)
    return Input(name=node.name, dtype=str(tensor.dtype)[6:], shape=tuple(shape))


def _calls(program: ExportedProgram) -> Iterator[Call]:
    """Yield the calls whose results are needed; what only asserts is not."""
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in needed:
            needed.update(node.all_input_nodes)
    for node in program.graph.nodes:
        if node in needed and node.op != "placeholder":
            yield Call(
                operator=_operator(node),
                arguments=tuple(_argument(each) for each in node.args),
                named={name: _argument(each) for name, each in node.kwargs.items()},
                result=node.name,
            )


def _operator(node: Node) -> str:
    name = str(node.target) if node.op == "call_function" else node.op
    if not isinstance(node.target, torch._ops.OpOverload):
        name = getattr(node.target, "__name__", name)
    if name not in OPERATORS and name not in SIZES and name != PART:
        raise CaptureError(f"the backend torch takes no {name}; another backend may")
    return name


def _argument(argument: Any) -> Any:
    """Return an argument as JSON says it."""
    if isinstance(argument, Node):
        return {"value": argument.name}
    if isinstance(argument, list | tuple):
        return [_argument(each) for each in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"constant": str(argument)}
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    return {"constant": str(argument).removeprefix("torch.")}
