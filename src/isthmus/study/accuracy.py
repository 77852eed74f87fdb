"""What is known of a model's accuracy through codecs, from data at hand and from earlier fits."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from isthmus.data import Dataset
from isthmus.errors import InputError
from isthmus.graph import Graph, cuts, fingerprint
from isthmus.plan import Plan
from isthmus.plan.accuracy import AccuracyTable, merge
from isthmus.plan.partition import partition_anyway
from isthmus.platform import Platform
from isthmus.progress import Report, silent
from isthmus.study.calibrate import POST_HOC_CODECS, post_hoc_accuracy
from isthmus.study.trained import trained_rows


def accuracy_table(
    model: nn.Module,
    graph: Graph,
    platform: Platform,
    data: Dataset | None,
    *,
    objective: str = "latency",
    codec: str | None = None,
    cut: int | None = None,
    fits: Sequence[Path] = (),
    report: Report = silent,
) -> AccuracyTable:
    """Collect what is known of the accuracy, for a plan to choose codecs by.

    Args:
        model: With its trained weights.
        graph: Its capture.
        platform: On what it shall run: decides at which cuts it is worth measuring.
        data: Its training half is measured on, without training; None leaves that out.
        objective: As for `isthmus.plan.partition`.
        codec: Measure this one alone.
        cut: Measure at this one alone.
        fits: Folders of earlier fits and studies of this model, see `trained_rows`.
        report: Told of every batch.

    Returns:
        The table: rows of the fits, and of what they do not cover those measured without training.

    Raises:
        InputError: Model, data and fits do not belong together, or there are neither data nor
            fits.
    """
    trained = trained_rows(fits, graph)
    if data is None:
        wholes = [row.whole for row in trained if row.whole is not None]
        if not wholes:
            raise InputError("no accuracy is known; give data, or fits of a lossy crossing")
        return merge(AccuracyTable(graph=fingerprint(graph), whole=max(wholes)), trained)
    if cut is None:
        plan = partition_anyway(graph, platform, objective=objective, codec=codec)
        chosen = promising_cuts(graph, plan)
    else:
        chosen = (cut,)
    codecs = POST_HOC_CODECS if codec is None else (codec,)
    measured = post_hoc_accuracy(model, graph, data, chosen, codecs, report=report)
    return merge(measured, trained)


def promising_cuts(graph: Graph, plan: Plan, *, most: int = 6) -> tuple[int, ...]:
    """Name the cuts at which it is worth measuring.

    Args:
        graph: What is divided.
        plan: For a platform and an objective; its own cuts and those of its runner-ups come first.
        most: How many cuts inside the network; a third of them at least are ends of modules, outer
            ones and those where few bytes cross first.

    Returns:
        Their indices, in order; 0, where pixels cross, is always among them.
    """
    places = cuts(graph)
    nodes = {node.name for node in graph.nodes}
    modules = [cut for cut in places if cut.after not in nodes]
    modules.sort(key=lambda cut: (cut.after.count("."), cut.num_bytes))
    ends = [cut.index for cut in modules]
    named = [c.cut for c in plan.crossings] + [k for rival in plan.runner_ups for k in rival.cuts]
    inner = {cut.index for cut in places[1:-1] if not cut.obstacle}
    first, others = ([k for k in dict.fromkeys(each) if k in inner] for each in (named, ends))
    wanted = dict.fromkeys([*first[: most - most // 3], *others, *first])
    return tuple(sorted((0, *list(wanted)[:most])))
