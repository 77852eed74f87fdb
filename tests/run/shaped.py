"""A bundle served over cables that the kernel shapes; and a process that asks it: host, keys."""

import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus.bundle import Bundle, read_bundle
from isthmus.export import export
from isthmus.graph import capture
from isthmus.plan import partition
from isthmus.platform import Device, Link, Platform
from isthmus.run.client import Client
from isthmus.run.keys import init_keys, issue_key
from isthmus.train import split_with_codecs
from isthmus.wire import HEADER_BYTES
from tests.run.cable import Cable

NAMES = ("camera", "hub", "cloud")
SHAPE = (3, 32, 32)
# Number of operations before a cut, and what crosses there in fp32.
CUTS = {"131,072 B": 2, "32,768 B": 3, "8,192 B": 6}
HEADERS = 20 + 32  # of IPv4, and TCP with time stamps
SEGMENT_BYTES = 14 + HEADERS  # and of Ethernet


def network() -> nn.Module:
    """Return a small network for images of 32 x 32 pixels; its weights are drawn."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()  # fmt: skip


def platform(bits_per_s: float, number: int, mtu: int) -> Platform:
    """Return devices in a row, joined by links as `Cable.shape` makes them."""
    names = NAMES[: number + 1]
    return Platform(
        name="shaped",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in names),
        links=tuple(
            Link(
                between=(names[k], names[k + 1]),
                bytes_per_s=bits_per_s / 8,
                overhead_bytes=SEGMENT_BYTES,
                mtu_bytes=mtu - HEADERS,
            )
            for k in range(number)
        ),
        input=names[0],
        output=names[-1],
    )


def write_network(
    folder: Path, devices: Platform, cuts: Sequence[str], codec: str = "raw"
) -> Bundle:
    """Write a bundle of the network, cut where so much crosses."""
    model, x = network(), torch.zeros(1, *SHAPE)
    graph = capture(model, (x,))
    plan = partition(graph, devices, codec=codec, cut=[CUTS[cut] for cut in cuts])
    export(split_with_codecs(model, plan), plan, folder, samples=(images(8, seed=9),))
    return read_bundle(folder)


def images(number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((number, *SHAPE), np.float32)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What is said of a service before its links are shaped.

    Attributes:
        latency_s: Median with free links, and what each link takes for its frame and, on the way
            back, for the answer.
        per_s: One over what keeps the busiest link busy; or what free links allow, if less.
    """

    latency_s: float
    per_s: float


def predict(bundle: Bundle, links: Sequence[Link], free_s: float, free_per_s: float) -> Predicted:
    """Predict as `isthmus run` does: from free links, and the figures of the links."""
    answer = HEADER_BYTES + sum(4 * int(np.prod(t.shape)) for t in bundle.outputs)
    frames = [crossing.payload_bytes + HEADER_BYTES for crossing in bundle.crossings]
    hops = list(zip(links, frames, strict=True))
    links_s = sum(link.transfer_s(frame) + link.transfer_s(answer) for link, frame in hops)
    busiest_s = max(link.occupied_s(frame) for link, frame in hops)
    return Predicted(latency_s=free_s + links_s, per_s=min(free_per_s, 1 / busiest_s))


@contextmanager
def served(cables: Sequence[Cable], bundle: Path, keys: Path, *options: str) -> Iterator["Asker"]:
    """Serve a device of a bundle in each namespace, and start who asks the first.

    The options are the first device's.
    """
    hosts = (cables[0].hosts[0], *(cable.hosts[1] for cable in cables))
    insides = (cables[0].inside(0), *(cable.inside(1) for cable in cables))
    names = NAMES[: len(hosts)]
    init_keys(keys)
    for name, host in zip(names, hosts, strict=True):
        issue_key(keys, name, hosts=(host, *(cable.hosts[0] for cable in cables)))
    issue_key(keys, "laptop")
    at = [f"--at={name}={host}" for name, host in zip(names, hosts, strict=True)]
    with ExitStack() as stack:
        for name, inside in zip(names, insides, strict=True):
            log = stack.enter_context((keys / f"{name}.log").open("wb"))
            serve = [*inside, sys.executable, "-m", "isthmus", "serve", str(bundle),
                     f"--device={name}", f"--keys={keys / name}", *at,
                     *(options if name == names[0] else ())]  # fmt: skip
            _end(stack, subprocess.Popen(serve, stdout=log, stderr=log))
        ask = [*insides[0], sys.executable, "-m", "tests.run.shaped", hosts[0],
               str(keys / "laptop")]  # fmt: skip
        process = subprocess.Popen(
            ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        _end(stack, process)
        yield Asker(process)


def _end(stack: ExitStack, process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Kill a process at the end, then wait for it and close its pipes."""
    stack.enter_context(process)
    stack.callback(process.kill)


class Asker:
    """Who asks the service, in its own process inside the first namespace."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def latency_s(self, number: int, seed: int) -> list[float]:
        """Return how long each of so many requests takes, one in flight."""
        found = self._ask("latency", number, seed)
        assert isinstance(found, list)
        return found

    def per_s(self, number: int, seed: int) -> float:
        """Return how many requests a second are answered, as many in flight as may be."""
        found = self._ask("throughput", number, seed)
        assert isinstance(found, float)
        return found

    def widths(self, number: int, seed: int) -> list[tuple[float, str]]:
        """Return the same as `latency_s`, and what width each request had."""
        found = self._ask("widths", number, seed)
        assert isinstance(found, list)
        return [(float(seconds), str(width)) for seconds, width in found]

    def _ask(self, what: str, number: int, seed: int) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, number, seed, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main(host: str, keys: str) -> None:
    with Client(host, keys=Path(keys), deadline_s=60) as client:
        for line in sys.stdin:
            what, number, seed = line.split()
            x = images(int(number), int(seed))
            if what == "widths":
                print(json.dumps([_with_width(client, sample) for sample in x]), flush=True)
                continue
            if what == "latency":
                print(json.dumps([_timed(client, sample) for sample in x]), flush=True)
                continue
            print(json.dumps(_pace(client, x)), flush=True)


def _pace(client: Client, x: np.ndarray) -> float:
    """Return answers a second; those that come while the pipeline fills do not count."""
    ends: queue.SimpleQueue[float] = queue.SimpleQueue()
    futures = [client.submit(sample) for sample in x]
    for future in futures:
        future.add_done_callback(lambda _: ends.put(time.perf_counter()))
    for future in futures:
        future.result()
    ends_s = sorted(ends.get(timeout=10) for _ in futures)
    first = len(ends_s) // 4
    return (len(ends_s) - 1 - first) / (ends_s[-1] - ends_s[first])


def _timed(client: Client, sample: np.ndarray) -> float:
    start_s = time.perf_counter()
    client.ask(sample)
    return time.perf_counter() - start_s


def _with_width(client: Client, sample: np.ndarray) -> tuple[float, str]:
    start_s = time.perf_counter()
    width = client.ask(sample).width
    return time.perf_counter() - start_s, width


if __name__ == "__main__":
    main(*sys.argv[1:])
