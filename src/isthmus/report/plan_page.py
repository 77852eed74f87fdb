"""One self-contained HTML page of a plan: its answer, the network as a drawing, the tables."""

from pathlib import Path

from isthmus.files import write_bytes
from isthmus.graph import Graph
from isthmus.plan import Plan
from isthmus.report.drawing import device_colors, devices_of, divides, draw, shape_words
from isthmus.report.page import Section, Tile, bytes_across, check_free, rendered, shown
from isthmus.report.plan_tables import plan_tables
from isthmus.report.words import assumed, energy, headline, percent, quantity, span

_TEMPLATE = "plan_page.html.j2"

Fact = tuple[str, str]


def write_plan_page(path: Path, plan: Plan, graph: Graph, *, title: str) -> None:
    """Write the page of a plan; an older page there is replaced.

    Args:
        path: The file.
        plan: Which device computes what, with its predictions and rivals.
        graph: The network that was planned.
        title: Of the document, and above its first heading.

    Raises:
        InputError: Something other than a page of ours stands at ``path``.
    """
    check_free(path)
    write_bytes(path, plan_page(plan, graph, title=title).encode())


def plan_page(plan: Plan, graph: Graph, *, title: str) -> str:
    """Return the page; arguments are as for `write_plan_page`."""
    tables = tuple(shown(plan_tables(plan)[1:]))
    return rendered(
        _TEMPLATE,
        title=title,
        statement=headline(plan),
        tiles=_tiles(plan),
        cards=_cards(plan, graph),
        drawing=draw(plan, graph),
        whole=_whole(graph),
        facts=_facts(plan, graph),
        sections=[Section(title=f"The plan for {plan.platform.name}", parts=tables)],
    )


def _tiles(plan: Plan) -> list[Tile]:
    predicted, where = plan.predicted, f"on {plan.platform.name}"
    interval = quantity(predicted.interval_s, "s")
    tiles = [
        bytes_across(plan),
        Tile(quantity(predicted.latency_s, "s"), "latency, predicted", where),
        Tile(interval, "between answers, predicted", "with many in flight"),
        Tile(energy(plan), "energy for a sample, predicted", where),
    ]
    if predicted.price:
        tiles.append(Tile(f"{predicted.price:,.2f} USD", "for the devices on the way", ""))
    if predicted.drop is not None:
        lost = f"{100 * predicted.drop:.2f} points"
        tiles.append(Tile(lost, "accuracy lost", assumed(plan).strip(" ()")))
    return tiles


def _cards(plan: Plan, graph: Graph) -> list[dict[str, object]]:
    """Return the legend: each stage with what it takes, and with what it lacks."""
    colors = device_colors(plan)
    cards: list[dict[str, object]] = []
    for k, stage in enumerate(plan.stages):
        words = span(plan, k) if divides(plan, graph) else f"{len(stage.nodes)} operations"
        costs = [
            f"{quantity(stage.macs, 'MAC')} in {stage.format}, {quantity(stage.compute_s, 's')}",
            f"weights {quantity(stage.weight_bytes, 'byte')}",
            f"peak memory {quantity(stage.peak_memory_bytes, 'byte')}",
        ]
        lacks = [v.shortfall for v in plan.violations if v.where == stage.device]
        cards.append(
            {
                "device": stage.device,
                "color": colors[stage.device],
                "lines": [words, *(costs if stage.nodes else ())],
                "over": lacks,
            }
        )
    return cards


def _whole(graph: Graph) -> list[Fact]:
    return [
        ("operations", f"{len(graph.nodes):,}"),
        ("MACs", f"{graph.macs:,}"),
        ("parameters", f"{graph.num_parameters:,}"),
        ("weights", f"{graph.weight_bytes:,} bytes"),
        ("inputs", "\n".join(map(shape_words, graph.inputs))),
    ]


def _facts(plan: Plan, graph: Graph) -> list[dict[str, object]]:
    """Return for each node its name and what it costs."""
    devices, total = devices_of(plan), graph.macs or 1
    found: list[dict[str, object]] = []
    for node in graph.nodes:
        known = node.macs is not None
        more = f", and unknown ones of {', '.join(node.unknown)}" if known and node.unknown else ""
        makes = [f"{shape_words(tensor)} {tensor.dtype}" for tensor in node.outputs]
        facts = [
            ("operation", node.op),
            ("module", node.module or "-"),
            ("device", devices.get(node.name, "-")),
            ("MACs", f"{node.macs:,}{more}" if known else "unknown: no cost rule"),
            ("share", f"{percent((node.macs or 0) / total)} of all MACs" if known else "-"),
            ("other ops", "unknown" if node.ops is None else f"{node.ops:,}"),
            ("weights", f"{node.weight_bytes:,} bytes"),
            ("reads", f"{node.read_bytes:,} bytes"),
            ("writes", f"{node.written_bytes:,} bytes"),
            ("makes", "\n".join(makes)),
            ("from", "\n".join(node.inputs)),
        ]
        found.append({"name": node.name, "facts": facts})
    return found
