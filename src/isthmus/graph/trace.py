"""One forward pass of a model as a torch.fx graph, made ready for cutting.

`torch.export` writes down the operations (pre-dispatch ATen, no decompositions). Here its graph is
read for what a cut needs to know: which nodes are operations on the model's inputs, which are
*free* (made from weights, constants and the batch size alone, so that each stage can make them
anew), and whether an operation in place would change a tensor behind another stage's back.
"""

import logging
import re
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import TreeSpec

from isthmus.errors import CaptureError, InputError, raise_interruption

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_WRAPPERS = {  # and what to give in place of them
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "OptimizedModule": "model._orig_mod, as it was before torch.compile",
}
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a model does in one forward pass.

    Attributes:
        inputs: The placeholders of the model's inputs.
        outputs: The tensors that the model returns, flattened.
        output_spec: How the model nests them.
        nodes: Every node that makes a tensor, in execution order; of an operation with several
            results also each `getitem`.
        operations: Those nodes that compute on the inputs or draw random numbers. The others are
            free. No `getitem` is an operation; it belongs to the node that it reads.
        needs: What must have run before a node: what it reads, and what wrote to that in place.
        weights: The placeholders of parameters, buffers and constants, with the names by which
            the model holds them; tied ones carry the first of their names.
        tensors: The parameters, buffers and constants by these names.
        batch: The batch size, a symbol.
    """

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    output_spec: TreeSpec
    nodes: tuple[fx.Node, ...]
    operations: tuple[fx.Node, ...]
    needs: Mapping[fx.Node, tuple[fx.Node, ...]]
    weights: Mapping[fx.Node, str]
    tensors: Mapping[str, Tensor]
    batch: torch.SymInt


def trace(model: nn.Module, example: tuple[Tensor, ...], *, train: bool = False) -> Trace:
    """Trace a model with a free batch size.

    Args:
        model: Takes and returns tensors. Every module's mode is restored afterwards.
        example: One tensor for each argument of forward; dimension 0 of each is the batch.
        train: Trace what the model does in training, instead of evaluation.

    Returns:
        The trace.

    Raises:
        InputError: The example is not a tuple of tensors with one batch size.
        CaptureError: The model cannot be traced or not be divided.
    """
    program = _export(model, _widened(example), train=train)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    weights, inputs = _placeholders(program, model)
    batch = inputs[0].meta["val"].shape[0]
    _refuse_data_dependent_sizes(nodes, batch)
    made = [node for node in nodes if tensors_of(node)]
    dependent = _dependent(made, inputs)
    needs = _needs([*weights, *inputs, *made], dependent, weights)
    outputs = tuple(program.graph.output_node().args[0])
    constants = {n: t for n, t in program.constants.items() if isinstance(t, Tensor)}
    spec = program.call_spec.out_spec
    assert spec is not None
    for position, output in enumerate(outputs):
        if output not in dependent and output not in inputs:
            raise CaptureError(
                f"output {position} of the model is {_describe(output)}, expected a tensor "
                "computed from the inputs; return only such tensors"
            )
    return Trace(
        inputs=inputs,
        outputs=outputs,
        output_spec=spec,
        nodes=tuple(made),
        operations=tuple(n for n in made if n in dependent and op_name(n) != "getitem"),
        needs=needs,
        weights=weights,
        tensors={**constants, **dict(named_tensors(model))},
        batch=batch,
    )


def op_name(node: fx.Node) -> str:
    """Return the name of a node's operation: ``conv2d``, or ``mylib.op`` outside ATen."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return str(getattr(target, "__name__", target))
    name = target.overloadpacket.__name__
    return name if target.namespace == "aten" else f"{target.namespace}.{name}"


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that called a node; empty for the model itself."""
    stack = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    path = re.sub(r"@\d+", "", stack[-1]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def results(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the tensors that an operation makes, as nodes: itself, or each of its `getitem`."""
    if isinstance(node.meta["val"], Tensor):
        return (node,)
    picks = [user for user in node.users if op_name(user) == "getitem"]
    return tuple(sorted(picks, key=lambda n: n.args[1]))  # type: ignore[arg-type,return-value]


def tensors_of(node: fx.Node) -> list[Tensor]:
    """Return the tensors that a node makes, as the trace holds them: of no values."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [tensor for tensor in values if isinstance(tensor, Tensor)]


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return what a node passes to its operation by the names of the schema, defaults included."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {**{str(i): arg for i, arg in enumerate(node.args)}, **node.kwargs}
    given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in target._schema.arguments}
    return {**defaults, **given, **node.kwargs}


def size_at(size: int | torch.SymInt, batch: torch.SymInt) -> int:
    """Return a size of one sample, whose batch is 1."""
    return size if isinstance(size, int) else int(size.node.expr.subs(batch.node.expr, 1))


def is_batched(node: fx.Node, batch: torch.SymInt) -> bool:
    """Return whether dimension 0 of a tensor is the batch, and no other depends on it."""
    symbol = batch.node.expr
    sizes = [size if isinstance(size, int) else size.node.expr for size in node.meta["val"].shape]
    varying = [not isinstance(size, int) and symbol in size.free_symbols for size in sizes]
    return sizes[:1] == [symbol] and not any(varying[1:])


def where(node: fx.Node) -> str:
    """Return where a node comes from, in the user's words: module, operation and source line."""
    place = f"module {module_path(node)!r}" if module_path(node) else "the model's own forward"
    inner = (node.meta.get("stack_trace") or "").rpartition(f'File "{__file__}"')[2]
    frames = re.findall(r'File "(.+?)", line (\d+)', inner)
    own = [frame for frame in frames if not frame[0].startswith(_TORCH_FOLDER)]
    line = f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
    return f"{place}, op {op_name(node)!r}{line}"


def _widened(example: object) -> tuple[Tensor, ...]:
    """Return the example with a batch of at least 2: torch makes sizes 0 and 1 constants."""
    if not isinstance(example, tuple) or not all(isinstance(x, Tensor) for x in example):
        raise InputError(f"the example is {_describe(example)}, expected a tuple of tensors")
    sizes = sorted({x.shape[0] if x.dim() else 0 for x in example})
    if len(sizes) != 1 or sizes[0] < 1:
        raise InputError(
            f"the example's inputs have the shapes {[tuple(x.shape) for x in example]}; expected "
            "dimension 0 of each to be the batch, of one size"
        )
    return tuple(torch.cat([x, x]) for x in example) if sizes[0] == 1 else example


def _export(model: nn.Module, example: tuple[Tensor, ...], *, train: bool) -> ExportedProgram:
    batch = Dim("batch")
    with _quiet_mode(model, train=train):
        try:
            return torch.export.export(
                model, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False
            )
        except Exception as error:  # torch.export and the model raise every kind
            raise_interruption(error)
            raise CaptureError(_explain(error, model)) from error


@contextmanager
def _quiet_mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Set the mode of all modules, and restore it; keep torch's chatter and fast paths away.

    A batch norm with ``momentum=None`` computes its momentum from a counter, which cannot be
    traced; it gets one for the time being.
    """
    modes = {module: module.training for module in model.modules()}
    averaging = [m for m in modes if isinstance(m, _BatchNorm) and m.momentum is None]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(StringIO()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(torch.enable_grad())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        model.train(train)
        for module in averaging:
            stack.callback(setattr, module, "momentum", None)
            module.momentum = 0.1
        yield


def _explain(error: Exception, model: nn.Module) -> str:
    """Say in one line where a model could not be traced, why, and what to try."""
    text = str(error)
    place = _place(error, model)
    wrapper = type(model).__name__
    if wrapper in _WRAPPERS:
        return f"the model is a {wrapper}, which cannot be traced; give {_WRAPPERS[wrapper]}"
    if "which is not a known type" in text:
        found = text.partition("<class '")[2].partition("'")[0].rpartition(".")[2]
        return f"the model returns a {found}, expected tensors; return a tuple or a dict of them"
    if "Constraints violated" in text:
        return (
            "the model fixes the batch size: dimension 0 of its inputs must be free; replace "
            "numbers that stand for the batch, e.g. x.view(8, -1), by x.shape[0]"
        )
    if "data-dependent" in text:
        return (
            f"{place}: control flow or a size depends on the values of a tensor, which cannot be "
            "traced; use torch.where or masks in place of if, or cut this part off the model"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return (
        f"{place}: torch.export fails with {type(error).__name__}: {first[:200]}; check that the "
        "model runs on the example with a batch of 2, and that its forward takes tensors only"
    )


def _place(error: BaseException | None, model: nn.Module) -> str:
    """Return module and source line of the innermost frame outside torch."""
    names = {id(module): name for name, module in model.named_modules()}
    line, module = "", ""
    step: TracebackType | None = error.__traceback__ if error else None
    while step is not None:
        frame = step.tb_frame
        owner = frame.f_locals.get((*frame.f_code.co_varnames, "")[0])
        module = names.get(id(owner), module)
        file = frame.f_code.co_filename
        if id(owner) in names and not file.startswith((_TORCH_FOLDER, __file__)):
            source = traceback.extract_tb(step, limit=1)[0].line
            line = f" ({Path(file).name}:{step.tb_lineno}: {source})"
        step = step.tb_next
    return (f"module {module!r}" if module else "the model's own forward") + line


def _placeholders(
    program: ExportedProgram, model: nn.Module
) -> tuple[dict[fx.Node, str], tuple[fx.Node, ...]]:
    """Return the placeholders of weights with their names, and those of the inputs."""
    first: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        first.setdefault(id(tensor), name)
    canonical = {name: first[id(tensor)] for name, tensor in named_tensors(model)}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    weights, inputs = {}, []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        else:
            weights[node] = canonical.get(spec.target or "", spec.target or "")
    return weights, tuple(inputs)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name, what is tied under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _refuse_data_dependent_sizes(nodes: list[fx.Node], batch: torch.SymInt) -> None:
    for node in nodes:
        value = node.meta.get("val")
        sizes = [value] if isinstance(value, _SYMBOLIC) else getattr(value, "shape", ())
        symbols = [size.node.expr.free_symbols for size in sizes if isinstance(size, _SYMBOLIC)]
        if set().union(*symbols) - {batch.node.expr}:
            raise CaptureError(
                f"{where(node)}: a size depends on the values of a tensor, which cannot be "
                "divided; use torch.where or masks, or cut this part off the model"
            )


def _dependent(made: list[fx.Node], inputs: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Return the nodes that compute on the inputs or draw random numbers."""
    dependent: set[fx.Node] = set()
    for node in made:
        tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
        if torch.Tag.nondeterministic_seeded in tags or any(
            n in dependent or n in inputs for n in node.all_input_nodes if tensors_of(n)
        ):
            dependent.add(node)
    return dependent


def _needs(
    values: list[fx.Node], dependent: set[fx.Node], weights: Mapping[fx.Node, str]
) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Return what each value needs, and refuse writes in place that a cut would lose."""
    order = {node: position for position, node in enumerate(values)}
    memory: dict[fx.Node, int] = {}
    members: defaultdict[int, list[fx.Node]] = defaultdict(list)
    writers: defaultdict[int, list[fx.Node]] = defaultdict(list)
    needs: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in values:
        read = node.all_input_nodes
        wrote = (writer for n in read if n in memory for writer in writers[memory[n]])
        needs[node] = tuple(dict.fromkeys((*read, *wrote)))
        for target in written(node):
            sharing = members[memory[target]]
            _check_is_its_own(node, sharing, weights)
            if node in dependent:
                _check_no_view(node, target, sharing, order)
            else:
                writers[memory[target]].append(node)
        value = node.meta["val"]
        if isinstance(value, Tensor):
            memory[node] = value.untyped_storage()._cdata
            if op_name(node) in DROPOUTS:  # returns its input itself in evaluation
                memory[node] = memory[arguments(node)["input"]]
            elif op_name(node) == "lift_fresh_copy":  # a copy, though the trace shares its memory
                members[memory[node]].clear()
            members[memory[node]].append(node)
    return needs


def written(node: fx.Node) -> list[fx.Node]:
    """Return the tensors whose values a node changes in place."""
    if not isinstance(node.target, torch._ops.OpOverload) or op_name(node) == "detach_":
        return []
    given = arguments(node)
    return [
        given[argument.name]
        for argument in node.target._schema.arguments
        if argument.is_write and isinstance(given[argument.name], fx.Node)
    ]


def overwritten(operations: Iterable[fx.Node], arriving: Iterable[fx.Node]) -> list[fx.Node]:
    """Return those of some tensors that operations write to in place, by whatever name."""

    def memory(node: fx.Node) -> int:
        while op_name(node) in DROPOUTS:  # returns its input itself in evaluation
            node = arguments(node)["input"]
        return int(node.meta["val"].untyped_storage()._cdata)

    touched = {memory(target) for node in operations for target in written(node)}
    return [node for node in arriving if memory(node) in touched]


def _check_is_its_own(
    node: fx.Node, sharing: list[fx.Node], weights: Mapping[fx.Node, str]
) -> None:
    """Refuse a write to a weight, or to an input of the model, which is its caller's."""
    held = next((weights[n] for n in sharing if n in weights), None)
    if held is None and any(n.op == "placeholder" for n in sharing if n not in weights):
        raise CaptureError(
            f"{where(node)}: writes to an input of the model in place, which its caller still "
            "has; compute a new tensor instead (x = x - y in place of x -= y)"
        )
    if held is not None and not is_counter(held):
        raise CaptureError(
            f"{where(node)}: writes to {held!r} in its forward; a stage keeps no state between "
            "calls, so compute a new tensor instead"
        )


def _check_no_view(
    node: fx.Node, target: fx.Node, sharing: list[fx.Node], order: dict[fx.Node, int]
) -> None:
    """Refuse a write into memory that something later reads by another name.

    What later reads the target itself, `torch.export` has already pointed at the result.
    """
    end = node.graph.output_node()
    for other in sharing:
        later = any(user is end or order.get(user, -1) > order[node] for user in other.users)
        if other is not target and later:
            raise CaptureError(
                f"{where(node)}: changes {target.name!r} in place while {other.name!r}, which "
                "shares its memory, is still used; compute a new tensor instead "
                "(x = x + y in place of x += y, torch.cat or torch.where for slices)"
            )


def is_counter(name: str) -> bool:
    """Return whether a buffer is the step counter of a batch norm."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _describe(value: object) -> str:
    if isinstance(value, fx.Node):
        return f"{value.name!r}, which depends on no input"
    return f"a {type(value).__name__}"
