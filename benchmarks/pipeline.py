"""Pipelines of two and four stages: how near they come to what bounds them, and two rivals.

    python benchmarks/pipeline.py [--out benchmarks/results]

A ResNet-18 with random weights (only time and bytes matter here) is cut where the stages take
about as long, and runs as a process for each stage on this machine's loopback, one thread each;
and once where one of four stages takes most of the time, as four equal ones on two cores are bound
by the cores and not by the slowest of them. Beside it, the same stages of the same network:
torch.distributed by gloo, and pickled numpy over plain sockets; both send fp32 tensors and compute
with torch, as such set-ups do. Isthmus sends the crossing as integers of 4 bits and computes with
onnxruntime; a second row computes up to eight requests that wait in one call (`batch: 8`), a third
sends the crossing as fp32, and in a fourth the links are emulated ones, so that the slowest of
them is the bound and not the cores.

A pipeline cannot answer more often than its slowest stage or link, nor, where stages share cores,
than the cores allow; a request cannot take less than its stages and emulated links one after the
other, and what is between them: as many bytes one way, from the client to the first stage, over
each crossing and back with the answer, as `benchmarks/runtime.py` times them in the same run: by
zenoh alone, handed over, for Isthmus, by bare TCP for the rivals. Messages come as far apart as a
request takes, since a process that has slept is slower to take one; one right after the other they
are hot, and take a third to a half of that.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from table import write_csv

from isthmus.bundle import PLATFORM_FILE, read_bundle, write_bundle
from isthmus.export import export
from isthmus.files import write_bytes
from isthmus.graph import Graph, capture, cuts
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.plan import Plan, partition
from isthmus.platform import Device, Link, Platform, load_platform
from isthmus.run import run_bundle
from isthmus.run.messages import in_flight
from isthmus.run.processes import Workers, start_workers
from isthmus.run.session import open_session
from isthmus.train import calibrate, split_with_codecs
from isthmus.wire import HEADER_BYTES

sys.path.insert(0, str(Path(__file__).parent))

from rival_stage import ENDS, REQUESTS, RIVALS, network
from runtime import Trip, by_tcp, by_zenoh

Array = npt.NDArray[Any]
Row = dict[str, Any]

STAGE = Path(__file__).parent / "rival_stage.py"
REPETITIONS = 3
TRIPS = 20
BATCH = 8
WARM_UP = 20
FREE, SLOW = 1e10, 3e6  # bytes a second of links: no one waits for them, and these are the bound
CORES = len(os.sched_getaffinity(0))
CUT_WORDS = {"even2": "2", "even4": "4", "uneven4": "4, uneven"}
FIELDS = ("stages", "cut", "way", "bytes", "start_s", "memory_mb", "latency_ms", "stages_ms",
          "sum_ms", "wire_ms", "hot_wire_ms", "over_sum", "per_s", "bound_per_s", "of_bound",
          "of_bound_least", "of_bound_most", "besides_ms", "client_ms", "idle")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    revision, load = git_revision(), os.getloadavg()[0]
    rows = [row for cut in ENDS for row in measure(cut)]
    name = f"pipeline_2core-x86_{date.today():%Y-%m}"
    write_csv(out / f"{name}.csv", rows, FIELDS)
    write_bytes(out / f"{name}.md", page(name, rows, revision, load).encode())
    print(out / f"{name}.md")


def inputs(count: int) -> Array:
    return np.random.default_rng(0).random((count, 3, 32, 32), np.float32)


def chain(stages: int, rate: float) -> Platform:
    """Return equal devices one after the other, joined by links of some bytes a second."""
    names = [f"stage{k}" for k in range(stages)]
    return Platform(
        name=f"chain-{stages}",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in names),
        links=tuple(Link(between=(near, far), bytes_per_s=rate) for near, far in pairwise(names)),
        input=names[0],
        output=names[-1],
    )


def plan_of(graph: Graph, cut: str, codec: str, rate: float) -> Plan:
    """Cut after the network's own layers, so that the rivals can take the same ones."""
    indices = {place.after: place.index for place in cuts(graph)}
    where = [indices[name] for name in ENDS[cut]]
    return partition(graph, chain(len(where) + 1, rate), codec=codec, cut=where)


def measure(cut: str) -> Iterator[Row]:
    """Run all ways, in turns; medians of their turns."""
    stages = len(ENDS[cut]) + 1
    with TemporaryDirectory() as folder:
        model, x = network(), inputs(REQUESTS)
        graph = capture(model, (torch.from_numpy(x[:2]),))
        ways: dict[str, Callable[[], Row]] = {}
        sizes: dict[str, list[int]] = {}
        ends = [x[0].nbytes, model(torch.from_numpy(x[:1])).detach().numpy().nbytes]
        for codec, rate in (("uniform:bits=4", FREE), ("uniform:bits=4", SLOW), ("raw", FREE)):
            plan = plan_of(graph, cut, codec, rate)
            split_model = split_with_codecs(model, plan)
            calibrate(split_model, (torch.from_numpy(x[:16]),))
            way = f"isthmus, {codec}" + f", links of {rate / 1e6:g} MB/s" * (rate == SLOW)
            path = Path(folder) / str(len(ways))
            export(split_model, plan, path, samples=[x[:4]])
            ways[way] = partial(isthmus, path, x, throttle=rate == SLOW)
            sizes[way] = [*ends, *(int(c.payload_bytes) for c in plan.crossings)]
            if way == "isthmus, uniform:bits=4":
                batched = give_batch(path, Path(folder) / "batched")
                ways[f"{way}, batch {BATCH}"] = partial(isthmus, batched, x)
                sizes[f"{way}, batch {BATCH}"] = sizes[way]
        for kind in RIVALS:
            ways[kind] = partial(rival, kind, cut, x)
            sizes[kind] = sizes["isthmus, raw"]
        found: dict[str, list[Row]] = {way: [] for way in ways}
        for _ in range(REPETITIONS):
            for way, turn in ways.items():
                row, alone = turn(), by_tcp if way in RIVALS else by_zenoh_alone
                row["wire_ms"] = 1e3 * one_way_s(sizes[way], alone, row["latency_ms"] / 1e3)
                row["hot_wire_ms"] = 1e3 * one_way_s(sizes[way], alone, 0.0)
                found[way].append(row)
                print(cut, way, found[way][-1], flush=True)
        for way, turns in found.items():
            yield {"stages": stages, "cut": cut, "way": way, **summary(turns)}


def summary(turns: Sequence[Row]) -> Row:
    """Return the medians of a way's turns; ratios are those within a turn."""
    over_sum = [turn["latency_ms"] / (turn["sum_ms"] + turn["wire_ms"]) for turn in turns]
    of_bound = [turn["per_s"] / turn["bound_per_s"] for turn in turns]
    return {
        **{name: statistics.median(turn[name] for turn in turns) for name in turns[0]},
        "over_sum": statistics.median(over_sum),
        "of_bound": statistics.median(of_bound),
        "of_bound_least": min(of_bound),
        "of_bound_most": max(of_bound),
    }


def one_way_s(
    sizes: Iterable[int], way: Callable[[ExitStack], tuple[Trip, Trip]], pause_s: float
) -> float:
    """Return what so many bytes take one way: halves of median trips, with a pause before each."""
    with ExitStack() as stack:
        trip, _ = way(stack)
        total_s = 0.0
        for size in sizes:
            data, times_s = os.urandom(size), []
            for _ in range(TRIPS):
                time.sleep(pause_s)
                start_s = time.perf_counter()
                trip(data)
                times_s.append(time.perf_counter() - start_s)
            total_s += statistics.median(times_s) / 2
    return total_s


def by_zenoh_alone(stack: ExitStack) -> tuple[Trip, Trip]:
    return by_zenoh(stack, stack.enter_context(open_session()), "handed")


def give_batch(path: Path, copy: Path) -> Path:
    """Copy a bundle, with a batch for each of its devices."""
    shutil.copytree(path, copy)
    bundle = read_bundle(path)
    devices = tuple(replace(device, batch=BATCH) for device in bundle.devices)
    write_bundle(copy, replace(bundle, devices=devices))
    return copy


def isthmus(path: Path, x: Array, *, throttle: bool = False) -> Row:
    """Run a bundle: its start and memory, then latency and throughput as `isthmus run` does."""
    start_s = time.perf_counter()
    with start_workers(path) as workers:
        workers.ask([x[0]])
        started_s = time.perf_counter() - start_s
        memory = max(psutil.Process(each.pid).memory_info().rss for each in workers.processes)
        where = None if throttle else processor_time(workers, x)
    record = run_bundle(path, [x], throttle=throttle, warmup_inputs=[x[::-1]])
    links = load_platform(path / PLATFORM_FILE).links if throttle else ()
    links_s = [
        link.transfer_s(crossing.payload_bytes_measured + HEADER_BYTES)
        for link, crossing in zip(links, record.crossings, strict=False)
    ]
    each_s = [
        sum(stage.times_s[step].p50 for step in ("decode", "compute", "encode"))
        for stage in record.stages
    ]
    num_bytes = sum(crossing.payload_bytes_measured for crossing in record.crossings)
    row = figures(num_bytes, started_s, memory, record.latency_s.p50, each_s,
                  record.throughput_per_s, links_s)  # fmt: skip
    if where is None:
        return row
    devices_s, client_s, idle = where
    return row | {
        "besides_ms": 1e3 * (devices_s - sum(each_s)),
        "client_ms": 1e3 * client_s,
        "idle": idle,
    }


def processor_time(workers: Workers, x: Array) -> tuple[float, float, float]:
    """Return what a request takes of the cores when all stages are busy.

    Returns:
        Processor time of all devices and of this process, in seconds a request, and the share of
        the cores that had nothing to do.
    """
    pids = [each.pid for each in workers.processes]

    def used() -> tuple[float, float, float]:
        devices_s = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
        return devices_s, time.process_time(), psutil.cpu_times().idle

    for _ in range(WARM_UP):
        workers.ask([x[0]])
    before, start_s = used(), time.perf_counter()
    depth = in_flight(workers.bundle)
    for index in range(len(x) + depth):
        if index >= depth:
            workers.receive()
        if index < len(x):
            workers.send([x[index]])
    wall_s = time.perf_counter() - start_s
    devices_s, client_s, idle_s = (b - a for a, b in zip(before, used(), strict=True))
    return devices_s / len(x), client_s / len(x), idle_s / (wall_s * CORES)


def figures(
    num_bytes: float, start_s: float, memory: int, latency_s: float, each_s: list[float],
    per_s: float, links_s: Sequence[float] = (),
) -> Row:  # fmt: skip
    return {
        "bytes": num_bytes,
        "start_s": start_s,
        "memory_mb": memory / 1e6,
        "latency_ms": 1e3 * latency_s,
        "stages_ms": 1e3 * sum(each_s),
        "sum_ms": 1e3 * sum((*each_s, *links_s)),
        "per_s": per_s,
        "bound_per_s": min(1 / max((*each_s, *links_s)), CORES / sum(each_s)),
    }


def rival(kind: str, cut: str, x: Array) -> Row:
    """Run the stages of a rival, and measure the same from outside."""
    stages = len(ENDS[cut]) + 1
    port = free_port()
    start_s = time.perf_counter()
    with ExitStack() as stack:
        processes = []
        for rank in range(1, stages + 1):
            command = [sys.executable, STAGE, kind, cut, str(rank), str(port)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(processes[-1].kill)
        send, receive = RIVALS[kind](stack, 0, stages, port)
        send(x[:1])
        receive()
        started_s = time.perf_counter() - start_s
        memory = max(psutil.Process(each.pid).memory_info().rss for each in processes)
        latencies_s = []
        for sample in x:
            begin_s = time.perf_counter()
            send(sample[np.newaxis])
            receive()
            latencies_s.append(time.perf_counter() - begin_s)
        begin_s = time.perf_counter()
        for index in range(len(x) + stages):  # as many in flight as there are stages
            if index >= stages:
                receive()
            if index < len(x):
                send(x[index : index + 1])
        per_s = len(x) / (time.perf_counter() - begin_s)
        send(np.zeros((0, 3, 32, 32), np.float32))  # the end
        said = [process.communicate(timeout=60)[0].split() for process in processes]
    each_s = [float(words[0]) for words in said]
    num_bytes = sum(int(words[1]) for words in said[:-1])
    return figures(num_bytes, started_s, memory, statistics.median(latencies_s), each_s, per_s)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def page(name: str, rows: list[Row], revision: str | None, load: float) -> str:
    words = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    lines = "".join(
        f"| {CUT_WORDS[row['cut']]} | {row['way']} | {row['bytes']:,.0f} | {row['start_s']:.2f} | "
        f"{row['memory_mb']:.0f} | {row['latency_ms']:.2f} | {row['sum_ms']:.2f} | "
        f"{row['wire_ms']:.2f} | {row['hot_wire_ms']:.2f} | {row['over_sum']:.2f} | "
        f"{row['per_s']:.1f} | {row['of_bound']:.2f} "
        f"({row['of_bound_least']:.2f}-{row['of_bound_most']:.2f}) |\n"
        for row in rows
    )
    times = "".join(
        f"| {CUT_WORDS[row['cut']]} | {row['way']} | {row['stages_ms']:.2f} | "
        f"{row['besides_ms']:.2f} | {row['client_ms']:.2f} | {100 * row['idle']:.1f} |\n"
        for row in rows
        if "idle" in row
    )
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    return f"""# {name}

{words}

Wanted of Isthmus: at least 0.90 of the bound, and a latency of at most 1.10 times the sum.

- command: `python benchmarks/pipeline.py`
- machine: {describe_machine()}
- load in the minute before: {load:.1f}
- versions: {versions}
- revision: {revision}

{REQUESTS} requests, medians of {REPETITIONS} turns. Bytes are those of all crossings of one
request; start is from starting the processes to the first answer; MB is the memory of the largest
stage; ms is the latency of one request in flight, stages what these take one after the other,
codecs and emulated links included, and wire what is between them, hot the same without pauses;
over sum is the latency over both; the bound is
what the slowest stage or the cores allow, and its share that of the median turn (least-most).

| stages | way | bytes | start, s | MB | ms | stages | wire | hot | over sum | per s | of bound |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{lines}
Filling and emptying the pipeline count. Where the cores are the bound, what is missing is theirs:
while all stages are busy, a request takes of the processes of all devices what its stages take
when it is alone, and besides, for its messages and as stages that share a core share its caches;
it takes some of the client's; and a part of both cores' time passes unused, though there are
stages that could run, as the kernel leaves a task on its core for a while. More requests in
flight, other classes and slices of the scheduler, and fewer threads of zenoh's changed nothing
that could be told from the spread of such runs, which is 0.05 of the bound (tried by hand).
Batches need fewer messages and less time in a stage.

| stages | way | stages alone, ms | besides, ms | client, ms | unused, % |
| --- | --- | ---: | ---: | ---: | ---: |
{times}"""


if __name__ == "__main__":
    main()
