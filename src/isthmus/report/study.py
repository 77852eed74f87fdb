"""What a study leaves for people: tables, figures for print, the front, and one page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isthmus.files import write_bytes, write_json
from isthmus.report.answers import accuracy_text, answers, doubts, headline, saving
from isthmus.report.charts import bytes_chart, ratio_chart, transfer_chart, transfer_grid
from isthmus.report.findings import (
    ALL,
    NetworkFront,
    Row,
    Searched,
    divided,
    front_with,
    fronts_of,
    missing,
    point_of,
    rows_of,
)
from isthmus.report.page import Part, Section, Tile, drawn, rendered, shown
from isthmus.report.paper import paper_figures
from isthmus.report.tables import add_row, new_table
from isthmus.report.words import num_bytes, percent
from isthmus.study import hypervolume
from isthmus.study.cells import COMPARED_CUT, Choice
from isthmus.study.grid import flat
from isthmus.study.records import StudyRecord, records_table, table_csv, table_markdown
from isthmus.study.transfer import Reading, Transfer, claims

PAGE_FILE = "study.html"
_TEMPLATE = "study.html.j2"
_CUT_FIELDS = ("channels", "wire_channels", "fp32_bytes", "int8_bytes", "macs_before_share",
               "weights_before_share")  # fmt: skip
_SUMMARY = (
    "network", "placement", "ratio", "seeds", "accuracy_mean", "accuracy_spread", "cut_after",
    *_CUT_FIELDS,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """The fronts of a study, as ``front.json`` holds them.

    Attributes:
        compared_cut: The module after which their bytes cross.
        bytes_as: The number format that the bytes are counted in.
        networks: One for each network of the grid, one for all together where there are several,
            and one for the grid and what a search found.
    """

    SCHEMA = "isthmus.front/1"
    compared_cut: str
    bytes_as: str
    networks: tuple[NetworkFront, ...]


def write_study(
    folder: Path,
    *,
    title: str,
    records: Sequence[StudyRecord],
    choice: Choice | None,
    transfer: Transfer | None = None,
) -> Path:
    """Write tables, figures and the page of a study; each file is whole or absent.

    Args:
        folder: Where the files stand: ``accuracy``, ``summary`` and ``front`` (CSV, Markdown),
            ``front.json`` and figures where there are records; ``transfer`` (CSV, Markdown,
            figure) where there are readings; ``study.html``.
        title: Of the page.
        records: One for each finished cell.
        choice: How the cells are trained, if it is known.
        transfer: The hardware side.

    Returns:
        The page.

    Raises:
        InputError: A record lacks the accuracy or the bytes.
    """
    grid, searched = divided(records)
    rows, readings = rows_of(grid), transfer.readings if transfer else ()
    fronts = [*fronts_of(rows), *([front_with(rows, searched)] if searched else [])]
    drawn_fronts = [front for front in fronts if front.network != ALL]
    files = paper_figures(rows, drawn_fronts, readings)
    if records:
        files |= _both("accuracy", records_table(records))
    if rows:
        files |= _both("summary", _summary(rows))
    if fronts:
        files |= _both("front", _points(fronts))
    if readings:
        files |= _both("transfer", _transfer(readings), above=_claims_text(readings))
    for name, content in files.items():
        write_bytes(folder / name, content)
    if fronts:
        held = Fronts(compared_cut=COMPARED_CUT, bytes_as="int8", networks=tuple(fronts))
        write_json(folder / "front.json", held)
    text = study_page(title=title, records=records, choice=choice, transfer=transfer)
    write_bytes(folder / PAGE_FILE, text.encode())
    return folder / PAGE_FILE


def study_page(
    *,
    title: str,
    records: Sequence[StudyRecord],
    choice: Choice | None,
    transfer: Transfer | None = None,
) -> str:
    """Return the page alone; whatever is not given is left out."""
    grid, searched = divided(records)
    rows, readings = rows_of(grid), transfer.readings if transfer else ()
    sections = []
    if rows:
        networks = [front for front in fronts_of(rows) if front.network != ALL]
        tables = shown(_grid_tables(rows))
        curves = (drawn(ratio_chart(rows)), *tables[:1])
        sections.append(Section(title="Accuracy and ratio", parts=curves))
        points = (drawn(bytes_chart(networks)), *tables[1:])
        sections.append(Section(title="Accuracy and bytes", parts=points))
    if searched:
        found = front_with(rows, searched)
        chart = drawn(bytes_chart([found], name="accuracy_search"))
        parts = (chart, *shown(_search_tables(rows, searched)))
        sections.append(Section(title="Beyond the grid: the search", parts=parts))
    if readings:
        charts = [drawn(transfer_chart(readings))] if transfer_grid(readings) else []
        parts = (*charts, *shown([*transfer_tables(readings), _readings_table(readings)]))
        sections.append(Section(title="What passes from layer to layer", parts=parts))
    if records or choice or transfer:
        sections.append(_facts_section(grid, choice, transfer))
    return rendered(
        _TEMPLATE,
        title=title,
        statement=headline(rows, readings),
        tiles=_tiles(grid, rows),
        answers=answers(rows, readings),
        sections=sections,
    )


def study_tables(records: Sequence[StudyRecord]) -> tuple[Table | Text, ...]:
    """Return a row for each network, placement and ratio, the balanced points, and the search.

    Raises:
        InputError: A record lacks the accuracy or the bytes.
    """
    grid, searched = divided(records)
    rows = rows_of(grid)
    return (
        *(_grid_tables(rows) if rows else ()),
        *(_search_tables(rows, searched) if searched else ()),
    )


def _grid_tables(rows: Sequence[Row]) -> tuple[Table | Text, ...]:
    places = [str(cut["after"]) for cut in rows[0].cuts]
    table = new_table(
        "Accuracy on the test set, and what crosses for one sample (int8)",
        ("network", "l"), ("place", "l"), ("r", "r"), ("seeds", "r"), ("accuracy, %", "r"),
        ("channels", "r"), ("bytes", "r"), ("MACs", "r"),
    )  # fmt: skip
    table.padding, table.pad_edge, table.show_edge = (0, 1, 0, 0), False, False  # 80 columns
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
    sentences = []
    for front in fronts_of(rows):
        whose = f"{front.network}: " if front.network == ALL else ""
        sentences += [Text(f"{whose}{balanced.why}") for balanced in front.balanced]
        sentences.append(Text(f"{front.network}: the front covers {_covered(front)}."))
    return table, *sentences


def _search_tables(rows: Sequence[Row], searched: Sequence[Searched]) -> tuple[Table | Text, ...]:
    """Return every network that the search tried, and what it adds to the grid, in words."""
    tested = [each for each in searched if each.tested]
    table = new_table(
        f"The {len(searched)} networks that the search tried",
        ("network", "l"), ("width", "r"), ("place", "l"), ("r", "r"), ("held out, %", "r"),
        ("test, %", "r"), ("bytes", "r"),
    )  # fmt: skip
    for each in sorted(searched, key=lambda pair: pair.held_out.figures["bytes"]):
        cell, figures = each.held_out.cell, each.held_out.figures
        add_row(
            table,
            f"ResNet-{cell.depth}",
            str(cell.width),
            cell.placement,
            str(cell.ratio),
            f"{100 * figures['accuracy']:.2f}",
            f"{100 * each.tested.figures['accuracy']:.2f}" if each.tested else "",
            num_bytes(figures["bytes"]),
            style="bold" if each.tested else "",
        )
    table.caption = Text(
        "Held out: trained on nine tenths of the training set, judged on the other tenth, which "
        f"is all that the search saw. The {len(tested)} that no other beat there were trained "
        f"on the whole training set and tested, with one seed. Bytes: int8, after {COMPARED_CUT}."
    )
    both = front_with(rows, searched)
    grid = [point_of(row) for row in rows]
    before = f"{hypervolume(grid, both.reference):.2f}" if grid else "0"
    gain = Text(f"With the search the front covers {_covered(both)}; the grid alone {before}.")
    return table, gain, *(Text(balanced.why) for balanced in both.balanced)


def _covered(front: NetworkFront) -> str:
    """Return the hypervolume with its unit."""
    most = num_bytes(front.reference.num_bytes)
    return f"{front.hypervolume:.2f} (accuracy times halvings of {most} bytes)"


def transfer_tables(readings: Sequence[Reading]) -> tuple[Table, ...]:
    """Return what each meter says about the paper's claim, side by side."""
    found = claims(readings)
    places = list(dict.fromkeys(claim.placement for claim in found))
    side = new_table(
        'The claim "ratio 8 cuts about 70 % at the fifth layer", by each meter',
        ("meter", "l"), *((f"placement {place}", "l") for place in places),
    )  # fmt: skip
    for meter in dict.fromkeys(claim.meter for claim in found):
        says = {claim.placement: saving(claim) for claim in found if claim.meter == meter}
        add_row(side, meter, *(says.get(place, "not read") for place in places))
    side.caption = Text("; ".join(doubts(readings)))
    return (side,) if found else ()


def _readings_table(readings: Sequence[Reading]) -> Table:
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
    return table


def _tiles(records: Sequence[StudyRecord], rows: Sequence[Row]) -> list[Tile]:
    if not rows:
        return []
    best = max(rows, key=lambda row: row.mean)
    minutes = sum(record.seconds for record in records) / 60
    spent = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} hours"
    all_in_all = f"{len(rows)} networks by depth, placement and ratio; {spent} in all"
    which = f"{best.network}, placement {best.placement}, r = {best.ratio}"
    tiles = [
        Tile(str(len(records)), "trainings", all_in_all),
        Tile(f"{100 * best.mean:.2f} %", "best accuracy, mean of its seeds", which),
    ]
    for balanced in fronts_of(rows)[-1].balanced:  # of all networks, where there are several
        size, name = num_bytes(balanced.point.num_bytes), balanced.point.name
        note = f"{name}: {percent(balanced.point.accuracy)}"
        tiles.append(Tile(f"{size} bytes", f"{balanced.rule}, after {COMPARED_CUT}", note))
    return tiles


def _facts_section(
    records: Sequence[StudyRecord], choice: Choice | None, transfer: Transfer | None
) -> Section:
    parts: list[Part] = []
    if choice:
        parts += shown(_choice_parts(choice))
    facts: list[tuple[str, str]] = []
    if records:
        seeds = sorted({record.cell.seed for record in records})
        data = sorted({f"{r.cell.data}, {r.cell.epochs} epochs" for r in records})
        facts += [("data", "; ".join(data)), ("seeds", ", ".join(map(str, seeds)))]
        facts += [("not run", lack) for lack in missing(records)]
    facts += _distinct("recipe", [_line(record.figures.get("recipe", {})) for record in records])
    if transfer:
        words = "ResNet-18, random weights, one random image; a thread or a process for each layer"
        facts.append(("transfer", f"{words}; {transfer.seconds:,.0f} s"))
    made: list[StudyRecord | Transfer] = [*records, *([transfer] if transfer else [])]
    facts += _distinct("machine", [each.machine for each in made])
    facts += _distinct("versions", [_line(each.versions) for each in made])
    facts += _distinct("revision", [each.revision or "not known" for each in made])
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


def _line(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in flat(facts).items())


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


def _points(fronts: Sequence[NetworkFront]) -> list[list[Any]]:
    """Return the head and a row for each point of each front: whether it is on it, or balanced."""
    return [
        ["network", "point", "accuracy", "int8_bytes", "on_front", "balanced"],
        *(
            [
                front.network,
                point.name,
                f"{point.accuracy:.6f}",
                point.num_bytes,
                "yes" if point in front.front else "no",
                ", ".join(each.rule for each in front.balanced if each.point == point),
            ]
            for front in fronts
            for point in front.points
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
    lines = (
        f"* {claim.placement}, {claim.meter}, {claim.layer}: {saving(claim)}\n"
        for claim in claims(readings)
    )
    return "".join((*lines, "\n"))


def _both(name: str, table: Sequence[Sequence[Any]], *, above: str = "") -> dict[str, bytes]:
    both = {f"{name}.csv": table_csv(table), f"{name}.md": above + table_markdown(table)}
    return {file: text.encode() for file, text in both.items()}
