"""What earlier fits and studies reached, as the trained column of an `AccuracyTable`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from isthmus.errors import InputError
from isthmus.files import read_json
from isthmus.graph import Graph, capture, find_cut, fingerprint
from isthmus.models.resnet import resnet, wires
from isthmus.plan.accuracy import LOSSLESS, AccuracyRow
from isthmus.study.grid import Cell
from isthmus.study.records import RECORDS_FILE, read_records
from isthmus.train import FitRecord
from isthmus.train.fitted import GRAPH_FILE, RECORD_FILE

_STUDY_BITS = 8


def trained_rows(folders: Sequence[Path], graph: Graph) -> tuple[AccuracyRow, ...]:
    """Read what earlier fits and studies reached.

    Of a fit with a ladder the accuracies are those of the rung that was taken, on held-out
    training samples. Of any other they are those of the record: of the split model and of the
    whole one, both on the test set. Who chooses a plan by them has used that set for the choice.

    A study narrows the crossings of all stages of a network at once, by one ratio, and does not
    round. What all lose together stands here for each of them through a bottleneck of that ratio
    and 8 bits; it is the mean over seeds, beside that of the same network with nothing narrowed.
    Where a search judged on held-out images and judged the plain network so too, that counts.

    No record says on how many samples; the rows have 0.

    Args:
        folders: What ``isthmus fit`` or ``isthmus study`` left.
        graph: Of the model that is planned for.

    Returns:
        A row for each fit in which a crossing loses something, and for each ratio and stage of a
        study.

    Raises:
        InputError: Neither fit nor study, of another model, or a fit in which several crossings
            lose something, so that no figure belongs to one of them.
    """
    return tuple(
        row
        for folder in folders
        for row in (
            _of_study(folder, graph)
            if (folder / RECORDS_FILE).is_file()
            else _of_fit(folder, graph)
        )
    )


def _of_fit(folder: Path, graph: Graph) -> Iterator[AccuracyRow]:
    record = read_json(folder / RECORD_FILE, FitRecord)
    fitted = fingerprint(read_json(folder / GRAPH_FILE, Graph))
    if fitted != fingerprint(graph):
        raise InputError(
            f"{folder}: found a fit of graph {fitted}, expected {fingerprint(graph)}; "
            "leave it out, it is of another model"
        )
    lossy = {
        (c.cut, c.codec): None if c.fixed_rate else c.payload_bytes
        for c in record.plan.crossings
        if c.codec not in LOSSLESS
    }
    if len(lossy) > 1:
        raise InputError(
            f"{folder}: found {len(lossy)} crossings that lose something, expected one, "
            "as their losses cannot be told apart; leave it out"
        )
    reached, whole = record.accuracy_split, record.accuracy_whole
    for rung in record.ladder:
        if rung.payload_bytes == record.config.wanted_bytes:
            reached, whole = rung.accuracy, rung.accuracy + rung.drop / 100
    for (cut, codec), payload in lossy.items():
        yield replace(_row(cut, codec, reached, whole), payload_bytes=payload)


def _row(cut: int, codec: str, reached: float, whole: float) -> AccuracyRow:
    return AccuracyRow(
        cut=cut, codec=codec, accuracy=reached, samples=0, origin="trained", whole=whole
    )


def _of_study(folder: Path, graph: Graph) -> Iterator[AccuracyRow]:
    records = read_records(folder / RECORDS_FILE)
    networks = sorted({(record.cell.depth, record.cell.width) for record in records})
    own = [network for network in networks if _is_network(graph, *network)]
    if not own:
        names = ", ".join(f"resnet{depth} of width {width}" for depth, width in networks)
        raise InputError(
            f"{folder}: found a study of {names or 'nothing'}, expected one of this model; leave "
            "it out"
        )
    reached: dict[Cell, list[float]] = {}
    for record in records:
        cell = record.cell
        if (cell.depth, cell.width) in own and (cell.placement == "cut" or cell.ratio == 1):
            alike = replace(cell, placement="cut", seed=0)
            reached.setdefault(alike, []).append(float(record.figures["accuracy"]))
    rows: dict[tuple[int, str], AccuracyRow] = {}
    # What was judged on held-out images comes last and counts, of equals the longer training.
    for cell in sorted(reached, key=lambda cell: (cell.judged == "held-out", cell.epochs)):
        plain = replace(cell, ratio=1)
        if plain == cell or plain not in reached:
            continue
        for wire in wires(cell.depth, width=cell.width, ratio=cell.ratio, placement="cut"):
            if wire.between_stages:
                cut = find_cut(graph, wire.after)
                codec = f"bottleneck:ratio={cell.ratio},bits={_STUDY_BITS}"
                figures = fmean(reached[cell]), fmean(reached[plain])
                rows[cut.index, codec] = _row(cut.index, codec, *figures)
    yield from rows.values()


def _is_network(graph: Graph, depth: int, width: int) -> bool:
    """Return whether a graph is that of a study's plain network."""
    image, classes = graph.inputs[0].shape, graph.nodes[-1].outputs[0].shape[-1:]
    if len(image) != 3 or not classes:
        return False
    model = resnet(depth, width=width, num_classes=classes[0], in_channels=image[0]).eval()
    if graph.num_parameters != sum(parameter.numel() for parameter in model.parameters()):
        return False  # to capture it takes longer
    return fingerprint(capture(model, (torch.zeros(2, *image),))) == fingerprint(graph)
