"""Does the simulation agree with real runs, how long does a fleet take, and what do they show?

    taskset -c 1 nice -n -20 python benchmarks/simulate.py [--out benchmarks/results]

Some bundles run on this machine over throttled links, and are simulated from what was measured
before with free links and other inputs. What a request takes alone, which the runner measures
itself, is more than what it takes of a core when the pipeline is full, which a run before
measures: a process that waits must be woken up. The simulation has the second as the work of the
stages, and wakes a core that does nothing by the difference. The links of the run before are
emulated too, but last no longer than emulation holds a core, so that what emulation itself takes
is in it; as many requests are in flight as stages, as no link holds one.
The emulated devices share the cores on which this runs, and so do they in the simulation. `nice`
keeps other programs from most of these cores' time. Then a fleet of cameras and a row of chiplets
are simulated. Networks have random weights: only time matters here.
"""

import argparse
import os
import statistics
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot
from table import write_csv

from isthmus.data import load_data
from isthmus.export import export
from isthmus.files import write_bytes
from isthmus.graph import capture, cuts
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models import digits_resnet, resnet
from isthmus.plan import Plan, partition
from isthmus.plan.arrivals import Every, InFlight, Jitter
from isthmus.plan.simulate import Failure, Simulation, Stream, simulate, simulate_fleet
from isthmus.platform import Platform, load_platform
from isthmus.run import Workers, run_bundle, start_workers
from isthmus.train import split_with_codecs

Row = dict[str, Any]

RUNS = {  # platform: codec of the inner crossing, and after which module it is
    "two-mcu-spi": ("bottleneck:ratio=8,bits=4", "layer2"),
    "two-mcu-ble": ("bottleneck:ratio=8,bits=4", "layer2"),
    "camera-hub": ("uniform:bits=4", "layer1"),
    "camera-hub-cloud": ("bottleneck:ratio=4,bits=8", "layer2"),
}
NUM_REQUESTS = 360
CORES = len(os.sched_getaffinity(0))
SPIN_S = 2e-4  # an emulated link holds a core for so long, if it gets one, before a frame goes

CAMERAS, HUBS, SERVERS = 1000, 100, 10
PER_CAMERA = 10
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
JITTER = Jitter(stages=0.1, hops=0.3)
FLEET_QUEUE = 16
AWAY_S = (0.5, 1.5)

IN_FLIGHT = (1, 9, 18, 36, 72)
VARIATIONS = (0.0, 0.3, 1.0)
COLUMNS = (
    "part", "case", "load", "share", "in_flight", "queue", "variation", "requests",
    "measured_p50_s", "measured_per_s", "simulated_p50_s", "simulated_p99_s", "simulated_per_s",
    "dropped", "retries", "cpu_s", "wall_s",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    parser.add_argument("--repetitions", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [*runs(arguments.repetitions), *fleet(), *chiplets()]
    name = f"simulate_{arguments.hardware}_{date.today():%Y-%m}"
    page = text(rows, name)  # before the files change what git says
    write_csv(arguments.out / f"{name}.csv", rows, COLUMNS)
    draw(rows, arguments.out / f"{name}.png")
    write_bytes(arguments.out / f"{name}.md", page.encode())
    print(page)


def runs(repetitions: int) -> Iterator[Row]:
    """Run the bundles in turn some times, and simulate each run from what was measured before."""
    data = load_data("digits")
    model = digits_resnet().eval()
    graph = capture(model, (torch.zeros(2, 1, 8, 8),))
    plans: dict[Path, tuple[Plan, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, after) in RUNS.items():
            cut = next(cut.index for cut in cuts(graph) if cut.after == after)
            plan = partition(graph, load_platform(name), codec=codec, cut=cut)
            fast = replace(plan, platform=shortest(plan.platform))
            path, fast_path = Path(folder) / name, Path(folder) / f"{name}-fast"
            split, samples = split_with_codecs(model, plan), [x[:16] for x in data.x_test]
            export(split, plan, path, samples=samples)
            export(split, fast, fast_path, samples=samples)
            plans[path] = plan, fast_path
        for _, (path, (plan, fast_path)) in product(range(repetitions), plans.items()):
            core_s = busy_core_s(fast_path, data.x_train, in_flight=len(plan.stages))
            run = run_bundle(path, data.x_test, requests=NUM_REQUESTS, warmup_inputs=data.x_train)
            links_s = sum(crossing.transfer_s for crossing in plan.crossings)
            alone_s = run.predicted_here_s - links_s + SPIN_S * len(plan.crossings)
            wake_s = max(0.0, alone_s - core_s) / len(plan.stages)
            here = on_this_machine(plan, min(alone_s, core_s))
            one, many = (
                simulate(here, requests=NUM_REQUESTS, arrivals=InFlight(k), wake_s=wake_s)
                for k in (1, len(plan.stages) + len(plan.crossings))
            )
            row = {
                "part": "run",
                "case": path.name,
                "requests": NUM_REQUESTS,
                "measured_p50_s": run.latency_s.p50,
                "measured_per_s": run.throughput_per_s,
                "simulated_p50_s": one.latency_s(50),
                "simulated_per_s": many.throughput_per_s,
            }
            print(row, flush=True)
            yield row


def busy_core_s(path: Path, inputs: Sequence[Any], *, in_flight: int) -> float:
    """Return what a request takes of a core while so many are in flight, in s."""
    samples = list(zip(*(array[:NUM_REQUESTS] for array in inputs), strict=True))
    with start_workers(path) as workers:
        workers.throttle(True)
        for turn in (samples, samples):  # the first warms up
            waiting: set[int] = set()
            start_s = time.perf_counter()
            for sample in turn:
                if len(waiting) == in_flight:
                    waiting.remove(received(workers))
                waiting.add(workers.send(sample))
            while waiting:
                waiting.remove(received(workers))
            took_s = time.perf_counter() - start_s
    return CORES * took_s / NUM_REQUESTS


def received(workers: Workers) -> int:
    reply = workers.receive()
    assert reply is not None, "a request was lost"
    return reply.request


def shortest(platform: Platform) -> Platform:
    """Return a platform whose links take as long as their emulation holds a core."""
    links = tuple(
        replace(link, bytes_per_s=1e15, latency_s=SPIN_S, setup_s=0.0, pins=None, clock_hz=None)
        for link in platform.links
    )
    return replace(platform, links=links)


def on_this_machine(plan: Plan, work_s: float) -> Plan:
    """Return the plan as it runs here: its stages on our cores, its hops as they are emulated.

    Args:
        plan: For the real devices.
        work_s: What one request takes of a core, the emulation of links included.
    """
    each_s = work_s / len(plan.stages)
    stages = [
        replace(stage, device=f"core {k % CORES}", compute_s=each_s)
        for k, stage in enumerate(plan.stages)
    ]
    links = [replace(link, latency_s=link.latency_s - SPIN_S) for link in plan.platform.links]
    return replace(plan, stages=tuple(stages), platform=replace(plan.platform, links=tuple(links)))


def fleet() -> Iterator[Row]:
    """Raise the load on the fleet, with all hubs and with one that is away for a while."""
    plan = camera_plan()
    alone = simulate(plan, requests=1).timeline
    steps_s = [span.end_s - span.start_s for span in alone]
    shares = [CAMERAS / count for count in (CAMERAS, HUBS, HUBS, HUBS, SERVERS, SERVERS, 1)]
    capacity_per_s = 1 / max(np.multiply(shares, steps_s))
    for load, fails in product(LOADS, (False, True)):
        per_s = load * capacity_per_s
        failures = [Failure(station="hub-0", start_s=AWAY_S[0], end_s=AWAY_S[1])] * fails
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        done = simulate_fleet(
            cameras(plan, per_s), queue=FLEET_QUEUE, jitter=JITTER, failures=failures
        )
        times = {
            "cpu_s": time.process_time() - cpu_s,
            "wall_s": time.perf_counter() - wall_s,
        }
        common = {"part": "fleet", "load": load, "queue": FLEET_QUEUE, "variation": JITTER.hops}
        if fails:
            own = [request for request in done.requests if request.stream % HUBS == 0]
            few = replace(
                done,
                requests=tuple(own),
                timeline=tuple(span for span in done.timeline if span.station == "hub-0"),
            )
            yield {**common, "case": "hub-0 fails: its cameras", **figures(few)}
        case = "hub-0 fails" if fails else "all hubs"
        yield {**common, "case": case, **figures(done), **times}


def figures(done: Simulation) -> Row:
    """Return the columns that tell of a simulation."""
    row = {
        "requests": len(done.requests),
        "simulated_p50_s": done.latency_s(50),
        "simulated_p99_s": done.latency_s(99),
        "simulated_per_s": done.throughput_per_s,
        "dropped": done.dropped,
        "retries": done.retries,
    }
    print(row, flush=True)
    return row


def camera_plan() -> Plan:
    """A ResNet-18 of width 16 on a camera, its hub, a server and the cloud: all four compute."""
    ble, ethernet = load_platform("camera-hub-cloud"), load_platform("two-pi-ethernet")
    radio, uplink = ble.links
    platform = Platform(
        name="fleet",
        devices=(*ble.devices[:2], replace(ble.device("cloud"), name="server"), ble.devices[2]),
        links=(
            replace(radio, medium="radio"),
            replace(ethernet.links[0], between=("hub", "server")),
            replace(uplink, between=("server", "cloud")),
        ),
        input="camera",
        output="cloud",
    )
    graph = capture(resnet(18, width=16), (torch.zeros(2, 3, 32, 32),))
    places = {cut.after: cut.index for cut in cuts(graph)}
    return partition(graph, platform, cut=[places[name] for name in ("stem", "layer2", "layer4")])


def cameras(plan: Plan, per_s: float) -> list[Stream]:
    """Every camera speaks to one of the hubs over its radio, every hub to one of the servers."""
    phases = np.random.default_rng(0).uniform(0, 1 / per_s, CAMERAS)
    return [
        Stream(
            plan=plan,
            requests=PER_CAMERA,
            arrivals=Every(1 / per_s, start_s=float(phases[k])),
            names={
                "camera": f"camera-{k}",
                "radio": f"radio-{k % HUBS}",
                "hub": f"hub-{k % HUBS}",
                "server": f"server-{k % SERVERS}",
            },
        )
        for k in range(CAMERAS)
    ]


def chiplets() -> Iterator[Row]:
    """Fill a row of 36 chiplets, a stage on each but the last, with more and more requests."""
    plan = row_plan()
    assert len(plan.stages) == 36
    for variation, queue, at_once in product(VARIATIONS, (1, 4), IN_FLIGHT):
        done = simulate(
            plan,
            requests=500,
            arrivals=InFlight(at_once),
            queue=queue,
            jitter=Jitter(stages=variation, hops=variation),
        )
        yield {
            "part": "chiplets",
            "case": "36 in a row",
            "share": plan.predicted.interval_s / done.interval_s,
            "in_flight": at_once,
            "queue": queue,
            "variation": variation,
            **figures(done),
        }


def row_plan() -> Plan:
    """A ResNet-34 of width 14 on the mesh of 6 x 6, every second row from right to left."""
    mesh = load_platform("chiplets-36")
    names = [f"chiplet-{y}-{x if y % 2 == 0 else 5 - x}" for y in range(6) for x in range(6)]
    links = {frozenset(link.between): link for link in mesh.links}
    row = Platform(
        name="36-chiplets-in-a-row",
        devices=tuple(mesh.device(name) for name in names),
        links=tuple(links[frozenset(pair)] for pair in pairwise(names)),
        input=names[0],
        output=names[-1],
    )
    graph = capture(resnet(34, width=14), (torch.zeros(2, 3, 32, 32),))
    return partition(graph, row, objective="throughput")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw latency against load for the fleet, throughput against depth for the chiplets."""
    mpl.use("agg")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for case, style in (
        ("all hubs", "-"),
        ("hub-0 fails", "--"),
        ("hub-0 fails: its cameras", ":"),
    ):
        own = [row for row in rows if row["case"] == case]
        for percent, color in ((50, "C0"), (99, "C3")):
            left.plot(
                [row["load"] for row in own],
                [row[f"simulated_p{percent}_s"] for row in own],
                style,
                color=color,
                label=f"p{percent}, {case}",
            )
    left.set(xlabel="load, share of the radios' capacity", ylabel="latency, s", yscale="log")
    left.set_title("1,000 cameras, 100 hubs, 10 servers, a cloud")
    for queue, style in ((1, "--"), (4, "-")):
        for index, variation in enumerate(VARIATIONS):
            own = [
                row
                for row in rows
                if row["part"] == "chiplets"
                if (row["queue"], row["variation"]) == (queue, variation)
            ]
            right.plot(
                [row["in_flight"] for row in own],
                [row["share"] for row in own],
                style,
                color=f"C{index}",
                label=f"variation {variation:g}, queue {queue}",
            )
    right.set(
        xlabel="requests in flight", ylabel="throughput, share of the plan's", ylim=(0, 1.05)
    )
    right.set_title("36 chiplets in a row")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def text(rows: Sequence[Row], name: str) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    parts = [[row for row in rows if row["part"] == part] for part in ("run", "fleet", "chiplets")]
    return "\n".join(
        [
            f"# {name}",
            "",
            "- command: `taskset -c 1 nice -n -20 python benchmarks/simulate.py`",
            f"- machine: {describe_machine()}; {len(os.sched_getaffinity(0))} of the cores used",
            f"- versions: {versions}, simpy {version('simpy')}",
            f"- revision: {git_revision()}",
            "",
            *runs_text(parts[0]),
            "",
            *fleet_text(parts[1]),
            "",
            *chiplets_text(parts[2]),
            "",
            f"![latency of the fleet, throughput of the chiplets]({name}.png)",
            "",
        ]
    )


def runs_text(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Beside real runs",
        "",
        *paragraph(
            f"""Four bundles in turn over throttled links, {NUM_REQUESTS} requests a run; medians
            of {len(rows) // len(RUNS)} runs, and in brackets the least and the most. Latency is
            with one request in flight, answers per second with as many as stages and links. Each
            run is simulated from what was measured before it with free links and other inputs:
            from what one request takes alone, and from what it takes of a core with as many in
            flight as stages, over links that last no longer than their emulation holds a core; the
            difference is what it takes to wake up a core that does nothing. The emulated devices
            share one core, there as here, and an emulated link holds it for the last 0.2 ms of a
            frame, if it gets it. Off is the simulated figure over the measured one, less one: of
            the medians, and of the worst run. Over SPI the link takes 0.7 ms of some 2, so that
            most is what this machine needs to hand over frames, which varies by half from run to
            run; of the other three the links take most."""
        ),
        "",
        "| platform | | measured | simulated | off | worst run |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in RUNS:
        own = [row for row in rows if row["case"] == case]
        for figure, scale, words in (("p50_s", 1000, "p50, ms"), ("per_s", 1, "answers per s")):
            measured = [scale * row[f"measured_{figure}"] for row in own]
            simulated = [scale * row[f"simulated_{figure}"] for row in own]
            off = statistics.median(simulated) / statistics.median(measured) - 1
            worst = max((s / m - 1 for m, s in zip(measured, simulated, strict=True)), key=abs)
            lines.append(
                f"| {case} | {words} | {spread(measured)} | {spread(simulated)} | "
                f"{100 * off:+.1f} % | {100 * worst:+.1f} % |"
            )
    return lines


def fleet_text(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if "wall_s" in row]
    wall_s, cpu_s = ([row[name] for row in timed] for name in ("wall_s", "cpu_s"))
    lines = [
        "## A fleet",
        "",
        *paragraph(
            f"""{CAMERAS:,} cameras, {HUBS} hubs, {SERVERS} servers and a cloud, by the figures of
            the presets; {CAMERAS * PER_CAMERA:,} requests, each over 4 stages and 3 links, with
            {FLEET_QUEUE} places in every queue. A camera sends at a fixed interval, its first
            image at a random time; times vary by 10 % (stages) and 30 % (hops). The ten cameras
            of a hub share its radio. On one core a simulation takes {spread(wall_s)} s, of which
            {spread(cpu_s)} s on the processor: median and range of {len(timed)}. Wanted: under
            10 s."""
        ),
        "",
        *paragraph(
            f"""Load is the share of what the radios can carry. Hub 0 is away for
            {AWAY_S[1] - AWAY_S[0]:g} s, from {AWAY_S[0]:g} s on."""
        ),
        "",
        "| load | of whom | p50, ms | p99, ms | answers per s | dropped | done again |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return lines + [
        f"| {row['load']:.1f} | {row['case']} | {1000 * row['simulated_p50_s']:.0f} | "
        f"{1000 * row['simulated_p99_s']:.0f} | {row['simulated_per_s']:.0f} | "
        f"{row['dropped']} | {row['retries']} |"
        for row in rows
    ]


def chiplets_text(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## 36 chiplets in a row",
        "",
        *paragraph(
            """A ResNet-34 of width 14 at 32 px on the package `chiplets-36`, a stage on every
            chiplet but the last, planned for throughput; 500 requests. Share is the throughput,
            from the first answer to the last, over what the plan predicts. Times of stages and
            hops vary by the variation, lognormal."""
        ),
        "",
        "| variation | queue | in flight | share | p50, us | p99, us |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return lines + [
        f"| {row['variation']:.1f} | {row['queue']} | {row['in_flight']} | {row['share']:.2f} "
        f"| {1e6 * row['simulated_p50_s']:.0f} | {1e6 * row['simulated_p99_s']:.0f} |"
        for row in rows
    ]


def paragraph(words: str) -> list[str]:
    return textwrap.wrap(" ".join(words.split()), 99)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}..{max(values):.3g})"


if __name__ == "__main__":
    main()
