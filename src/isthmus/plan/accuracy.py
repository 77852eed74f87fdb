"""What each codec costs in accuracy at each cut, as data."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from isthmus.errors import InputError

LOSSLESS = ("raw", "pixels", "png", "label")
"""Codecs that leave the answer as it is, unless a row measured otherwise."""

Origin = Literal["trained", "post-hoc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """The accuracy through one codec at one cut.

    Attributes:
        cut: Index of the cut.
        codec: As `isthmus.wire.spec.codec_text` writes it, e.g. ``"uniform:bits=4"``.
        accuracy: Of the model through the codec, 0..1.
        samples: How many samples it was measured on.
        origin: Whether the crossing was fitted, or its codec only calibrated.
        whole: Accuracy of the whole model on the same samples, 0..1; None where the samples are
            those of the table.
        payload_bytes: Mean payload, of a codec of variable rate; None where nothing was coded.
        payload_spread_bytes: Standard deviation of the same.

    Raises:
        InputError: An accuracy is not in 0..1, or a payload is negative.
    """

    cut: int
    codec: str
    accuracy: float
    samples: int
    origin: Origin
    whole: float | None = None
    payload_bytes: float | None = None
    payload_spread_bytes: float | None = None

    def __post_init__(self) -> None:
        for size in (self.payload_bytes, self.payload_spread_bytes):
            if size is not None and not 0 <= size < inf:
                where = f"cut {self.cut}, {self.codec}: payload"
                raise InputError(f"{where}: found {size}, expected 0 bytes or more")
        _check_share(f"cut {self.cut}, {self.codec}: accuracy", self.accuracy)
        if self.whole is not None:
            _check_share(f"cut {self.cut}, {self.codec}: accuracy of the whole", self.whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTable:
    """What is known of the accuracy through a codec at a cut of one model.

    Attributes:
        graph: Fingerprint of the model's graph.
        whole: Accuracy of the whole model, 0..1.
        rows: At most one for each cut and codec; a pair without one is unknown.

    Raises:
        InputError: An accuracy is not in 0..1, or a cut and codec have two rows.
    """

    graph: str
    whole: float
    rows: tuple[AccuracyRow, ...] = ()

    def __post_init__(self) -> None:
        _check_share("accuracy of the whole", self.whole)
        pairs = [(row.cut, row.codec) for row in self.rows]
        for cut, codec in pairs:
            if pairs.count((cut, codec)) > 1:
                raise InputError(f"cut {cut}, {codec}: found two accuracies, expected one")

    def at(self, cut: int) -> tuple[AccuracyRow, ...]:
        """Return what is known at a cut."""
        return tuple(row for row in self.rows if row.cut == cut)

    def row(self, cut: int, codec: str) -> AccuracyRow | None:
        """Return what was measured through a codec at a cut; None where nothing was."""
        return next((row for row in self.at(cut) if row.codec == codec), None)

    def drop(self, cut: int, codec: str) -> float | None:
        """Return the accuracy lost through a codec at a cut, 0..1; None where it is unknown.

        A gain counts as no loss, so that it does not pay for the loss at another crossing.
        """
        row = self.row(cut, codec)
        if row is None:
            return 0.0 if codec in LOSSLESS else None
        whole = self.whole if row.whole is None else row.whole
        return max(0.0, whole - row.accuracy)

    def check(self, graph: str) -> None:
        """Raise unless the table was made for the model of a graph.

        Args:
            graph: Its fingerprint.

        Raises:
            InputError: It was made for another.
        """
        if self.graph != graph:
            raise InputError(
                f"accuracy table: found graph {self.graph}, expected {graph}; it was measured "
                "with another model, measure anew (isthmus plan --data)"
            )


def merge(table: AccuracyTable, rows: Iterable[AccuracyRow]) -> AccuracyTable:
    """Return the table with more rows.

    Of several for one cut and codec a trained one counts before a post-hoc one, then the one with
    the smaller loss against the whole model on its own samples.
    """
    best: dict[tuple[int, str], AccuracyRow] = {}
    for row in (*table.rows, *rows):
        known = best.setdefault((row.cut, row.codec), row)
        if _rank(row, table.whole) > _rank(known, table.whole):
            best[row.cut, row.codec] = row
    return replace(table, rows=tuple(sorted(best.values(), key=lambda r: (r.cut, r.codec))))


def _rank(row: AccuracyRow, whole: float) -> tuple[bool, float]:
    return row.origin == "trained", row.accuracy - (whole if row.whole is None else row.whole)


def _check_share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{what}: found {value}, expected 0 to 1")
