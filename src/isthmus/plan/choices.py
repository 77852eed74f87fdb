"""What a link may carry: each usable cut with each codec that fits it.

A choice is *dominated* by another one at the same cut that needs no more bytes on the link and in
a relay, no more MACs, weights and buffers on either side, loses no more accuracy, and whose codec
is on every device that has the codec of the first. In any plan the other may take its place: all
stages and hops stay as they are or ask for less, and so do latency, interval, energy, price and
drop. To leave out what is dominated thus changes no optimum, whatever the objective and limits.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

from isthmus.errors import InputError
from isthmus.graph import Cut, Graph, Tensor, cuts
from isthmus.plan.accuracy import LOSSLESS, AccuracyTable
from isthmus.plan.plan import Asked, Crossing, Limits, exceeds
from isthmus.platform import Device, Link
from isthmus.wire.frames import HEADER_BYTES
from isthmus.wire.options import parse_options
from isthmus.wire.spec import CodecSpec, codec_text, default_codec_text, parse_codec

_INNER_CODECS = ("raw", "uniform", "bottleneck", "float")
_INPUT_CODECS = ("pixels", "png", "raw")
_OUTPUT_CODECS = ("label", "raw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One thing a link may carry.

    Attributes:
        cut: Where the graph is divided.
        spec: What carries the crossing.
        accuracy: Of the model when this alone crosses; None where it is unknown.
        origin: Whence that is known, as `Crossing` says.
        drop: The accuracy lost; None where it is unknown.
    """

    cut: Cut
    spec: CodecSpec
    accuracy: float | None = None
    origin: str = "unknown"
    drop: float | None = None

    @property
    def codec(self) -> str:
        """The codec as the user would write it."""
        return codec_text(self.spec)

    @property
    def frame_bytes(self) -> float:
        """Payload and header, one sample."""
        return self.spec.payload_bytes + HEADER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """All choices of a graph.

    Attributes:
        all: In the order of their cuts.
        skipped: Why a cut is not among them, by its index.
        notes: The same in a line for people.
    """

    all: tuple[Choice, ...]
    skipped: dict[int, str]
    notes: tuple[str, ...]


def find_choices(graph: Graph, asked: Asked) -> Choices:
    """List what a link may carry.

    Args:
        graph: What is divided.
        asked: Its codec is for the inner cuts; with none a sensible narrow one and ``raw`` compete
            at each. The codecs of its accuracies, and ``raw``, compete there too, and so does
            ``raw`` where the drop is limited.

    Returns:
        The choices: the input by ``pixels``, ``png`` and ``raw`` and the output by ``label`` and
        ``raw``, as far as they apply, and every inner cut without obstacle.

    Raises:
        InputError: The codec is unknown, not one for inner cuts, or can carry none.
    """
    codec, lossless = asked.codec, asked.limits.drop is not None
    if codec is not None:
        check_inner(codec)
    found: list[Choice] = []
    skipped: dict[int, str] = {}
    places = cuts(graph)
    for cut in places:
        try:
            found += choices_at(cut, len(graph.nodes), asked, lossless=lossless)
        except InputError as error:
            skipped[cut.index] = str(error)
    inner = places[1:-1]
    if codec is not None and inner and all(cut.index in skipped for cut in inner):
        raise InputError(
            f"codec {codec!r} can carry no cut; the first says: {skipped[min(skipped)]}"
        )
    notes = []
    for reason, count in Counter(skipped.values()).most_common(1):
        few = f"{len(skipped)} of {len(places)} cuts cannot be used"
        notes.append(f"{few}; {count} of them because: {reason}")
    return Choices(all=tuple(found), skipped=skipped, notes=tuple(notes))


def choices_at(cut: Cut, num_nodes: int, asked: Asked, *, lossless: bool) -> tuple[Choice, ...]:
    """List what a link may carry at one cut of a graph of so many nodes.

    Args:
        cut: Where.
        num_nodes: Of the graph.
        asked: As for `find_choices`.
        lossless: Whether ``raw`` competes with its codec, too.

    Raises:
        InputError: Nothing can carry this cut; says why.
    """
    texts = _texts(cut, num_nodes, asked, lossless=lossless)
    specs = _specs(cut, texts, asked.png_bytes)
    return tuple(known(Choice(cut=cut, spec=spec), asked.accuracy) for spec in specs)


def check_inner(codec: str) -> None:
    """Raise unless a codec is one for cuts inside the network."""
    name, _ = parse_options(codec)
    if name not in _INNER_CODECS:
        raise InputError(
            f"codec {name} is for the input or the output, expected one for a cut inside the "
            f"network: {', '.join(_INNER_CODECS)}"
        )


def _texts(cut: Cut, end: int, asked: Asked, *, lossless: bool) -> Iterator[str]:
    """Yield the codecs that may carry a cut; the last one has to, if no other does."""
    if not 0 < cut.index < end:
        yield from _INPUT_CODECS if cut.index == 0 else _OUTPUT_CODECS
        return
    if asked.accuracy is not None:
        yield from (row.codec for row in asked.accuracy.at(cut.index))
    if asked.accuracy is not None or lossless or asked.codec is None:
        yield "raw"
    if asked.codec is not None:
        yield asked.codec
    else:
        yield default_codec_text([t.shape for t in cut.tensors], [t.dtype for t in cut.tensors])


def _specs(cut: Cut, texts: Iterator[str], png_bytes: float | None) -> Iterator[CodecSpec]:
    """Yield each codec that can carry a cut, once; raise what is in the way where none can."""
    if cut.obstacle:
        raise InputError(cut.obstacle)
    specs: dict[str, CodecSpec] = {}
    problem = InputError(f"no codec can carry {cut.after}")
    for text in texts:
        try:
            spec = bind(text, cut.tensors)
        except InputError as error:
            problem = error
        else:
            if spec.name == "png" and png_bytes is not None:
                spec = replace(spec, measured_bytes=float(png_bytes))
            specs[codec_text(spec)] = spec
    if not specs:
        raise problem
    yield from specs.values()


def bind(text: str, tensors: Sequence[Tensor]) -> CodecSpec:
    """Read a codec for some tensors; ``raw`` carries those held in integers as these.

    Raises:
        InputError: It cannot carry them.
    """
    raw = parse_options(text)[0] == "raw"
    dtypes = [(raw and tensor.held) or tensor.dtype for tensor in tensors]
    return parse_codec(text, shapes=[tensor.shape for tensor in tensors], dtypes=dtypes)


def carried(crossing: Crossing, cut: Cut) -> Choice:
    """Return the choice that a crossing of a plan is.

    Raises:
        InputError: Its codec cannot carry what crosses there.
    """
    spec = bind(crossing.codec, cut.tensors)
    if not spec.fixed_rate:
        spec = replace(spec, measured_bytes=crossing.payload_bytes)
    return Choice(cut=cut, spec=spec)


def make_crossing(link: Link, choice: Choice) -> Crossing:
    """Write down that a link carries a choice."""
    return Crossing(
        link=link.name,
        cut=choice.cut.index,
        after=choice.cut.after,
        tensors=tuple(tensor.name for tensor in choice.cut.tensors),
        shapes=choice.spec.shapes,
        dtypes=choice.spec.dtypes,
        codec=choice.codec,
        payload_bytes=choice.spec.payload_bytes,
        fixed_rate=choice.spec.fixed_rate,
        transfer_s=link.transfer_s(choice.frame_bytes),
        energy_j=link.transfer_j(choice.frame_bytes),
        accuracy=choice.accuracy,
        origin=choice.origin,
    )


def other_model(found: str) -> InputError:
    """Return what to raise where a plan is not one of this model."""
    return InputError(f"plan: found {found}, expected a plan of this model; plan again")


def known(choice: Choice, table: AccuracyTable | None) -> Choice:
    """Add what is known of the accuracy, and of the payload where that varies."""
    row = table.row(choice.cut.index, choice.codec) if table else None
    if table is not None and row is not None:
        drop = table.drop(choice.cut.index, choice.codec)
        spec = choice.spec
        if row.payload_bytes is not None and not spec.fixed_rate:
            size, spread = row.payload_bytes, row.payload_spread_bytes
            spec = replace(spec, measured_bytes=size, measured_spread_bytes=spread)
        return replace(choice, spec=spec, accuracy=row.accuracy, origin=row.origin, drop=drop)
    if choice.codec in LOSSLESS:
        whole = table.whole if table else None
        return replace(choice, accuracy=whole, origin="lossless", drop=0.0)
    return choice


def can_code(device: Device, choice: Choice) -> bool:
    """Return whether a device has the codec of a choice."""
    return device.codecs is None or choice.spec.name in ("raw", *device.codecs)


def within(choices: Sequence[Choice], limits: Limits) -> tuple[Choice, ...]:
    """Return the choices that break no limit by themselves."""
    return tuple(
        choice
        for choice in choices
        if not exceeds(choice.spec.payload_bytes, limits.link_bytes)
        and not exceeds(inf if choice.drop is None else choice.drop, limits.drop)
    )


def undominated(choices: Sequence[Choice], devices: Sequence[Device]) -> tuple[Choice, ...]:
    """Leave out the choices that another one at the same cut dominates, as the module says."""
    drops = [inf if choice.drop is None else choice.drop for choice in choices]
    figures = [(*_figures(c.spec), drop) for c, drop in zip(choices, drops, strict=True)]
    at: dict[int, list[int]] = {}
    for k, choice in enumerate(choices):
        at.setdefault(choice.cut.index, []).append(k)

    def dominates(one: int, other: int) -> bool:
        no_worse = all(a <= b for a, b in zip(figures[one], figures[other], strict=True))
        able = all(can_code(d, choices[one]) or not can_code(d, choices[other]) for d in devices)
        return no_worse and able and (one < other or figures[one] != figures[other])

    return tuple(
        choice
        for k, choice in enumerate(choices)
        if not any(dominates(one, k) for one in at[choice.cut.index] if one != k)
    )


@lru_cache(maxsize=4096)
def _figures(spec: CodecSpec) -> tuple[float, ...]:
    """Return all that a codec costs anyone."""
    return (
        spec.payload_bytes,
        spec.max_payload_bytes,
        spec.encoder_macs,
        spec.decoder_macs,
        spec.encoder_weight_bytes,
        spec.decoder_weight_bytes,
        spec.encoder_buffer_bytes,
        spec.decoder_buffer_bytes,
    )


def preference(cut: Cut, graph: Graph) -> tuple[int, int, int]:
    """Return what is less for the cut that is chosen of those that cost the same.

    Input, output, then cuts at the end of outer modules before those at the end of inner ones and
    those inside a module.
    """
    if cut.index in (0, len(graph.nodes)):
        return (0, 0, cut.index)
    inside_a_module = cut.after == graph.nodes[cut.index - 1].name
    return (1 + inside_a_module, cut.after.count("."), cut.index)
