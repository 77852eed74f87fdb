"""Does `serve --adapt` keep its target when a link slows down, and does it widen again after?

    python benchmarks/adapt.py [--out benchmarks/results]

As root, on Linux: two devices in network namespaces, joined by a cable that the kernel holds to a
rate (`tc tbf`). One request in flight, over and over, while the rate falls to a tenth and comes
back; first with the width chosen for each request, then with the widest throughout. The network
has random weights: only time and bytes matter here.
"""

import argparse
import os
import statistics
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib import pyplot
from table import write_csv

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision, library_versions

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.run.cable import laid_cables
from tests.run.shaped import platform, served, write_network

CODEC = "bottleneck:ratio=1,bits=8,nested=1"
CUT = "32,768 B"  # in fp32; 8,193 B at the widest, 65 B at the narrowest
TARGET_MS = 150
PHASES = (("1 Mbit/s", 1e6, 150), ("100 kbit/s", 1e5, 150), ("1 Mbit/s again", 1e6, 300))
SETTLED = 20  # requests after a change that are told apart

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    revision, load = git_revision(), os.getloadavg()[0]
    rows = [*phases("chosen", f"--adapt=latency={TARGET_MS}ms"), *phases("widest")]
    name = f"adapt_2core-x86_{date.today():%Y-%m}"
    write_csv(out / f"{name}.csv", rows, ("way", "phase", "request", "ms", "width"))
    draw(rows, out / f"{name}.png")
    write_bytes(out / f"{name}.md", page(name, rows, revision, load).encode())
    print(out / f"{name}.md")


def phases(way: str, *options: str) -> list[Row]:
    """Ask through all phases, one service throughout."""
    rows: list[Row] = []
    with laid_cables(1) as cables, TemporaryDirectory() as folder:
        (cable,) = cables
        place = Path(folder)
        (place / "keys").mkdir()
        write_network(place / "bundle", platform(PHASES[0][1], 1, 1500), [CUT], CODEC)
        with served(cables, place / "bundle", place / "keys", *options) as asker:
            asker.widths(20, seed=0)  # both devices are there, and warm
            for phase, bits_per_s, count in PHASES:
                cable.shape(bits_per_s)
                found = asker.widths(count, seed=1)
                rows += [
                    {"way": way, "phase": phase, "request": number, "ms": round(1e3 * seconds, 2),
                     "width": width or "widest"}
                    for number, (seconds, width) in enumerate(found)
                ]  # fmt: skip
                print(
                    way, phase, statistics.median(row["ms"] for row in rows[-count:]), flush=True
                )
    return rows


def draw(rows: list[Row], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    for way, colour in (("widest", "tab:gray"), ("chosen", "tab:blue")):
        own = [row["ms"] for row in rows if row["way"] == way]
        axes.plot(own, ".", color=colour, markersize=3, label=f"width {way}")
    axes.axhline(TARGET_MS, color="tab:red", linewidth=1, label="target")
    start = 0
    for phase, _, count in PHASES:
        axes.axvline(start, color="0.8", linewidth=1, zorder=0)
        axes.text(start + 3, 2500, phase, fontsize=9)
        start += count
    axes.set(yscale="log", ylim=(5, 4000), xlabel="request", ylabel="latency, ms")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)


def page(name: str, rows: list[Row], revision: str | None, load: float) -> str:
    lines = []
    for phase, _, _ in PHASES:
        for way in ("chosen", "widest"):
            own = [row for row in rows if (row["way"], row["phase"]) == (way, phase)]
            early, late = own[:SETTLED], own[SETTLED:]
            ms = [row["ms"] for row in late]
            widths = Counter(row["width"] for row in late).most_common(2)
            lines.append(
                f"| {phase} | {way} | {share(early):.0f} % | {share(late):.0f} % | "
                f"{statistics.median(ms):.0f} | {statistics.quantiles(ms, n=20)[-1]:.0f} | "
                f"{', '.join(f'{width} ({count})' for width, count in widths)} |"
            )
    words = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    table = "\n".join(lines)
    return f"""# {name}

{words}

Target {TARGET_MS} ms, codec `{CODEC}` where {CUT} cross in fp32. In time: of the first {SETTLED}
requests of a phase, and of the later ones, to which the other figures belong.

- command: `python benchmarks/adapt.py`
- machine: {describe_machine()}
- load in the minute before: {load:.1f}
- versions: {versions}
- revision: {revision}

| phase | width | in time, first | in time, later | median, ms | 95th, ms | most frequent widths |
| --- | --- | ---: | ---: | ---: | ---: | --- |
{table}

![latency of each request]({name}.png)
"""


def share(rows: list[Row]) -> float:
    return 100 * statistics.fmean(row["ms"] <= TARGET_MS for row in rows)


if __name__ == "__main__":
    main()
