"""How fast do symbols become bytes and back, and how much of that time is the library's?

    python benchmarks/wire_speed.py [--out benchmarks/results]

One thread, time on the processor. The entropy stage, its library alone on the same symbols
(constriction's rANS: a call for every row of frequencies, tables and ranks made beforehand), the
decoder in plain Python, and the packing of bits. Ours and the library's are timed in turns, so
that both meet the same machine.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np
from constriction import stream as library
from table import write_csv

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.wire import reference, stream
from isthmus.wire.bits import pack_bits, unpack_bits
from isthmus.wire.tables import Tables, fit_tables

Shape = tuple[int, int, int]
Bytes = np.ndarray


@dataclass(frozen=True)
class Case:
    """A kind of map: ``scale`` is the spread of its Laplacian symbols."""

    name: str
    shape: Shape
    bits: int
    scale: float
    bulk: bool = False
    escapes: int = 0
    runs: bool = False


CASES = (
    Case("bulk, 0.7 bits a symbol", (8, 512, 512), 4, 0.3, bulk=True),
    Case("bulk, 2 bits a symbol", (8, 512, 512), 4, 1.0, bulk=True),
    Case("bulk, 3 bits a symbol", (8, 512, 512), 4, 3.0, bulk=True),
    Case("bulk, 4.5 bits a symbol", (8, 512, 512), 8, 8.0, bulk=True),
    Case("bulk, neighbours looked at", (8, 512, 512), 4, 1.0, bulk=True, runs=True),
    Case("message, 32 rows", (32, 7, 9), 4, 1.0),
    Case("message, 32 rows, 20 escapes", (32, 7, 9), 8, 1.0, escapes=20),
    Case("message, 32 rows, sparse", (32, 7, 9), 4, 0.15),
    Case("message, 8 rows", (8, 16, 16), 4, 1.0),
    Case("message, neighbours looked at", (8, 16, 16), 4, 1.0, runs=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    rows = [row for case in CASES for row in measured(case)]
    rows += packing()
    name = f"wire_speed_2core-x86_{date.today():%Y-%m}"
    page = text(rows, name).encode()  # before the files change what git says
    write_csv(out / f"{name}.csv", rows)
    write_bytes(out / f"{name}.md", page)


def symbols_of(case: Case) -> tuple[Tables, Bytes]:
    """Draw maps whose channels differ, fit tables to some and return another."""
    rng = np.random.default_rng(0)
    num_samples = 2 if case.bulk else 200
    channel = rng.uniform(0.7, 1.4, (case.shape[0], 1, 1))
    noise = rng.laplace(size=(num_samples, *case.shape)) * channel * case.scale
    if case.runs:  # a map is busy here and quiet there
        busy = rng.random((num_samples, 1, case.shape[1] // 4, case.shape[2] // 4)) < 0.3
        noise *= np.kron(busy, np.ones((1, 1, 4, 4)))
    symbols = np.clip(np.round(np.abs(noise)), 0, 2**case.bits - 1).astype(np.uint8)
    tables = fit_tables(symbols[1:], case.bits)
    sent = symbols[0]
    sent.reshape(-1)[: 40 * case.escapes : 40] = 2**case.bits - 1
    return tables, sent


def measured(case: Case) -> list[dict[str, object]]:
    tables, symbols = symbols_of(case)
    data = stream.encode([(tables, symbols)])
    parts = list(stream._ranked(tables, symbols))
    chunks = [
        (model, ranks[run]) for turn, ranks, _ in parts for model, run in turn.sent_runs[::-1]
    ]
    runs = [run for turn, *_ in parts for run in turn.arrived_runs]
    words = library_encode(chunks)
    assert (stream.decode([(tables, symbols.shape)], data)[0] == symbols).all()
    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: stream.encode([(tables, symbols)]),
        "library encode": lambda: library_encode(chunks),
        "decode": lambda: stream.decode([(tables, symbols.shape)], data),
        "library decode": lambda: library_decode(words, runs),
    }
    if not case.bulk:
        ways["plain Python decode"] = lambda: reference.decode([(tables, symbols.shape)], data)
    seconds = in_turns(ways, rounds=9 if case.bulk else 400)
    alone = {"encode": "library encode", "decode": "library decode"}
    return [
        row_of(
            case.name,
            way,
            symbols.size,
            found,
            ratio=statistics.median(found) / statistics.median(seconds[alone[way]])
            if way in alone
            else None,
            levels=tables.num_levels,
            bits=8 * len(data) / symbols.size,
        )
        for way, found in seconds.items()
    ]


def library_encode(chunks: list[tuple[object, np.ndarray]]) -> np.ndarray:
    coder = library.stack.AnsCoder()
    for model, ranks in reversed(chunks):
        coder.encode_reverse(ranks, model)
    return coder.get_compressed()


def library_decode(words: np.ndarray, runs: list[tuple[object, int]]) -> list[np.ndarray]:
    coder = library.stack.AnsCoder(words)
    return [coder.decode(model, count) for model, count in runs]


def packing() -> list[dict[str, object]]:
    rows = []
    for bits in (2, 3, 4, 7):
        symbols = np.random.default_rng(0).integers(0, 2**bits, 1 << 20).astype(np.uint8)
        data = pack_bits(symbols, bits)
        ways: dict[str, Callable[[], object]] = {
            "pack": lambda s=symbols, b=bits: pack_bits(s, b),  # type: ignore[misc]
            "unpack": lambda d=data, b=bits: unpack_bits(d, 1 << 20, b),  # type: ignore[misc]
        }
        for way, found in in_turns(ways, rounds=30).items():
            rows.append(row_of(f"{bits} bits, packed", way, symbols.size, found, bits=bits))
    return rows


def in_turns(ways: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 2):
        for way, run in ways.items():
            if way.startswith("plain") and turn % 40:
                continue
            start_s = time.thread_time()
            run()
            if turn > 1 or way.startswith("plain"):
                seconds[way].append(time.thread_time() - start_s)
    return seconds


def row_of(
    case: str,
    way: str,
    num_symbols: int,
    seconds: list[float],
    *,
    ratio: float | None = None,
    levels: int = 1,
    bits: float,
) -> dict[str, object]:
    median_s, best_s = statistics.median(seconds), min(seconds)
    return {
        "case": case,
        "way": way,
        "symbols": num_symbols,
        "bits_per_symbol": round(bits, 3),
        "levels": levels,
        "median_us": round(1e6 * median_s, 1),
        "best_us": round(1e6 * best_s, 1),
        "median_symbols_per_s": round(num_symbols / median_s),
        "best_symbols_per_s": round(num_symbols / best_s),
        "over_library": "" if ratio is None else round(ratio, 2),
    }


def verdicts(rows: list[dict[str, object]]) -> list[str]:
    """Say what is slower than wanted at its best, and what the library alone takes there."""
    best = {(row["case"], row["way"]): float(str(row["best_us"])) for row in rows}
    lines = []
    for (case, way), best_us in best.items():
        if way not in ("encode", "decode"):
            continue
        case_of = next(each for each in CASES if each.name == case)
        wanted_us = prod(case_of.shape) / 40 if case_of.bulk else 50
        if best_us > wanted_us:
            lines.append(
                f"* {case}, {way}: {best_us:,.1f} us at best, wanted {wanted_us:,.1f}; "
                f"the library alone {best[case, f'library {way}']:,.1f}."
            )
    return lines or ["At best everything is as fast as wanted."]


def text(rows: list[dict[str, object]], name: str) -> str:
    versions = library_versions() | {"constriction": version("constriction")}
    lines = [
        f"# {name}",
        "",
        __doc__.split("\n\n")[2].replace("\n", " "),
        "",
        "Wanted: 40 million symbols a second each way in bulk; 50 us for a message of 2,000",
        "symbols in 32 rows; 1,000 million packed symbols a second. Where the library is slower",
        "than that by itself, so are we. Two other ways of the library were slower: its families",
        "of models, with a row of frequencies for each symbol in one call, and its range coder,",
        "which also ends in a whole word. What helped: the most frequent symbol first, and for",
        "short runs its models that search from there. An older machine (Xeon at 2.8 GHz), whose",
        "figures are in earlier revisions of this page, took 1.3 to 1.9 times as long",
        "to code, the library too: there 32 rows took 51 us to decode, and 61 with escapes.",
        "",
        *verdicts(rows),
        "",
        "- command: `python benchmarks/wire_speed.py`",
        f"- machine: {describe_machine()}",
        f"- load in the last 15 minutes: {os.getloadavg()[2]:.1f}",
        f"- versions: {', '.join(f'{key} {value}' for key, value in versions.items())}",
        f"- revision: {git_revision()}",
        "",
        "| symbols | way | bits a symbol | median, us | best, us | median, Msymbols/s "
        "| best, Msymbols/s | median over the library's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['way']} | {row['bits_per_symbol']} | {row['median_us']:,} | "
            f"{row['best_us']:,} | {int(str(row['median_symbols_per_s'])) / 1e6:,.1f} | "
            f"{int(str(row['best_symbols_per_s'])) / 1e6:,.1f} | {row['over_library']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
