"""When requests come to a plan, and how much what they take varies."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class InFlight:
    """Each answer lets the next request in: so many are always under way."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Every:
    """One request after each interval; the first at ``start_s``."""

    interval_s: float
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests at random, each independent of the others, so many in a second on average."""

    per_s: float


ONE_IN_FLIGHT = InFlight()
Arrivals = InFlight | Every | Poisson | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """By how much times vary: coefficients of variation, standard deviation over mean.

    Attributes:
        stages: Of the time of a stage.
        hops: Of the time that a frame occupies its medium.
        law: ``"lognormal"`` or ``"gamma"`` (1: exponential), with the plan's figure as its mean.
    """

    stages: float = 0.0
    hops: float = 0.0
    law: str = "lognormal"


STEADY = Jitter()


def draw_times_s(arrivals: Arrivals, requests: int, generator: np.random.Generator) -> Array:
    """Return when so many requests come, in s, rising, (requests,).

    Raises:
        InputError: They are given one by one, and are not as many or do not rise.
    """
    with np.errstate(all="ignore"):
        match arrivals:
            case Every(interval_s, start_s):
                times_s = np.asarray(start_s + interval_s * np.arange(requests))
            case Poisson(per_s):
                times_s = np.cumsum(generator.exponential(size=requests)) / per_s
            case _:
                times_s = np.array(arrivals)
        rising = len(times_s) == requests and np.all(np.diff(times_s, prepend=0.0) >= 0)
    if not rising or not np.isfinite(times_s[-1]):
        raise InputError(
            f"found {arrivals} for {requests} requests, expected as many rising times"
        )
    return times_s


def draw_factors(jitter: Jitter, shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """Return how much longer than planned each step takes, stages and hops in turn.

    Args:
        jitter: By how much, and by which law.
        shape: (requests, steps), as is what is returned.
        generator: Drawn from.
    """
    variation = np.resize([jitter.stages, jitter.hops], shape[1])
    if jitter.law == "gamma":
        variance = np.maximum(variation**2, 1e-18)
        return generator.gamma(1 / variance, variance, shape)
    sigma = np.sqrt(np.log1p(variation**2))
    return generator.lognormal(-(sigma**2) / 2, sigma, shape)
