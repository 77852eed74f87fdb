"""The results of a study, ready to be committed: records, tables, figures, and a page in words.

    isthmus study small --data-dir DIR
    python benchmarks/study_results.py study-small --name study_small
    isthmus study transfer
    python benchmarks/study_results.py study-transfer --name transfer

A study that is not finished will do: `isthmus study small --so-far` first. Nothing is measured
here. The page of the study itself is left out, as it holds plotly's whole source.
"""

import argparse
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isthmus.files import read_json, write_bytes
from isthmus.report.answers import Answer, answers, headline
from isthmus.report.findings import divided, missing, rows_of
from isthmus.report.page import shown
from isthmus.report.study import PAGE_FILE, study_tables, transfer_tables, write_study
from isthmus.study.cells import CHOICE_FILE, Choice
from isthmus.study.records import StudyRecord, read_records
from isthmus.study.source import RECORDS_FILE, TRANSFER_FILE
from isthmus.study.transfer import Transfer

MOST_BYTES = 1 << 20  # of one file
FIGURES = {
    "accuracy_ratio.png": "Accuracy against the ratio",
    "accuracy_bytes.png": "Accuracy against the bytes that cross, with the front",
    "transfer_layers.png": "What passes after each layer, by each meter",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="the folder of the study")
    parser.add_argument("--name", required=True, help="of the claim, as in study_small")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    target = arguments.out / f"{arguments.name}_{arguments.hardware}_{date.today():%Y-%m}"
    shutil.rmtree(target, ignore_errors=True)
    text = (
        study(arguments.study, target)
        if choice_of(arguments.study)
        else transfer(arguments.study, target)
    )
    (target / PAGE_FILE).unlink()
    write_bytes(target / "README.md", f"# {target.name}\n\n{text}".encode())
    large = [path.name for path in target.iterdir() if path.stat().st_size > MOST_BYTES]
    if large:
        raise SystemExit(f"{target}: {', '.join(large)}: over a mebibyte, too large to commit")
    print(target / "README.md")


def choice_of(folder: Path) -> Choice | None:
    path = folder / CHOICE_FILE
    return read_json(path, Choice) if path.is_file() else None


def study(folder: Path, target: Path) -> str:
    records, choice = read_records(folder / RECORDS_FILE), choice_of(folder)
    assert choice is not None
    write_study(target, title=target.name, records=records, choice=choice)
    shutil.copy(folder / RECORDS_FILE, target)
    grid, searched = divided(records)
    rows = rows_of(grid)
    first = records[0]
    hours = sum(record.seconds for record in records) / 3600
    tried = ", ".join(
        f"{each.recipe} ({each.epochs} epochs) {100 * each.accuracy:.2f} %"
        for each in choice.candidates
    )
    facts = {
        "command": f"`isthmus study {target.name.split('_')[1]} --data-dir DIR`; this page: "
        "`python benchmarks/study_results.py`",
        "machine": distinct(record.machine for record in records),
        "versions": distinct(in_words(record.versions) for record in records),
        "revision": distinct(record.revision or "not known" for record in records),
        "time": f"{hours:.1f} hours of training, all cells together",
        "data": f"{first.cell.data}, the whole training set; accuracies are of its test set, read "
        "once per cell, after the last epoch",
        "recipe": f"{choice.best.recipe}, {choice.best.epochs} epochs; chosen on "
        f"{choice.held_out:,} held-out training images with {choice.network}: {tried}",
        "recipe in full": in_words(first.figures["recipe"]),
        "run": "; ".join(cells_run(grid)),
        "not run": "; ".join(missing(grid)),
    }
    if searched:
        facts["search"] = f"{len(searched)} networks beyond the grid, on held-out images"
    return page(headline(rows), facts, answered(answers(rows)), study_tables(records), target)


def transfer(folder: Path, target: Path) -> str:
    found = read_json(folder / TRANSFER_FILE, Transfer)
    write_study(target, title=target.name, records=(), choice=None, transfer=found)
    shutil.copy(folder / TRANSFER_FILE, target)
    readings = found.readings
    meters = ", ".join(dict.fromkeys(each.meter for each in readings))
    ratios = ", ".join(str(ratio) for ratio in sorted({each.ratio for each in readings}))
    repeats = max(each.repeats for each in readings)
    facts = {
        "command": "`isthmus study transfer`; this page: `python benchmarks/study_results.py`",
        "machine": found.machine,
        "versions": in_words(found.versions),
        "revision": found.revision or "not known",
        "time": f"{found.seconds:.0f} s",
        "network": "ResNet-18, random weights, one random image (1, 3, 224, 224)",
        "run": f"ratios {ratios}; meters {meters}; {repeats} repeats, medians and quartiles",
    }
    words = answered(answers((), readings))
    return page(headline((), readings), facts, words, transfer_tables(readings), target)


def page(
    statement: str,
    facts: dict[str, str],
    words: str,
    tables: Sequence[Table | Text],
    target: Path,
) -> str:
    lines = "".join(f"- {name}: {value}\n" for name, value in facts.items() if value)
    figures = "".join(
        f"![{title}]({name})\n\n" for name, title in FIGURES.items() if (target / name).is_file()
    )
    parts = "\n".join(markdown(part.content) for part in shown(tables))
    files = ", ".join(f"[{path.name}]({path.name})" for path in sorted(target.iterdir())
                      if path.suffix in (".csv", ".md", ".json", ".jsonl"))  # fmt: skip
    return (
        f"{statement}.\n\n{lines}\n## What it says\n\n{words}## Figures\n\nEach also as SVG.\n\n"
        f"{figures}## Tables\n\n{parts}\nAll figures: {files}.\n"
    )


def answered(found: Sequence[Answer]) -> str:
    return "".join(
        f"**{each.question}** {each.verdict}.\n\n"
        + "".join(f"- {line}\n" for line in each.lines)
        + (f"\n{each.note}\n" if each.note else "")
        + "\n"
        for each in found
    )


def markdown(content: Any) -> str:
    """Return a part of the page: a paragraph, or a table with its title and caption."""
    if isinstance(content, str):
        return f"{content}\n"
    heads = [head for head, _ in content["head"]]
    sides = ["---:" if side == "right" else "---" for _, side in content["head"]]
    rows = [[cell for cell, _ in cells] for _, cells in content["rows"]]
    table = "".join(f"| {' | '.join(line)} |\n" for line in (heads, sides, *rows))
    return f"{content['title']}:\n\n{table}\n{content['note']}\n"


def cells_run(records: Sequence[StudyRecord]) -> list[str]:
    """Say of each network and placement which ratios there are, with how many seeds."""
    seeds = Counter((each.cell.depth, each.cell.placement, each.cell.ratio) for each in records)
    lines: dict[str, dict[int, list[int]]] = {}
    for (depth, placement, ratio), count in sorted(seeds.items()):
        lines.setdefault(f"ResNet-{depth} {placement}", {}).setdefault(count, []).append(ratio)
    return [
        f"{network} at r = "
        + " and ".join(f"{', '.join(map(str, found))} ({count} seed{'s' * (count > 1)})"
                       for count, found in line.items())
        for network, line in lines.items()
    ]  # fmt: skip


def distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def in_words(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    main()
