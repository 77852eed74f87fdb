"""Predicted against measured over links that the kernel shapes, and what a message costs on them.

    python benchmarks/shaped.py [--out benchmarks/results]

Needs Linux, and the right to make network namespaces. A namespace for each device, cables (veth)
between them, segmentation off. A service of a small network is started in them, with keys, and
asked from the first one. With free cables: the median latency with one request in flight, and the
throughput with many. Then `tc tbf` holds both directions of each cable to a rate, and it is
predicted, before another request is sent, what the same service does now. Then other images are
asked. Of a frame every interface counts payload, header, zenoh, TLS, TCP, IP and Ethernet.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from table import write_csv

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.platform import Link, load_platform

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.run.cable import Cable, laid_cables
from tests.run.shaped import platform, predict, served, write_network

MANY = 60  # requests with free cables
SIZES = (64, 1 << 10, 16 << 10)
MESSAGES = 200
FIELDS = ("platform", "what", "unit", "predicted", "by probe", "measured", "low", "high")
OVERHEAD_FIELDS = ("payload bytes", "sent", "frame bytes", "kernel bytes", "overhead bytes",
                   "answered bytes", "repeated segments")  # fmt: skip

Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Cables of one rate in a row, and what crosses each."""

    name: str
    bits_per_s: float
    cuts: tuple[str, ...]
    mtu: int
    requests: int


CASES = (
    Case(name="radio of 250 kbit/s", bits_per_s=250e3, cuts=("8,192 B",), mtu=296, requests=20),
    Case(name="Ethernet of 10 Mbit/s", bits_per_s=1e7, cuts=("131,072 B",), mtu=1500, requests=60),
    Case(name="two hops of 1 Mbit/s", bits_per_s=1e6, cuts=("32,768 B", "8,192 B"), mtu=576,
         requests=20),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    revision, load = git_revision(), os.getloadavg()[0]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    rows: list[Row] = []
    notes: list[str] = []
    for case in CASES:
        found, note = compared(case)
        rows += found
        notes.append(note)
        print(*found, note, sep="\n", flush=True)
    overheads = list(overhead())
    print(*overheads, sep="\n", flush=True)
    name = f"shaped_2core-x86_{date.today():%Y-%m}"
    out.mkdir(parents=True, exist_ok=True)
    for suffix, fields, content in (("", FIELDS, rows), ("_bytes", OVERHEAD_FIELDS, overheads)):
        path = out / f"{name.replace('shaped', f'shaped{suffix}')}.csv"
        write_csv(path, content, fields)
    write_bytes(out / f"{name}.md", page(name, rows, notes, overheads, revision, load).encode())
    print(out / f"{name}.md")


def compared(case: Case) -> tuple[list[Row], str]:
    """Predict a service over shaped cables, then measure it."""
    with TemporaryDirectory() as folder, laid_cables(len(case.cuts)) as cables:
        place = Path(folder)
        devices = platform(case.bits_per_s, len(case.cuts), case.mtu)
        bundle = write_network(place / "bundle", devices, case.cuts)
        with served(cables, place / "bundle", place / "keys") as asker:
            asker.latency_s(MANY, seed=0)
            free_s = median(asker.latency_s(MANY, seed=1))
            free_per_s = asker.per_s(MANY, seed=2)
            bursts = [cable.shape(case.bits_per_s, mtu=case.mtu) for cable in cables]
            links = [probed(cable, place) for cable in cables]
            said = predict(bundle, devices.links, free_s, free_per_s)
            known = predict(bundle, links, free_s, free_per_s)
            asker.latency_s(2, seed=3)
            before = [cable.counted(0) for cable in cables]
            latencies_s = asker.latency_s(case.requests, seed=4)
            time.sleep(0.5)
            sent = [cable.counted(0) - start for cable, start in zip(cables, before, strict=True)]
            paces = [asker.per_s(case.requests, seed=5 + turn) for turn in range(3)]
    low_s, _, high_s = quantiles(latencies_s, n=4)
    rows: list[Row] = [
        {"platform": case.name, "what": "latency, one in flight", "unit": "ms",
         "predicted": 1e3 * said.latency_s, "by probe": 1e3 * known.latency_s,
         "measured": 1e3 * median(latencies_s), "low": 1e3 * low_s, "high": 1e3 * high_s},
        {"platform": case.name, "what": "throughput", "unit": "1/s",
         "predicted": said.per_s, "by probe": known.per_s,
         "measured": median(paces), "low": min(paces), "high": max(paces)},
    ]  # fmt: skip
    hops = zip(devices.links, bundle.crossings, sent, strict=True)
    counts = "; ".join(
        f"{crossing.payload_bytes:,.0f} bytes of payload cross {link.name}, the link's model says "
        f"{link.medium_bytes(crossing.payload_bytes + 14):,.0f} on the medium, the kernel sent "
        f"{count / case.requests:,.0f}"
        for link, crossing, count in hops
    )
    burst_s = sum(bursts) / (case.bits_per_s / 8)
    note = (
        f"{case.name}: packets of {case.mtu} bytes at most; {counts}. With free cables "
        f"{1e3 * free_s:.1f} ms, {free_per_s:.1f} a second. After a pause the kernel's bucket "
        f"lets {bursts[0]:,} bytes pass at once, which saves up to {1e3 * burst_s:.1f} ms of "
        "the latency."
    )
    return [rounded(row) for row in rows], note


def probed(cable: Cable, place: Path) -> Link:
    """Measure a cable by `isthmus probe`; of what it found the rate alone counts here.

    What a message takes besides its bytes is in the latency over free cables already.
    """
    keys, out = place / "keys", place / f"{cable.ends[0]}.yaml"
    with listening(cable, keys):
        command = [*cable.inside(0), sys.executable, "-m", "isthmus", "probe", cable.hosts[1],
                   "--name=a", f"--keys={keys / 'laptop'}", f"--out={out}"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return replace(load_platform(out).links[0], latency_s=0.0, setup_s=0.0)


@contextmanager
def listening(cable: Cable, keys: Path) -> Iterator[None]:
    name = "hub" if cable.hosts[1].startswith("10.77.31") else "cloud"
    command = [*cable.inside(1), sys.executable, "-m", "isthmus", "probe", "--name=b", "--listen",
               cable.hosts[1], f"--keys={keys / name}"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert "answers" in process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def overhead() -> Iterator[Row]:
    """Count what a message takes on the wire, without TLS, by free cables."""
    with laid_cables(1) as (cable,):
        for size in SIZES:
            for way in ("one", "many"):
                send = [*cable.inside(0), sys.executable, "-m", "tests.run.counted",
                        cable.ends[0], cable.hosts[0], str(MESSAGES), str(size), way]  # fmt: skip
                with subprocess.Popen(send, stdout=subprocess.PIPE, text=True) as sending:
                    assert sending.stdout is not None
                    address, before = sending.stdout.readline().strip(), cable.counted(1)
                    read = [*cable.inside(1), sys.executable, "-m", "tests.run.reader", address,
                            "hop", str(MESSAGES)]  # fmt: skip
                    subprocess.run(read, check=True, capture_output=True, timeout=120)
                    found = json.loads(sending.communicate(timeout=60)[0])
                answered = cable.counted(1) - before
                yield {
                    "payload bytes": size,
                    "sent": "one by one" if way == "one" else "at once",
                    "frame bytes": found["frames"] / MESSAGES,
                    "kernel bytes": round(found["counted"] / MESSAGES, 1),
                    "overhead bytes": round(found["counted"] / MESSAGES - size, 1),
                    "answered bytes": round(answered / MESSAGES, 1),
                    "repeated segments": found["retransmitted"],
                }


def rounded(row: Row) -> Row:
    return {key: round(each, 4) if isinstance(each, float) else each for key, each in row.items()}


def page(
    name: str,
    rows: Sequence[Row],
    notes: Sequence[str],
    overheads: Sequence[Row],
    revision: str | None,
    load: float,
) -> str:
    lines = "".join(
        f"| {row['platform']} | {row['what']}, {row['unit']} | {row['predicted']:.4g} | "
        f"{row['by probe']:.4g} | {row['measured']:.4g} | {row['low']:.4g} to {row['high']:.4g} | "
        f"{ratio(row, 'predicted')} | {ratio(row, 'by probe')} |\n"
        for row in rows
    )
    byte_lines = "".join(
        "| " + " | ".join(str(row[field]) for field in OVERHEAD_FIELDS) + " |\n"
        for row in overheads
    )
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    words = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    listed = "".join(f"* {note}\n" for note in notes)
    return f"""# {name}

{words}

Wanted: measured within 10 % of predicted. It is predicted as `isthmus run` does: the median
with free cables, plus what the platform's links take for frame and answer;
throughput is one over what keeps the busiest link busy. The platform's figures are the rate that
`tc` was given, and 66 bytes for each packet. By probe: the same with the rate that `isthmus probe`
found on the shaped cable, and no figure of `tc`.

- command: `python benchmarks/shaped.py`
- machine: {describe_machine()}
- load in the minute before: {load:.1f}
- versions: {versions}
- revision: {revision}

| platform | figure | predicted | by probe | measured | quartiles, or range of 3 | ratio | ratio |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
{lines}
{listed}* No figure here has a latency of its own beside the rate: this kernel has no `netem`.
* A probe takes what the bucket lets pass at once for a higher rate, the more the smaller the
  frames are at which it stops.
* Over 10 % off: {"; ".join(missed(rows)) or "none"}.

What a message takes on the wire: {MESSAGES} messages without TLS over a free cable, the sender's
interface before the first and after the last acknowledgement; overhead is all but the payload, and
answered what the other side sent, its acknowledgements and TCP's, the reader's arrival and leave
included. Each message has a segment of its own also where many are sent at once.

| {" | ".join(OVERHEAD_FIELDS)} |
| ---: | --- | ---: | ---: | ---: | ---: | ---: |
{byte_lines}"""


def missed(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the figures that were not measured within 10 % of predicted."""
    for row in rows:
        for predicted in ("predicted", "by probe"):
            off = float(ratio(row, predicted)) - 1
            if abs(off) > 0.1:
                yield f"{row['platform']}, {row['what']}, {predicted}: {100 * off:+.1f} %"


def ratio(row: Row, predicted: str) -> str:
    return f"{float(str(row['measured'])) / float(str(row[predicted])):.3f}"


if __name__ == "__main__":
    main()
