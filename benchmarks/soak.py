"""Is anything lost when it runs for long, and when its devices are killed again and again?

    python benchmarks/soak.py [--requests 1000000] [--kills 200] [--out benchmarks/results]

First many requests through two devices of `isthmus run`, as many in flight as stages and links:
each answer is compared with the right one, and memory and open descriptors of all processes are
read a thousand times; the first tenth of these readings stands beside the last. Then a service of
three devices under load, of which one at random is killed (SIGKILL) and started again: each
request has to end once, in the right answer or in a typed error, by its deadline.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from table import write_csv

from isthmus.errors import RequestError
from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision, keep_freed_memory, library_versions
from isthmus.run.processes import start_workers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import devices
from tests.run.test_service import MIDDLE, THREE

SAMPLES = 1000
READINGS = 1000
IN_FLIGHT = 3
PER_KILL = 40
DEADLINE_S = 30.0

Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    keep_freed_memory()
    revision, load = git_revision(), os.getloadavg()[0]
    rows = [*long_run(arguments.requests), *kills(arguments.kills)]
    name = f"soak_2core-x86_{date.today():%Y-%m}"
    write_csv(arguments.out / f"{name}.csv", rows, ["what", "figure", "value"])
    write_bytes(arguments.out / f"{name}.md", page(name, rows, revision, load).encode())
    print(arguments.out / f"{name}.md")


def long_run(count: int) -> Iterator[Row]:
    """Ask for so many answers, and look after memory and descriptors."""
    x = samples(SAMPLES)
    right = logits(x)
    every = max(1, count // READINGS)
    memory: dict[str, list[int]] = {}
    descriptors: dict[str, list[int]] = {}
    waiting: deque[int] = deque()
    wrong = unanswered = again = 0
    with TemporaryDirectory() as folder:
        write_chain(Path(folder) / "bundle", FAST)
        with start_workers(Path(folder) / "bundle") as workers:
            names = [device.name for device in workers.bundle.devices]
            processes = {"launcher": psutil.Process()}
            for name, process in zip(names, workers.processes, strict=True):
                processes[name] = psutil.Process(process.pid)
            start_s = time.perf_counter()
            for number in range(count + IN_FLIGHT):
                if number < count:
                    waiting.append(workers.send([x[number % SAMPLES]]))
                if number >= IN_FLIGHT or number >= count:
                    reply = workers.receive()
                    expected = waiting.popleft()
                    if reply is None:
                        unanswered += 1
                    elif reply.request != expected or not np.array_equal(
                        reply.outputs[0], right[expected % SAMPLES]
                    ):
                        wrong += 1
                if number % every == 0:
                    again = sum(timings.retries for timings in workers.timings())
                    read(processes, memory, descriptors)
                    print(f"requests {number}/{count}", file=sys.stderr, flush=True)
            seconds = time.perf_counter() - start_s
    yield row("long run", "requests", count)
    yield row("long run", "without an answer", unanswered)
    yield row("long run", "wrong or out of order", wrong)
    yield row("long run", "frames sent again", again)
    yield row("long run", "answers per second", round(count / seconds, 1))
    for name, found in memory.items():
        first, last = tenths(found)
        yield row(name, "MB, first tenth", round(first / 1e6, 2))
        yield row(name, "MB, last tenth", round(last / 1e6, 2))
        first, last = tenths(descriptors[name])
        yield row(name, "descriptors, first tenth", first)
        yield row(name, "descriptors, last tenth", last)


def read(
    processes: dict[str, psutil.Process],
    memory: dict[str, list[int]],
    descriptors: dict[str, list[int]],
) -> None:
    for name, each in processes.items():
        memory.setdefault(name, []).append(each.memory_info().rss)
        descriptors.setdefault(name, []).append(each.num_fds())


def tenths(found: list[int]) -> tuple[float, float]:
    tenth = max(1, len(found) // 10)
    return statistics.median(found[:tenth]), statistics.median(found[-tenth:])


def kills(count: int) -> Iterator[Row]:
    """Kill a device under load, at random, so many times."""
    choose = random.Random(0)
    x = samples(PER_KILL)
    right = logits(x)
    ended: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    late = 0
    with TemporaryDirectory() as folder:
        write_chain(Path(folder) / "bundle", *MIDDLE)
        with (
            devices(Path(folder) / "bundle", THREE) as hosts,
            hosts.client(deadline_s=DEADLINE_S) as client,
        ):
            for name in THREE:
                hosts.start(name)
            client.ask(x[0], deadline_s=60.0)
            for number in range(count):
                victim = choose.choice(THREE)
                start_s = time.monotonic()
                futures = [client.submit(sample) for sample in x]
                time.sleep(choose.uniform(0, 0.1))
                hosts.kill(victim)
                hosts.start(victim)
                victims[victim] += 1
                for future, expected in zip(futures, right, strict=True):
                    try:
                        found = future.result(10 * DEADLINE_S)[0]
                        ended["right" if np.array_equal(found, expected) else "wrong"] += 1
                    except RequestError as error:
                        ended[f"error: {error.reason}"] += 1
                rounds = -(-PER_KILL // 16)  # sixteen of one client at a time
                late += time.monotonic() - start_s > rounds * (DEADLINE_S + 1)
                print(f"kills {number + 1}/{count}", file=sys.stderr, flush=True)
            client.ask(x[0])  # it still answers
            again = client.about().retries
    yield row("kills", "kills", count)
    for name, times in sorted(victims.items()):
        yield row("kills", f"of device {name}", times)
    yield row("kills", "requests", count * PER_KILL)
    for outcome, times in sorted(ended.items()):
        yield row("kills", outcome, times)
    yield row("kills", "rounds past the deadline", late)
    yield row("kills", "sent once more, since the first device's last start", again)


def row(what: str, figure: str, value: object) -> Row:
    return {"what": what, "figure": figure, "value": value}


def page(name: str, rows: list[Row], revision: str | None, load: float) -> str:
    words = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    lines = "".join(f"| {each['what']} | {each['figure']} | {each['value']} |\n" for each in rows)
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    return f"""# {name}

{words}

- command: `python benchmarks/soak.py`
- machine: {describe_machine()}
- load in the minute before: {load:.1f}
- versions: {versions}
- revision: {revision}

| what | figure | value |
| --- | --- | ---: |
{lines}"""


if __name__ == "__main__":
    main()
