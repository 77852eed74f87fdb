"""What a model does in training, compared with what it does in evaluation.

A traced graph holds one mode. Both are traced, and walked in lockstep: operations that take the
mode as an argument (dropout, batch norm ...) may differ in that argument, and a dropout may stand
in the training graph alone; so may `contiguous`, which attention with dropout can need, and which
changes no value. Whatever else differs cannot be trained faithfully.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from isthmus.errors import CaptureError
from isthmus.graph.trace import (
    DROPOUTS,
    Trace,
    arguments,
    is_counter,
    module_path,
    op_name,
    where,
    written,
)

IN_EVAL_FORM = "train the form of evaluation (isthmus fit --eval-form, split(..., eval_form=True))"
_FLAGS = {
    **dict.fromkeys(DROPOUTS, "train"),
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), "train"),
    "batch_norm": "training",
    "instance_norm": "use_input_stats",
    "rrelu": "training",
    "scaled_dot_product_attention": "dropout_p",
}
_SWITCHED_MODULES = (_BatchNorm, _DropoutNd, _InstanceNorm, nn.RNNBase, nn.RReLU)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An argument of an operation that depends on the mode: its name and both values."""

    name: str
    training: Any
    evaluation: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """A trace from which both modes can be run.

    Attributes:
        trace: In training, where the modes could be compared; else in evaluation.
        names: The names that its nodes have in evaluation. What runs in training alone has the
            name of its input.
        flags: The operations that depend on the mode.
        training_only: The dropouts, and copies into contiguous memory, of training alone.
        counters: The step counters of batch norms that training advances.
    """

    trace: Trace
    names: Mapping[fx.Node, str]
    flags: Mapping[fx.Node, Flag]
    training_only: frozenset[fx.Node]
    counters: frozenset[str]


def compare(evaluation: Trace, training: Trace) -> Modes:
    """Pair the nodes of both modes.

    Args:
        evaluation: Of a model.
        training: Of the same model.

    Returns:
        The trace of training, its nodes named as in evaluation.

    Raises:
        CaptureError: The modes differ in more than dropout, batch norm and the like.
    """
    twins = _twins_of_placeholders(evaluation, training)
    flags, training_only = {}, set()
    counters = {node: name for node, name in training.weights.items() if is_counter(name)}
    counted = set()
    waiting = list(reversed(evaluation.nodes))
    for node in training.nodes:
        counter = next((counters[n] for n in written(node) if n in counters), None)
        if counter is not None:
            counters[node] = counter
            counted.add(counter)
            continue
        twin = waiting[-1] if waiting else None
        flag = _match(node, twin, twins) if twin is not None else None
        if flag is not None and twin is not None:
            twins[node] = waiting.pop()
            if flag.training != flag.evaluation:
                flags[node] = flag
        elif op_name(node) in DROPOUTS and arguments(node)["train"]:
            twins[node] = twins[arguments(node)["input"]]
            flags[node] = Flag(name="train", training=True, evaluation=False)
            training_only.add(node)
        elif op_name(node) == "contiguous":
            twins[node] = twins[arguments(node)["self"]]
            training_only.add(node)
        else:
            raise _differs(node)
    if waiting:
        raise _differs(waiting[-1])
    if (
        tuple(twins[node] for node in training.outputs) != evaluation.outputs
        or training.output_spec != evaluation.output_spec
    ):
        raise _differs(training.outputs[-1])
    return Modes(
        trace=training,
        names={node: twin.name for node, twin in twins.items()},
        flags=flags,
        training_only=frozenset(training_only),
        counters=frozenset(counted),
    )


def in_eval_form(evaluation: Trace, model: nn.Module) -> Modes:
    """Take the trace of evaluation for both modes, whatever training would do.

    Only the standard modules with a mode of their own (batch and instance norm, dropout,
    recurrent nets, RReLU) still follow it.
    """
    flags = {}
    for node in evaluation.operations:
        name = _FLAGS.get(op_name(node).rstrip("_"), "")
        owner = model.get_submodule(module_path(node))
        if isinstance(owner, _SWITCHED_MODULES) and arguments(node)[name] is False:
            flags[node] = Flag(name=name, training=True, evaluation=False)
    return Modes(
        trace=evaluation,
        names={node: node.name for node in (*evaluation.inputs, *evaluation.nodes)},
        flags=flags,
        training_only=frozenset(),
        counters=frozenset(name for name in evaluation.tensors if is_counter(name)),
    )


def _twins_of_placeholders(evaluation: Trace, training: Trace) -> dict[fx.Node, fx.Node]:
    """Pair the inputs, and the weights and constants of one name and value."""
    by_name = {name: node for node, name in evaluation.weights.items()}
    one, other = evaluation.tensors, training.tensors
    weights = {
        node: by_name[name]
        for node, name in training.weights.items()
        if name in by_name and (one[name] is other[name] or torch.equal(one[name], other[name]))
    }
    return weights | dict(zip(training.inputs, evaluation.inputs, strict=True))


def _match(node: fx.Node, twin: fx.Node, twins: dict[fx.Node, fx.Node]) -> Flag | None:
    """Return the flag of two nodes that agree in all else; None where they do not agree.

    Operations that do not depend on the mode have a flag without a name.
    """
    if node.target is not twin.target:
        return None
    given, expected = arguments(node), arguments(twin)
    name = _FLAGS.get(op_name(node).rstrip("_"), "")
    flag = Flag(name=name, training=given.pop(name, None), evaluation=expected.pop(name, None))
    return flag if _equal(given, expected, twins) else None


def _equal(given: Any, expected: Any, twins: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(given, dict) and isinstance(expected, dict):
        return given.keys() == expected.keys() and all(
            _equal(given[name], expected[name], twins) for name in given
        )
    if isinstance(given, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(given) == len(expected) and all(
            _equal(a, b, twins) for a, b in zip(given, expected, strict=True)
        )
    if not isinstance(given, fx.Node) or not isinstance(expected, fx.Node):
        return type(given) is type(expected) and repr(given) == repr(expected)
    if given in twins:
        return twins[given] is expected
    if given.op == expected.op == "get_attr":
        return _code(given) == _code(expected)
    sizes = given.meta.get("val"), expected.meta.get("val")
    return all(isinstance(size, torch.SymInt) for size in sizes) and str(sizes[0]) == str(sizes[1])


def _code(node: fx.Node) -> str:
    """Return the program of a block of operations, e.g. under ``torch.no_grad``."""
    owner = node.graph.owning_module
    assert owner is not None
    return str(owner.get_submodule(str(node.target)).code)


def _differs(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"{where(node)}: training and evaluation differ here in more than dropout, batch norm "
        f"and the like; drop what depends on self.training, or {IN_EVAL_FORM}"
    )
