"""What each technique of `isthmus compress` does to one trained network, by one yardstick.

    python benchmarks/techniques.py rates --model FILE.py:FUNCTION --weights FILE --data-dir DIR
    python benchmarks/techniques.py rows [alone chain longer narrow stronger format loss seed] ...
    python benchmarks/techniques.py integers ...
    python benchmarks/techniques.py page

ResNet-20 on CIFAR-100. ``rows`` measures every technique alone, at two or three strengths, and
chains of several, each as applied and after one equal budget of tuning: the same images, seen
once, whatever the number of trainings in a chain. Techniques look at 512 training images. A few
are tuned longer and stand apart. ``rates`` is how the learning rate, the loss and the batch of
that budget were chosen, by training images that were not tuned on. ``integers`` judges and times
int8 as applied, once on a processor with VNNI and once on one without. Accuracy is that of the
exported program in ONNX Runtime on all test images. A finished row is a line of
``techniques_*.jsonl``; rows that are there are not made again. What others offer is measured by
``techniques_rivals.py``; the page is written by ``techniques_page.py``.
"""

import argparse
import copy
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from link_rate import judged, load, plan_of
from table import rows_begun
from techniques_page import ENERGY, best_ten, write_page
from torch import nn

from isthmus.backends.onnxruntime import session_options
from isthmus.compress import TECHNIQUES, apply, figures, parse_chain, settle
from isthmus.compress.exits import EXITS, rule
from isthmus.compress.sparse import SCHEDULES
from isthmus.data import Dataset
from isthmus.errors import IsthmusError
from isthmus.export.export import Program, write_program
from isthmus.graph import Graph, capture, cuts, live_bytes
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models import load_model
from isthmus.plan.estimate import estimate, make_site, stage_loads
from isthmus.platform import load_platform
from isthmus.study.compress import run_steps, samples_of
from isthmus.train import (
    FitConfig,
    Progress,
    accuracy,
    augmentation_for,
    fit_crossings,
    measure_exits,
    split_with_codecs,
    tune,
)
from isthmus.train.losses import LOSSES

CROSSING_AFTER, CROSSING_BEFORE = "layer2", "layer3"
FORMATS = (
    "fp8-e4m3", "mxfp4-e2m1", "mxfp6-e2m3,of=both", "mxfp4-e2m1,of=both", "posit8,of=both",
    "log8f3,of=both", "rns15-16-17,of=both",
)  # fmt: skip
APPLIED = (  # of weights, as applied alone
    "fp16", "bf16", "tf32", "dlfloat16", "fp8-e5m2", "mxint8", "bfp8", "bm8-e2m5", "flex16",
    "q4.11", "q4.3",
)  # fmt: skip
STRENGTHS = {  # that which tells most first
    "prune:netadapt": ("keep=0.9,step=0.1,short=128", "keep=0.75,step=0.1,short=128"),
    "prune:slimmable": ("widths=0.5+0.75",),
    "prune:width": (),  # cuts what the one above made: a chain
    "prune": ("keep=0.9", "keep=0.75"),
    "lowrank:svd": ("energy=0.95", "energy=0.8"),
    "lowrank:tucker": ("energy=0.95", "energy=0.9", "energy=0.8"),
    "replace:network": (),  # has all to learn: a group of its own
    "replace": ("only=layer3", ""),
    "sparse:magnitude": (
        "keep=0.5",
        "keep=0.2",
        *(f"keep=0.2,schedule={how},rounds=3" for how in SCHEDULES if how != "once"),
    ),
    "sparse:nm": ("n=2,m=4", "n=1,m=4"),
    "sparse:wanda": ("keep=0.7", "keep=0.5"),
    "sparse:snip": ("keep=0.5", "keep=0.2"),
    "sparse:obd": ("keep=0.5", "keep=0.2"),
    "share:kmeans": ("bits=4", "bits=3", "bits=5"),
    "share:ternary": ("", "threshold=0.2"),
    "quantize:int8": ("range=mse", "range=minmax"),
    "quantize:weights": ("bits=4", "bits=3", "bits=6"),
    "quantize:memory": ("flash=192KiB", "flash=128KiB"),
    "quantize:mixed": ("flash=192KiB", "flash=128KiB"),
    "quantize": ("ends=keep", "ends=round"),
    "format": tuple(f"name={name}" for name in FORMATS),
    "exits": ("only=layer2,agreement=0.95", "only=layer2,share=0.5"),
}
STEM = "prune:l2,keep=0.5,only=conv1"  # 64 channels, where the next layers have 16
CHAINS = (
    ("sparse:magnitude,keep=0.6", "share:kmeans,bits=4"),
    (STEM, "quantize:weights,bits=4"),
    (STEM, "quantize:int8"),
    ("sparse:magnitude,keep=0.6", "quantize:weights,bits=4"),
    (STEM, "sparse:magnitude,keep=0.6", "share:kmeans,bits=4"),
    ("sparse:magnitude,keep=0.5", "quantize:int8"),
    ("lowrank:tucker,energy=0.95", "quantize:int8"),
    *(("prune:slimmable,widths=0.5+0.75", f"prune:width,width={share}") for share in (0.75, 0.5)),
)
LONGER = (  # for the smallest file, then for the fewest MACs
    ("quantize:weights,bits=4",),
    ("share:kmeans,bits=4",),
    ("sparse:magnitude,keep=0.6", "share:kmeans,bits=4"),
    (STEM, "quantize:weights,bits=4"),
    ("prune:netadapt,keep=0.75,step=0.1,short=128",),
    ("prune:l2,keep=0.5",),
    ("prune:netadapt,keep=0.6,step=0.1,short=128", "quantize:weights,bits=4"),
    ("prune:netadapt,keep=0.5,step=0.1,short=512",),
)
WHOLE = (  # tuned on all training images for so many epochs: how far fewer MACs can go
    (("prune:least-squares,keep=0.48",), 10),
    (("prune:netadapt,keep=0.6,step=0.1,short=128",), 5),
    (("prune:netadapt,keep=0.5,step=0.1,short=512",), 5),
)
STUDENT = "replace:network,name=benchmarks/networks.py:shuffle_student"
STUDENT_EPOCHS = 75
CODEC = "bottleneck:ratio=2,stride=2,hidden=64,bits=8+entropy"
DEEPER = "bottleneck:ratio=2,stride=2,hidden=64,sender_hidden=32,bits=8+entropy"
LIGHT = "bottleneck:ratio=4,stride=2,hidden=32,sender=separable,bits=8+entropy"
LINEAR = "bottleneck:ratio={},bits=8+entropy"
POOLED = "layer3.0"  # the student pools there, so that a quarter is left to narrow
NARROW = (  # a chain, the mean bytes of its crossing asked for, epochs of that, codec and cut
    ((STEM, "quantize:weights,bits=4"), 400, 0, CODEC, CROSSING_AFTER),
    ((STEM, "quantize:int8"), 400, 0, CODEC, CROSSING_AFTER),
    # on all training images: what is lost by haste
    ((STEM, "quantize:int8"), 600, 4, CODEC, CROSSING_AFTER),
    ((STEM, "quantize:int8"), 800, 4, CODEC, CROSSING_AFTER),
    ((STEM, "quantize:int8"), 600, 4, DEEPER, CROSSING_AFTER),
    ((STUDENT, "quantize:int8"), 600, 4, CODEC, CROSSING_AFTER),
    ((STUDENT, "quantize:int8"), 600, 4, LIGHT, CROSSING_AFTER),
    ((STUDENT, "quantize:int8"), 600, 4, LINEAR.format(8), CROSSING_AFTER),
    ((STUDENT, "quantize:int8"), 600, 4, LINEAR.format(2), POOLED),
    ((STUDENT, "quantize:int8"), 600, 4, LINEAR.format(4), POOLED),
)
TAUGHT = ("prune:l1,keep=0.75",)  # by each of the losses
INTEGERS = ("fold", "quantize:int8,range=mse", "quantize:int8,range=minmax")
GROUPS = (
    "chain", "alone", "longer", "narrow", "whole", "student", "stronger", "format", "loss", "seed",
)  # fmt: skip
BUDGET, LONG_BUDGET, ALL = 3200, 12_800, 50_000  # training images seen
SEEN = 10_000  # training images that an exit is fitted to and calibrated on
TUNING = FitConfig(
    epochs=1,
    batch_size=32,
    losses=("hinton",),
    augmentation=augmentation_for("cifar100"),
)
LEARNING = replace(  # what is new has all to learn, which takes two hours
    TUNING, batch_size=128, losses=("task", "hinton"), precision="bf16-mixed"
)
TRIED = ("prune:l1,keep=0.75", "quantize:weights,bits=4", "sparse:magnitude,keep=0.2")
RATES = (1e-3, 3e-4, 1e-4)
WAYS = ((32, "hinton"), (32, "task,hinton"), (64, "hinton"))  # batch, losses
_HELD_OUT = 2500  # the last training images
EXAMPLE = (torch.zeros(2, 3, 32, 32),)
_BATCH = 50
_TIMED = 200

Measure = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is measured: steps, images seen while tuning (0 is as applied), and a seed.

    A crossing is narrowed by as many images in each of its phases, or by epochs of all of them.
    """

    group: str
    chain: tuple[str, ...]
    images: int = 0
    seed: int = 0
    bytes: int | None = None
    narrowing: int = 0
    codec: str = CODEC
    cut: str = CROSSING_AFTER
    losses: tuple[str, ...] = TUNING.losses

    @property
    def key(self) -> Measure:
        """What tells one row from another."""
        name = " + ".join(self.chain) + (f" + narrow to {self.bytes} B" if self.bytes else "")
        name += f" in {self.narrowing} epochs" if self.narrowing else ""
        name += f" by {self.codec}" if self.codec != CODEC else ""
        name += f" after {self.cut}" if self.cut != CROSSING_AFTER else ""
        name += f" by {'+'.join(self.losses)}" if self.group == "loss" else ""
        return {"group": self.group, "chain": name, "tuned": self.images, "seed": self.seed}


APART = {  # from the rows that have one budget
    "longer": [Row(group="longer", chain=chain, images=LONG_BUDGET) for chain in LONGER],
    "narrow": [
        Row(
            group="narrow",
            chain=chain,
            images=LONG_BUDGET,
            bytes=size,
            narrowing=epochs,
            codec=codec,
            cut=cut,
        )
        for chain, size, epochs, codec, cut in NARROW
    ],
    "whole": [Row(group="whole", chain=chain, images=ALL * n) for chain, n in WHOLE],
    "student": [Row(group="student", chain=(STUDENT,), images=ALL * STUDENT_EPOCHS)],
    "format": [Row(group="format", chain=(f"format,name={n}",)) for n in APPLIED],
    "loss": [
        Row(
            group="loss",
            chain=TAUGHT,
            images=BUDGET,
            losses=("task", "hinton") if loss == "task" else (loss,),
        )
        for loss in LOSSES
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rates", "rows", "integers", "page"))
    parser.add_argument("groups", nargs="*", default=GROUPS, help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--only", nargs="*", default=(), help="chains, as their rows name them")
    arguments = parse(parser)
    if arguments.what == "page":
        page(arguments.rows)
        return
    if (loaded := inputs(arguments)) is None:
        return
    model, data = loaded
    keep = keeper(arguments.rows)
    if arguments.what == "rates":
        for key, measure in rates(model, data):
            keep(key, measure)
        return
    base = session_of(model)
    if arguments.what == "integers":
        vnni = "vnni" in Path("/proc/cpuinfo").read_text()
        for row in (Row(group="integers", chain=(chain,)) for chain in INTEGERS):
            keep(row.key | {"vnni": vnni}, lambda row=row: measured(model, row, data, base))
        page(arguments.rows)
        return
    groups = (rows_of(group, arguments.rows) for group in arguments.groups)
    progress = Progress(report=say, checkpoints=arguments.state)
    for row in wanted(itertools.chain.from_iterable(groups), arguments.only):
        keep(row.key, lambda row=row: measured(model, row, data, base, progress))
    page(arguments.rows)


def say(step: str, done: int, total: int) -> None:
    """Print how far a training has come."""
    print(step, f"{done}/{total}", flush=True)


def page(path: Path) -> None:
    """Write the page, which names what is not measured yet."""
    planned = [row.key for group in GROUPS[:-1] for row in rows_of(group, path)]
    write_page(path, BUDGET, LONG_BUDGET, planned)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments, with the file of rows among them."""
    parser.add_argument("--model", default="resnet_cifar100.py:resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--state", type=Path, help="of a student's training, to go on from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.rows = rows_begun(arguments.out, f"techniques_{arguments.hardware}")
    return arguments


def inputs(arguments: argparse.Namespace) -> tuple[nn.Module, Dataset] | None:
    """Return the network and its data; None, with a line that says so, where one is missing."""
    try:
        model = load_model(arguments.model, weights=arguments.weights)
        return model.eval(), load(arguments.data_dir)
    except (IsthmusError, FileNotFoundError) as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None


def keeper(path: Path) -> Callable[[Measure, Callable[[], Measure]], None]:
    """Return what measures a row and writes it down, unless it is there already."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    facts = {"machine": describe_machine(), "versions": library_versions()}
    facts["revision"] = git_revision()

    def keep(key: Measure, measure: Callable[[], Measure]) -> None:
        if any(all(row.get(name) == key[name] for name in key) for row in found):
            return
        row = measure()
        with path.open("a") as file:
            file.write(json.dumps({**key, **row, **facts}) + "\n")
        print(key, row, flush=True)

    return keep


def rows_of(group: str, path: Path) -> Iterator[Row]:
    """Yield the rows of a group."""
    if group in APART:
        yield from APART[group]
    elif group == "seed":
        best = best_ten(path, BUDGET)
        for seed in (1, 2):
            yield from (Row(group=group, chain=c, images=BUDGET, seed=seed) for c in best)
    else:
        kind = "chain" if group == "chain" else "alone"
        for chain in CHAINS if kind == "chain" else alone(others=group == "stronger"):
            if not any(step.startswith("replace") for step in chain):  # else it is random yet
                yield Row(group=kind, chain=chain)
            if trainings(chain):  # nothing is tuned after "fold"
                yield Row(group=kind, chain=chain, images=BUDGET)


def wanted(rows: Iterable[Row], chains: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of some chains, in the order of these and after the base; all for none."""
    if not chains:
        yield from rows
        return
    every = list(rows)
    yield from (row for row in every if not row.chain)
    for name in chains:
        yield from (row for row in every if name == row.key["chain"])


def alone(*, others: bool) -> Iterator[tuple[str, ...]]:
    """Yield nothing and every technique at its first strength, or each at its others.

    Those that take long, or bring nothing without much training, come last.
    """
    late = {name for name, technique in TECHNIQUES.items() if technique.needs == "training"}
    strengths = {
        name: STRENGTHS.get(name, STRENGTHS.get(name.partition(":")[0], ("",)))
        for name in sorted(TECHNIQUES, key=lambda name: name in late | {"prune:netadapt"})
    }
    if not others:
        yield ()
    for turn in range(1, max(map(len, strengths.values()))) if others else (0,):
        for name, texts in strengths.items():
            if turn < len(texts):
                yield (",".join(filter(None, (name, texts[turn]))),)


def trainings(chain: Sequence[str]) -> int:
    """Return how many trainings a chain has."""
    count = 0
    for step in parse_chain(chain):
        schedule = step.options.get("schedule", "once")
        rounds = step.options["rounds"] if schedule != "once" else 1
        count += rounds + (schedule == "lottery") if step.technique.name != "fold" else 0
    return count


def made_of(
    model: nn.Module,
    chain: Sequence[str],
    data: Dataset,
    images: int,
    config: FitConfig,
    progress: Progress | None = None,
) -> nn.Module:
    """Return what a chain makes, tuned on so many images in all where they are more than 0."""
    torch.manual_seed(config.seed)
    steps, samples = parse_chain(chain), samples_of(model, EXAMPLE, data)
    if not images or not chain:
        return run_steps(model, steps, samples)
    each = images // trainings(chain)
    config = replace(config, epochs=max(1, each // ALL))
    return run_steps(model, steps, samples, first_of(data, each), config, progress=progress)


def first_of(data: Dataset, count: int) -> Dataset:
    return replace(data, x_train=(data.x_train[0][:count],), y_train=data.y_train[:count])


def measured(
    model: nn.Module, row: Row, data: Dataset, base: Any, progress: Progress | None = None
) -> Measure:
    """Return the figures of a row; ``base`` is timed beside it.

    What stands behind a student is done to it as to a network that came so. Only a student's
    training keeps its state: the others take minutes, and share its name.
    """
    started = time.perf_counter()
    how = replace(TUNING, losses=row.losses, seed=row.seed)
    chain = row.chain
    try:
        if chain[:1] == (STUDENT,):
            learning, all_seen = replace(LEARNING, seed=row.seed), ALL * STUDENT_EPOCHS
            model = made_of(model, chain[:1], data, all_seen, learning, progress or Progress())
            chain = chain[1:]
        made = made_of(model, chain, data, row.images, how)
    except IsthmusError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    if row.bytes:
        return {**narrowed(made, row, data), "apply_s": seconds}
    session = session_of(made)
    share = accuracy_of(session, data)
    found = {**costs(made, share), **exited(made, row, data)}
    return {**found, **times(session, base, data), "apply_s": seconds}


def exited(made: nn.Module, row: Row, data: Dataset) -> Measure:
    """Return accuracy and mean MACs where an exit answers what it is sure of, if one was asked."""
    found: Measure = {}
    for step in parse_chain(row.chain):
        if step.technique.name == EXITS:
            seen, how = first_of(data, SEEN), rule(step.options)
            (exit_,) = measure_exits(made, step.options["only"], seen, how)
            found = {"accuracy": exit_.accuracy_with, "macs": exit_.macs, "leave": exit_.share}
    return found


def narrowed(made: nn.Module, row: Row, data: Dataset) -> Measure:
    """Learn a narrow crossing for what a chain made; count the payloads of all test images."""
    plan, _ = plan_of(made, row.cut, row.codec)
    split_model = split_with_codecs(made, plan)
    config = replace(TUNING, wanted_bytes=row.bytes, seed=row.seed, sender="frozen")
    seen = row.images
    if row.narrowing:
        config, seen = replace(config, epochs=row.narrowing, batch_size=64), ALL
    fit_crossings(split_model, first_of(data, seen), config, progress=Progress(report=say))
    found, spec = judged(split_model, data), split_model.codecs[0].spec
    link = {
        "crossing_bytes": found["bytes_mean"],
        "link_macs": spec.encoder_macs + spec.decoder_macs,
        "link_weight_bytes": spec.encoder_weight_bytes + spec.decoder_weight_bytes,
    }
    return {**costs(made, found["accuracy"]), **link}


def costs(made: nn.Module, share: float) -> Measure:
    """Return what a network takes, counted and predicted."""
    graph = capture(made, EXAMPLE)
    cost = figures(made, EXAMPLE, accuracy=share)
    fields = ("accuracy", "parameters", "macs", "weight_bytes", "stored_bytes")
    return {
        **{field: getattr(cost, field) for field in fields},
        "peak_bytes": max(live_bytes(graph)),
        "moved_bytes": sum(node.read_bytes + node.written_bytes for node in graph.nodes),
        "crossing_bytes": crossing(graph),
        **{field: energy_j(graph, *where) for field, where in ENERGY.items()},
    }


def energy_j(graph: Graph, platform: str, device: str) -> float:
    """Return the energy of the whole network on one device, as a plan predicts it."""
    site = make_site(graph, load_platform(platform).device(device))
    return estimate(stage_loads(graph, ()), (), (site,), ()).prediction.energy_j


def crossing(graph: Graph) -> int:
    """Return the fewest bytes that cross between two stages of the network, as they are held."""
    inside = [
        [k for k, node in enumerate(graph.nodes) if f"{node.module}.".startswith(f"{stage}.")]
        for stage in (CROSSING_AFTER, CROSSING_BEFORE)
    ]
    last = inside[0][-1] + 1
    computing = next(k for k in inside[1] if graph.nodes[k].macs)
    return min(cut.num_bytes for cut in cuts(graph)[last : computing + 1])


def session_of(model: nn.Module) -> Any:
    """Return the exported program in ONNX Runtime, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program" / "program.onnx"
        write_program(Program(None, model, None), EXAMPLE, file, device="this machine")
        return session_from(file.read_bytes())


def session_from(program: bytes) -> Any:
    return onnxruntime.InferenceSession(program, session_options(threads=1))


def run(session: Any, x: np.ndarray) -> np.ndarray:
    scores: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return scores


def accuracy_of(session: Any, data: Dataset) -> float:
    """Return the share of all test images that a program labels right."""
    x, y = data.x_test[0], data.y_test
    right = sum(
        int((run(session, x[k : k + _BATCH]).argmax(axis=1) == y[k : k + _BATCH]).sum())
        for k in range(0, len(y), _BATCH)
    )
    return right / len(y)


def times(session: Any, base: Any, data: Dataset) -> Measure:
    """Return the tenth percentile of single images, and that of the network as it came.

    Both by turns, as other programs were running.
    """
    taken: dict[str, list[float]] = {"image_ms": [], "base_ms": []}
    for k in range(_TIMED):
        for name, program in zip(taken, (session, base), strict=True):
            started = time.perf_counter()
            run(program, data.x_test[0][k : k + 1])
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: sorted(each)[_TIMED // 10] for name, each in taken.items()}


def rates(model: nn.Module, data: Dataset) -> Iterator[tuple[Measure, Callable[[], Measure]]]:
    """Yield the name of each way to spend the budget at a fixed rate, and what measures it.

    Judged by the last training images, which are not tuned on here; the network as it came has
    seen them, which favours what changes it little.
    """
    held = slice(-_HELD_OUT, None)
    x, y = data.x_train[0][held], data.y_train[held]
    part = first_of(data, len(data.y_train) - _HELD_OUT)

    def judge(chain: tuple[str, ...], config: FitConfig | None) -> Measure:
        made = copy.deepcopy(model)
        for step in parse_chain(chain):
            made = apply(made, step, samples_of(model, EXAMPLE, part))
            if config:
                tune(made, copy.deepcopy(model), first_of(part, BUDGET), config)
            made = settle(made)
        return {"held_out": accuracy(made, (x,), y)}

    for chain in ((), *((step,) for step in TRIED)):
        key = {"group": "rate", "chain": " + ".join(chain), "tuned": 0}
        yield key, lambda chain=chain: judge(chain, None)
    for batch, names in WAYS:
        for rate in RATES:
            losses = tuple(names.split(","))
            how = replace(TUNING, batch_size=batch, losses=losses, finetune_rate=rate)
            for step in TRIED:
                key = {"group": "rate", "chain": step, "tuned": BUDGET}
                key |= {"batch": batch, "loss": names, "rate": rate}
                yield key, lambda step=step, how=how: judge((step,), how)


if __name__ == "__main__":
    main()
