"""How many images per second does training take in, beside a bare loop and beside a DataLoader?

    python benchmarks/train_throughput.py [--out benchmarks/results] [--repetitions 5]

`ours` is `isthmus.train.train_images`. `bare` is a plain PyTorch loop of the same arithmetic, in
the same order, without lightning: both end with the same loss, which is checked. `loader 0` and
`loader 1` are that loop fed in the usual way: a DataLoader with no or one worker process, Pillow
for crop and flip, image by image. `ours twice` is two processes of `ours` at once. A run is one
epoch after another to warm up. The loops take turns, and a run that other programs disturbed is
done again. Images are random: what they show does not matter here.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from table import write_csv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, library_versions
from isthmus.models import resnet
from isthmus.models.blocks import conv_norm
from isthmus.models.resnet import BasicBlock
from isthmus.train import ImageRecipe, Normalization, Progress, fast_recipe, train_images
from isthmus.train.augment import augment, to_float
from isthmus.train.images import SCHEDULES
from isthmus.train.loop import training_device

CLASSES = 100
WANTED = 0.95
DISTURBANCE = 0.15  # cores that others may use beyond those left to them

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def resnet20() -> nn.Module:
    blocks = [
        BasicBlock(source, channels, stride=stride)
        for first, channels in ((16, 16), (16, 32), (32, 64))
        for source, stride in ((first, channels // first), (channels, 1), (channels, 1))
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    return nn.Sequential(conv_norm(3, 16, 3), *blocks, *head)


NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18, width 1/4": lambda: resnet(18, width=16, num_classes=CLASSES),
    "ResNet-20": resnet20,
    "ResNet-18": lambda: resnet(18, num_classes=CLASSES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    net: str
    precision: str
    layout: str
    threads: int
    num_images: int
    batch_size: int

    @property
    def recipe(self) -> ImageRecipe:
        return replace(
            fast_recipe(2),
            batch_size=self.batch_size,
            precision="bf16-mixed" if self.precision == "bf16" else "32-true",
            channels_last=self.layout == "channels last",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    images_per_s: float
    loss: float


def cases(device: torch.device) -> list[Case]:
    cpu = device.type == "cpu"
    return [
        Case(
            net=net,
            precision=precision,
            layout=layout,
            threads=threads,
            num_images=1024 if cpu else 49_920,
            batch_size=128 if cpu else 512,
        )
        for net in ([*NETS][:2] if cpu else NETS)
        for threads in ((1, 2) if cpu else (torch.get_num_threads(),))
        for precision in ("fp32", "bf16")
        for layout in ("channels first", "channels last")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    device = training_device()
    rows = [row for case in cases(device) for row in rows_of(case, device, arguments.repetitions)]
    name = f"train_throughput_{arguments.hardware}_{date.today():%Y-%m}"
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", text(rows, name, device, load).encode())
    print(text(rows, name, device, load))


def rows_of(case: Case, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Every loop in turn, until each has its quiet runs or there have been four times as many."""
    torch.set_num_threads(case.threads)
    loops = {"ours": (ours, case.threads), "bare": (bare, case.threads)}
    cpu = device.type == "cpu"
    if case.precision == "bf16" and case.layout == "channels last" and case.threads != 2:
        loops |= {"loader 0": (loader_0, case.threads), "loader 1": (loader_1, case.threads + 1)}
        loops |= {"ours twice": (ours_twice, 2)} if cpu else {}
    rows: list[dict[str, Any]] = []
    losses = {}
    for turn in range(4 * repetitions):
        for loop, (run, num_cores) in loops.items():
            if sum(row["loop"] == loop and row["quiet"] for row in rows) == repetitions:
                continue
            started, others = time.perf_counter(), others_s()
            done = run(case, device)
            taken = max((others_s() - others) / (time.perf_counter() - started), 0.0)
            losses[loop] = done.loss
            rows.append(
                {
                    "net": case.net,
                    "precision": case.precision,
                    "layout": case.layout,
                    "threads": case.threads,
                    "batch_size": case.batch_size,
                    "loop": loop,
                    "turn": turn,
                    "images_per_s": round(done.images_per_s, 1),
                    "others_cores": round(taken, 2),
                    "quiet": num_cores + taken <= (os.cpu_count() or 1) + DISTURBANCE,
                }
            )
            print(*rows[-1].values(), flush=True)
    # An accelerator may take other algorithms where no deterministic ones are asked for.
    off = abs(losses["ours"] / losses["bare"] - 1)
    assert off <= (0 if cpu else 0.05), "bare does another arithmetic"
    return rows


def others_s() -> float:
    """Processor seconds that this machine has spent on everyone but this process and its own."""
    machine, process = psutil.cpu_times(), psutil.Process()
    own = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
    return busy - sum(t.user + t.system + t.children_user + t.children_system for t in own)


def random_data(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (case.num_images, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (case.num_images,), generator=generator)


def new_net(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return NETS[case.net]()


def ours(case: Case, device: torch.device) -> Run:
    del device  # lightning's choice
    ends: list[float] = []
    progress = Progress(report=lambda *_: ends.append(time.perf_counter()))
    record = train_images(
        new_net(case), *random_data(case), case.recipe, seed=0, progress=progress
    )
    return Run(images_per_s=case.num_images / (ends[1] - ends[0]), loss=record.losses[1])


def bare(case: Case, device: torch.device) -> Run:
    images, labels = (tensor.to(device) for tensor in random_data(case))
    recipe = case.recipe

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(device).manual_seed(number)
        order = torch.randperm(len(images), generator=generator, device=device)
        for chosen in order.split(case.batch_size):
            x = augment(images[chosen], recipe.augmentation, generator=generator)
            yield to_float(x, Normalization()), labels[chosen]

    return plain_loop(case, device, epoch)


def loader_0(case: Case, device: torch.device) -> Run:
    return fed_by_loader(case, device, workers=0)


def loader_1(case: Case, device: torch.device) -> Run:
    return fed_by_loader(case, device, workers=1)


def fed_by_loader(case: Case, device: torch.device, *, workers: int) -> Run:
    loader = DataLoader(
        PillowImages(*random_data(case)),
        batch_size=case.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return plain_loop(case, device, lambda _: iter(loader))


class PillowImages(Dataset[tuple[Tensor, int]]):
    """Crops and mirrors one image after another, as torchvision's transforms do."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[index]), border=4)
        left, top = torch.randint(9, (2,)).tolist()
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return x.float().div(255), self.labels[index]


def plain_loop(case: Case, device: torch.device, epoch: Epoch) -> Run:
    recipe = case.recipe
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model: Any = new_net(case).to(device)
    model.to(memory_format=layout)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    schedule = SCHEDULES[recipe.schedule](optimizer, 2 * case.num_images // case.batch_size)
    ends, loss = [], torch.zeros(())
    for number in range(2):
        losses = []
        for images, labels in epoch(number):
            x, y = images.to(device).contiguous(memory_format=layout), labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
                loss = F.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        ends.append(time.perf_counter())
    return Run(images_per_s=case.num_images / (ends[1] - ends[0]), loss=mean)


def ours_twice(case: Case, device: torch.device) -> Run:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        runs = list(pool.map(ours, [case] * 2, [device] * 2))
    return Run(images_per_s=sum(run.images_per_s for run in runs), loss=runs[0].loss)


def one_thread() -> None:
    torch.set_num_threads(1)


def text(rows: list[dict[str, Any]], name: str, device: torch.device, load: float) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    gpu = f", {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    num_quiet = sum(row["quiet"] for row in rows)
    settings = list(dict.fromkeys(setting_of(row) for row in rows))
    ratios = {setting: ratio(rows, setting, "bare") for setting in settings}
    held = sum(ratio >= WANTED for ratio in ratios.values())
    lines = [
        f"# {name}",
        "",
        "Images per second of training on random 32 x 32 images with the fast recipe's crop,",
        "mirror, optimizer and schedule: `ours` (`isthmus.train.train_images`), `bare` (a plain",
        "loop of the same arithmetic; both end with the same loss), and that loop behind a",
        "DataLoader with Pillow. Medians, and in brackets the least and the most.",
        "",
        "- command: `python benchmarks/train_throughput.py`",
        f"- machine: {describe_machine()}{gpu}; {', '.join(vector_units())}",
        f"- versions: {versions}",
        f"- batches of {rows[0]['batch_size']}; load average when it began {load:.1f}; of",
        f"  {len(rows)} runs, {num_quiet} were quiet: other programs left them their cores.",
        "  Only those count; the csv has all, with the cores that others took meanwhile",
        "",
        f"Ours over bare: at least {WANTED} in {held} of {len(ratios)} settings, a median over",
        f"the settings of {statistics.median(ratios.values()):.3f}.",
        "",
        "| network | threads | precision | layout | ours | bare | ours / bare |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for setting in settings:
        net, threads, precision, layout = setting
        lines.append(
            f"| {net} | {threads} | {precision} | {layout} | {spread(rows, setting, 'ours')} "
            f"| {spread(rows, setting, 'bare')} | {ratios[setting]:.3f} |"
        )
    fed = [setting for setting in settings if rates(rows, setting, "loader 0")]
    lines += ["", "## Beside a DataLoader", ""]
    lines += [
        "| network | setting | ours | loader, no worker | loader, 1 worker | ours / better one |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for setting in fed:
        columns = [spread(rows, setting, loop) for loop in ("ours", "loader 0", "loader 1")]
        least = min(ratio(rows, setting, loop) for loop in ("loader 0", "loader 1"))
        words = " | ".join([setting[0], ", ".join(map(str, setting[2:])), *columns])
        lines.append(f"| {words} | {least:.2f} |")
    if device.type == "cpu":
        lines += ["", "## What pays on this processor", "", *what_pays(rows, settings)]
    return "\n".join([*lines, ""])


def what_pays(rows: list[dict[str, Any]], settings: list[tuple[Any, ...]]) -> list[str]:
    """Medians of ours, relative to one thread of fp32 with the channels first."""
    lines = [
        "Ours, relative to one thread in fp32 with channels first. `twice`: two processes of one",
        "thread each, at once, added up.",
        "",
        "| network | threads | fp32, first | fp32, last | bf16, first | bf16, last |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for net in dict.fromkeys(setting[0] for setting in settings):
        base = median(rows, (net, 1, "fp32", "channels first"), "ours")
        for threads in (1, 2):
            columns = [
                f"{median(rows, setting, 'ours') / base:.2f}"
                for setting in settings
                if setting[:2] == (net, threads)
            ]
            lines.append(f"| {net} | {threads} | {' | '.join(columns)} |")
        twice = median(rows, (net, 1, "bf16", "channels last"), "ours twice") / base
        lines.append(f"| {net} | twice | | | | {twice:.2f} |")
    disturbed = [row for row in rows if row["threads"] == 2 and not row["quiet"]]
    if disturbed:
        worst = min(disturbed, key=lambda row: row["images_per_s"])
        lines += [
            "",
            f"Two threads want both cores: of {len(disturbed)} runs disturbed by another program",
            f"the slowest ({', '.join(map(str, setting_of(worst)))}) took in",
            f"{worst['images_per_s']:.0f} images per second.",
        ]
    return lines


def setting_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["net"], row["threads"], row["precision"], row["layout"]


def rates(rows: list[dict[str, Any]], setting: tuple[Any, ...], loop: str) -> list[float]:
    """Return what the quiet runs reached; what all did, where none was quiet."""
    found = [row for row in rows if setting_of(row) == setting and row["loop"] == loop]
    quiet = [row for row in found if row["quiet"]]
    return [row["images_per_s"] for row in quiet or found]


def median(rows: list[dict[str, Any]], setting: tuple[Any, ...], loop: str) -> float:
    return statistics.median(rates(rows, setting, loop))


def spread(rows: list[dict[str, Any]], setting: tuple[Any, ...], loop: str) -> str:
    found = rates(rows, setting, loop)
    return f"{statistics.median(found):.0f} ({min(found):.0f}..{max(found):.0f})"


def ratio(rows: list[dict[str, Any]], setting: tuple[Any, ...], loop: str) -> float:
    """Return the median of ours over that of another loop."""
    return median(rows, setting, "ours") / median(rows, setting, loop)


def vector_units() -> list[str]:
    """Name what the processor has for bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    found = sorted(flags & {"avx2", "avx512_bf16", "amx_bf16"})
    return found or ["vector units not known"]


if __name__ == "__main__":
    main()
