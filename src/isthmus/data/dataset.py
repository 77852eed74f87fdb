"""A data set as plain arrays, and how one is found by name.

Shapes: N samples; the rest is the model's own business. Images are (N, C, H, W) in [0, 1].
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import InputError
from isthmus.files import load_function

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and test samples with their labels.

    Attributes:
        name: As the user wrote it.
        x_train: One array per model input, each (N, ...), fed to the model as it is.
        y_train: Class labels, int64 of shape (N,).
        x_test: As ``x_train``; chooses nothing.
        y_test: As ``y_train``.
    """

    name: str
    x_train: Arrays
    y_train: np.ndarray
    x_test: Arrays
    y_test: np.ndarray

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def load_data(reference: str) -> Dataset:
    """Load a data set.

    Args:
        reference: A key of ``DATASETS``, ``npz:FILE``, or ``path/to/file.py:function`` whose
            function returns a mapping with the keys of the npz file. A ``.py`` file runs: trusted
            files only.

    Returns:
        The arrays; uint8 images are divided by 255, labels are int64.

    Raises:
        InputError: Nothing has that name, or what was found does not fit.

    Example:
        >>> data = load_data("digits")
        >>> data.x_train[0].shape, data.x_test[0].shape
        ((1437, 1, 8, 8), (360, 1, 8, 8))
    """
    if reference in DATASETS:
        return DATASETS[reference]()
    kind, _, rest = reference.partition(":")
    if kind == "npz" and rest:
        return from_arrays(read_arrays(Path(rest)), name=reference)
    if kind.endswith(".py") and rest:
        return from_arrays(_call(Path(kind), rest), name=reference)
    known = ", ".join(sorted(DATASETS))
    raise InputError(
        f"data {reference!r}: unknown; expected {known}, npz:FILE or path/to/file.py:function"
    )


def from_arrays(arrays: Mapping[str, Any], *, name: str) -> Dataset:
    """Check and convert the four arrays of an npz file.

    Args:
        arrays: ``x_train, y_train, x_test, y_test``; an x may be a tuple of arrays, one for each
            model input. float32 stays as it is, uint8 is divided by 255, integers become int64.
        name: Names the source in errors.

    Returns:
        The data set.

    Raises:
        InputError: A key is missing, or a shape, dtype or value does not fit.
    """
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(
            f"{name}: no {', '.join(missing)} (found {found}); "
            "expected x_train, y_train, x_test, y_test"
        )
    halves: dict[str, Any] = {}
    for part in ("train", "test"):
        y = _labels(arrays[f"y_{part}"], where=f"{name}: y_{part}")
        given = arrays[f"x_{part}"]
        xs = given if isinstance(given, tuple | list) else (given,)
        halves[f"y_{part}"] = y
        halves[f"x_{part}"] = tuple(_samples(x, len(y), where=f"{name}: x_{part}") for x in xs)
    for train, test in zip(halves["x_train"], halves["x_test"], strict=True):
        if train.shape[1:] != test.shape[1:]:
            raise InputError(
                f"{name}: x_train has samples of shape {train.shape[1:]}, "
                f"x_test of {test.shape[1:]}; expected the same"
            )
    return Dataset(name=name, **halves)


def _labels(y: Any, *, where: str) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0 or y.dtype.kind not in "iu":
        raise InputError(
            f"{where}: found {y.dtype} of shape {y.shape}, expected integer labels of shape (N,)"
        )
    y = y.astype(np.int64)
    if y.min() < 0:
        raise InputError(f"{where}: found label {y.min()}, expected 0 or more")
    return y


def _samples(x: Any, num: int, *, where: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim < 2 or len(x) != num:
        raise InputError(
            f"{where}: found shape {x.shape}, expected (N, ...) with N = {num} as in the labels"
        )
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    if x.dtype.kind in "iu":
        return x.astype(np.int64)
    if x.dtype.kind != "f":
        raise InputError(f"{where}: found {x.dtype}, expected float32, uint8 or integers")
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{where}: holds NaN or infinite values; clean the data first")
    return x


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an npz file of plain arrays; nothing in it is run.

    Raises:
        InputError: It cannot be read, is no npz file, or holds pickled objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error) or "Object arrays" in str(error)
        problem = "holds pickled objects" if pickled else "is no npz file"
        raise InputError(
            f"{path}: {problem}; expected plain arrays written by numpy.savez"
        ) from error


def _call(path: Path, function: str) -> Mapping[str, Any]:
    arrays = load_function(path, function)()
    if not isinstance(arrays, Mapping):
        raise InputError(
            f"{path}:{function}: returned {type(arrays).__name__}, "
            "expected a mapping with x_train, y_train, x_test, y_test"
        )
    return arrays


def _digits() -> Dataset:
    """Return scikit-learn's digits as 8-bit images, see `isthmus.data.digits`."""
    try:
        from isthmus.data.digits import arrays  # noqa: PLC0415  (optional dependency)
    except ImportError as error:
        raise InputError('data digits: needs scikit-learn; pip install "isthmus[fit]"') from error
    return from_arrays(arrays(), name="digits")


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}
