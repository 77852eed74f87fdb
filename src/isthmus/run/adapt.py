r"""Choose how wide nested crossings are, for each request anew, so that its answer is in time.

A request takes what does not depend on its width, and its bytes' time on the links:

.. math:: t = b + c \, x(w)

with the time :math:`x(w)` that the platform says the bytes of width :math:`w` take, and two
unknowns: :math:`b`, and by how much the links are slower than the platform says, :math:`c`. A
Kalman filter follows both from one measured time to the next. The widest width whose predicted
time is below the target is taken, and a wider one now and then, as a link that has recovered shows
only in frames that are long enough.

References:
    Kalman, "A new approach to linear filtering and prediction problems", Journal of Basic
    Engineering 82(1), 1960.
    Akhshabi, Begen, Dovrolis, "An experimental evaluation of rate-adaptation algorithms in
    adaptive streaming over HTTP", MMSys 2011 (probing upwards).
"""

import threading
from dataclasses import dataclass

import numpy as np

from isthmus.bundle import PLATFORM_FILE, Bundle
from isthmus.errors import BundleError, InputError, naming
from isthmus.platform import Link, Platform
from isthmus.units import parse_quantity
from isthmus.wire import HEADER_BYTES, parse_codec
from isthmus.wire.nested import Width, payload_bytes_at, width_byte, widths

_MARGIN = 0.85  # of the target is what a prediction may be
_NOISE = 0.1  # of a measured time
_DRIFT = np.array([0.02, 0.3])  # of both unknowns from one request to the next, of their size
_PROBE_AFTER = 32  # answers in time, before a wider width is tried
_PROBE_MARGIN = 3.0  # of the target, up to which a wider width may be predicted to be tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One width that may be chosen.

    Attributes:
        width: What it is.
        byte: The same on the wire.
        link_s: How long its bytes take on all nested crossings' links, as the platform says.
        accuracy: With it, where the bundle says; None where not.
    """

    width: Width
    byte: int
    link_s: float
    accuracy: float | None = None


def parse_target(text: str) -> float:
    """Return the seconds of ``latency=50ms``.

    Raises:
        InputError: Another text.
    """
    name, equals, value = text.partition("=")
    with naming(f"--adapt {text!r}"):
        seconds = parse_quantity(value, "s")
    if name != "latency" or not equals or seconds <= 0:
        raise InputError(f"--adapt {text!r}: expected a time, such as latency=50ms")
    return seconds


def bundle_links(bundle: Bundle, platform: Platform) -> tuple[Link, ...]:
    """Return the link of each crossing.

    Raises:
        BundleError: There is none.
    """
    links = []
    for crossing in bundle.crossings:
        ends = {crossing.source, crossing.target}
        found = [link for link in platform.links if set(link.between) == ends]
        if not found:
            raise BundleError(
                f"{PLATFORM_FILE}: found no link between {crossing.source} and {crossing.target}; "
                "export the bundle anew"
            )
        links += found
    return tuple(links)


def empty_s(link: Link) -> float:
    """Return how long a frame without a payload takes, as the platform says."""
    return link.transfer_s(HEADER_BYTES)


def rungs(bundle: Bundle, links: tuple[Link, ...]) -> tuple[Rung, ...]:
    """Return the widths among which to choose, the narrowest first.

    A width is left out if another one is quicker and no less accurate. Where the bundle does not
    say how accurate each is, there is one of those that are as quick, that of the most channels.

    Args:
        bundle: Has nested crossings.
        links: Of each crossing.

    Raises:
        InputError: No crossing is nested, or they do not have the same widths.
    """
    nested = []
    for crossing, link in zip(bundle.crossings, links, strict=True):
        spec = parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
        if spec.nested:
            nested.append((spec, link, crossing.payload_bytes))
    if not nested:
        raise InputError(
            "adapt: no crossing of this bundle is nested; plan with a codec such as "
            "bottleneck:ratio=1,bits=8,nested=1"
        )
    known = {widths(spec) for spec, _, _ in nested}
    if len(known) != 1:
        raise InputError(
            "adapt: found nested crossings of different widths, expected the same: cut where as "
            "many channels cross, or nest one of them"
        )
    worth = {Width(ratio=entry.ratio, bits=entry.bits): entry.accuracy for entry in bundle.widths}
    found = []
    for width in known.pop():
        if worth and width not in worth:
            continue
        link_s = 0.0
        for spec, link, payload_bytes in nested:
            widest_bytes = payload_bytes_at(spec, widths(spec)[0])
            num_bytes = payload_bytes_at(spec, width) * payload_bytes / widest_bytes
            link_s += link.transfer_s(num_bytes + HEADER_BYTES) - empty_s(link)
        found.append(
            Rung(
                width=width,
                byte=width_byte(nested[0][0], width)[0],
                link_s=link_s,
                accuracy=worth.get(width),
            )
        )
    if not found:
        raise InputError(
            "adapt: none of the widths that the bundle says the worth of is one of its codec's; "
            "export it anew"
        )
    return _undominated(found)


def _undominated(found: list[Rung]) -> tuple[Rung, ...]:
    kept: list[Rung] = []
    for rung in sorted(found, key=lambda each: (each.link_s, -(each.accuracy or 0.0))):
        last = kept[-1] if kept else None
        if last is None or (
            rung.link_s > last.link_s
            if rung.accuracy is None or last.accuracy is None
            else rung.accuracy > last.accuracy
        ):
            kept.append(rung)
    return tuple(kept)


class Adapter:
    """Follows how quick answers are, and chooses the next width; several threads may use it.

    Args:
        rungs: Among which to choose, the narrowest first.
        target_s: How long a request may take, in seconds.
        rest_s: What it is thought to take besides, until there is an answer.
    """

    def __init__(self, rungs: tuple[Rung, ...], target_s: float, *, rest_s: float = 0.0) -> None:
        self.target_s = target_s
        self.rungs = rungs
        self._state = np.array([rest_s, 1.0])  # b in seconds, c
        self._covariance = np.diag([target_s, 1.0]) ** 2
        self._in_time = 0
        self._lock = threading.Lock()
        self._by_byte = {rung.byte: rung for rung in rungs}

    def choose(self) -> Rung:
        """Return what the next request is to take."""
        with self._lock:
            good = [r for r in self.rungs if self._predicted_s(r) <= _MARGIN * self.target_s]
            index = self.rungs.index(good[-1]) if good else 0
            wider = self.rungs[min(index + 1, len(self.rungs) - 1)]
            if self._in_time >= _PROBE_AFTER:
                self._in_time = 0
                if self._predicted_s(wider) <= _PROBE_MARGIN * self.target_s:
                    return wider
            return self.rungs[index]

    def text(self, byte: int) -> str:
        """Return a width as people write it; empty if it is none of the rungs."""
        rung = self._by_byte.get(byte)
        return "" if rung is None else str(rung.width)

    def learn(self, byte: int, seconds: float) -> None:
        """Take note of how long a request took at a width; ignored if it is none of the rungs."""
        rung = self._by_byte.get(byte)
        if rung is None:
            return
        with self._lock:
            self._in_time = self._in_time + 1 if seconds <= self.target_s else 0
            seen = np.array([1.0, rung.link_s])
            size = np.maximum(self._state, [0.01 * self.target_s, 0.01])
            self._covariance += np.diag((_DRIFT * size) ** 2)
            spread = seen @ self._covariance @ seen + (_NOISE * seconds) ** 2
            gain = self._covariance @ seen / spread
            self._state = self._state + gain * (seconds - seen @ self._state)
            self._covariance -= np.outer(gain, seen @ self._covariance)
            self._state = np.maximum(self._state, 0.0)

    def _predicted_s(self, rung: Rung) -> float:
        return float(self._state @ [1.0, rung.link_s])
