"""What each technique of `isthmus compress` does to one trained network, by one yardstick.

    python benchmarks/techniques.py --model FILE.py:FUNCTION --weights FILE --data-dir DIR \\
        [--images 2000] [--tune 2000] [--only NAME] [--out benchmarks/results]
    python benchmarks/techniques.py --page

ResNet-20 on CIFAR-100. Every technique alone, at two strengths, and a few chains. Nothing is
trained afterwards, so that the figures are what the technique itself loses; techniques see 512
training images. A few are then tuned a little: one pass over the first training images after each
technique, the network as it came as the teacher. Accuracy is that of the exported program in ONNX
Runtime, on the first test images. Time is the tenth percentile of single images in one thread. A
finished row is a line of ``techniques_*.jsonl``; rows that are there are not made again.
"""

import argparse
import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from link_rate import load
from torch import nn

from isthmus.compress import TECHNIQUES, figures, parse_chain
from isthmus.compress.sparse import SCHEDULES
from isthmus.data import Dataset
from isthmus.errors import IsthmusError
from isthmus.export.export import Program, write_program
from isthmus.files import write_bytes
from isthmus.graph import capture
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models import load_model
from isthmus.study.compress import run_steps, samples_of
from isthmus.train import FitConfig, augmentation_for

CROSSING_AFTER = "layer2"
STRENGTHS = {
    "prune:netadapt": ("keep=0.9,step=0.1", "keep=0.75,step=0.1"),
    "prune": ("keep=0.9", "keep=0.75"),
    "lowrank:svd": ("energy=0.95", "energy=0.8"),
    "lowrank:tucker": ("energy=0.95", "energy=0.9"),
    "sparse:magnitude": ("keep=0.5", "keep=0.2"),
    "sparse:nm": ("n=2,m=4", "n=1,m=4"),
    "sparse:wanda": ("keep=0.7", "keep=0.5"),
    "sparse:snip": ("keep=0.5", "keep=0.2"),
    "sparse:obd": ("keep=0.5", "keep=0.2"),
    "share:kmeans": ("bits=5", "bits=4"),
    "quantize:int8": ("range=mse", "range=minmax"),
    "quantize:weights": ("bits=6", "bits=4"),
    "format": (
        "name=fp8-e4m3",
        "name=mxfp4-e2m1",
        "name=mxfp6-e2m3,of=both",
        "name=mxfp4-e2m1,of=both",
        "name=posit8,of=both",
        "name=log8f3,of=both",
        "name=rns15-16-17,of=both",
    ),
}
CHAINS = (
    ("sparse:magnitude,keep=0.5", "share:kmeans,bits=5"),
    ("sparse:magnitude,keep=0.5", "quantize:int8"),
    ("sparse:magnitude,keep=0.5", "quantize:weights,bits=6"),
)
TUNED = (
    ("prune:l1,keep=0.75",),
    ("prune:taylor,keep=0.75",),
    ("lowrank:tucker,energy=0.9",),
    ("sparse:nm,n=2,m=4",),
    *((f"sparse:magnitude,keep=0.2,schedule={how},rounds=3",) for how in SCHEDULES),
    ("quantize:weights,bits=4",),
    ("share:kmeans,bits=3",),
    ("sparse:magnitude,keep=0.4", "quantize:weights,bits=4"),
    ("prune:l1,keep=0.75", "quantize:int8"),
    ("quantize:ternary",),
    ("share:ternary",),
    ("replace:separable",),
    ("replace:ghost",),
    ("quantize:weights,bits=2",),
)
MARKS = {
    "parameters": "parameters", "macs": "MACs", "weight_bytes": "weight bytes",
    "stored_bytes": "stored bytes", "activation_bytes": "activation bytes",
}  # fmt: skip
TUNING = FitConfig(epochs=1, batch_size=64, augmentation=augmentation_for("cifar100"))
_BATCH = 10
_TIMED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", default="", help="a technique's name")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--tune", type=int, default=2000, help="training images")
    parser.add_argument("--model", default="resnet_cifar100.py:resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / f"techniques_{arguments.hardware}_{date.today():%Y-%m}.jsonl"
    if arguments.page:
        write_page(path)
        return
    try:
        model = load_model(arguments.model, weights=arguments.weights)
        data = load(arguments.data_dir)
    except (IsthmusError, FileNotFoundError) as error:
        print(f"skipped: {error}", file=sys.stderr)
        return
    facts = {"images": arguments.images, "tune": arguments.tune, "machine": describe_machine()}
    facts |= {"versions": library_versions(), "revision": git_revision()}
    done = set()
    if path.is_file():
        found = (json.loads(line) for line in path.read_text().splitlines())
        done = {(row["chain"], row["tuned"]) for row in found}
    few = replace(
        data, x_train=(data.x_train[0][: arguments.tune],), y_train=data.y_train[: arguments.tune]
    )
    todo = [(chain, False) for chain in chains(arguments.only)]
    todo += [(chain, True) for chain in TUNED if any(arguments.only in step for step in chain)]
    for chain, tuned in todo:
        name = " + ".join(chain)
        if (name, tuned) in done:
            continue
        row = measured(model, chain, data, arguments.images, few if tuned else None)
        with path.open("a") as file:
            file.write(json.dumps({**facts, "chain": name, "tuned": tuned, **row}) + "\n")
        print(name, tuned, row, flush=True)
    write_page(path)


def chains(only: str) -> list[tuple[str, ...]]:
    """Return what is measured: nothing, every technique at its strengths, chains of several."""
    single = [
        (f"{name},{strength}" if strength else name,)
        for name in TECHNIQUES
        for strength in STRENGTHS.get(name, STRENGTHS.get(name.partition(":")[0], ("",)))
    ]
    every = [(), *single, *CHAINS]
    return [
        chain for chain in every if not only or not chain or any(only in step for step in chain)
    ]


def measured(
    model: nn.Module, chain: Sequence[str], data: Dataset, images: int, few: Dataset | None
) -> dict[str, Any]:
    """Return the figures of a chain, tuned on a few samples where they are given."""
    example = (torch.zeros(2, 3, 32, 32),)
    started = time.perf_counter()
    try:
        samples = samples_of(model, example, data)
        made = run_steps(model, parse_chain(chain), samples, few, few and TUNING)
    except IsthmusError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    session = session_of(made, example)
    shares = [
        float((run(session, x).argmax(axis=1) == y).mean())
        for x, y in (
            (data.x_test[0][k : k + _BATCH], data.y_test[k : k + _BATCH])
            for k in range(0, images, _BATCH)
        )
    ]
    cost = figures(made, example, accuracy=float(np.mean(shares)))
    return {
        **{field: getattr(cost, field) for field in ("accuracy", *MARKS)},
        "crossing_bytes": crossing(made),
        "image_ms": 1000 * tenth_percentile(session, data.x_test[0][:1]),
        "apply_s": seconds,
    }


def session_of(model: nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program" / "program.onnx"
        write_program(Program(None, model, None), example, file, device="this machine")
        return onnxruntime.InferenceSession(file.read_bytes(), options)


def run(session: Any, x: np.ndarray) -> np.ndarray:
    scores: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return scores


def tenth_percentile(session: Any, x: np.ndarray) -> float:
    """Return the time of one image; the lower end, as other programs were running."""
    times = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        run(session, x)
        times.append(time.perf_counter() - started)
    return sorted(times)[_TIMED // 10]


def crossing(model: nn.Module) -> int:
    """Return the bytes of what leaves the second of the three stages, in its own format."""
    graph = capture(model, (torch.zeros(2, 3, 32, 32),))
    inside = f"{CROSSING_AFTER}."
    last = [node for node in graph.nodes if f"{node.module}.".startswith(inside)][-1]
    return last.output_bytes


def write_page(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    measured_rows = [row for row in rows if "refused" not in row]
    fields = ("chain", "tuned", "accuracy", *MARKS, "crossing_bytes", "image_ms", "apply_s")
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(measured_rows)
    write_bytes(path.with_suffix(".csv"), text.getvalue().encode())
    write_bytes(path.with_suffix(".md"), page(rows, path.stem).encode())


def page(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Return the figures of each chain, and where the marks of `isthmus techniques` are wrong."""
    base = rows[0]
    lines = [
        f"# {name}",
        "",
        f"ResNet-20 on CIFAR-100, the first {base['images']} test images "
        f"({100 * base['accuracy']:.1f} % before). Nothing is trained after a technique, but "
        f"where it says tuned: one pass over {base['tune']} training images after each. "
        "Accuracy and time are of the exported program in ONNX Runtime, one thread; the time of "
        "an image is the tenth percentile of 200, while other programs were running. MACs count "
        "zeros too. "
        f"Crossing: what leaves {CROSSING_AFTER}, in its own format.",
        "",
        "| techniques | accuracy, % | parameters | MACs | bytes in memory | bytes as stored | "
        "stored, times smaller | crossing, bytes | image, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        what = (row["chain"] or "as it came") + (", tuned" if row["tuned"] else "")
        if "refused" in row:
            lines.append(f"| {what} | refused: {row['refused']} | | | | | | | |")
            continue
        lines.append(
            f"| {what} | {100 * row['accuracy']:.1f} | "
            f"{row['parameters']:,} | {row['macs']:,} | {row['weight_bytes']:,} | "
            f"{row['stored_bytes']:,} | {base['stored_bytes'] / row['stored_bytes']:.2f} | "
            f"{row['crossing_bytes']:,} | {row['image_ms']:.2f} |"
        )
    lines += ["", *findings(rows)]
    machines = sorted({row["machine"] for row in rows})
    revisions = ", ".join(sorted({str(row["revision"]) for row in rows}))
    versions = ", ".join(f"{key} {value}" for key, value in base["versions"].items())
    lines += ["", f"Machine: {'; '.join(machines)}. Revisions: {revisions}. Versions: {versions}."]
    return "\n".join(lines) + "\n"


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is within a point of the network as it came, and which marks do not hold."""
    base = rows[0]
    good = [
        row
        for row in rows[1:]
        if "refused" not in row and row["accuracy"] >= base["accuracy"] - 0.01
    ]
    lines = []
    if good:
        best = min(good, key=lambda row: row["stored_bytes"])
        lines.append(
            f"* Within a point: the smallest file is {best['chain']}, "
            f"{base['stored_bytes'] / best['stored_bytes']:.2f} times smaller (wanted: 8); the "
            f"fewest MACs are {base['macs'] / min(row['macs'] for row in good):.2f} times fewer "
            "(wanted: 4)."
        )
    wrong = [
        f"{row['chain']} does not improve {mark}"
        for row in rows[1:]
        if "refused" not in row and " + " not in row["chain"]
        for field, mark in MARKS.items()
        if mark.lower() in TECHNIQUES[row["chain"].partition(",")[0]].improves
        and row[field] >= base[field]
    ]
    lines.append(f"* Marks that do not hold here: {'; '.join(wrong) or 'none'}.")
    whole = [row for row in rows if row["chain"].startswith("quantize:int8,range=mse")]
    plain = [row for row in rows if row["chain"] == "fold"]
    if whole and plain:
        lines.append(
            f"* An image takes {whole[0]['image_ms']:.2f} ms in int8 and "
            f"{plain[0]['image_ms']:.2f} ms in fp32 with folded norms."
        )
    return lines


if __name__ == "__main__":
    main()
