"""What a hop costs beside zenoh alone and bare TCP, and how a service of two devices starts.

    python benchmarks/runtime.py [--out benchmarks/results]

Between two processes on this machine's loopback, one request in flight, in turns so that all ways
meet the same machine: half of a round trip. Zenoh alone answers from its own callback, as its
examples do; handed over, from the thread that works, as a stage has to. Then frames one way as
fast as they go, until the last one has been taken. Then a service of two small devices: from
starting both processes to the first answer, what each holds in memory, and one request at a time.
"""

import argparse
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import zenoh
from table import write_csv

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision, keep_freed_memory, library_versions
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import Terms
from isthmus.run.session import locator, open_session

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.run.bundles import FAST, samples, write_chain
from tests.run.services import devices

SIZES = (64, 4 << 10, 64 << 10, 1 << 20)
TURNS = 60
TERMS = Terms(bundle="benchmark", codec="none")
MANY = 100  # frames one way
WAYS = ("tcp", "zenoh", "zenoh, handed over", "isthmus")
END = b"end"
STREAM = 1 << 31

Row = dict[str, object]
Trip = Callable[[bytes], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    revision, load = git_revision(), os.getloadavg()[0]
    rows = [*hops(), *service()]
    name = f"runtime_2core-x86_{date.today():%Y-%m}"
    write_csv(out / f"{name}.csv", rows, ["what", "way", "bytes", "figure", "value", "p90"])
    write_bytes(out / f"{name}.md", page(name, rows, revision, load).encode())
    print(out / f"{name}.md")


def hops() -> list[Row]:
    """Time round trips and one-way streams, in turns."""
    rows: list[Row] = []
    with ExitStack() as stack:
        trips, streams = ways(stack)
        for size in SIZES:
            data = os.urandom(size)
            seconds: dict[str, list[float]] = {way: [] for way in trips}
            for _ in range(TURNS):
                for way, trip in trips.items():
                    for turn in range(30 if size < 1 << 20 else 10):
                        start_s = time.perf_counter()
                        trip(data)
                        if turn > 2:
                            seconds[way].append((time.perf_counter() - start_s) / 2)
            for way, found in seconds.items():
                p90 = statistics.quantiles(found, n=10)[-1]
                rows.append(row("hop", way, size, "us", 1e6 * statistics.median(found), 1e6 * p90))
        data = os.urandom(1 << 20)
        rates: dict[str, list[float]] = {way: [] for way in streams}
        for _ in range(5):
            for way, stream in streams.items():
                start_s = time.perf_counter()
                stream(data)
                rates[way].append(MANY * len(data) / (time.perf_counter() - start_s) / 1e6)
        for way, found in rates.items():
            rows.append(row("stream", way, 1 << 20, "MB/s", statistics.median(found), min(found)))
    return rows


def ways(stack: ExitStack) -> tuple[dict[str, Trip], dict[str, Trip]]:
    """Start a process for each way, and return how to go there and back, and one way."""
    session = stack.enter_context(open_session())
    tcp, tcp_stream = by_tcp(stack)
    alone, _ = by_zenoh(stack, session, "zenoh")
    handed, zenoh_stream = by_zenoh(stack, session, "handed")
    hop, hop_stream = by_hop(stack, session)
    trips = dict(zip(WAYS, (tcp, alone, handed, hop), strict=True))
    return trips, {WAYS[0]: tcp_stream, WAYS[2]: zenoh_stream, WAYS[3]: hop_stream}


def by_tcp(stack: ExitStack) -> tuple[Trip, Trip]:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    start(stack, "tcp", str(server.getsockname()[1]))
    near = stack.enter_context(server.accept()[0])
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def trip(data: bytes) -> None:
        near.sendall(len(data).to_bytes(4, "little") + data)
        taken(near, int.from_bytes(taken(near, 4), "little"))

    def stream(data: bytes) -> None:
        near.sendall(STREAM.to_bytes(4, "little"))  # what follows is not sent back
        for _ in range(MANY):
            near.sendall(data)
        taken(near, 1)

    return trip, stream


def by_zenoh(stack: ExitStack, session: zenoh.Session, kind: str) -> tuple[Trip, Trip]:
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    there = publisher(session, f"{kind}/there")
    back = session.declare_subscriber(
        f"{kind}/back", lambda sample: arrived.put(sample.payload.to_bytes())
    )
    stack.callback(back.undeclare)
    start(stack, kind, locator(session))
    while not there.matching_status.matching:
        time.sleep(0.01)
    put = there.put

    def trip(data: bytes) -> None:
        put(data)
        arrived.get(timeout=30)

    def stream(data: bytes) -> None:
        for _ in range(MANY):
            put(END + data)
        put(END)
        arrived.get(timeout=60)

    return trip, stream


def by_hop(stack: ExitStack, session: zenoh.Session) -> tuple[Trip, Trip]:
    receiver = Receiver(session, "hop/back", TERMS)
    sender = stack.enter_context(Sender(session, "hop/there", crossing=0, timeout_s=30))
    start(stack, "hop", locator(session))
    sender.agree(TERMS)
    numbers = iter(range(1 << 30))

    def trip(data: bytes) -> None:
        number = next(numbers)
        sender.send(number, data)
        frame = receiver.receive(30)
        assert frame is not None
        assert frame.request == number

    def stream(data: bytes) -> None:
        for _ in range(MANY):
            sender.send(next(numbers), END + data)
        assert sender.flush(60)

    return trip, stream


def start(stack: ExitStack, kind: str, place: str) -> None:
    process = subprocess.Popen(
        [sys.executable, __file__, "echo", kind, place], stdout=subprocess.PIPE
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    process.stdout.readline()


def echo_tcp(place: str) -> None:
    far = socket.create_connection(("127.0.0.1", int(place)))
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    while True:
        size = int.from_bytes(taken(far, 4), "little")
        if size == STREAM:
            for _ in range(MANY):
                taken(far, 1 << 20)
            far.sendall(b"!")
        else:
            far.sendall(size.to_bytes(4, "little") + taken(far, size))


def echo_zenoh(place: str) -> None:
    with open_session(connect=place) as session:
        back = publisher(session, "zenoh/back")
        held = session.declare_subscriber(
            "zenoh/there", lambda sample: back.put(sample.payload.to_bytes())
        )
        print("ready", flush=True)
        threading.Event().wait()
        held.undeclare()


def echo_handed(place: str) -> None:
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with open_session(connect=place) as session:
        back = publisher(session, "handed/back")
        held = session.declare_subscriber(
            "handed/there", lambda sample: arrived.put(sample.payload.to_bytes())
        )
        print("ready", flush=True)
        while data := arrived.get():
            if not data.startswith(END) or data == END:
                back.put(data)
        held.undeclare()


def echo_hop(place: str) -> None:
    with open_session(connect=place) as session:
        receiver = Receiver(session, "hop/there", TERMS)
        print("ready", flush=True)
        with Sender(session, "hop/back", crossing=1, timeout_s=30) as sender:
            sender.agree(TERMS)
            while True:
                frame = receiver.receive(30)
                if frame is not None and frame.payload[:3] != END:
                    sender.send(frame.request, frame.payload)


ECHOES = {"tcp": echo_tcp, "zenoh": echo_zenoh, "handed": echo_handed, "hop": echo_hop}


def publisher(session: zenoh.Session, key: str) -> zenoh.Publisher:
    return session.declare_publisher(
        key,
        congestion_control=zenoh.CongestionControl.BLOCK,
        reliability=zenoh.Reliability.RELIABLE,
        express=True,
    )


def taken(end: socket.socket, size: int) -> bytes:
    """Return so many bytes, in one piece."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = end.recv_into(view[done:])
        if not count:
            sys.exit()
        done += count
    return bytes(data)


def service() -> list[Row]:
    """Start two devices, ask them, and look at their memory."""
    names, rows, starts_s = ("near", "far"), [], []
    x = samples(500)
    for _ in range(5):
        with TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            write_chain(bundle, FAST)
            with devices(bundle, names) as hosts, hosts.client() as client:
                start_s = time.perf_counter()
                for name in names:
                    hosts.start(name)
                client.ask(x[0])
                starts_s.append(time.perf_counter() - start_s)
                seconds = []
                for sample in x:
                    start_s = time.perf_counter()
                    client.ask(sample)
                    seconds.append(time.perf_counter() - start_s)
                memory = max(
                    psutil.Process(each.pid).memory_info().rss for each in hosts.processes.values()
                )
    median_s, p90 = statistics.median(seconds), statistics.quantiles(seconds, n=10)[-1]
    rows.append(row("service", "two devices", 0, "s to the first answer",
                    statistics.median(starts_s), max(starts_s)))  # fmt: skip
    rows.append(row("service", "two devices", 32, "ms a request", 1e3 * median_s, 1e3 * p90))
    rows.append(row("service", "largest device", 0, "MB of memory", memory / 1e6, memory / 1e6))
    return rows


def row(what: str, way: str, size: int, figure: str, value: float, p90: float) -> Row:
    return {"what": what, "way": way, "bytes": size, "figure": figure,
            "value": round(value, 2), "p90": round(p90, 2)}  # fmt: skip


def page(name: str, rows: list[Row], revision: str | None, load: float) -> str:
    found = {(each["what"], each["way"], each["bytes"]): each for each in rows}
    hop_lines = "".join(
        f"| {size:,} | "
        + " | ".join(f"{found['hop', way, size]['value']} ({found['hop', way, size]['p90']})"
                     for way in WAYS)
        + f" | {ratio(found, size, 'zenoh'):.2f} | {ratio(found, size, WAYS[2]):.2f} |\n"
        for size in SIZES
    )  # fmt: skip
    rates = {
        way: float(str(found["stream", way, 1 << 20]["value"])) for way in (WAYS[0], *WAYS[2:])
    }
    stream_lines = "".join(
        f"| {way} | {rate:,.0f} | {rate / rates[WAYS[2]]:.2f} |\n" for way, rate in rates.items()
    )
    service_lines = "".join(
        f"| {each['way']} | {each['figure']} | {each['value']} | {each['p90']} |\n"
        for each in rows
        if each["what"] == "service"
    )
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    words = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    return f"""# {name}

{words}

Wanted: a hop at most 1.30 times zenoh alone, a stream at least 0.90 of it; a device up in 1 s and
110 MB. What a hop adds is Python's: on both sides a dictionary and a checksum; and a payload
stays in memory until it is acknowledged, so that the next one is written to memory that no cache
holds.

- command: `{command()}`
- machine: {describe_machine()}
- load in the minute before: {load:.1f}
- versions: {versions}
- revision: {revision}

One way, microseconds, median (90th percentile), and how many times zenoh's:

| bytes | {" | ".join(WAYS)} | over zenoh | over zenoh, handed over |
| ---: | {"---: | " * (len(WAYS) + 2)}
{hop_lines}
{MANY} frames of 1 MiB one way, median of 5:

| way | MB/s | of zenoh, handed over |
| --- | ---: | ---: |
{stream_lines}
A service, 5 starts; the last column is the 90th percentile, or the worst of the starts:

| what | figure | median | worst |
| --- | --- | ---: | ---: |
{service_lines}"""


def command() -> str:
    """Return what was run; in real time, other work on the machine does not get between."""
    in_turn = os.sched_getscheduler(0) == os.SCHED_FIFO
    return f"{'chrt -f 10 ' if in_turn else ''}python benchmarks/runtime.py"


def ratio(found: dict[tuple[object, object, object], Row], size: int, way: str) -> float:
    ours, theirs = (float(str(found["hop", each, size]["value"])) for each in (WAYS[3], way))
    return ours / theirs


if __name__ == "__main__":
    keep_freed_memory()  # as devices do; bare TCP gains the most
    ECHOES[sys.argv[2]](sys.argv[3]) if sys.argv[1:2] == ["echo"] else main()
