"""The page of ``techniques.py`` and ``techniques_rivals.py``, from their rows.

Its second table has the columns of table 1 in Lee et al., "Resource-Efficient Convolutional
Networks: A Survey on Model-, Arithmetic-, and Implementation-Level Techniques", ACM Computing
Surveys 2023, and columns of our own.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from table import write_csv

from isthmus.compress import TECHNIQUES
from isthmus.files import write_bytes

ENERGY = {
    "camera_j": ("camera-hub", "camera"),
    "chiplet_j": ("chiplets-4", "chiplet-0"),
}  # a preset, and a device of it
FIELDS = (
    "group", "chain", "tuned", "seed", "accuracy", "parameters", "macs", "weight_bytes",
    "stored_bytes", "peak_bytes", "moved_bytes", "crossing_bytes", "image_ms", "base_ms",
    "link_macs", "link_weight_bytes",
    *ENERGY, "apply_s", "batch", "loss", "rate", "held_out", "refused", "vnni",
)  # fmt: skip
_POINT = 0.01
_SAME = 0.02  # a figure that moves by less counts as the same
_STRONG = 0.03  # what a technique may lose where its signs are taken
_BLANK = "|"
_APART = ("whole", "student")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the survey's table, or of ours.

    Attributes:
        title: Its words.
        marks: Which words of `Technique.improves` stand for it; none where nothing is claimed.
        fields: Figures whose sum it is about.
        per: Whether accuracy per figure counts; else the figure alone, and more is better.
    """

    title: str
    marks: tuple[str, ...]
    fields: tuple[str, ...]
    per: bool = True


COLUMNS = (
    Column(title="parameter", marks=("parameters",), fields=("parameters",)),
    Column(title="operation", marks=("macs",), fields=("macs",)),
    Column(
        title="memory footprint",
        marks=("weight bytes", "activation bytes"),
        fields=("weight_bytes", "peak_bytes"),
    ),
    Column(title="memory access", marks=(), fields=("moved_bytes",)),
    Column(title="core utilization", marks=(), fields=("rate_macs",), per=False),
    *(
        Column(title=f"joule, {device}", marks=("energy",), fields=(field,))
        for field, (_, device) in ENERGY.items()
    ),
    Column(title="stored byte", marks=("stored bytes",), fields=("stored_bytes",)),
    Column(title="time", marks=("time",), fields=("time",)),
    Column(title="byte on the wire", marks=(), fields=("crossing_bytes",)),
)


def write_page(path: Path, budget: int, long_budget: int, planned: Sequence[Row]) -> None:
    """Write the csv and the page beside the rows; the page names planned rows that are missing."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_csv(path.with_suffix(".csv"), rows, FIELDS)
    parts = [head(rows, path.stem, budget), findings(rows), techniques(rows), survey(rows)]
    parts += [formats(rows), losses(rows, budget)]
    parts += [longer(rows, long_budget), seeds(rows), rivals(rows), rates(rows, budget)]
    parts += [missing(rows, planned), foot(rows)]
    page = "\n".join(line for part in parts for line in part)
    write_bytes(path.with_suffix(".md"), (page.rstrip() + "\n").encode())


def of(rows: Sequence[Row], *groups: str) -> list[Row]:
    """Return the measured rows of groups."""
    return [row for row in rows if row["group"] in groups and "accuracy" in row]


def base_of(rows: Sequence[Row]) -> Row:
    return next(row for row in of(rows, "alone") if not row["chain"])


def pairs(rows: Sequence[Row], *groups: str) -> Iterator[tuple[Row | None, Row | None]]:
    """Yield of each chain its row as applied and its row tuned, where there are."""
    every = [row for row in rows if row["group"] in groups and row["chain"]]
    for chain in dict.fromkeys(row["chain"] for row in every):
        found = {bool(row["tuned"]): row for row in every if row["chain"] == chain}
        yield found.get(False), found.get(True)


def best_ten(path: Path, budget: int) -> list[tuple[str, ...]]:
    """Return the ten chains that lose 3 points at most and whose file is smallest.

    Of each technique alone only one strength is among them.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    limit = base_of(rows)["accuracy"] - _STRONG
    good = [row for row in of(rows, "alone", "chain") if row["tuned"] == budget]
    good = [row for row in good if row["accuracy"] >= limit]
    best: dict[str, tuple[str, ...]] = {}
    for row in sorted(good, key=lambda row: row["stored_bytes"]):
        chain = tuple(row["chain"].split(" + "))
        best.setdefault(" + ".join(step.partition(",")[0] for step in chain), chain)
    return list(best.values())[:10]


def head(rows: Sequence[Row], name: str, budget: int) -> list[str]:
    base = base_of(rows)
    return [
        f"# {name}",
        "",
        f"ResNet-20 on CIFAR-100: {100 * base['accuracy']:.2f} % of all 10,000 test images as it "
        f"came. Tuned: after one budget equal for all, {budget:,} training images seen once, "
        "shared among the trainings of a chain, by the loss hinton in batches of 32, at a peak "
        "rate between 1e-3 and 1e-4 that follows from how often the network still says what it "
        "said, as `isthmus compress` did it; it takes how often above chance since, which moves "
        "the rate by a few percent where there are 100 classes. What NetAdapt tries on the way "
        "comes on top. One "
        "seed. Accuracy and time are of the exported program in ONNX Runtime, one thread. The "
        "time of an image is the tenth percentile of 200, over that of the network as it came "
        "by turns in the same minute: other programs were running, and rows may be of several "
        "machines, see the foot, so that only these ratios compare. MACs count zeros too. "
        "Activations: the most alive at once. Crossing: what leaves layer2 as it is held. Of "
        "exits, accuracy and MACs are the mean where the exit answers what it is sure of, the "
        "rest that of an image that does not leave. "
        "Energy is predicted by the model that plans use, for the whole network on "
        + " and on ".join(f"`{device}` of `{preset}`" for preset, device in ENERGY.values())
        + ". Figures are those after tuning where there are.",
        "",
    ]


def techniques(rows: Sequence[Row]) -> list[str]:
    base = base_of(rows)
    lines = [
        "## Every technique",
        "",
        "| techniques | accuracy as applied, % | tuned, % | parameters | MACs | weights in memory "
        "| stored | times smaller | activations | crossing | image, ms | over the whole "
        "| mJ, camera | uJ, chiplet |",
        "| --- " + "| ---: " * 13 + "|",
    ]
    for applied, tuned in [(base, None), *pairs(rows, "alone", "chain")]:
        row = tuned or applied
        assert row is not None
        name = row["chain"] or "as it came"
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} {_BLANK * 13}")
            continue
        shares = [
            f"{100 * one['accuracy']:.1f}" if one and "accuracy" in one else ""
            for one in (applied, tuned)
        ]
        lines.append(f"| {name} | {' | '.join(shares)} | {_figures(row, base)} |")
    return [*lines, ""]


def _figures(row: Row, base: Row) -> str:
    timed = "image_ms" in row
    return " | ".join(
        (
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['weight_bytes']:,}",
            f"{row['stored_bytes']:,}",
            f"{base['stored_bytes'] / row['stored_bytes']:.2f}",
            f"{row['peak_bytes']:,}",
            f"{row['crossing_bytes']:,.0f}",
            f"{row['image_ms']:.2f}" if timed else "",
            f"{row['image_ms'] / row['base_ms']:.2f}" if timed else "",
            f"{1e3 * row['camera_j']:.1f}",
            f"{1e6 * row['chiplet_j']:.1f}",
        )
    )


def value(row: Row, column: Column) -> float:
    """Return what a column is about, of one row; more is better."""
    extra = {
        "rate_macs": row["macs"] * row["base_ms"] / row["image_ms"],
        "time": row["image_ms"] / row["base_ms"],
    }
    total = sum({**row, **extra}[field] for field in column.fields)
    return row["accuracy"] / total if column.per else total


def sign(row: Row, base: Row, column: Column) -> str:
    ratio = value(row, column) / value(base, column)
    return "+" if ratio > 1 + _SAME else "-" if ratio < 1 - _SAME else "0"


def mark(technique: str, column: Column) -> str:
    """Return x where `isthmus techniques` claims it, . where not, ? where it has no word."""
    if not column.marks:
        return "?"
    return "x" if {*column.marks} & {*TECHNIQUES[technique].improves} else "."


def strongest(rows: Sequence[Row], technique: str) -> Row | None:
    """Return the strongest that loses 3 points at most, else that which loses least."""
    of_it = [
        row
        for pair in pairs(rows, "alone", "student")
        for row in [pair[1] or pair[0]]
        if row and row["chain"].partition(",")[0] == technique and "accuracy" in row
    ]
    limit = base_of(rows)["accuracy"] - _STRONG
    good = [row for row in of_it if row["accuracy"] >= limit]
    if good:
        return min(good, key=lambda row: (row["macs"], row["stored_bytes"]))
    return max(of_it, key=lambda row: row["accuracy"], default=None)


def survey(rows: Sequence[Row]) -> list[str]:
    base = base_of(rows)
    lines = [
        "## Which technique improves which resource",
        "",
        "The columns of table 1 in Lee et al. 2023, accuracy per each, and three of ours. Before "
        "the sign stands our mark: x where `isthmus techniques` claims that a technique improves "
        "it, . where it does not, ? where it has no word for it. The survey's own marks are not "
        "part of this repository, so whether they agree cell by cell is not known; of these "
        "columns ours have no word for memory access and core utilization. The sign is measured "
        f"after tuning: + more than {100 * _SAME:g} % better than the network as it came, - as "
        "much worse, 0 between. "
        "Footprint: weights in memory and the most activations alive at once. Access: bytes that "
        "all operations read and write. Core utilization: MACs of a second of one core in ONNX "
        "Runtime. Joule: predicted. Each technique at the strongest strength that loses "
        f"{100 * _STRONG:g} points at most, or where none does at that which loses least; "
        "`replace:network` as it is tuned longer, below.",
        "",
        "| technique | accuracy, % | " + " | ".join(column.title for column in COLUMNS) + " |",
        "| --- | ---: " + "| :---: " * len(COLUMNS) + "|",
    ]
    claimed: dict[str, list[str]] = {}
    silent: dict[str, list[str]] = {}
    for name in TECHNIQUES:
        row = strongest(rows, name)
        if row is None:
            continue
        cells = []
        for column in COLUMNS:
            ours, found = mark(name, column), sign(row, base, column)
            cells.append(f"{ours} {found}")
            if ours == "x" and found != "+":
                claimed.setdefault(column.title, []).append(f"{name} ({found})")
            if ours == "." and found == "+":
                silent.setdefault(column.title, []).append(name)
        accuracy = f"{100 * row['accuracy']:.1f}"
        lines.append(f"| {row['chain']} | {accuracy} | {' | '.join(cells)} |")
    lines += ["", "Claimed, but not found:", ""]
    lines += [f"* {title}: {', '.join(names)}." for title, names in claimed.items()] or ["* None."]
    lines += ["", "Found, but not claimed:", ""]
    lines += [f"* {title}: {', '.join(names)}." for title, names in silent.items()] or ["* None."]
    return [*lines, ""]


def named(row: Row) -> str:
    tuned = f"tuned on {row['tuned']:,} images" if row["tuned"] else "as applied"
    return f"{row['chain']} ({tuned}, {100 * row['accuracy']:.2f} %)"


def findings(rows: Sequence[Row]) -> list[str]:
    """Return what came of the targets of the issue."""
    base = base_of(rows)
    every = [row for row in of(rows, "alone", "chain", "longer", *_APART) if row["chain"]]
    good = [row for row in every if row["accuracy"] >= base["accuracy"] - _POINT]
    lines = ["## What was found", ""]
    if good:
        small = min(good, key=lambda row: row["stored_bytes"])
        few = min(good, key=lambda row: row["macs"])
        lines += [
            f"* Within a point of the whole network the smallest file is that of {named(small)}: "
            f"{base['stored_bytes'] / small['stored_bytes']:.2f} times smaller (wanted: 8).",
            f"* Within a point the fewest MACs are those of {named(few)}: "
            f"{base['macs'] / few['macs']:.2f} times fewer (wanted: 4).",
        ]
    fewer = [row for row in every if 4 * row["macs"] <= base["macs"] * 1.02]
    if fewer:
        best = max(fewer, key=lambda row: row["accuracy"])
        lines.append(
            f"* At 4 times fewer MACs the best is {named(best)}: it {_change(best, base)}."
        )
    lines += [*_integers(rows), *_chain(rows, base)]
    return [*lines, ""]


def _integers(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the times of int8 and fp32; a network is as quick after tuning as before."""
    alone = of(rows, "alone")
    int8, fp32 = (
        [row["image_ms"] / row["base_ms"] for row in alone if row["chain"] == name]
        for name in ("quantize:int8,range=mse", "fold")
    )
    if int8 and fp32:
        told = ", ".join(f"{share:.2f}" for share in int8)
        yield (
            f"* int8 takes {told} of the time of the network as it came (as applied, tuned: one "
            f"program, timed twice), fp32 with folded norms {fp32[0]:.2f} (wanted: "
            "int8 no slower)."
        )
    for vnni in (True, False):
        found = [row for row in of(rows, "integers") if row["vnni"] == vnni]
        shares = [f"{row['chain']} {row['image_ms'] / row['base_ms']:.2f}" for row in found]
        right = [f"({100 * row['accuracy']:.1f} %)" for row in found]
        told = ", ".join(map(" ".join, zip(shares, right, strict=True)))
        if found:
            yield (
                f"* Of that time, on a processor {'with' if vnni else 'without'} VNNI "
                f"({found[0]['machine']}), as applied: {told}."
                + ("" if vnni else " Without VNNI integers take three instructions for its one.")
            )


def _chain(rows: Sequence[Row], base: Row) -> Iterator[str]:
    """Yield the whole chains within a point; the fewest MACs, narrow layers and all, first."""
    narrow = [row for row in of(rows, "narrow") if "link_macs" in row]
    good = [row for row in narrow if row["accuracy"] >= base["accuracy"] - _POINT]
    good.sort(key=lambda row: _with_link(row, "macs"))
    for number, row in enumerate(good or sorted(narrow, key=lambda row: -row["accuracy"])[:1]):
        which = ("the best within a point", "also within a point")[number > 0]
        macs, stored = (
            f"{base[field] / _with_link(row, field):.2f} times "
            f"({base[field] / row[field]:.2f} without the narrow layers)"
            for field in ("macs", "stored_bytes")
        )
        yield (
            f"* The whole chain, fewer MACs, quantize, distil, narrow, "
            f"{which if good else 'the nearest'}: {named(row)} {_change(row, base)}; "
            f"{row['crossing_bytes']:.0f} bytes cross in place of {base['crossing_bytes']:,}, "
            f"{base['crossing_bytes'] / row['crossing_bytes']:.0f} times fewer; MACs are "
            f"{macs} fewer, the file is {stored} smaller."
        )


def _change(row: Row, base: Row) -> str:
    lost = 100 * (base["accuracy"] - row["accuracy"])
    return f"loses {lost:.2f} points" if lost > 0 else f"gains {-lost:.2f} points"


def _with_link(row: Row, field: str) -> int:
    """Return a figure of a network and of the narrow layers in it, whose weights are floats."""
    own = {"macs": "link_macs", "stored_bytes": "link_weight_bytes"}[field]
    total: int = row[field] + row[own]
    return total


def missing(rows: Sequence[Row], planned: Sequence[Row]) -> list[str]:
    """Return which planned rows are not measured yet."""
    left: dict[str, list[str]] = {}
    for key in planned:
        if not any(all(row.get(name) == key[name] for name in key) for row in rows):
            how = f"tuned on {key['tuned']:,}" if key["tuned"] else "as applied"
            left.setdefault(f"{key['group']}, {how}", []).append(f"`{key['chain']}`")
    if not left:
        return []
    lines = ["## Not measured yet", "", "The same command goes on with these.", ""]
    return [*lines, *(f"* {group}: {', '.join(names)}." for group, names in left.items()), ""]


def formats(rows: Sequence[Row]) -> list[str]:
    """Return what number formats of weights cost, untuned."""
    found = of(rows, "format")
    if not found:
        return []
    base = base_of(rows)["accuracy"]
    lines = ["## Number formats of weights, as applied", "", "Others stand above.", ""]
    lines += ["| technique | accuracy, % | points lost |", "| --- | ---: | ---: |"]
    for row in found:
        lost = 100 * (base - row["accuracy"])
        lines.append(f"| {row['chain']} | {100 * row['accuracy']:.2f} | {lost:.2f} |")
    return [*lines, ""]


def losses(rows: Sequence[Row], budget: int) -> list[str]:
    """Return what each loss makes of one network that was pruned."""
    found = [row for row in rows if row["group"] == "loss"]
    if not found:
        return []
    lines = [
        "## By what it is taught",
        "",
        f"One pruned network, tuned by each loss on {budget:,} training images seen once; its "
        "teacher is the network as it came. One seed.",
        "",
        "| technique and loss | accuracy, % |",
        "| --- | ---: |",
    ]
    for row in sorted(found, key=lambda row: -row.get("accuracy", 0)):
        told = f"{100 * row['accuracy']:.2f}" if "accuracy" in row else row["refused"]
        lines.append(f"| {row['chain']} | {told} |")
    return [*lines, ""]


def longer(rows: Sequence[Row], long_budget: int) -> list[str]:
    """Return what more tuning brings, and the chains that end in a narrow crossing."""
    base = base_of(rows)
    if not of(rows, "longer", "narrow", *_APART):
        return []
    lines = [
        "## Tuned longer",
        "",
        f"Apart from the equal budget: {long_budget:,} training images seen, or all 50,000 for "
        "several epochs. Where a crossing was narrowed, as many again for each of its phases, or "
        "the epochs of all training images that its name says; "
        "crossing is then the mean payload of all test images, and the front of the network stays "
        "as the chain made it. `replace:network` begins at random and learns from the network as "
        "it came: 75 epochs, by task and hinton, in batches of 128, in bfloat16, at a peak rate "
        "of 3e-3, as `isthmus compress --bf16` does it in batches of 64. That is 8 to 300 times "
        "the images that the others here were tuned on; its sizes were chosen before, by MACs and "
        "by how fast it trains, and it was run once. What follows it in a chain is done to that "
        "student, the images are those seen after it. MACs, weights and file are those of the "
        "network, without the narrow layers, which come on top. The crossings behind the "
        "student were tried one after another, after a look at those before; `layer3.0` is where "
        "it has pooled. To ask for 800 bytes in place of 600 changes "
        "little: the narrow layers, not their bytes, are then the limit.",
        "",
        "| techniques | images seen | accuracy, % | parameters | MACs | weights in memory "
        "| stored | times smaller | activations | crossing | image, ms | over the whole "
        "| mJ, camera | uJ, chiplet |",
        "| --- " + "| ---: " * 13 + "|",
    ]
    for row in of(rows, "longer", "narrow", *_APART):
        facts = f"{row['tuned']:,} | {100 * row['accuracy']:.2f}"
        lines.append(f"| {row['chain']} | {facts} | {_figures(row, base)} |")
    return [*lines, ""]


def seeds(rows: Sequence[Row]) -> list[str]:
    more = of(rows, "seed")
    if not more:
        return ["One seed for all: no row was measured with others.", ""]
    lines = [
        "## More seeds",
        "",
        "Chains that lose 3 points at most and whose files are smallest, one strength of each.",
        "",
        "| techniques | accuracy, %, of seeds 0, 1, 2 | mean | spread |",
        "| --- | ---: | ---: | ---: |",
    ]
    for chain in dict.fromkeys(row["chain"] for row in more):
        first = [row for row in of(rows, "alone", "chain") if row["chain"] == chain]
        found = [row for row in (*first, *more) if row["tuned"] and row["chain"] == chain]
        shares = [100 * row["accuracy"] for row in found]
        told = ", ".join(f"{share:.2f}" for share in shares)
        spread = max(shares) - min(shares)
        lines.append(f"| {chain} | {told} | {mean(shares):.2f} | {spread:.2f} |")
    return [*lines, ""]


def rivals(rows: Sequence[Row]) -> list[str]:
    found = [row for row in rows if row["group"] == "rival"]
    if not found:
        return []
    lines = [
        "## What others offer",
        "",
        "Their tools alone, with the same samples and the same budget where they train. Stored: "
        "the file that each writes, and what it writes is said; ours is that of the table above.",
        "",
        "| tool | accuracy as applied, % | tuned, % | MACs | stored, bytes | what is stored "
        "| image, ms | over the whole |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for applied, tuned in pairs(rows, "rival"):
        row = tuned or applied
        assert row is not None
        if "accuracy" not in row:
            reason = row.get("skipped") or row.get("refused")
            lines.append(f"| {row['chain']} | skipped: {reason} {_BLANK * 7}")
            continue
        shares = [f"{100 * one['accuracy']:.1f}" if one else "" for one in (applied, tuned)]
        timed = "image_ms" in row
        lines.append(
            f"| {row['chain']} | {' | '.join(shares)} | "
            f"{format(row['macs'], ',') if 'macs' in row else ''} | {row['stored_bytes']:,} | "
            f"{row['stored_as']} | {format(row['image_ms'], '.2f') if timed else ''} | "
            f"{format(row['image_ms'] / row['base_ms'], '.2f') if timed else ''} |"
        )
    return [*lines, ""]


def rates(rows: Sequence[Row], budget: int) -> list[str]:
    found = [row for row in rows if row["group"] == "rate"]
    if not found:
        return []
    chains = list(dict.fromkeys(row["chain"] for row in found))
    lines = [
        "## How the budget is spent",
        "",
        f"Chosen before, by the last 2,500 training images, after {budget:,} others. The network "
        "was trained on both, so that all figures are above those of the test set. What "
        "is broken wants ten times the rate of what is nearly right, so that one rate for all "
        "would harm half of them: hence one that follows from what is left.",
        "",
        "| batch | loss | peak rate | "
        + " | ".join(f"{chain or 'as it came'}, %" for chain in chains)
        + " | mean of the tuned |",
        "| ---: | --- | ---: " + "| ---: " * (len(chains) + 1) + "|",
    ]
    ways = dict.fromkeys((row.get("batch"), row.get("loss"), row.get("rate")) for row in found)
    for way in ways:
        here = {
            row["chain"]: 100 * row["held_out"]
            for row in found
            if (row.get("batch"), row.get("loss"), row.get("rate")) == way
        }
        cells = [f"{here[chain]:.1f}" if chain in here else "" for chain in chains]
        batch, loss, rate = way
        told = (str(batch), loss, f"{rate:g}") if batch else ("", "as applied", "")
        average = mean(share for chain, share in here.items() if chain)
        lines.append(f"| {' | '.join((*told, *cells))} | {average:.1f} |")
    return [*lines, ""]


def foot(rows: Sequence[Row]) -> list[str]:
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    revisions = ", ".join(sorted({str(row["revision"]) for row in rows}))
    versions = ", ".join(f"{key} {value}" for key, value in rows[-1]["versions"].items())
    return [f"Machine: {machines}. Revisions: {revisions}. Versions: {versions}."]
