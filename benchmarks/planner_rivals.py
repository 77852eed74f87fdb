"""What planners of other kinds would predict for the same networks on the same platforms.

    python benchmarks/planner_rivals.py [--out benchmarks/results] [--cpsat-s 10]

Six networks on six presets and three platforms drawn at random by seed. Every division is costed
by the same model (`isthmus.plan.estimate`), so that only the choice differs:

* equal weights, equal MACs: the graph in as many stages of equal size as there are devices on the
  way from input to output, tensors sent as they are;
* torch: `torch.fx.experimental.accelerator_partitioner`, by size and by cost, given each device's
  memory; tensors sent as they are;
* greedy: our baseline, by steepest descent, the codec chosen too;
* ours without narrowing: cut and devices chosen, inner crossings sent as they are;
* ours: the codec chosen too (method `chain`);
* cpsat: every operation placed by itself, the codec chosen too, with some seconds for each pair.
  It can be below ours where branches go to different devices, and is no walk then.

A division that overflows a memory counts as one that does not fit.
"""

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import date
from itertools import accumulate, pairwise
from math import inf, isinf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import write_csv
from torch import fx, nn
from torch.fx.experimental.accelerator_partitioner import Partitioner
from torch.fx.experimental.partitioner_utils import Device as TorchDevice
from torch.fx.experimental.partitioner_utils import NodeLatency, PartitionerConfig, PartitionMode
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn import functional as F

from isthmus.errors import InfeasibleError, InputError
from isthmus.files import write_bytes
from isthmus.graph import Graph, capture
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models import load_model
from isthmus.plan import partition
from isthmus.plan.estimate import make_site
from isthmus.platform import Device, Link, Memory, Platform, load_platform, path

OBJECTIVES = {"latency": "latency_s", "throughput": "interval_s", "energy": "energy_j"}
PRESETS = (
    "two-mcu-spi", "two-mcu-ble", "camera-hub", "camera-hub-cloud", "two-phones-wifi",
    "two-pi-ethernet",
)  # fmt: skip
SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    parser.add_argument("--cpsat-s", type=float, default=10.0)
    parser.add_argument("--networks", nargs="+", default=None)
    parser.add_argument("--platforms", nargs="+", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    platforms = [*map(load_platform, PRESETS), *map(random_platform, SEEDS)]
    rows = []
    for name, graph in networks(arguments.networks).items():
        for platform in platforms:
            if arguments.platforms is None or platform.name in arguments.platforms:
                rows += rows_of(name, graph, platform, arguments.cpsat_s)
                print(name, platform.name, flush=True)
    stem = f"planner_rivals_{arguments.hardware}_{date.today():%Y-%m}"
    written_up = text(rows, stem)  # with the revision before there are new files
    write_csv(arguments.out / f"{stem}.csv", rows)
    write_bytes(arguments.out / f"{stem}.md", written_up.encode())
    print(written_up)


def networks(chosen: Sequence[str] | None) -> dict[str, Graph]:
    """Return six networks of different kinds, or those chosen, captured."""
    image = torch.zeros(1, 3, 32, 32)
    made: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
        "digits-resnet": (load_model("digits-resnet"), (torch.zeros(1, 1, 8, 8),)),
        "ResNet-18, 32 px": (load_model("resnet18"), (image,)),
        "ResNet-50, 32 px": (load_model("resnet50"), (image,)),
        "U-Net, 32 px": (UNet(), (image,)),
        "inverted residuals, 96 px": (inverted_residuals(), (torch.zeros(1, 3, 96, 96),)),
        "transformer, 64 tokens": (Encoder(), (torch.zeros(1, 64, dtype=torch.int64),)),
    }
    return {
        name: capture(model.eval(), example)
        for name, (model, example) in made.items()
        if chosen is None or name in chosen
    }


class UNet(nn.Module):
    """Two levels down and up, 16 to 64 channels; ends in ten class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = pair(3, 16), pair(16, 32)
        self.middle = pair(32, 64)
        self.up2, self.up1 = pair(96, 32), pair(48, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.middle(F.max_pool2d(b, 2))
        y = self.up2(torch.cat((F.interpolate(y, scale_factor=2.0), b), 1))
        y = self.up1(torch.cat((F.interpolate(y, scale_factor=2.0), a), 1))
        return self.head(y.mean((2, 3)))


def pair(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class Inverted(nn.Module):
    """Sandler et al., "MobileNetV2", CVPR 2018: widen, depth-wise, narrow, sum."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.same = channels == out and stride == 1
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.same else self.body(x)


def inverted_residuals() -> nn.Module:
    widths = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(),
        *(Inverted(*sizes) for sizes in widths),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


class Encoder(nn.Module):
    """Four layers of 128 features over tokens; ends in ten class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 256, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def random_platform(seed: int) -> Platform:
    """Draw a chain of three or four devices; rates, memories and links over decades."""
    draw = random.Random(seed)

    def between(low: float, high: float) -> float:
        return low * (high / low) ** draw.random()

    names = [f"d{index}" for index in range(draw.choice((3, 4)))]
    devices = tuple(
        Device(
            name=name,
            memory=Memory(shared_bytes=between(1e5, 1e7) if name != names[-1] else None),
            macs_per_s={"fp32": between(1e7, 1e10)},
            j_per_mac={"fp32": between(1e-12, 1e-10)},
            static_w=between(1e-3, 1.0),
        )
        for name in names
    )
    links = tuple(
        Link(
            between=(first, second),
            bytes_per_s=between(1e4, 1e8),
            latency_s=between(1e-5, 1e-2),
            j_per_byte=between(1e-9, 1e-6),
        )
        for first, second in pairwise(names)
    )
    return Platform(
        name=f"random-{seed}", devices=devices, links=links, input=names[0], output=names[-1]
    )


def rows_of(
    network: str, graph: Graph, platform: Platform, cpsat_s: float
) -> list[dict[str, Any]]:
    cuts = {
        "equal weights": [equal(graph, platform, lambda node: node.weight_bytes)],
        "equal MACs": [equal(graph, platform, lambda node: node.macs or 0)],
        "torch": torch_cuts(graph, platform),
    }
    rows = []
    for objective, figure in OBJECTIVES.items():
        row: dict[str, Any] = {
            "network": network,
            "platform": platform.name,
            "objective": objective,
        }
        for rival, asked in cuts.items():
            row[rival] = min((forced(graph, platform, objective, c) for c in asked), default=inf)
        for mine, options in (
            ("greedy", {"method": "greedy"}),
            ("ours, as it is", {"codec": "raw"}),
            ("ours", {}),
            ("cpsat", {"method": "cpsat", "time_limit_s": cpsat_s}),
        ):
            try:
                plan = partition(graph, platform, objective=objective, **options)
                row[mine], row["cpsat gap"] = getattr(plan.predicted, figure), plan.gap
            except (InfeasibleError, InputError) as error:  # or no plan in time
                row[mine], row["cpsat gap"] = inf, 0.0 if isinstance(error, InfeasibleError) else 1
        rows.append(row)
    return rows


def forced(graph: Graph, platform: Platform, objective: str, cuts: Sequence[int]) -> float:
    """Return what a division by given cuts costs, or infinity where it does not fit."""
    try:
        plan = partition(graph, platform, objective=objective, codec="raw", cut=cuts)
    except (InfeasibleError, InputError):
        return inf
    return float(getattr(plan.predicted, OBJECTIVES[objective]))


def equal(graph: Graph, platform: Platform, size: Callable[[Any], float]) -> list[int]:
    """Return the cuts that come nearest to equal parts, one for each link on the way."""
    devices, _ = path(platform)
    totals = list(accumulate((size(node) for node in graph.nodes), initial=0.0))
    wanted = [totals[-1] * part / len(devices) for part in range(1, len(devices))]
    return [min(range(len(totals)), key=lambda k: abs(totals[k] - w)) for w in wanted]


def torch_cuts(graph: Graph, platform: Platform) -> list[list[int]]:
    """Return the cuts of torch's partitioner, by size and by cost, where it finds a chain."""
    devices, links = path(platform)
    times = [NodeLatency(0.0, seconds) for seconds in latencies(devices, graph)]
    found = []
    for mode in (PartitionMode.size_based, PartitionMode.cost_aware):
        module, nodes = torch_module(graph)
        config = PartitionerConfig(
            devices=[
                TorchDevice(device.name, int(min(room(device), 1e15)), index)
                for index, device in enumerate(devices)
            ],
            mode=mode,
            transfer_rate_bytes_per_sec=min(link.bytes_per_s for link in links),
            node_to_latency_mapping={
                **{node: NodeLatency(0.0, 0.0) for node in module.graph.nodes},
                **dict(zip(nodes, times, strict=True)),
            },
        )
        partitioner = Partitioner()
        try:
            partitioner.partition_graph(module, module, config)
        except (RuntimeError, AssertionError, KeyError, ValueError, IndexError):
            continue
        ids = {p.partition_id: p.logical_device_ids for p in partitioner.partitions}
        places = [ids[partitioner.node_to_partition[node]] for node in nodes]
        order = [place[0] if place else len(devices) for place in places]
        if order == sorted(order) and order[-1] < len(devices):
            found.append([sum(k <= index for k in order) for index in range(len(links))])
    return found


def torch_module(graph: Graph) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Return a module of the graph's shapes and weights, as torch's partitioner reads them."""
    root, made = nn.Module(), fx.Graph()
    values: dict[str, fx.Node] = {}
    for tensor in graph.inputs:
        values[tensor.name] = made.placeholder(tensor.name)
        describe(values[tensor.name], tensor.shape)
    nodes = []
    for index, node in enumerate(graph.nodes):
        part = nn.Module()
        for number, weight in enumerate(node.weights):
            empty = torch.empty(weight.num_elements, device="meta")
            part.register_parameter(f"w{number}", nn.Parameter(empty))
        root.add_module(f"n{index}", part)
        nodes.append(made.call_module(f"n{index}", tuple(values[name] for name in node.inputs)))
        describe(nodes[-1], node.outputs[0].shape if node.outputs else ())
        values |= dict.fromkeys((tensor.name for tensor in node.outputs), nodes[-1])
    made.output(tuple(values[name] for name in graph.outputs))
    return fx.GraphModule(root, made), nodes


def describe(node: fx.Node, shape: tuple[int, ...]) -> None:
    node.meta["tensor_meta"] = TensorMetadata(
        torch.Size(shape), torch.float32, False, (), None, False, {}
    )


def latencies(devices: Sequence[Device], graph: Graph) -> list[float]:
    """Return each node's mean time over the devices: torch's partitioner takes one for all."""
    times = [np.diff(make_site(graph, device).seconds) for device in devices]
    return np.mean(times, axis=0).tolist()


def room(device: Device) -> float:
    memory = device.memory
    parts = (memory.weights_bytes, memory.activations_bytes, memory.shared_bytes)
    return sum(part for part in parts if part is not None) or inf


def text(rows: list[dict[str, Any]], name: str) -> str:
    rivals = ("equal weights", "equal MACs", "torch", "greedy", "ours, as it is")
    lines = [
        f"# {name}", "", *(__doc__ or "").splitlines()[4:], "",
        f"- command: `python {' '.join(sys.argv)}`",
        f"- machine: {describe_machine()}",
        f"- load in the last 15 minutes: {os.getloadavg()[2]:.1f}",
        f"- versions: {', '.join(f'{n} {v}' for n, v in library_versions().items())}",
        f"- revision: {git_revision()}",
        "",
        "Predicted cost of each rival over ours: median (least .. most) over the pairs where both",
        "fit, and on how many of all pairs the rival fits at all.",
        "",
        "| objective | " + " | ".join((*rivals, "cpsat")) + " | ours fits |",
        "| --- | " + " | ".join("---:" for _ in (*rivals, "cpsat")) + " | ---: |",
    ]  # fmt: skip
    for objective in OBJECTIVES:
        chosen = [row for row in rows if row["objective"] == objective]
        fits = sum(not isinf(row["ours"]) for row in chosen)
        cells = [ratios(chosen, rival) for rival in (*rivals, "cpsat")]
        lines.append(f"| {objective} | {' | '.join(cells)} | {fits} of {len(chosen)} |")
    worse = [row for row in rows for rival in rivals if row[rival] < row["ours"] * (1 - 1e-9)]
    lower = [row for row in rows if row["cpsat"] < row["ours"] * (1 - 1e-9)]
    proven = sum((row["cpsat gap"] or 0.0) < 1e-6 for row in rows if row["cpsat gap"] is not None)
    lines += [
        "",
        f"Ours is worse than a rival in {len(worse)} of {len(rows)} rows. Method cpsat proved its",
        f"answer in {proven} of them, and is below ours, or fits alone, in {len(lower)}.",
        "",
        *narrowing(rows),
        "## Every pair, latency",
        "",
        "| network | platform | " + " | ".join(rivals) + " | ours | cpsat | narrowing alone |",
        "| --- | --- | " + " | ".join("---:" for _ in rivals) + " | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["objective"] == "latency":
            cells = [written(row[rival]) for rival in (*rivals, "ours", "cpsat")]
            gain = row["ours, as it is"] / row["ours"] if not isinf(row["ours"]) else inf
            share = "-" if isinf(gain) else f"{gain:.2f} x"
            lines.append(
                f"| {row['network']} | {row['platform']} | {' | '.join(cells)} | {share} |"
            )
    return "\n".join(lines) + "\n"


def narrowing(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of what the narrowing alone brings."""
    lines = [
        "## The narrowing's share",
        "",
        "Our planner without narrowing over our planner, on the pairs where both fit: everything",
        "else is chosen as well as it can be.",
        "",
        "| objective | median | most | better by over 1 % | fits with narrowing only |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for objective in OBJECTIVES:
        mine = [row for row in rows if row["objective"] == objective and row["ours"] < inf]
        gains = [row["ours, as it is"] / row["ours"] for row in mine]
        both = [gain for gain in gains if gain < inf]
        if both:
            most = max(both)
            where = next(
                f"{row['network']}, {row['platform']}"
                for row, gain in zip(mine, gains, strict=True)
                if gain == most
            )
            lines.append(
                f"| {objective} | {statistics.median(both):.2f} x | {most:.2f} x ({where}) | "
                f"{sum(gain > 1.01 for gain in both)} of {len(both)} | {len(gains) - len(both)} |"
            )
    return [*lines, ""]


def ratios(rows: list[dict[str, Any]], rival: str) -> str:
    found = [
        row[rival] / row["ours"] for row in rows if not isinf(row[rival]) and row["ours"] < inf
    ]
    if not found:
        return "never fits"
    low, high = min(found), max(found)
    return f"{statistics.median(found):.2f} ({low:.2f} .. {high:.2f}); {len(found)}"


def written(value: float) -> str:
    return "does not fit" if isinf(value) else f"{1000 * value:,.3g} ms"


if __name__ == "__main__":
    main()
