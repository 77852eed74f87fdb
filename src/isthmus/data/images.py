"""Images as they are published: a byte for each value, training and test apart.

Shapes: N samples, C channels, H height, W width, K classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isthmus.errors import InputError

Part = Literal["train", "test"]

NO_LABEL = -1  # stands for the label of a sample that has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """One part of an image data set.

    Attributes:
        x: The images, uint8 of shape (N, C, H, W).
        y: Class labels, int64 of shape (N,); -1 where there is none.
        num_classes: K; every label is below it.
        classes: The classes in words; empty where the files do not say.
        superclasses: The superclass of each class, int64 of shape (K,), -1 for a class that this
            part has no sample of; None where the data set has no superclasses.
    """

    x: np.ndarray
    y: np.ndarray
    num_classes: int
    classes: tuple[str, ...] = ()
    superclasses: np.ndarray | None = None


def as_float(x: np.ndarray) -> np.ndarray:
    """Return 8-bit values as float32 in [0, 1]."""
    return np.divide(x, np.float32(255), dtype=np.float32)


def check_labels(y: Any, *, where: str, num_classes: int | None = None) -> np.ndarray:
    """Return class labels as int64 of shape (N,).

    Raises:
        InputError: They are no integers, not in one row, none at all, negative, or
            ``num_classes`` or more.
    """
    try:
        y = np.asarray(y)
    except ValueError as error:
        raise InputError(f"{where}: {error}; expected integer labels of shape (N,)") from error
    if y.ndim != 1 or y.size == 0 or y.dtype.kind not in "iu":
        raise InputError(
            f"{where}: found {y.dtype} of shape {y.shape}, expected integer labels of shape (N,), "
            "one or more"
        )
    y = y.astype(np.int64)
    if y.min() < 0:
        raise InputError(f"{where}: found label {y.min()}, expected 0 or more")
    if num_classes is not None and y.max() >= num_classes:
        raise InputError(f"{where}: found label {y.max()}, expected 0 to {num_classes - 1}")
    return y
