"""What codecs cost in accuracy at the cuts that matter, measured without training them.

.. code-block:: none

    samples --> part before the cut --> codec --> part after it --> answers, compared with labels
                       once               each codec in turn

The activations at a cut are computed once for all codecs there. Codecs are calibrated as a fit
begins: ranges for ``uniform``, principal axes for ``bottleneck``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.graph import Cut, Graph, cuts, fingerprint
from isthmus.links import Codec, make_codec
from isthmus.plan.accuracy import AccuracyRow, AccuracyTable
from isthmus.progress import Report, silent
from isthmus.study.parts import Parts, take_apart
from isthmus.train import accuracy, check_fits
from isthmus.wire import parse_codec
from isthmus.wire.options import parse_options
from isthmus.wire.spec import codec_text, default_codec_text

POST_HOC_CODECS = (
    *(f"uniform:bits={bits}" for bits in (8, 6, 4, 3, 2)),
    *(f"uniform:bits={bits}+entropy" for bits in (4, 3)),
    "bottleneck:ratio=2,bits=8",
    "bottleneck:ratio=4,bits=8",
    "bottleneck:ratio=4,bits=8,joint=1",
    "bottleneck:ratio=4,bits=4",
    "bottleneck:ratio=8,bits=4",
)
"""What is tried at a cut inside the network, beside what a plan takes there by default."""

_INPUT_CODECS = ("pixels", "png")
_BATCH = 64
_CALIBRATION_SAMPLES = 512  # as many as a fit takes
_CALIBRATION_BYTES = 1 << 30  # of the largest activation

Tensors = tuple[Tensor, ...]


def post_hoc_accuracy(
    model: nn.Module,
    graph: Graph,
    data: Dataset,
    cut_indices: Sequence[int],
    codecs: Sequence[str] = POST_HOC_CODECS,
    *,
    samples: int = 1000,
    seed: int = 0,
    report: Report = silent,
) -> AccuracyTable:
    """Measure codecs that are calibrated but not trained, on a held-out part of the training set.

    Held out from calibration, that is. A model that was trained on these samples loses less on
    them than on new ones, so the figures are on the low side. The test set chooses nothing.

    Args:
        model: With its trained weights.
        graph: Its capture.
        data: Its training half is calibrated and measured on.
        cut_indices: Where. Cuts that nothing can cross are left out, and so is the output, where a
            label is enough; at the input, 8-bit pixels are measured in place of ``codecs``.
        codecs: Which, beside the planner's default; those that cannot carry a cut are left out.
        samples: How many to measure on; at most half of what there is.
        seed: Of the choice of samples.
        report: Told of every batch.

    Returns:
        The accuracies, and that of the whole model on the same samples; for an entropy code also
        the mean payload, of a quarter of the calibration's samples that its tables do not count.

    Raises:
        InputError: Model, graph and data do not belong together, or a cut or codec is unknown.
    """
    if len(data.y_train) < 2:
        raise InputError(f"{data.name}: found one training sample, expected 2 or more")
    check_fits(model, data)
    order_N = np.random.default_rng(seed).permutation(len(data.y_train))
    held_N, rest_N = np.split(order_N, [min(samples, len(order_N) // 2)])
    parts = take_apart(model, graph, _inputs(data, order_N[:2]))
    stops = _stops(graph, parts, cut_indices, codecs)
    widest = max((node.output_bytes for node in graph.nodes), default=1)
    calibrated_N = rest_N[: max(2, min(_CALIBRATION_SAMPLES, _CALIBRATION_BYTES // widest))]
    with torch.no_grad():
        for stop, tensors in _walk(stops, _inputs(data, calibrated_N)):
            report(f"calibrate codecs, after {stop.cut.after}", 0, 1)
            for codec in stop.codecs.values():
                codec.calibrate(tensors)
                codec.fit_tables(tensors)
        correct = _count_correct(stops, data, held_N, report)
    rows = (
        AccuracyRow(
            cut=stop.cut.index,
            codec=text,
            accuracy=correct[stop.cut.index, text] / len(held_N),
            samples=len(held_N),
            origin="post-hoc",
            payload_bytes=codec.spec.measured_bytes,
            payload_spread_bytes=codec.spec.measured_spread_bytes,
        )
        for stop in stops
        for text, codec in stop.codecs.items()
    )
    whole = accuracy(model, [x[held_N] for x in data.x_train], data.y_train[held_N])
    return AccuracyTable(graph=fingerprint(graph), whole=whole, rows=tuple(rows))


def _inputs(data: Dataset, chosen_N: np.ndarray) -> Tensors:
    """Return copies, as a part of a model may write into what it gets."""
    return tuple(torch.from_numpy(x[chosen_N]) for x in data.x_train)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    """A cut, the parts of the model before it (from the stop before) and after, and codecs."""

    cut: Cut
    before: nn.Module
    after: nn.Module
    codecs: Mapping[str, Codec]


def _stops(
    graph: Graph, parts: Parts, indices: Sequence[int], texts: Sequence[str]
) -> list[_Stop]:
    places, last = cuts(graph), len(graph.nodes)
    stops = []
    done, arriving = 0, [tensor.name for tensor in graph.inputs]
    for index in sorted(set(indices)):
        if not 0 <= index <= last:
            raise InputError(f"cut {index}: found no such cut, expected 0 to {last}")
        codecs = _codecs(places[index], texts)
        if index == last or not codecs:
            continue
        names = [tensor.name for tensor in places[index].tensors]
        stop = _Stop(
            cut=places[index],
            before=parts.part(range(done, index), arriving, names),
            after=parts.part(range(index, last), names, graph.outputs),
            codecs=codecs,
        )
        stops.append(stop)
        done, arriving = index, names
    return stops


def _codecs(cut: Cut, texts: Sequence[str]) -> dict[str, Codec]:
    """Return the codecs that can carry a cut and may lose something."""
    shapes, dtypes = [t.shape for t in cut.tensors], [t.dtype for t in cut.tensors]
    found = {}
    for text in (*texts, default_codec_text(shapes, dtypes)) if cut.index else _INPUT_CODECS:
        parse_options(text)
        with suppress(InputError):  # it cannot carry this cut
            spec = parse_codec(text, shapes=shapes, dtypes=dtypes)
            alone = spec.joint and len(spec.carried) == len(spec.shapes)
            if codec_text(spec) != "raw" and not cut.obstacle and not alone:
                found[codec_text(spec)] = make_codec(spec).eval()
    return found


def _walk(stops: Sequence[_Stop], tensors: Tensors) -> Iterator[tuple[_Stop, Tensors]]:
    """Yield each stop with what crosses there, for some inputs of the model."""
    for stop in stops:
        tensors = stop.before(*tensors)
        yield stop, tensors


def _count_correct(
    stops: Sequence[_Stop], data: Dataset, held_N: np.ndarray, report: Report
) -> Counter[tuple[int, str]]:
    """Return how many samples are answered right through each codec at each stop."""
    correct: Counter[tuple[int, str]] = Counter()
    for start in range(0, len(held_N), _BATCH):
        chosen_N = held_N[start : start + _BATCH]
        labels_B = torch.from_numpy(data.y_train[chosen_N])
        for stop, tensors in _walk(stops, _inputs(data, chosen_N)):
            for text, codec in stop.codecs.items():
                scores_BK = stop.after(*codec(tensors))[0]
                correct[stop.cut.index, text] += int((scores_BK.argmax(dim=1) == labels_B).sum())
        report("accuracy without training", min(start + _BATCH, len(held_N)), len(held_N))
    return correct
