"""The demo over seeds 0..4: does the split network keep the whole one's accuracy?

    python benchmarks/demo_seeds.py [--out benchmarks/results]

Each seed is one `isthmus demo` in a process of its own, as a user runs it; its peak memory is that
of the process and of its workers. Writes a csv with one row per seed and a page that says what was
run and what came out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from table import write_csv

from isthmus.files import write_bytes
from isthmus.machine import describe_machine, library_versions

SEEDS = range(5)
COMMAND = "isthmus demo --seed SEED --json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(seed, Path(folder)) for seed in SEEDS]
    name = f"demo_seeds_{arguments.hardware}_{date.today():%Y-%m}"
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", text(rows, name).encode())
    print(text(rows, name))


def row(seed: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "isthmus", "demo", "--seed", str(seed), "--json"]
    out = ["--out", str(folder / f"demo-{seed}")]
    done = subprocess.run([*command, *out], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    latency = found["latency_s"]
    print(f"seed {seed}: {found['whole']['accuracy']:.4f} {found['split']['accuracy']:.4f}")
    return {
        "seed": seed,
        "accuracy_whole": round(found["whole"]["accuracy"], 4),
        "accuracy_split": round(found["split"]["accuracy"], 4),
        "payload_bytes_predicted": found["split"]["payload_bytes_predicted"],
        "payload_bytes_measured": found["split"]["payload_bytes_measured"],
        "wire_bytes": found["split"]["wire_bytes"],
        "input_raw_bytes": found["rivals"]["input_raw_bytes"],
        "int8_zlib_bytes": round(found["rivals"]["int8_zlib_bytes"], 1),
        "latency_predicted_here_s": round(latency["predicted_here"], 6),
        "latency_measured_p50_s": round(latency["measured_p50"], 6),
        "latency_measured_p95_s": round(latency["measured_p95"], 6),
        "requests": found["requests"],
        "seconds": found["seconds"],
        "largest_process_peak_bytes": peak,
    }


def text(rows: list[dict[str, float]], name: str) -> str:
    drops = [100 * (row["accuracy_whole"] - row["accuracy_split"]) for row in rows]
    ratios = [row["latency_predicted_here_s"] / row["latency_measured_p50_s"] for row in rows]
    versions = ", ".join(f"{key} {value}" for key, value in library_versions().items())
    return "\n".join(
        [
            f"# {name}",
            "",
            "The demo's network on scikit-learn's digits, 360 test images that chose nothing,",
            "split over two emulated microcontrollers. Accuracies of the split network come from",
            "the replies of the two processes. One run per seed; the demo's own seed is 0.",
            "",
            f"- command: `{COMMAND}`, seeds {SEEDS.start} to {SEEDS.stop - 1};",
            "  this page: `python benchmarks/demo_seeds.py`",
            f"- machine: {describe_machine()}",
            f"- versions: {versions}",
            "",
            f"Drop from whole to split, points: mean {statistics.mean(drops):.2f}, "
            f"standard deviation {statistics.stdev(drops):.2f}, worst {max(drops):.2f} "
            "(wanted: mean within 1).",
            f"Payload: {rows[0]['payload_bytes_measured']:g} bytes measured, "
            f"{rows[0]['payload_bytes_predicted']:g} predicted (wanted: at most 32, and equal).",
            f"Latency predicted on this machine over measured p50: {min(ratios):.2f} to "
            f"{max(ratios):.2f} (wanted: 0.8 to 1.2).",
            f"Time: at most {max(row['seconds'] for row in rows):g} s (wanted: under 120). "
            "Memory of the largest process: "
            f"{max(row['largest_process_peak_bytes'] for row in rows) / 1e9:.2f} GB "
            "(wanted: under 4).",
            "",
            "| seed | whole | split | payload | predicted here, s | measured p50, s | time, s |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {row['seed']} | {row['accuracy_whole']:.4f} | {row['accuracy_split']:.4f} "
                f"| {row['payload_bytes_measured']:g} | {row['latency_predicted_here_s']:.5f} "
                f"| {row['latency_measured_p50_s']:.5f} | {row['seconds']:g} |"
                for row in rows
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
