"""One self-contained HTML page: the plan as a picture, the figures, the tables.

The page loads nothing: plotly's source stands in it once, and its content security policy forbids
every request.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from isthmus import __version__
from isthmus.bundle import INDEX_FILE, read_bundle
from isthmus.errors import InputError
from isthmus.export import Verification
from isthmus.export.verify import VERIFICATION_FILE
from isthmus.files import Written, read_json, write_bytes
from isthmus.graph import Graph, cuts
from isthmus.plan import Plan
from isthmus.report import figures
from isthmus.report.fit_tables import fit_result_tables
from isthmus.report.picture import Picture, picture
from isthmus.report.plan_tables import plan_tables
from isthmus.report.tables import (
    fit_table,
    profile_tables,
    rivals_table,
    run_tables,
    verification_table,
)
from isthmus.report.words import energy, headline, judged, num_bytes, percent, quantity, totals
from isthmus.run import RunRecord
from isthmus.run.record import RUN_FILE
from isthmus.train import FitRecord
from isthmus.train.fitted import GRAPH_FILE, RECORD_FILE
from isthmus.train.rivals import Rival

T = TypeVar("T")
W = TypeVar("W", bound=Written)

PLAN_FILE = "plan.json"
_TEMPLATE = "page.html.j2"
_MARK = b'<meta name="generator" content="isthmus">'
_HEAD_BYTES = 2000  # of a page, where the mark is looked for


class Tile(NamedTuple):
    """One figure that matters, large."""

    value: str
    label: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One piece of a section.

    Attributes:
        kind: Says what ``content`` is.
        content: A `Picture`, a `Figure` as `drawn` returns it, a table as `_grid` does, or text.
    """

    kind: Literal["picture", "figure", "table", "text"]
    content: Picture | dict[str, Any] | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: tuple[Part, ...]


def page(
    *,
    title: str,
    plan: Plan | None = None,
    graph: Graph | None = None,
    fit: FitRecord | None = None,
    verification: Verification | None = None,
    run: RunRecord | None = None,
    rivals: Sequence[Rival] = (),
) -> str:
    """Return the page; whatever is not given is left out.

    Args:
        title: Of the document, and above its first heading.
        plan: Which device computes what.
        graph: The model, for the bytes at every cut.
        fit: What training did.
        verification: How far the bundle is from the model.
        run: What was measured.
        rivals: The cheap ways across.
    """
    sections = []
    if plan:
        sections.append(_plan_section(plan, graph))
    if plan and plan.crossings and fit:
        sections.append(_rivals_section(plan, fit, run, rivals))
    if run:
        charts = drawn(figures.timeline_figure(run)), drawn(figures.prediction_figure(run))
        parts = (*charts, *shown(run_tables(run)))
        sections.append(Section(title="The run, on emulated links", parts=parts))
    if graph:
        parts = (
            drawn(figures.bytes_figure(graph, plan)),
            *shown(profile_tables(graph, cuts(graph))),
        )
        sections.append(Section(title="The model", parts=parts))
    if fit or verification or run:
        sections.append(_facts_section(graph, fit, verification, run))
    return rendered(
        _TEMPLATE,
        title=title,
        statement=_statement(plan, graph, run),
        tiles=_tiles(plan, fit, run),
        sections=sections,
    )


def rendered(template: str, **values: object) -> str:
    """Return the page that a template of this package makes; every value is escaped.

    Args:
        template: Its file name.
        values: What it shows, besides plotly's source and the version, which every page has.
    """
    environment = Environment(
        loader=PackageLoader("isthmus", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(
        plotly=figures.drawing_library(), version=__version__, **values
    )


def write_profile(out: Path, graph: Graph, *, title: str) -> None:
    """Write the page of a model alone: what crosses at every cut.

    Raises:
        InputError: Something other than a page of ours stands at ``out``.
    """
    check_free(out)
    write_bytes(out, page(title=title, graph=graph).encode())


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page of what fit, export and run left.

    Args:
        folders: In any order; each is known by its ``fit.json``, ``bundle.json``, ``run.json`` or
            ``plan.json``.
        out: The file to write; an older page there is replaced.

    Raises:
        InputError: A folder is none of these, there are two of a kind, they do not belong
            together, or something other than a page of ours stands at ``out``.
        BundleError: A bundle is damaged.
    """
    check_free(out)
    for folder in folders:
        markers = (RECORD_FILE, INDEX_FILE, RUN_FILE, PLAN_FILE)
        if not any((folder / marker).is_file() for marker in markers):
            raise InputError(
                f"{folder}: found none of {', '.join(markers)}, expected a folder that "
                "isthmus fit, export or run made"
            )
    bundles = _holding(folders, INDEX_FILE)
    for folder in bundles:
        read_bundle(folder)
    verifications = _read(bundles, VERIFICATION_FILE, Verification)
    fits, runs = _holding(folders, RECORD_FILE), _holding(folders, RUN_FILE)
    fit = _only(_read(fits, RECORD_FILE, FitRecord), "fits")
    graphs = _read(fits, GRAPH_FILE, Graph)
    plans = _read(folders, PLAN_FILE, Plan)
    plan = _only([*([fit.plan] if fit else []), *plans], "plans")
    run = _only(_read(runs, RUN_FILE, RunRecord), "runs")
    if run and plan and _codecs(run.crossings) != _codecs(plan.crossings):
        raise InputError(f"{runs[0]}: is a run of another plan, expected one of the same bundle")
    names = [fit.model.text if fit else "a model", plan.platform.name if plan else "this machine"]
    text = page(
        title=" on ".join(names),
        plan=plan,
        graph=_only(graphs, "graphs"),
        fit=fit,
        verification=_only(verifications, "verifications"),
        run=run,
        rivals=fit.rivals if fit else (),
    )
    write_bytes(out, text.encode())


def check_free(out: Path) -> None:
    """Raise where something other than a page of ours would be replaced."""
    if not out.exists():
        return
    if out.is_file():
        with out.open("rb") as file:
            if _MARK in file.read(_HEAD_BYTES):
                return
    raise InputError(
        f"{out}: exists and is no page of Isthmus, so it is not ours to replace; name another "
        "--out or remove it"
    )


def _holding(folders: Iterable[Path], name: str) -> list[Path]:
    return [folder for folder in folders if (folder / name).is_file()]


def _read(folders: Iterable[Path], name: str, kind: type[W]) -> list[W]:
    """Read a file of that name from each folder that holds one."""
    return [read_json(f / name, kind) for f in _holding(folders, name)]


def _only(values: Sequence[T], what: str) -> T | None:
    """Return the one value that is given, any number of times; None where none is."""
    if any(value != values[0] for value in values):
        raise InputError(f"the folders hold {len(values)} different {what}; report one at a time")
    return values[0] if values else None


def _codecs(crossings: Sequence[Any]) -> list[tuple[str, str, str]]:
    return [(crossing.link, crossing.after, crossing.codec) for crossing in crossings]


def _statement(plan: Plan | None, graph: Graph | None, run: RunRecord | None) -> str:
    if plan:
        return headline(plan)
    if run:
        return f"{run.requests} requests, half of them within {quantity(run.latency_s.p50, 's')}"
    if graph:
        weights, macs = quantity(graph.weight_bytes, "byte"), quantity(graph.macs, "MAC")
        return f"{graph.num_parameters:,} parameters, {weights} of weights, {macs} for one sample"
    return "Nothing to report"


def _tiles(plan: Plan | None, fit: FitRecord | None, run: RunRecord | None) -> list[Tile]:
    tiles = []
    whole = f"{percent(fit.accuracy_whole)} without a cut" if fit else ""
    if plan and plan.crossings:
        tiles.append(bytes_across(plan))
    if run and run.accuracy is not None:
        label = f"accuracy of {run.requests:,} samples, measured"
        same = fit is not None and fit.judge == "labels"  # else another figure
        note = f"of all {percent(fit.accuracy_split)}, and {whole}" if fit and same else ""
        tiles.append(Tile(percent(run.accuracy), label, note))
    elif fit:
        label = f"{judged(fit)} through the codecs"
        tiles.append(Tile(percent(fit.accuracy_split), label, whole))
    if run:
        note = "links emulated, devices at this machine's speed"
        tiles.append(Tile(quantity(run.latency_s.p50, "s"), "median latency, measured", note))
    if plan:
        latency = plan.predicted.latency_s
        where = f"on {plan.platform.name}, not measured"
        tiles.append(Tile(quantity(latency, "s"), "latency, predicted", where))
        tiles.append(Tile(energy(plan), "energy for a sample, predicted", where))
    return tiles


def bytes_across(plan: Plan) -> Tile:
    """Return what crosses."""
    payload, raw = map(num_bytes, totals(plan))
    return Tile(f"{payload} bytes", "cross for each sample, payload", f"{raw} as fp32")


def _plan_section(plan: Plan, graph: Graph | None) -> Section:
    memory = figures.memory_figure(plan, graph)
    parts = [Part(kind="picture", content=picture(plan))]
    parts += [drawn(memory)] if memory else []
    parts += shown(plan_tables(plan)[1:])
    return Section(title=f"The plan for {plan.platform.name}", parts=tuple(parts))


def _rivals_section(
    plan: Plan, fit: FitRecord, run: RunRecord | None, rivals: Sequence[Rival]
) -> Section:
    figure = figures.accuracy_figure(plan, fit, run, rivals)
    table = rivals_table(plan, fit, run, rivals)
    tables = shown([table, *fit_result_tables(fit)])
    return Section(title="Accuracy and bytes", parts=(drawn(figure), *tables))


def _facts_section(
    graph: Graph | None,
    fit: FitRecord | None,
    verification: Verification | None,
    run: RunRecord | None,
) -> Section:
    parts: list[Part] = []
    if fit:
        shape = graph.tensors()[graph.outputs[0]].shape if graph else ()
        parts += shown([fit_table(fit, num_outputs=math.prod(shape))])
    if verification:
        parts += shown([verification_table(verification)])
    facts = {"model": fit.model.text, "data": fit.data} if fit else {}
    facts |= {key: str(value) for key, value in asdict(fit.config).items()} if fit else {}
    for what, record in (("trained on", fit), ("run on", run)):
        if record:
            versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
            facts |= {what: record.machine, f"{what}, with": versions}
    table = Table("", "", title="Recipe, machine and versions")
    for key, value in facts.items():
        table.add_row(Text(key), Text(value))
    return Section(title="How it was made", parts=(*parts, *shown([table])))


def drawn(figure: figures.Figure) -> Part:
    """Return a figure with plotly's own description of the chart."""
    chart = json.loads(figure.chart.to_json())
    words = {"name": figure.name, "title": figure.title, "text": figure.text}
    return Part(kind="figure", content={**words, "chart": chart})


def shown(parts: Iterable[Table | Text]) -> list[Part]:
    """Return what the command line prints, for the page."""
    return [
        Part(kind="table", content=_grid(part))
        if isinstance(part, Table)
        else Part(kind="text", content=part.plain)
        for part in parts
    ]


def _grid(table: Table) -> dict[str, Any]:
    """Return a table's texts, row by row, each with the side that its column is flush with."""
    sides = [column.justify for column in table.columns]
    heads = [" ".join(str(column.header).split()) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title or ""),
        "note": str(table.caption or ""),
        "head": list(zip(heads, sides, strict=True)),
        "rows": [
            (str(row.style or ""), list(zip(values, sides, strict=True)))
            for row, values in zip(table.rows, zip(*cells, strict=True), strict=True)
        ],
    }
