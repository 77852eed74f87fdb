"""One part of a trace as a module of its own, in both modes."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from isthmus.errors import CaptureError
from isthmus.graph.integers import NAMESPACE, ROUND, Grid, grid_of, same_grid
from isthmus.graph.modes import Flag, Modes
from isthmus.graph.trace import Trace, arguments, module_path, op_name, overwritten, where


def write_stage(
    model: nn.Module,
    modes: Modes,
    operations: Iterable[fx.Node],
    *,
    arriving: tuple[fx.Node, ...],
    leaving: tuple[fx.Node, ...],
    grids: tuple[Mapping[fx.Node, Grid], Mapping[fx.Node, Grid]],
) -> fx.GraphModule:
    """Write some operations of a model as a module.

    What they need of weights, constants and the batch size is made inside. Parameters and
    buffers are the model's own, under the model's own names.

    Args:
        model: The traced model.
        modes: What it does.
        operations: What the stage computes.
        arriving: The tensors that it takes, each with the batch in dimension 0.
        leaving: The tensors that it returns, as a tuple.
        grids: Of those that arrive as integers, and of those that leave so.

    Returns:
        The stage, whose operations follow its ``train()`` and ``eval()``.

    Raises:
        CaptureError: A size cannot be made from the batch size, or a name of the model is taken.
    """
    stage = fx.GraphModule(nn.Module(), fx.Graph(), class_name="Stage")
    graph = fx.Graph()
    copies = {node: graph.placeholder(modes.names[node]) for node in arriving}
    draft = _Draft(stage, graph, copies, arriving[0], model, modes)
    for node in overwritten(operations, arriving):  # what arrived is its sender's
        copies[node] = graph.call_function(torch.ops.aten.clone.default, (copies[node],))
    for node in arriving:
        if node in grids[0]:
            copies[node] = _between(draft, node, Restored(grids[0][node].bits), grids[0][node])
    for node in _sources([*operations, *leaving], set(arriving), modes.trace):
        arrived = [grids[0][n] for n in node.all_input_nodes if n in grids[0]]
        again = op_name(node) == ROUND and any(
            same_grid(modes.trace, grid, grid_of(node)) for grid in arrived
        )
        if again:  # it arrived rounded
            copies[node] = copies[node.all_input_nodes[0]]
        elif node not in copies:
            copies[node] = _copy(draft, node)
    made = dict(copies)
    for node, grid in grids[1].items():
        made[node] = _between(draft, node, Rounded(grid.bits), grid)
    graph.output(tuple(made[node] for node in leaving))
    stage.graph = graph
    return stage


class Switch(nn.Module):
    """An operation with one argument that depends on the mode.

    Args:
        op: The operation.
        position: Of the argument.
        flag: Its values.
    """

    def __init__(self, op: Callable[..., Any], position: int, flag: Flag) -> None:
        super().__init__()
        self.op = op
        self.position = position
        self.flag = flag

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operation, with the argument for this mode in its place."""
        value = self.flag.training if self.training else self.flag.evaluation
        return self.op(*args[: self.position], value, *args[self.position + 1 :], **kwargs)


class BatchNormSwitch(nn.Module):
    """Batch norm with its step counter.

    Args:
        momentum: Of the running statistics; None averages over all steps.
    """

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.momentum = momentum

    def forward(
        self,
        counter: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        *rest: Any,
    ) -> Tensor:
        """Return x (B, C, ...) normalized; in training, move the running statistics (C,)."""
        _, momentum, eps, cudnn = rest
        if self.training and counter is not None:
            counter.add_(1)
            momentum = 1.0 / float(counter) if self.momentum is None else self.momentum
        return torch.ops.aten.batch_norm(
            x, weight, bias, mean, var, self.training, momentum, eps, cudnn
        )


class Rounded(nn.Module):
    """Makes a tensor leave as integers, from 0 up; in training as the values of these.

    Args:
        bits: Of the grid.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return uint8, or in training floats on the grid."""
        ops = getattr(torch.ops, NAMESPACE)
        rounds = ops.round_to_int8 if self.training else ops.to_integers
        return rounds(x, scale, zero, self.bits)


class Restored(Rounded):
    """Takes what `Rounded` made, of as many bits."""

    def forward(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return the values on the grid."""
        if x.is_floating_point():
            return x
        return getattr(torch.ops, NAMESPACE).from_integers(x, scale, zero, self.bits)


class Held(nn.Module):
    """A constant, which is no part of the state; a copy of a torch.fx module would make it one.

    Args:
        tensor: The constant.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", tensor, persistent=False)

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Draft:
    """A stage in the making: nodes of the trace and their copies; the first that arrived."""

    stage: fx.GraphModule
    graph: fx.Graph
    copies: dict[fx.Node, fx.Node]
    first: fx.Node
    model: nn.Module
    modes: Modes


def _between(draft: _Draft, node: fx.Node, module: nn.Module, grid: Grid) -> fx.Node:
    """Put a module that needs a grid where a tensor arrives or leaves."""
    for value in (grid.scale, grid.zero):
        if value not in draft.copies:
            draft.copies[value] = _copy(draft, value)
    path = f"{type(module).__name__.lower()}_{draft.modes.names[node]}"
    _check_free(draft.stage, path)
    draft.stage.add_module(path, module)
    given = (draft.copies[value] for value in (node, grid.scale, grid.zero))
    return draft.graph.call_module(path, tuple(given))


def _sources(roots: list[fx.Node], arriving: set[fx.Node], traced: Trace) -> list[fx.Node]:
    """Return the roots and all that they need, in execution order."""
    found: set[fx.Node] = set()
    waiting = [node for node in roots if node not in arriving]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            is_size = op_name(node) == "sym_size"
            needs = () if is_size else traced.needs.get(node, node.all_input_nodes)
            waiting.extend(n for n in needs if n not in arriving)
    order = {node: index for index, node in enumerate(traced.inputs[0].graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _copy(draft: _Draft, node: fx.Node) -> fx.Node:
    if node in draft.modes.trace.weights:
        return _tensor(draft, draft.modes.trace.weights[node])
    if node.op == "get_attr":  # a block of operations, e.g. under torch.no_grad
        owner, path = node.graph.owning_module, str(node.target)
        assert owner is not None
        _owner(draft.stage, path).add_module(path, owner.get_submodule(path))
        return draft.graph.get_attr(path)
    if op_name(node) == "sym_size":  # a number made from a tensor's shape
        return _size(draft, node)
    name = draft.modes.names.get(node)
    args, kwargs = _arguments(draft, node)
    if node not in draft.modes.flags:
        return draft.graph.create_node("call_function", node.target, args, kwargs, name)
    path = _join(module_path(node), f"switch_{node.name}")
    switch, args = _switch(draft, node, args)
    _owner(draft.stage, path).add_module(path.rpartition(".")[2], switch)
    return draft.graph.create_node("call_module", path, args, kwargs, name)


def _arguments(draft: _Draft, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a node's arguments in the stage.

    What is made on the model's device follows the device of the first tensor that arrives.
    """
    device = draft.first.meta["val"].device

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return draft.copies[leaf]
        if isinstance(leaf, torch.device) and leaf == device:
            return draft.graph.call_function(getattr, (draft.copies[draft.first], "device"))
        return leaf

    return map_aggregate(node.args, copied), map_aggregate(node.kwargs, copied)


def _size(draft: _Draft, node: fx.Node) -> fx.Node:
    """Make a size that is a multiple of the batch from the first tensor that arrives."""
    expression, symbol = node.meta["val"].node.expr, draft.modes.trace.batch.node.expr
    factor = expression.subs(symbol, 1)
    if expression != factor * symbol:
        raise CaptureError(
            f"{where(node)}: the size {expression} is no multiple of the batch size {symbol}, so "
            "a stage cannot make it; make it constant"
        )
    first = draft.copies[draft.first]
    size = draft.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
    return size if factor == 1 else draft.graph.call_function(operator.mul, (size, int(factor)))


def _switch(
    draft: _Draft, node: fx.Node, args: tuple[Any, ...]
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the module that stands for a node that depends on the mode, and its arguments."""
    flag, target, traced = draft.modes.flags[node], node.target, draft.modes.trace
    assert isinstance(target, torch._ops.OpOverload)
    schema = [a for a in target._schema.arguments if not a.kwarg_only]
    position = [a.name for a in schema].index(flag.name)
    if op_name(node) != "batch_norm" or args[3] is None:
        args = (*args, *(a.default_value for a in schema[len(args) : position + 1]))
        return Switch(target, position, flag), args
    owner = traced.weights[arguments(node)["running_mean"]].rpartition(".")[0]
    counter = _join(owner, "num_batches_tracked")
    momentum = getattr(draft.model.get_submodule(owner), "momentum", args[6])
    steps = _tensor(draft, counter) if counter in draft.modes.counters else None
    return BatchNormSwitch(momentum), (steps, *args)


def _tensor(draft: _Draft, path: str) -> fx.Node:
    """Give the stage a parameter, buffer or constant of the model."""
    owner, name = _owner(draft.stage, path), path.rpartition(".")[2]
    tensor = draft.modes.trace.tensors[path]
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    elif path in draft.model.state_dict():
        owner.register_buffer(name, tensor)
    else:
        owner.add_module(f"held_{name}", Held(tensor))
        return draft.graph.call_module(_join(path.rpartition(".")[0], f"held_{name}"))
    return draft.graph.get_attr(path)


def _owner(stage: fx.GraphModule, path: str) -> nn.Module:
    """Return the module that holds ``path``, made where it is missing."""
    *parents, name = path.split(".")
    owner: nn.Module = stage
    for parent in parents:
        _check_free(owner, parent)
        if parent not in owner._modules:
            owner.add_module(parent, nn.Module())
        owner = owner.get_submodule(parent)
    _check_free(owner, name)
    return owner


def _check_free(owner: nn.Module, name: str) -> None:
    held = (*owner._modules, *owner._parameters, *owner._buffers)
    if name not in held and hasattr(owner, name):
        raise CaptureError(f"{name!r} in the model has a name that torch.fx needs; rename it")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
