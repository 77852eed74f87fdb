"""What every possible stage asks of its device, by what arrives and what leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isthmus.graph import Graph, live_bytes
from isthmus.plan.choices import Choice
from isthmus.plan.estimate import Array, Cells, Indices, Load, halves_load


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What stages ask of their devices, (K + 1, K + 1), worked out where it is asked for.

    Attributes:
        starts: Index of the first node by what arrives, (K + 1,); `Load` says when there is none.
        stops: Index after the last node by what leaves, (K + 1,).
        decoders: MACs and written bytes of the codec half of what arrives, (2, K + 1).
        encoders: The same of what leaves.
        which: Row and column in the tables that follow, (K + 1,).
        weight_bytes: As `Load` says, of these choices and maybe others.
        peak_bytes: The same.
        node_peak_bytes: The same.
    """

    starts: Indices
    stops: Indices
    decoders: Array
    encoders: Array
    which: Indices
    weight_bytes: Array
    peak_bytes: Array
    node_peak_bytes: Array

    def at(self, row: int, column: int) -> Load:
        """Return one of them."""
        (dec_macs, dec_bytes), (enc_macs, enc_bytes) = (
            self.decoders[:, row].tolist(),
            self.encoders[:, column].tolist(),
        )
        at = self.which[row], self.which[column]
        return Load(
            start=int(self.starts[row]),
            stop=int(self.stops[column]),
            codec_macs=dec_macs + enc_macs,
            codec_bytes=dec_bytes + enc_bytes,
            weight_bytes=float(self.weight_bytes[at]),
            peak_bytes=float(self.peak_bytes[at]),
            node_peak_bytes=float(self.node_peak_bytes[at]),
        )

    def computed(self, cells: Cells, *, written: bool) -> Load:
        """Return a block of them but for memory, and bytes written if these do not matter."""
        rows, columns = cells
        (in_macs, in_bytes), (out_macs, out_bytes) = self.decoders, self.encoders
        return Load(
            start=self.starts[rows, None],
            stop=self.stops[None, columns],
            codec_macs=in_macs[rows, None] + out_macs[columns],
            codec_bytes=in_bytes[rows, None] + out_bytes[columns] if written else 0,
        )

    def held(self, cells: Cells) -> Load:
        """Return a block of them with no more than the memory."""
        rows, columns = (_span(self.which[part]) for part in cells)
        return Load(
            weight_bytes=self.weight_bytes[rows][:, columns],
            peak_bytes=self.peak_bytes[rows][:, columns],
        )

    def take(self, which: Indices) -> "Loads":
        """Return those of some choices, K itself the last of them."""
        return replace(
            self,
            starts=self.starts[which],
            stops=self.stops[which],
            decoders=self.decoders[:, which],
            encoders=self.encoders[:, which],
            which=self.which[which],
        )


def make_loads(graph: Graph, choices: Sequence[Choice]) -> Loads:
    """Work out what stages ask between any two of some choices."""
    ends = (*choices, None)
    starts = np.array([choice.cut.index if choice else 0 for choice in ends])
    stops = np.array([choice.cut.index if choice else len(graph.nodes) for choice in ends])
    keys = [(choice.spec, choice.cut.num_bytes) if choice else () for choice in ends]
    halves = {  # of choices that are alike once
        key: [
            (half.codec_macs, half.codec_bytes, half.weight_bytes, half.peak_bytes)
            for half in (halves_load(choice, None), halves_load(None, choice))
        ]
        for key, choice in dict(zip(keys, ends, strict=True)).items()
    }
    decoders, encoders = np.array([halves[key] for key in keys], float).transpose(1, 2, 0)
    weights = _weights(graph, starts[:, None], stops)
    weights += decoders[2, :, None]
    weights += encoders[2]
    node_peaks = _maxima(live_bytes(graph), starts, stops)
    peaks = np.maximum(node_peaks, decoders[3, :, None])
    return Loads(
        starts=starts,
        stops=stops,
        decoders=decoders[:2],
        encoders=encoders[:2],
        which=np.arange(len(ends)),
        weight_bytes=weights,
        peak_bytes=np.maximum(peaks, encoders[3], out=peaks),
        node_peak_bytes=node_peaks,
    )


def _span(which: Indices) -> Indices | slice:
    """Return indices as a slice, which copies nothing, where they follow each other."""
    start, stop = int(which[0]), int(which[-1]) + 1
    return slice(start, stop) if stop - start == len(which) else which


def _weights(graph: Graph, starts: Indices, stops: Indices) -> Array:
    """Return the bytes of all weights of each segment, each counted once."""
    used: dict[str, int] = {}
    repeats, before = [], [0.0]
    for index, node in enumerate(graph.nodes):
        sizes = {weight.name: weight.num_bytes for weight in node.weights}
        before.append(before[-1] + sum(sizes.values()))
        for name, num_bytes in sizes.items():
            if name in used:
                repeats.append((used[name], index, num_bytes))
            used[name] = index
    sums = np.array(before)
    total: Array = sums[stops] - sums[starts]  # nothing of use where stop is less
    for earlier, later, num_bytes in repeats:
        total -= num_bytes * ((starts <= earlier) & (stops > later))
    return total


def _maxima(values: Sequence[float], starts: Indices, stops: Indices) -> Array:
    """Return the largest of values[start:stop] for each of both; 0 for none."""
    rows = {}
    for start in np.unique(starts):
        tail = np.maximum.accumulate(np.array(values[start:], float))
        rows[start] = np.concatenate(([0.0], tail))[np.maximum(stops - start, 0)]
    return np.array([rows[start] for start in starts.tolist()])
