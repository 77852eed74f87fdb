"""Does method `cpsat` prove the best assignment of a branching graph of 200 nodes to 4 devices?

    python benchmarks/cpsat.py [--out benchmarks/results]

Graphs are drawn by seed: each node reads one or two of the six tensors before it, most often the
last; the last node reads all that nothing else does. Four devices that differ, with a link between
every two, samples arise at one and answers are wanted at another. One thread. Where the time is up
first, the gap says by which share of its cost another plan may be better. The limit is one of wall
time: where other programs take the core, the search gets the CPU time that is shown.
"""

import argparse
import os
import random
import time
from datetime import date
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from table import write_csv

from isthmus.files import write_bytes
from isthmus.graph import Graph, Node, Tensor, Weight
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.plan import partition
from isthmus.plan.estimate import OBJECTIVES
from isthmus.platform import Device, Link, Memory, Platform

ASKED = ("latency", "energy", "throughput")
NODES = 200
NEAR = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    command = f"cpsat.py --limit-s {arguments.limit_s:g} --seeds {arguments.seeds}"
    rows = []
    for objective in ASKED:
        for seed in range(1, arguments.seeds + 1):
            rows.append(run(seed, objective, arguments.limit_s))
            print(rows[-1], flush=True)
    name = f"cpsat_{arguments.hardware}_{date.today():%Y-%m}"
    page = text(rows, name, command)  # before the files change what git says
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", page.encode())
    print(page)


def run(seed: int, objective: str, limit_s: float) -> dict[str, Any]:
    draw = random.Random(seed)
    graph, platform = draw_graph(draw), draw_platform(draw)
    walk = partition(graph, platform, objective=objective)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = partition(graph, platform, objective=objective, method="cpsat", time_limit_s=limit_s)
    figure = OBJECTIVES[objective]
    cost = getattr(plan.predicted, figure)
    return {
        "seed": seed,
        "objective": objective,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "proven": plan.notes[0].startswith("proven"),
        "gap": plan.gap,
        "cost": cost,
        "bound": None if plan.gap is None else cost * (1 - plan.gap),
        "chain_cost": getattr(walk.predicted, figure),
        "branched": plan.branched,
        "stages": len(plan.stages),
    }


def draw_graph(draw: random.Random) -> Graph:
    tensors = [Tensor(name="x", shape=(3, 16, 16))]
    nodes: list[Node] = []
    unread: set[str] = set()
    for index in range(NODES):
        read = {draw.choice(tensors[-6:]).name for _ in range(draw.choice((1, 2)))}
        read |= {tensors[-1].name} if draw.random() < 0.6 else set()
        if index == NODES - 1:
            read |= unread
        made = Tensor(name=f"t{index}", shape=(draw.choice((4, 8, 16)), draw.choice((4, 8)), 8))
        size = draw.randint(100, 5000)
        weight = Weight(name=f"w{index}", num_elements=size, num_bytes=4 * size, trainable=True)
        nodes.append(
            Node(
                name=f"n{index}",
                op="conv2d",
                module=f"m{index}",
                inputs=tuple(sorted(read)),
                outputs=(made,),
                weights=(weight,),
                macs=draw.randint(10_000, 1_000_000),
            )
        )
        unread = (unread - read) | {made.name}
        tensors.append(made)
    return Graph(inputs=(tensors[0],), nodes=tuple(nodes), outputs=(tensors[-1].name,))


def draw_platform(draw: random.Random) -> Platform:
    names = ("a", "b", "c", "d")
    return Platform(
        name="mesh",
        devices=tuple(
            Device(
                name=name,
                memory=Memory(weights_bytes=draw.uniform(0.4e6, 1.2e6)),
                macs_per_s={"fp32": 10 ** draw.uniform(7.5, 8.5)},
                j_per_mac={"fp32": 10 ** draw.uniform(-12, -11)},
                static_w=10 ** draw.uniform(-5, -3),
            )
            for name in names
        ),
        links=tuple(
            Link(
                between=ends,
                bytes_per_s=10 ** draw.uniform(5, 7),
                latency_s=1e-4,
                j_per_byte=10 ** draw.uniform(-10, -9),
            )
            for ends in combinations(names, 2)
        ),
        input="a",
        output="d",
    )


def text(rows: list[dict[str, Any]], name: str, command: str) -> str:
    versions = {**library_versions(), "ortools": version("ortools")}
    lines = [
        f"# {name}", "", *(__doc__ or "").splitlines()[4:], "",
        f"- command: `python benchmarks/{command}`",
        f"- machine: {describe_machine()}",
        f"- load in the last 15 minutes: {os.getloadavg()[2]:.1f}",
        f"- versions: {', '.join(f'{n} {v}' for n, v in versions.items())}",
        f"- revision: {git_revision()}",
        "",
        "| objective | seed | proven | gap | cost | no plan below | chain's | CPU time | wall |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in rows:
        bound = "-" if row["bound"] is None else f"{row['bound']:.5g}"
        gap = "-" if row["gap"] is None else f"{row['gap']:.4%}"
        lines.append(
            f"| {row['objective']} | {row['seed']} | {'yes' if row['proven'] else 'no'} | {gap} | "
            f"{row['cost']:.5g} | {bound} | {row['chain_cost']:.5g} | {row['cpu_s']:.1f} s | "
            f"{row['wall_s']:.1f} s |"
        )
    proven = sum(row["proven"] for row in rows)
    near = sum(not row["proven"] and row["gap"] is not None and row["gap"] < NEAR for row in rows)
    lines += [
        "",
        f"Proven: {proven} of {len(rows)}; {near} more to within {NEAR:.2%}. Costs are in s, "
        "energy in J. To spread loads evenly to the last ns is to divide numbers into equal sums.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
