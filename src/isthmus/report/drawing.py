"""A network and its plan as a drawing, from top to bottom, for the page to draw as SVG.

.. code-block:: none

           +------------ band: device, what it computes ------------+
    module |  [conv2d]                                              |
           |  [relu] ------.                                        |
    module |  [conv2d]     | skip                                   |
           |  [add] <------'                                        |
           +--------------------------------------------------------+
           - - - - - - - strip: bytes, link, codec, time - - - - - - -
           +------------ band of the next device -------------------+

Where the stages are no stretches of the graph there are no bands and strips: each operation has
the colour of its device and says what it sends.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from isthmus.graph import Graph, Tensor
from isthmus.plan import Crossing, Plan, Stage
from isthmus.report.layout import Layout, lay_out
from isthmus.report.words import num_bytes, quantity, raw_bytes, span

BOX_HEIGHT = 28
COLORS = 8  # devices that the page can tell apart
_CHARACTER = 7.4  # width of one, amply
_BOX_WIDTHS = (112, 240)
_GAPS = (16, 40)  # between rows; more where a link goes far to the side
_TIP = 7  # of an arrow
_MARGIN, _TITLE, _EMPTY, _STRIP = 16, 40, 16, 64
_MODULE, _MODULE_LEVELS = 24, 2
_LEFT = 2 * _MARGIN + _MODULE * _MODULE_LEVELS
_LARGE = 0.8  # share of all operations from which on a module says nothing
_ALONE = 0.75  # share of its rows that a module must fill
_REPEAT = 700  # a taller module says its name again

Edges = Sequence[tuple[int, int]]  # upper and lower edge of each band


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One operation, or an input or output of the model.

    Attributes:
        x: Its left edge.
        y: Its upper edge.
        node: Its index in the graph; None for an input or output.
        words: What it is.
        note: The shape that it makes, where there is room.
        title: All that it is.
        color: Number of its device's colour; None where no device computes it.
        share: Its MACs, as a share of those of the costliest operation.
        sends: What crosses from here, where no strip says it.
    """

    x: int
    y: int
    node: int | None
    words: str
    note: str
    title: str
    color: int | None
    share: float
    sends: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one box hands to another.

    Attributes:
        source: Index of the node that makes it; None for an input.
        target: Index of the node that reads it; None for an output.
        path: As SVG writes it.
        crosses: Whether it leaves its device, where no strip says so.
    """

    source: int | None
    target: int | None
    path: str
    crosses: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The rows of one stage; the words stand beside what passes."""

    y: int
    height: int
    x_words: int
    device: str
    words: str
    color: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One crossing, dashed at ``y``; two lines of words stand beside what passes."""

    y: int
    x_words: int
    width: int
    payload: str
    way: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The rows of one module; as much of its path as fits stands at each of ``y_words``."""

    x: int
    y: int
    height: int
    path: str
    words: str
    y_words: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """All of it, and its size."""

    width: int
    height: int
    box_width: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    bands: tuple[Band, ...]
    strips: tuple[Strip, ...]
    modules: tuple[Module, ...]


def draw(plan: Plan, graph: Graph) -> Drawing:
    """Lay a network out: a row for each depth, the stages of its plan below each other."""
    texts = _texts(graph)
    longest = max(len(words) + len(note) for words, note in texts) + 4
    box_width = round(min(max(_CHARACTER * longest, _BOX_WIDTHS[0]), _BOX_WIDTHS[1]))
    stages = plan.stages if divides(plan, graph) else ()
    layout = lay_out(_groups(graph, stages), _links(graph), item_width=box_width)
    tops, edges = _heights(layout, title=_TITLE if stages else _MARGIN)
    bands = tuple(_band(plan, k, layout, edges) for k in range(len(stages)))
    strips = tuple(_strip(plan, k, layout, edges) for k in range(len(stages) - 1))
    ends = [band.x_words + _width(f"{band.device}: {band.words}") for band in bands]
    ends += [strip.x_words + strip.width for strip in strips]
    return Drawing(
        width=_MARGIN + max([*ends, round(_LEFT + layout.width)]),
        height=edges[-1][1],
        box_width=box_width,
        boxes=tuple(_boxes(plan, graph, layout, tops)),
        lines=tuple(_lines(plan, graph, layout, tops)),
        bands=bands,
        strips=strips,
        modules=_modules(graph, layout, tops),
    )


def divides(plan: Plan, graph: Graph) -> bool:
    """Tell whether the stages are stretches of the graph, one after the other."""
    planned = [name for stage in plan.stages for name in stage.nodes]
    return planned == [node.name for node in graph.nodes]


def device_colors(plan: Plan) -> dict[str, int]:
    """Return the number of each device's colour."""
    devices = dict.fromkeys(stage.device for stage in plan.stages)
    return {device: k % COLORS for k, device in enumerate(devices)}


def devices_of(plan: Plan) -> dict[str, str]:
    """Return the device of each node."""
    return {name: stage.device for stage in plan.stages for name in stage.nodes}


def shape_words(tensor: Tensor) -> str:
    """Return a tensor's shape as people write it."""
    return "\u00d7".join(map(str, tensor.shape)) or "1"


def _texts(graph: Graph) -> list[tuple[str, str]]:
    """Return what each item is and the shape that it makes."""
    inputs = [(tensor.name, shape_words(tensor)) for tensor in graph.inputs]
    nodes = [(node.op, " ".join(map(shape_words, node.outputs[:1]))) for node in graph.nodes]
    return [*inputs, *nodes, *(("output", "") for _ in graph.outputs)]


def _groups(graph: Graph, stages: Sequence[Stage]) -> list[range]:
    """Return the items of each stage; of all together where there are no bands."""
    sizes = [len(stage.nodes) for stage in stages[:-1]]
    ends = list(accumulate(sizes, initial=len(graph.inputs)))
    items = len(graph.inputs) + len(graph.nodes) + len(graph.outputs)
    return [range(start, end) for start, end in pairwise([0, *ends[1:], items])]


def _links(graph: Graph) -> Iterator[tuple[int, int]]:
    """Yield each item with one that reads what it makes."""
    maker = {tensor.name: k for k, tensor in enumerate(graph.inputs)}
    for k, node in enumerate(graph.nodes, start=len(graph.inputs)):
        yield from ((maker[name], k) for name in node.inputs)
        maker |= dict.fromkeys((tensor.name for tensor in node.outputs), k)
    outputs = len(graph.inputs) + len(graph.nodes)
    yield from ((maker[name], k) for k, name in enumerate(graph.outputs, start=outputs))


def _heights(layout: Layout, *, title: int) -> tuple[list[int], Edges]:
    """Return the upper edge of each row, and both edges of each group."""
    aside = [0.0] * layout.starts[-1]
    for (source, _), way in layout.ways.items():
        for row, (here, there) in enumerate(pairwise(way), start=layout.rows[source]):
            aside[row] = max(aside[row], abs(there - here))
    tops: list[int] = []
    edges: list[tuple[int, int]] = []
    y = 0
    for start, end in pairwise(layout.starts):
        upper, y = y, y + title
        for row in range(start, end):
            tops.append(y)
            y += BOX_HEIGHT + min(_GAPS[0] + round(aside[row] / 8), _GAPS[1])
        y = tops[-1] + BOX_HEIGHT + _MARGIN if end > start else y + _EMPTY
        edges.append((upper, y))
        y += _STRIP
    return tops, edges


def _boxes(plan: Plan, graph: Graph, layout: Layout, tops: Sequence[int]) -> Iterator[Box]:
    colors, devices = device_colors(plan), devices_of(plan)
    sends: dict[str, list[str]] = defaultdict(list)
    for crossing in () if divides(plan, graph) else plan.crossings:
        for name in crossing.tensors:
            sends[name].append(f"{crossing.link}: {num_bytes(crossing.payload_bytes)} bytes")
    most = max((node.macs or 0 for node in graph.nodes), default=0) or 1
    room = int(layout.item_width / _CHARACTER) - 2
    for item, (words, note) in enumerate(_texts(graph)):
        k = item - len(graph.inputs)
        node = graph.nodes[k] if 0 <= k < len(graph.nodes) else None
        device = devices.get(node.name, "") if node else ""
        made = node.outputs if node else graph.inputs[item : item + 1]
        title = [words, node.module if node else "", note, device]
        yield Box(
            x=round(_LEFT + layout.places[item] - layout.item_width / 2),
            y=tops[layout.rows[item]],
            node=k if node else None,
            words=words if len(words) <= room else f"{words[: room - 2]}..",
            note=note if len(words) + len(note) + 2 <= room else "",
            title=", ".join(filter(None, title)),
            color=colors.get(device),
            share=(node.macs or 0) / most if node else 0.0,
            sends=", ".join(text for tensor in made for text in sends[tensor.name]),
        )


def _lines(plan: Plan, graph: Graph, layout: Layout, tops: Sequence[int]) -> Iterator[Line]:
    devices, banded = devices_of(plan), divides(plan, graph)
    nodes = dict(enumerate(graph.nodes, start=len(graph.inputs)))
    for (source, target), way in layout.ways.items():
        ends = {devices.get(nodes[item].name) for item in (source, target) if item in nodes}
        yield Line(
            source=source - len(graph.inputs) if source in nodes else None,
            target=target - len(graph.inputs) if target in nodes else None,
            path=_path([_LEFT + x for x in way], layout.rows[source], tops),
            crosses=len(ends) > 1 and not banded,
        )


def _path(places: Sequence[float], row: int, tops: Sequence[int]) -> str:
    """Return a link's way: straight down through rows, bent between them."""
    x = round(places[0])
    parts = [f"M{x} {tops[row] + BOX_HEIGHT}"]
    for k, place in enumerate(map(round, places[1:]), start=row + 1):
        if place != x:
            above, below = tops[k - 1] + BOX_HEIGHT, tops[k] - _TIP
            middle = (above + below) // 2
            parts.append(f"V{above}C{x} {middle} {place} {middle} {place} {below}")
            x = place
    return "".join([*parts, f"V{tops[row + len(places) - 1]}"])


def _band(plan: Plan, k: int, layout: Layout, edges: Edges) -> Band:
    stage, (upper, lower) = plan.stages[k], edges[k]
    cost = [quantity(stage.macs, "MAC"), quantity(stage.compute_s, "s")] if stage.nodes else []
    return Band(
        y=upper,
        height=lower - upper,
        x_words=_beside(layout, layout.starts[k]),
        device=stage.device,
        words=", ".join([span(plan, k), *cost]),
        color=device_colors(plan)[stage.device],
    )


def _strip(plan: Plan, k: int, layout: Layout, edges: Edges) -> Strip:
    crossing = plan.crossings[k]
    payload, way = crossing_words(crossing)
    return Strip(
        y=edges[k][1] + _STRIP // 2,
        x_words=_beside(layout, layout.starts[k + 1]),
        width=max(_width(payload, bold=True), _width(way)),
        payload=payload,
        way=way,
        title=f"after {crossing.after}: {', '.join(crossing.tensors)}",
    )


def crossing_words(crossing: Crossing) -> tuple[str, str]:
    """Return the bytes of a crossing with those before its codec, and how it goes."""
    payload, raw = num_bytes(crossing.payload_bytes), num_bytes(raw_bytes(crossing))
    about = "" if crossing.fixed_rate else "about "
    instead = "" if payload == raw else f", instead of {raw}"
    time = quantity(crossing.transfer_s, "s")
    return f"{about}{payload} bytes{instead}", f"{crossing.link}: {crossing.codec}, {time}"


def _width(words: str, *, bold: bool = False) -> int:
    return round(_CHARACTER * len(words) * (1.15 if bold else 1)) + _MARGIN


def _beside(layout: Layout, row: int) -> int:
    """Return where there is room beside all that stands in a row or in the one above it."""
    places = [
        way[k]
        for (source, _), way in layout.ways.items()
        for k in (row - 1 - layout.rows[source], row - layout.rows[source])
        if 0 <= k < len(way)
    ]
    return round(_LEFT + max(places, default=0) + layout.item_width / 2 + _MARGIN)


def _modules(graph: Graph, layout: Layout, tops: Sequence[int]) -> tuple[Module, ...]:
    """Return the outer modules that fill several rows, and those in them, a column for each level.

    Modules side by side are left out: a row would have two names.
    """
    rows_of_nodes = layout.rows[len(graph.inputs) : len(graph.inputs) + len(graph.nodes)]
    filled = Counter(rows_of_nodes)
    rows: dict[str, list[int]] = defaultdict(list)
    for node, row in zip(graph.nodes, rows_of_nodes, strict=True):
        for path in accumulate(node.module.split("."), "{}.{}".format):
            rows[path].append(row)
    held = {}
    for path, found in rows.items():
        first, last = min(found), max(found)
        total = sum(filled[row] for row in range(first, last + 1))
        alone = len(found) >= _ALONE * total and len(found) < _LARGE * len(graph.nodes)
        if path and alone and last > first:
            held[path] = (tops[first], tops[last] + BOX_HEIGHT)
    levels = {path: sum(path.startswith(f"{outer}.") for outer in held) for path in held}
    return tuple(
        _module(path, levels[path], *ends)
        for path, ends in held.items()
        if levels[path] < _MODULE_LEVELS
    )


def _module(path: str, level: int, upper: int, lower: int) -> Module:
    height = lower - upper
    times = 1 + height // _REPEAT
    parts = path.split(".")
    names = [".".join(parts[k:]) for k in range(len(parts))]
    return Module(
        x=_MARGIN + level * _MODULE,
        y=upper,
        height=height,
        path=path,
        words=next((name for name in names if _width(name) <= height), ""),
        y_words=tuple(upper + round((k + 0.5) * height / times) for k in range(times)),
    )
