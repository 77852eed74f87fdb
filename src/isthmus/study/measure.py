"""Time the parts of a model on this machine, so that a plan can start from what was measured.

.. code-block:: none

    model --export--> one ONNX program --cut at the blocks--> a program per block
                              |                                      |
                              +------- called in turn, many times ---+

A *block* is an operation with multiply-accumulates and all that follows it up to the next one, so
that the runtime fuses in it what it fuses in a whole stage (a convolution with its norm and its
activation). Everything runs in onnxruntime on one thread, one sample at a time; what counts is the
time that the processor spends on it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import get_clock_info, perf_counter, thread_time

import numpy as np
import onnx.parser
import onnxruntime
import torch
from onnx.utils import Extractor
from torch import nn

from isthmus.backends import Array, load_program
from isthmus.errors import InputError, IsthmusError
from isthmus.export.export import Program, write_program
from isthmus.graph import Graph, fingerprint
from isthmus.machine import describe_machine
from isthmus.platform import NodeTimes
from isthmus.progress import Report, silent
from isthmus.study.parts import Parts, take_apart
from isthmus.units import format_quantity

_EMPTY = """
<ir_version: 8, opset_import: ["": 17]>
empty (float[1] x) => (float[1] y) {y = Identity(x)}
"""

# Processor time where it is fine enough: then other work on the machine does not count.
_clock = thread_time if get_clock_info("thread_time").resolution < 1e-6 else perf_counter

Call = Callable[[], object]


def measure_nodes(
    model: nn.Module,
    graph: Graph,
    example: tuple[torch.Tensor, ...],
    *,
    repeats: int = 30,
    warmup: int = 5,
    report: Report = silent,
) -> NodeTimes:
    """Time every block of a model in onnxruntime, one sample at a time, on one thread.

    All blocks and the whole model are called in turn, round after round; the medians count. What
    an empty call takes is subtracted from each, because a stage pays it once: that is a device's
    ``start``. A block's time stands at its first node that costs something, and the others have 0,
    so a cut inside a block leaves its whole time before the cut. A block that cannot be run alone
    gets the share of the whole's time that it has of its MACs, and a note says so.

    Args:
        model: What is timed, in evaluation.
        graph: Its capture.
        example: One tensor for each argument of forward; its first sample is what is computed.
        repeats: Rounds that count.
        warmup: Rounds before them.
        report: Told of every round.

    Returns:
        The table, which a platform file names as a device's ``measured:``. Its notes say how well
        the parts add up to the whole.

    Raises:
        InputError: The graph is another model's, or there is no round.
        CaptureError: The model cannot be written as ONNX.
    """
    if repeats < 1:
        raise InputError(f"repeats: found {repeats}, expected 1 or more")
    parts = take_apart(model, graph, example)
    blocks = find_blocks(graph)
    ends = [_ends(graph, block) for block in blocks]
    borders = dict.fromkeys([*graph.outputs, *(name for _, makes in ends for name in makes)])
    with TemporaryDirectory() as folder:
        report("write programs", 0, 1)
        exported = _export(parts, graph, tuple(borders), example, Path(folder))
        whole = exported.call([tensor.name for tensor in graph.inputs], graph.outputs)
        calls = {}
        for block, sides in zip(blocks, ends, strict=True):
            with suppress(IsthmusError):  # it is no program of its own
                calls[block] = exported.call(*sides)
        onnx.save(onnx.parser.parse_model(_EMPTY), Path(folder) / "empty.onnx")
        program = load_program(Path(folder) / "empty.onnx", backend="onnxruntime")
        empty = partial(program, [np.zeros(1, dtype=np.float32)])
        report("write programs", 1, 1)
        empty_s, whole_s, *block_s = _medians(
            (empty, whole, *calls.values()), repeats, warmup, report
        )
    return _table(graph, blocks, dict(zip(calls, block_s, strict=True)), empty_s, whole_s)


def find_blocks(graph: Graph) -> tuple[range, ...]:
    """Divide a graph before every node that has MACs or unknown ones.

    Returns:
        The indices of each block's nodes, in order of execution.
    """
    starts = [k for k, node in enumerate(graph.nodes) if node.macs != 0 and k > 0]
    return tuple(range(*ends) for ends in pairwise((0, *starts, len(graph.nodes))))


def _table(
    graph: Graph,
    blocks: Sequence[range],
    block_s: Mapping[range, float],
    empty_s: float,
    whole_s: float,
) -> NodeTimes:
    """Book the times of blocks at their nodes, without what an empty call takes."""
    whole_s = max(0.0, whole_s - empty_s)
    seconds = dict.fromkeys((node.name for node in graph.nodes), 0.0)
    shared = []
    for block in blocks:
        nodes = [graph.nodes[k] for k in block]
        first = next((node for node in nodes if node.macs != 0 or node.ops != 0), nodes[0])
        if block in block_s:
            seconds[first.name] = max(0.0, block_s[block] - empty_s)
        else:
            macs = sum(node.macs or 0 for node in nodes)
            seconds[first.name] = whole_s * macs / max(1, graph.macs)
            shared.append(first.name)
    return NodeTimes(
        graph=fingerprint(graph),
        seconds=seconds,
        machine=f"{describe_machine()}, onnxruntime {onnxruntime.__version__}, 1 thread",
        whole_s=whole_s,
        notes=_notes(sum(seconds.values()), whole_s, empty_s, shared),
    )


def _notes(sum_s: float, whole_s: float, empty_s: float, shared: Sequence[str]) -> tuple[str, ...]:
    ratio = f", {sum_s / whole_s:.2f} times that" if whole_s else ""
    notes = [
        f"the whole model takes {format_quantity(whole_s, 's')}, its blocks one by one "
        f"{format_quantity(sum_s, 's')}{ratio}",
        f"an empty call takes {format_quantity(empty_s, 's')} more, which no time here includes: "
        "give it as the device's start",
    ]
    if shared:
        names = ", ".join(shared)
        notes.append(f"not measured alone, but given their share of the whole by MACs: {names}")
    return tuple(notes)


def _ends(graph: Graph, block: range) -> tuple[list[str], list[str]]:
    """Return the tensors that a block takes and those that it hands on."""
    inside = [tensor.name for k in block for tensor in graph.nodes[k].outputs]
    reads = dict.fromkeys(name for k in block for name in graph.nodes[k].inputs)
    others = (node for k, node in enumerate(graph.nodes) if k not in block)
    needed = {name for node in others for name in node.inputs} | set(graph.outputs)
    return [n for n in reads if n not in inside], [n for n in inside if n in needed]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exported:
    """A model as one ONNX program that hands out what every block makes.

    Attributes:
        extractor: Cuts programs out of it.
        names: The program's names of the graph's tensors.
        values: What these tensors are for one sample, by the graph's names.
        folder: Where to write programs.
    """

    extractor: Extractor
    names: Mapping[str, str]
    values: Mapping[str, Array]
    folder: Path

    def call(self, reads: Sequence[str], makes: Sequence[str]) -> Call:
        """Return a call of the part between some tensors."""
        path = self.folder / "part.onnx"
        ends = ([self.names[name] for name in side] for side in (reads, makes))
        onnx.save(self.extractor.extract_model(*ends), path)
        program = load_program(path, backend="onnxruntime")
        feed = [self.values[name] for name in reads]
        program(feed)
        return lambda: program(feed)


def _export(
    parts: Parts,
    graph: Graph,
    borders: tuple[str, ...],
    example: tuple[torch.Tensor, ...],
    folder: Path,
) -> _Exported:
    inputs = tuple(tensor.name for tensor in graph.inputs)
    stage = parts.part(range(len(graph.nodes)), inputs, borders)
    sample = tuple(x[:1] for x in example)
    path = folder / "whole" / "program.onnx"
    program = Program(None, stage, None).eval()
    write_program(program, sample, path, device="this machine", any_batch=False)
    written, arrays = onnx.load(path), tuple(x.numpy() for x in sample)
    arrays += load_program(path, backend="onnxruntime")(arrays)
    names = (*inputs, *borders)
    entries = (*written.graph.input, *written.graph.output)
    return _Exported(
        extractor=Extractor(written),
        names=dict(zip(names, (entry.name for entry in entries), strict=True)),
        values=dict(zip(names, arrays, strict=True)),
        folder=folder,
    )


def _medians(calls: Sequence[Call], repeats: int, warmup: int, report: Report) -> list[float]:
    """Return the median time of each call in seconds."""
    times_RC = np.empty((warmup + repeats, len(calls)))
    for number, times_C in enumerate(times_RC, start=1):
        for k, call in enumerate(calls):
            started = _clock()
            call()
            times_C[k] = _clock() - started
        report("time blocks", number, len(times_RC))
    return np.median(times_RC[warmup:], axis=0).tolist()
