"""How long does method `chain` take for ResNet-152 on many devices, and the page of the plan?

    python benchmarks/planner.py [--out benchmarks/results]

ResNet-152 at 224 px is captured once. Then each run plans for another platform drawn by seed, so
that nothing is known from the run before: 8 devices that all differ, every two with a link, in
any order; 8 such devices between two more at the ends; and 16 on a line, in the order of the
file. All codecs are open. One thread; wall time counts what other programs on the machine took.
CPU time does not count that, but grows where they share the caches: see the load, which is 1 on a
quiet machine. After each plan its page is made, as for `isthmus plan --out plan.html`, but not
written.
"""

import argparse
import os
import random
import statistics
import time
from datetime import date
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from table import write_csv

from isthmus.files import write_bytes
from isthmus.graph import Graph, capture
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models import resnet
from isthmus.plan import partition
from isthmus.platform import Device, Link, Memory, Platform
from isthmus.report.plan_page import plan_page

OBJECTIVES = ("latency", "throughput", "energy")
CASES = {  # case: devices, whether every two have a link, most seconds
    "8 devices": (8, True, 5.0),
    "8 devices between two ends": (10, True, 5.0),
    "16 devices in order": (16, False, 1.0),
}
PAGE_S = 1.0  # most seconds for the page of a plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = resnet(152, num_classes=1000, stem="imagenet").eval()
    graph = capture(model, (torch.zeros(1, 3, 224, 224),))
    rows = []
    for case in arguments.cases:
        for objective in OBJECTIVES:
            for seed in range(arguments.repetitions):
                rows.append(run(graph, case, objective, seed))
                print(rows[-1], flush=True)
    name = f"planner_{arguments.hardware}_{date.today():%Y-%m}"
    page = text(rows, name, len(graph.nodes))  # before the files change what git says
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", page.encode())
    print(page)


def run(graph: Graph, case: str, objective: str, seed: int) -> dict[str, Any]:
    """Plan once, for a platform that no run before had."""
    count, meshed, _ = CASES[case]
    platform = draw(count, meshed=meshed, seed=1000 * OBJECTIVES.index(objective) + seed)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = partition(graph, platform, objective=objective)
    planned_wall, planned_cpu = time.perf_counter(), time.process_time()
    plan_page(plan, graph, title="ResNet-152")
    return {
        "case": case,
        "objective": objective,
        "seed": seed,
        "cpu_s": planned_cpu - cpu,
        "wall_s": planned_wall - wall,
        "page_s": time.process_time() - planned_cpu,
        "stages": len(plan.stages),
        "any_order": plan.gap is not None,
    }


def draw(count: int, *, meshed: bool, seed: int) -> Platform:
    """Draw devices that all differ; memories that most of the network does not fit into."""
    draw = random.Random(seed)

    def between(low: float, high: float) -> float:
        return low * (high / low) ** draw.random()

    names = [f"d{index}" for index in range(count)]
    return Platform(
        name=f"{count}-{seed}",
        devices=tuple(
            Device(
                name=name,
                memory=Memory(shared_bytes=between(3e7, 3e8)),
                macs_per_s={"fp32": between(1e9, 1e11)},
                j_per_mac={"fp32": between(1e-12, 1e-10)},
            )
            for name in names
        ),
        links=tuple(
            Link(
                between=ends,
                bytes_per_s=between(1e6, 1e9),
                latency_s=between(1e-5, 1e-3),
                j_per_byte=between(1e-9, 1e-7),
            )
            for ends in (combinations(names, 2) if meshed else pairwise(names))
        ),
        input=names[0],
        output=names[-1],
    )


def text(rows: list[dict[str, Any]], name: str, nodes: int) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in library_versions().items())
    lines = [
        f"# {name}", "", *(__doc__ or "").splitlines()[4:], "",
        "- command: `python benchmarks/planner.py`",
        f"- machine: {describe_machine()}",
        f"- load in the last 15 minutes: {os.getloadavg()[2]:.1f}",
        f"- versions: {versions}",
        f"- revision: {git_revision()}",
        f"- nodes: {nodes}",
        "",
        f"Pages: {spread([r['page_s'] for r in rows])} of CPU time; to reach: {PAGE_S:g} s.",
        "",
        "| case | objective | CPU time: median (least .. most) | wall | stages | to reach |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for case, (_, _, most_s) in CASES.items():
        for objective in OBJECTIVES:
            chosen = [r for r in rows if (r["case"], r["objective"]) == (case, objective)]
            if not chosen:
                continue
            stages = sorted({r["stages"] for r in chosen})
            lines.append(
                f"| {case} | {objective} | {spread([r['cpu_s'] for r in chosen])} | "
                f"{spread([r['wall_s'] for r in chosen])} | {stages[0]} .. {stages[-1]} | "
                f"{most_s:g} s |"
            )
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} .. {max(values):.2f})"


if __name__ == "__main__":
    main()
