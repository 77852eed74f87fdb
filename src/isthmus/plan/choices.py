"""What a link may carry: each usable cut with each codec that fits it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from isthmus.errors import InputError
from isthmus.graph import Cut, Graph, cuts
from isthmus.wire.frames import HEADER_BYTES
from isthmus.wire.spec import CodecSpec, codec_text, default_codec_text, parse_codec, parse_options

_INNER_CODECS = ("raw", "uniform", "bottleneck")
_INPUT_CODECS = ("pixels", "png", "raw")
_OUTPUT_CODECS = ("label", "raw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One thing a link may carry.

    Attributes:
        cut: Where the graph is divided.
        spec: What carries the crossing.
    """

    cut: Cut
    spec: CodecSpec

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
        all: Preferred ones first, where they cost the same: input, output, then cuts at the end of
            outer modules before those at the end of inner ones and those inside a module.
        skipped: Why a cut is not among them, by its index.
        notes: The same in a line for people.
    """

    all: tuple[Choice, ...]
    skipped: dict[int, str]
    notes: tuple[str, ...]


def find_choices(graph: Graph, *, codec: str | None, png_bytes: float | None) -> Choices:
    """List what a link may carry.

    Args:
        graph: What is divided.
        codec: For the inner cuts; None for a sensible narrow one at each.
        png_bytes: Mean size of the inputs as PNG, where it was measured.

    Returns:
        The choices: the input by ``pixels``, ``png`` and ``raw`` and the output by ``label`` and
        ``raw``, as far as they apply, and every inner cut without obstacle.

    Raises:
        InputError: ``codec`` is unknown, not one for inner cuts, or can carry none.
    """
    if codec is not None:
        _check_inner(codec)
    found: list[Choice] = []
    skipped: dict[int, str] = {}
    places = cuts(graph)
    for cut in sorted(places, key=lambda cut: _preference(cut, graph)):
        try:
            choices = list(_at(cut, len(graph.nodes), codec))
        except InputError as error:
            skipped[cut.index] = str(error)
            continue
        found += (_measured(choice, png_bytes) for choice in choices)
    inner = places[1:-1]
    if codec is not None and inner and all(cut.index in skipped for cut in inner):
        raise InputError(f"codec {codec!r} can carry no cut; the first says: {_first(skipped)}")
    return Choices(all=tuple(found), skipped=skipped, notes=_notes(places, skipped))


def _check_inner(codec: str) -> None:
    name, _ = parse_options(codec)
    if name not in _INNER_CODECS:
        raise InputError(
            f"codec {name} is for the input or the output, expected one for a cut inside the "
            f"network: {', '.join(_INNER_CODECS)}"
        )


def _at(cut: Cut, end: int, codec: str | None) -> Iterator[Choice]:
    if cut.obstacle:
        raise InputError(cut.obstacle)
    shapes = [tensor.shape for tensor in cut.tensors]
    dtypes = [tensor.dtype for tensor in cut.tensors]
    if 0 < cut.index < end:
        text = default_codec_text(shapes, dtypes) if codec is None else codec
        yield Choice(cut=cut, spec=parse_codec(text, shapes=shapes, dtypes=dtypes))
        return
    for text in _INPUT_CODECS if cut.index == 0 else _OUTPUT_CODECS:
        try:
            yield Choice(cut=cut, spec=parse_codec(text, shapes=shapes, dtypes=dtypes))
        except InputError:
            if text == "raw":  # the others are for images and for class scores only
                raise


def _preference(cut: Cut, graph: Graph) -> tuple[int, int, int]:
    if cut.index in (0, len(graph.nodes)):
        return (0, 0, cut.index)
    inside_a_module = cut.after == graph.nodes[cut.index - 1].name
    return (1 + inside_a_module, cut.after.count("."), cut.index)


def _measured(choice: Choice, png_bytes: float | None) -> Choice:
    if choice.spec.name != "png" or png_bytes is None:
        return choice
    return replace(choice, spec=replace(choice.spec, measured_bytes=float(png_bytes)))


def _first(skipped: dict[int, str]) -> str:
    return skipped[min(skipped)]


def _notes(places: tuple[Cut, ...], skipped: dict[int, str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    reason, count = Counter(skipped.values()).most_common(1)[0]
    return (
        f"{len(skipped)} of {len(places)} cuts cannot be used; {count} of them because: {reason}",
    )
