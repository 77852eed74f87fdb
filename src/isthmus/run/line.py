"""A straight line through medians that a few bad ones do not bend."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of a line through times by size.

    The slope is the median of those between any two points, each weighted by how far apart their
    sizes are over the root of the sum of their times, as if the error of a time grew with the root
    of it. So small messages, whose times are alike, say little of it, and no single size decides
    on it. The intercept is the median of what the slope leaves of each point, weighted by one over
    its time.

    Args:
        sizes: At least two, rising.
        seconds: One for each, over 0.

    References:
        Sen, "Estimates of the regression coefficient based on Kendall's tau", Journal of the
        American Statistical Association 63, 1968; with weights: Jaeckel, "Estimating regression
        coefficients by minimizing the dispersion of the residuals", Annals of Mathematical
        Statistics 43(5), 1972.

    Example:
        >>> fit_line([1, 2, 4, 8, 16], [3, 5, 90, 17, 33])
        (2.0, 1.0)
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    first, second = np.array(list(combinations(range(len(x)), 2))).T
    across = x[second] - x[first]
    slope = _middle((y[second] - y[first]) / across, across / np.sqrt(y[first] + y[second]))
    return slope, _middle(y - slope * x, 1 / y)


def _middle(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Return the median of values, each counted by its weight."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, sums[-1] / 2)])
