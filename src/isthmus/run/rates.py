"""How fast this machine computes, in onnxruntime on one thread: what a platform file asks of it.

Products of square matrices of several sizes, called in turn. The fastest gives the peak rate, and
each its share of that (the device's efficiency); what a product of single numbers takes is what
any call takes before it computes (the device's start).
"""

import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from isthmus.backends import load_program
from isthmus.errors import InputError
from isthmus.progress import Report, silent

# An ONNX program of one node: c (m, n) = MatMul(a (m, k), b (k, n)), of any m, k and n.
PRODUCT = base64.b64decode(
    "CAk6WwoRCgFhCgFiEgFjIgZNYXRNdWwSAWdaFQoBYRIQCg4IARIKCgMSAW0KAxIBa1oVCgFiEhAKDggBEgoKAxIBawoD"
    "EgFuYhUKAWMSEAoOCAESCgoDEgFtCgMSAW5CBAoAEBI="
)
_SIDES = (64, 128, 256, 512)  # of the matrices
_ROUNDS = 15
_WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartiles:
    """A figure measured many times: its median and quartiles.

    Raises:
        InputError: One is no finite number, or negative.
    """

    median: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.median, self.low, self.high):
            if not isfinite(value) or value < 0:
                raise InputError(f"found {value}, expected a figure of 0 or more")


def figure(values: list[float]) -> Quartiles:
    """Return the median and the quartiles of what was measured."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return Quartiles(median=median, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast a machine computes.

    Attributes:
        macs_per_s: Peak rate of fp32, in multiply-accumulates per second.
        shares: Pairs of a product's MACs, rising, and the share of the peak that it reaches.
        start_s: What a call takes before it computes.
        memory_bytes: All of its memory; None where the system does not say.

    Raises:
        InputError: A figure that cannot be.
    """

    macs_per_s: Quartiles
    shares: tuple[tuple[float, float], ...]
    start_s: Quartiles
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        sizes = [macs for macs, _ in self.shares]
        if not (self.macs_per_s.median > 0 and sizes == sorted(set(sizes)) and len(sizes) < 64):
            raise InputError(f"found {self.macs_per_s.median} MAC/s at {sizes}, expected a rate")
        if not all(0 < share <= 1 for _, share in self.shares):
            raise InputError(f"found shares {self.shares}, expected more than 0, up to 1")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise InputError(f"found {self.memory_bytes} bytes of memory, expected some")


def measure_rates(report: Report = silent) -> Rates:
    """Time products of matrices on this machine.

    Args:
        report: Told of every round.
    """
    sides = (1, *_SIDES)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(PRODUCT)
        program = load_program(path, backend="onnxruntime")
    pairs = [np.full((2, side, side), 0.5, np.float32) for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(1, _WARM_UP + _ROUNDS + 1):
        for found, (a, b) in zip(seconds, pairs, strict=True):
            found.append(_timed(partial(program, (a, b))))
        report("time products", number, _WARM_UP + _ROUNDS)
    start, *products = (figure(found[_WARM_UP:]) for found in seconds)
    rates = [_rate(side, start, product) for side, product in zip(_SIDES, products, strict=True)]
    peak = max(rates, key=lambda rate: rate.median)
    return Rates(
        macs_per_s=peak,
        shares=tuple(
            (float(side**3), round(rate.median / peak.median, 3))
            for side, rate in zip(_SIDES, rates, strict=True)
        ),
        start_s=start,
        memory_bytes=_memory_bytes(),
    )


def _timed(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def _rate(side: int, start: Quartiles, product: Quartiles) -> Quartiles:
    """Return MACs per second without the start of a call, of which at most half is taken off."""

    def rate(seconds: float) -> float:
        return side**3 / max(seconds - start.median, seconds / 2)

    return Quartiles(median=rate(product.median), low=rate(product.high), high=rate(product.low))


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
