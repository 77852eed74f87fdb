"""A model as a chain of stages with a codec on each crossing, trainable as a whole.

    inputs --> stage 0 --> codec 0 --> stage 1 --> codec 1 --> ... --> stage n --> outputs

The stages are the model's own traced graph, cut as the plan says; they hold the model's own
parameters and buffers, under the model's own names.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map, tree_unflatten

from isthmus.backends import TensorSpec
from isthmus.errors import CaptureError, InputError
from isthmus.graph.integers import Grid, find_grids
from isthmus.graph.ir import HELD_BITS
from isthmus.graph.modes import IN_EVAL_FORM, Modes, compare, in_eval_form
from isthmus.graph.stage import write_stage
from isthmus.graph.trace import Trace, is_batched, results, trace
from isthmus.plan.plan import Crossing, Plan, as_walk


class SplitModel(nn.Module):
    """A model in stages; it takes and returns what the model does.

    Args:
        stages: One for each stage of the plan. Each takes the tensors of the crossing before it
            (the first: the model's inputs) and returns those of the crossing after it as a tuple
            (the last: the model's outputs, flattened).
        codecs: One for each crossing: from a tuple of tensors to a tuple of tensors.
        output_form: What the model returns, with the position among the last stage's tensors in
            place of each tensor.
    """

    def __init__(
        self, stages: Iterable[nn.Module], codecs: Iterable[nn.Module], output_form: Any
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.codecs = nn.ModuleList(codecs)
        self.output_form = output_form

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the model returns for these inputs, but for what the codecs lose."""
        tensors = self.stages[0](*inputs)
        for codec, stage in zip(self.codecs, self.stages[1:], strict=True):
            tensors = stage(*codec(tensors))
        return tree_map(lambda position: tensors[position], self.output_form)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SplitModel":
        """Convert each tensor once: a buffer that two stages share stays one buffer."""
        done: dict[int, tuple[Tensor, Tensor]] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = (tensor, fn(tensor))
            return done[id(tensor)][1]

        super()._apply(once, recurse)  # type: ignore[no-untyped-call]
        return self


def split(
    model: nn.Module,
    plan: Plan,
    codecs: Sequence[nn.Module] | None = None,
    *,
    example: tuple[Tensor, ...] | None = None,
    eval_form: bool = False,
) -> SplitModel:
    """Divide a model as a plan says.

    In training as in evaluation the stages together do what the model does, random numbers in
    the same order: operations that depend on the mode (dropout, batch and instance norm,
    recurrent nets, attention with dropout, RReLU) follow ``train()`` and ``eval()``.

    Args:
        model: What is divided. The stages share its parameters and buffers: convert and move it
            before it is split.
        plan: Where, made for a graph of the same model.
        codecs: One for each crossing of the plan; without them tensors cross unchanged. Where a
            device only relays (two crossings at one cut with one codec), the second codec is not
            used, as the payload passes on as it is.
        example: Inputs of the model, of any batch size; zeros where the plan is enough.
        eval_form: Train the form that the model has in evaluation, where training differs in
            more than the operations above (stochastic depth, auxiliary heads).

    Returns:
        The stages, in the mode that the model is in.

    Raises:
        InputError: The plan was made for another model, or branches, or names a device that its
            platform lacks, or the number of codecs is wrong.
        CaptureError: The model cannot be traced, or does something else in training.
    """
    plan = as_walk(plan)
    for stage in plan.stages:
        plan.platform.device(stage.device)  # raises where there is none
    if codecs is not None and len(codecs) != len(plan.crossings):
        raise InputError(
            f"{len(codecs)} codecs for {len(plan.crossings)} crossings; give one each"
        )
    if example is None:
        weight = next(model.parameters(), torch.empty(0))
        example = zeros(plan.inputs, device=weight.device)
    evaluation = trace(model, example)
    if eval_form:
        modes = in_eval_form(evaluation, model)
    else:
        try:
            training = trace(model, example, train=True)
        except CaptureError as error:
            raise CaptureError(f"in training: {error}; or {IN_EVAL_FORM}") from error
        modes = compare(evaluation, training)
    stage_of = _stage_of(plan, evaluation, modes)
    edges = [modes.trace.inputs]
    grids: list[dict[fx.Node, Grid]] = [{}]
    for index, crossing in enumerate(plan.crossings):
        edges.append(_crossing_values(crossing, index, modes, stage_of))
        grids.append(_crossing_grids(crossing, edges[-1], modes))
    edges.append(modes.trace.outputs)
    grids.append({})
    stages = (
        write_stage(
            model,
            modes,
            [node for node, stage in stage_of.items() if stage == index],
            arriving=edges[index],
            leaving=edges[index + 1],
            grids=(grids[index], grids[index + 1]),
        )
        for index in range(len(plan.stages))
    )
    form = tree_unflatten(range(len(evaluation.outputs)), evaluation.output_spec)
    return SplitModel(stages, _codecs_in_use(plan, codecs), form).train(model.training)


def _crossing_grids(
    crossing: Crossing, values: tuple[fx.Node, ...], modes: Modes
) -> dict[fx.Node, Grid]:
    """Return the grids of what crosses as the integers in which the stages hold it."""
    held = [
        node
        for node, dtype in zip(values, crossing.dtypes, strict=True)
        if dtype in HELD_BITS and node.meta["val"].is_floating_point()
    ]
    found = find_grids(modes.trace) if held else {}
    for node, dtype in zip(values, crossing.dtypes, strict=True):
        if node in held and (node not in found or found[node].held != dtype):
            raise InputError(
                f"cut after {crossing.after!r}: the plan sends {modes.names[node]!r} as {dtype}, "
                "the model holds it in another format; plan the model anew"
            )
    return {node: found[node] for node in held}


def zeros(
    inputs: tuple[TensorSpec, ...], *, device: torch.device | None = None
) -> tuple[Tensor, ...]:
    """Return two samples of zeros, one tensor for each input of a model."""
    return tuple(
        torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype), device=device)
        for spec in inputs
    )


def _codecs_in_use(plan: Plan, codecs: Sequence[nn.Module] | None) -> list[nn.Module]:
    """Return a module for each crossing; one that relays the crossing before it does nothing."""
    given = codecs or [nn.Identity() for _ in plan.crossings]
    sent = [(crossing.cut, crossing.codec) for crossing in plan.crossings]
    ways = zip((None, *sent), sent, given, strict=False)
    return [nn.Identity() if before == now else codec for before, now, codec in ways]


def _stage_of(plan: Plan, evaluation: Trace, modes: Modes) -> dict[fx.Node, int]:
    """Assign each operation to its stage; a dropout of training alone goes with the next one."""
    planned = [name for stage in plan.stages for name in stage.nodes]
    found = [node.name for node in evaluation.operations]
    if planned != found:
        strange = next(
            (b for a, b in zip(planned, found, strict=False) if a != b), f"{len(found)} nodes"
        )
        raise InputError(
            f"the plan has {len(planned)} nodes and is not for this model (found {strange!r} "
            "where it differs); plan the model anew"
        )
    stages = {name: index for index, stage in enumerate(plan.stages) for name in stage.nodes}
    stage_of: dict[fx.Node, int] = {}
    follower = len(plan.stages) - 1
    for node in reversed(modes.trace.operations):
        if node not in modes.training_only:
            follower = stages[modes.names[node]]
        stage_of[node] = follower
    return dict(reversed(stage_of.items()))


def _crossing_values(
    crossing: Crossing, index: int, modes: Modes, stage_of: dict[fx.Node, int]
) -> tuple[fx.Node, ...]:
    """Return what is made up to stage ``index`` and used after it, in the order of the plan."""
    made = {value: stage for node, stage in stage_of.items() for value in results(node)}
    made |= dict.fromkeys(modes.trace.inputs, 0)
    used = [n for node, stage in stage_of.items() if stage > index for n in node.all_input_nodes]
    alive: dict[str, fx.Node] = {}
    for node in (*used, *modes.trace.outputs):
        if made.get(node, index + 1) > index:
            continue
        name = modes.names[node]
        if not is_batched(node, modes.trace.batch):
            raise CaptureError(
                f"cut after {crossing.after!r}: dimension 0 of {name!r} is not the batch, so it "
                "cannot cross; cut elsewhere"
            )
        if alive.setdefault(name, node) is not node:
            raise CaptureError(
                f"cut after {crossing.after!r}: training needs {name!r} there both with and "
                "without dropout, evaluation sends it once; cut elsewhere or use eval_form=True"
            )
    if alive.keys() != set(crossing.tensors):
        raise InputError(
            f"cut after {crossing.after!r}: the plan sends {', '.join(crossing.tensors)}, the "
            f"model needs {', '.join(alive)} there; plan the model anew"
        )
    shapes = tuple(tuple(alive[name].meta["val"].shape[1:]) for name in crossing.tensors)
    if shapes != crossing.shapes:
        raise InputError(
            f"cut after {crossing.after!r}: the plan sends samples of {crossing.shapes}, the "
            f"model makes {shapes} there; plan the model anew"
        )
    return tuple(alive[name] for name in crossing.tensors)
