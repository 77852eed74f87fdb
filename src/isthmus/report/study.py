"""What a study leaves for people: tables, figures for print, the front, and one page."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isthmus.files import write_bytes, write_json
from isthmus.report.answers import accuracy_text, answers, headline, saving
from isthmus.report.charts import bytes_chart, ratio_chart, transfer_chart, transfer_grid
from isthmus.report.findings import ALL, NetworkFront, Row, fronts_of, missing, rows_of
from isthmus.report.page import Part, Section, Tile, drawn, rendered, shown
from isthmus.report.paper import paper_figures
from isthmus.report.tables import add_row, new_table
from isthmus.report.words import num_bytes, percent
from isthmus.study.cells import COMPARED_CUT, Choice
from isthmus.study.records import StudyRecord, to_csv, to_markdown
from isthmus.study.transfer import Reading, claims

PAGE_FILE = "study.html"
FRONT_SCHEMA = "isthmus.front/1"
_TEMPLATE = "study.html.j2"
_SUMMARY = (
    "network", "placement", "ratio", "seeds", "accuracy_mean", "accuracy_spread", "cut_after",
    "channels", "wire_channels", "fp32_bytes", "int8_bytes", "macs_before_share",
    "weights_before_share",
)  # fmt: skip
_CUT_FIELDS = ("channels", "wire_channels", "fp32_bytes", "int8_bytes", "macs_before_share",
               "weights_before_share")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """The fronts of a study, as ``front.json`` holds them.

    Attributes:
        compared_cut: The module after which their bytes cross.
        bytes_as: The number format that the bytes are counted in.
        networks: One for each network, and one for all together where there are several.
    """

    compared_cut: str
    bytes_as: str
    networks: tuple[NetworkFront, ...]


def write_study(
    folder: Path,
    *,
    title: str,
    records: Sequence[StudyRecord],
    choice: Choice | None,
    readings: Sequence[Reading] = (),
) -> Path:
    """Write tables, figures and the page of a study; each file is whole or absent.

    Args:
        folder: Where the files stand: ``accuracy`` and ``summary`` (CSV, Markdown), ``front.json``
            and figures where there are records; ``transfer`` (CSV, Markdown, figure) where there
            are readings; ``study.html``.
        title: Of the page.
        records: One for each finished cell.
        choice: How the cells are trained, if it is known.
        readings: Of the hardware side.

    Returns:
        The page.

    Raises:
        InputError: A record lacks the accuracy or the bytes.
    """
    rows = rows_of(records)
    fronts = fronts_of(rows)
    networks = [front for front in fronts if front.network != ALL]
    files = paper_figures(rows, networks, readings, cut=COMPARED_CUT)
    if records:
        files |= {"accuracy.csv": to_csv(records).encode()}
        files |= {"accuracy.md": to_markdown(records).encode()}
        files |= _both("summary", _summary(rows))
    if readings:
        table = _transfer(readings)
        files |= {"transfer.csv": _csv(table).encode()}
        files |= {"transfer.md": (_claims_text(readings) + _markdown(table)).encode()}
    for name, content in files.items():
        write_bytes(folder / name, content)
    if fronts:
        held = Fronts(compared_cut=COMPARED_CUT, bytes_as="int8", networks=fronts)
        write_json(folder / "front.json", held, schema=FRONT_SCHEMA)
    text = study_page(title=title, records=records, choice=choice, readings=readings)
    write_bytes(folder / PAGE_FILE, text.encode())
    return folder / PAGE_FILE


def study_page(
    *,
    title: str,
    records: Sequence[StudyRecord],
    choice: Choice | None,
    readings: Sequence[Reading] = (),
) -> str:
    """Return the page alone; whatever is not given is left out."""
    rows = rows_of(records)
    sections = []
    if rows:
        networks = [front for front in fronts_of(rows) if front.network != ALL]
        tables = shown(study_tables(records))
        curves = (drawn(ratio_chart(rows)), *tables[:1])
        sections.append(Section(title="Accuracy and ratio", parts=curves))
        points = (drawn(bytes_chart(networks, cut=COMPARED_CUT)), *tables[1:])
        sections.append(Section(title="Accuracy and bytes", parts=points))
    if readings:
        charts = [drawn(transfer_chart(readings))] if transfer_grid(readings) else []
        parts = (*charts, *shown(transfer_tables(readings)))
        sections.append(Section(title="What passes from layer to layer", parts=parts))
    if records or choice:
        sections.append(_facts_section(records, choice))
    return rendered(
        _TEMPLATE,
        title=title,
        statement=headline(rows, readings),
        tiles=_tiles(records, rows),
        answers=answers(rows, readings),
        sections=sections,
    )


def study_tables(records: Sequence[StudyRecord]) -> tuple[Table | Text, ...]:
    """Return a row for each network, placement and ratio, then the balanced points in words.

    Raises:
        InputError: A record lacks the accuracy or the bytes.
    """
    rows = rows_of(records)
    if not rows:
        return ()
    places = [str(cut["after"]) for cut in rows[0].cuts]
    table = new_table(
        "Accuracy on the test set, and what crosses for one sample (int8)",
        ("network", "l"), ("place", "l"), ("r", "r"), ("seeds", "r"), ("accuracy, %", "r"),
        ("channels", "r"), ("bytes", "r"), ("MACs", "r"),
    )  # fmt: skip
    table.pad_edge = False
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        compared = [cut for cut in row.cuts if cut["after"] == COMPARED_CUT]
        add_row(
            table,
            row.network,
            row.placement,
            str(row.ratio),
            str(len(row.accuracies)),
            accuracy_text(row),
            "/".join(str(cut["wire_channels"]) for cut in row.cuts),
            "/".join(num_bytes(cut["int8_bytes"]) for cut in row.cuts),
            f"{compared[0]['macs_before_share']:.0%}" if compared else "",
        )
    spread = any(row.spread is not None for row in rows)
    words = "\u00b1 is the standard deviation over the" if spread else "No spread is known of one"
    table.caption = Text(
        f"Channels and bytes on the wire after {', '.join(places)}; MACs before {COMPARED_CUT}'s "
        f"cut. {words} seed{'s' * spread}."
    )
    sentences = [
        Text(f"{front.network}: {balanced.why}" if front.network == ALL else balanced.why)
        for front in fronts_of(rows)
        for balanced in front.balanced
    ]
    return table, *sentences


def transfer_tables(readings: Sequence[Reading]) -> tuple[Table | Text, ...]:
    """Return what each meter says about the paper's claim, side by side, then every reading."""
    found = claims(readings) if readings else ()
    places = list(dict.fromkeys(claim.placement for claim in found))
    side = new_table(
        'The claim "ratio 8 cuts about 70 % at the fifth layer", by each meter',
        ("meter", "l"), *((f"placement {place}", "l") for place in places),
    )  # fmt: skip
    for meter in dict.fromkeys(claim.meter for claim in found):
        says = {claim.placement: saving(claim) for claim in found if claim.meter == meter}
        add_row(side, meter, *(says.get(place, "not read") for place in places))
    table = new_table(
        "Bytes that pass after each layer, by each meter",
        ("placement", "l"), ("ratio", "r"), ("layer", "l"), ("meter", "l"), ("median", "r"),
        ("quartiles", "r"), ("not positive", "r"), ("readings", "r"),
    )  # fmt: skip
    for reading in readings:
        low, high = reading.first_quartile_bytes, reading.third_quartile_bytes
        add_row(
            table,
            reading.placement,
            str(reading.ratio),
            reading.layer,
            reading.meter,
            num_bytes(reading.median_bytes),
            f"{num_bytes(low)} to {num_bytes(high)}",
            percent(reading.not_positive),
            str(reading.repeats),
        )
    return *([side] if found else []), *([table] if readings else [])


def _tiles(records: Sequence[StudyRecord], rows: Sequence[Row]) -> list[Tile]:
    if not rows:
        return []
    best = max(rows, key=lambda row: row.mean)
    hours = sum(record.seconds for record in records) / 3600
    tiles = [
        Tile(
            value=str(len(records)),
            label="trainings",
            note=f"{len(rows)} of network, placement and ratio; {hours:.1f} hours",
        ),
        Tile(
            value=f"{100 * best.mean:.2f} %",
            label="best accuracy, mean of its seeds",
            note=f"{best.network}, placement {best.placement}, r = {best.ratio}",
        ),
    ]
    front = fronts_of(rows)[-1]  # of all networks, where there are several
    return tiles + [
        Tile(
            value=f"{num_bytes(balanced.point.num_bytes)} bytes",
            label=f"{balanced.rule}, after {COMPARED_CUT}",
            note=f"{balanced.point.name}: {percent(balanced.point.accuracy)}",
        )
        for balanced in front.balanced
    ]


def _facts_section(records: Sequence[StudyRecord], choice: Choice | None) -> Section:
    parts: list[Part] = []
    if choice:
        parts += shown(_choice_parts(choice))
    facts: list[tuple[str, str]] = []
    if records:
        seeds = sorted({record.cell.seed for record in records})
        data = sorted({f"{r.cell.data}, {r.cell.epochs} epochs" for r in records})
        facts += [("data", "; ".join(data)), ("seeds", ", ".join(map(str, seeds)))]
        facts += [("not run", lack) for lack in missing(records)]
    facts += _distinct("recipe", [_flat(record.figures.get("recipe", {})) for record in records])
    facts += _distinct("machine", [record.machine for record in records])
    facts += _distinct("versions", [_flat(record.versions) for record in records])
    facts += _distinct("revision", [record.revision or "not known" for record in records])
    table = new_table("Recipe, machine and versions", ("", "l"), ("", "l"))
    for name, value in facts:
        add_row(table, name, value)
    return Section(title="How it was made", parts=(*parts, *shown([table] if facts else [])))


def _choice_parts(choice: Choice) -> tuple[Table | Text, ...]:
    best = choice.best
    table = new_table(
        "Recipes that were tried", ("recipe", "l"), ("epochs", "r"), ("accuracy, held out", "r")
    )
    for candidate in choice.candidates:
        style = "bold" if candidate is best else ""
        cells = (candidate.recipe, str(candidate.epochs), percent(candidate.accuracy))
        add_row(table, *cells, style=style)
    words = (
        f"Recipe and epochs were chosen on {choice.held_out:,} images of the training set of "
        f"{choice.data} that were held out, with {choice.network}: {best.recipe}, {best.epochs} "
        "epochs. Every cell was then trained once on the whole training set, for that many "
        "epochs, and its test set was read once, after the last."
    )
    return Text(words), table


def _distinct(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """Return each value once; with how many records it holds for, where they differ."""
    counts = {value: values.count(value) for value in dict.fromkeys(values) if value}
    several = len(counts) > 1
    return [
        (name, f"{value} ({count} of {len(values)})" if several else value)
        for value, count in counts.items()
    ]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> str:
    """Return facts as one line."""
    return ", ".join(
        _flat(value, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else f"{prefix}{name} {value}"
        for name, value in facts.items()
    )


def _summary(rows: Sequence[Row]) -> list[list[Any]]:
    """Return the head and a row for each cut of each network: accuracy, bytes and depth."""
    return [
        list(_SUMMARY),
        *(
            [
                row.network,
                row.placement,
                row.ratio,
                len(row.accuracies),
                f"{row.mean:.6f}",
                "" if row.spread is None else f"{row.spread:.6f}",
                cut["after"],
                *(cut[name] for name in _CUT_FIELDS),
            ]
            for row in rows
            for cut in row.cuts
        ),
    ]


def _transfer(readings: Sequence[Reading]) -> list[list[Any]]:
    """Return the head and a row for each reading, with what it saves against ratio 1."""
    whole = {(r.placement, r.layer, r.meter): r.median_bytes for r in readings if r.ratio == 1}
    head = [*(each.name for each in fields(Reading)), "saved_share"]
    table: list[list[Any]] = [head]
    for reading in readings:
        before = whole.get((reading.placement, reading.layer, reading.meter), 0)
        saved = f"{1 - reading.median_bytes / before:.6f}" if before > 0 else ""
        table.append([*asdict(reading).values(), saved])
    return table


def _claims_text(readings: Sequence[Reading]) -> str:
    """Return what each meter says about the paper's claim, in Markdown."""
    return (
        "".join(
            f"* {claim.placement}, {claim.meter}, {claim.layer}: {saving(claim)}\n"
            for claim in claims(readings)
        )
        + "\n"
    )


def _both(name: str, table: Sequence[Sequence[Any]]) -> dict[str, bytes]:
    return {f"{name}.csv": _csv(table).encode(), f"{name}.md": _markdown(table).encode()}


def _csv(table: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def _markdown(table: Sequence[Sequence[Any]]) -> str:
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |\n"
        for line in lines
    )
