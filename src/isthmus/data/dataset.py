"""A data set as plain arrays, and how one is found by name.

Shapes: N samples; the rest is the model's own business. Images are (N, C, H, W): float32 in [0, 1]
in a `Dataset`, 8-bit in `Images`.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isthmus.data.cifar import CIFAR10, CIFAR100, read_cifar
from isthmus.data.idx import fashion_mnist
from isthmus.data.images import NO_LABEL, Images, Part, as_float, check_labels
from isthmus.data.published import Search
from isthmus.errors import InputError
from isthmus.files import call_function
from isthmus.progress import Report, silent

_SAMPLES = ("x_train", "x_test")
_LABELS = ("y_train", "y_test")

Arrays = tuple[np.ndarray, ...]


class Reader(Protocol):
    """Reads one part of an image data set that others publish; the other part stays unread."""

    def __call__(self, part: Part, search: Search) -> Images:
        """Return the part.

        Raises:
            InputError: A file is missing or damaged; says where it was looked for.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and test samples with their labels.

    Attributes:
        name: As the user wrote it.
        x_train: One array per model input, each (N, ...), fed to the model as it is.
        y_train: Class labels, int64 of shape (N,); -1 where there is none.
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

    @property
    def unlabelled(self) -> bool:
        """Whether a training sample has no label."""
        return bool((self.y_train == NO_LABEL).any())


def few_of(arrays: Sequence[np.ndarray], most: int) -> Arrays:
    """Return some samples (N, ...) of all, drawn evenly by a fixed seed and in their order.

    The first ones of a data set may be of one class.
    """
    num = len(arrays[0])
    if num <= most:
        return tuple(arrays)
    chosen = np.sort(np.random.default_rng(0).permutation(num)[:most])
    return tuple(x[chosen] for x in arrays)


def load_data(
    reference: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    unlabelled: bool = False,
    progress: Report = silent,
) -> Dataset:
    """Load a data set.

    Args:
        reference: A key of ``DATASETS``, ``imagefolder:DIR`` or ``imagefolder:DIR:SIZE`` (see
            `isthmus.data.imagefolder`), ``npz:FILE``, or ``path/to/file.py:function`` whose
            function returns a mapping with the keys of the npz file. A ``.py`` file runs: trusted
            files only.
        data_dir: Where published data sets lie; ``$ISTHMUS_DATA`` where it is left out.
        download: Whether to fetch a published data set that is not there.
        unlabelled: Read no labels of the training half, nor of a test half that has none: all of
            them are then -1. Folders of images need none for the classes.
        progress: Told of a download, in mebibytes.

    Returns:
        The arrays; uint8 images are divided by 255, labels are int64.

    Raises:
        InputError: Nothing has that name, what was found does not fit, or a download failed.

    Example:
        >>> data = load_data("digits")
        >>> data.x_train[0].shape, data.x_test[0].shape
        ((1437, 1, 8, 8), (360, 1, 8, 8))
    """
    read = _reader(reference, unlabelled=unlabelled)
    if read is None:
        return from_arrays(_own_arrays(reference), name=reference, unlabelled=unlabelled)
    search = Search(data_dir, download=download, progress=progress)
    train, test = read("train", search), read("test", search)
    return Dataset(
        name=reference,
        x_train=(as_float(train.x),),
        y_train=np.full_like(train.y, NO_LABEL) if unlabelled else train.y,
        x_test=(as_float(test.x),),
        y_test=test.y,
    )


def load_images(
    reference: str,
    part: Part,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    progress: Report = silent,
) -> Images:
    """Load one part of an image data set as it is published, a byte for each value.

    An own data set must hold uint8 images, (N, C, H, W); of a published one, no other ``part`` is
    read. Other arguments and errors are those of `load_data`.

    Returns:
        The images, their labels, and what the files say of the classes.

    Example:
        >>> images = load_images("digits", "test")
        >>> images.x.shape, images.x.dtype, images.num_classes
        ((360, 1, 8, 8), dtype('uint8'), 10)
    """
    read = _reader(reference)
    if read is not None:
        return read(part, Search(data_dir, download=download, progress=progress))
    arrays = _own_arrays(reference)
    _check_keys(arrays, name=reference)
    xs = _inputs(arrays, f"x_{part}", name=reference)
    if len(xs) != 1:
        raise InputError(
            f"{reference}: x_{part}: found {len(xs)} inputs, expected one of uint8 images"
        )
    labels = {half: check_labels(arrays[half], where=f"{reference}: {half}") for half in _LABELS}
    x, y = np.asarray(*xs.values()), labels[f"y_{part}"]
    if x.dtype != np.uint8 or x.ndim != 4 or len(x) != len(y):
        raise InputError(
            f"{reference}: x_{part}: found {x.dtype} of shape {x.shape}, expected uint8 images "
            f"of shape (N, C, H, W) with N = {len(y)} as in the labels"
        )
    return Images(x=x, y=y, num_classes=int(max(half.max() for half in labels.values())) + 1)


def _reader(reference: str, *, unlabelled: bool = False) -> Reader | None:
    """Return what reads a data set part by part; None for one that is arrays."""
    kind, _, rest = reference.partition(":")
    if kind != "imagefolder" or not rest:
        return DATASETS.get(reference)
    from isthmus.data.imagefolder import SIZE, image_folder  # noqa: PLC0415  (optional dependency)

    folder, _, size = rest.rpartition(":")
    if folder and size.isdecimal():
        return partial(image_folder, Path(folder), int(size), unlabelled=unlabelled)
    return partial(image_folder, Path(rest), SIZE, unlabelled=unlabelled)


def _own_arrays(reference: str) -> Mapping[str, Any]:
    kind, _, rest = reference.partition(":")
    if kind == "npz" and rest:
        return read_arrays(Path(rest))
    if kind.endswith(".py") and rest:
        expected = "a mapping with x_train, y_train, x_test, y_test"
        return call_function(Path(kind), rest, Mapping, expected)
    known = ", ".join(sorted(DATASETS))
    raise InputError(
        f"data {reference!r}: unknown; expected {known}, imagefolder:DIR, npz:FILE or "
        "path/to/file.py:function"
    )


def from_arrays(arrays: Mapping[str, Any], *, name: str, unlabelled: bool = False) -> Dataset:
    """Check and convert the arrays of an npz file.

    Args:
        arrays: ``x_train, y_train, x_test, y_test``. For a model of several inputs an x is a tuple
            of arrays, one for each argument of its forward, or stands as ``x_train_0``,
            ``x_train_1`` ... in that order. float32 stays as it is, uint8 is divided by 255,
            integers become int64.
        name: Names the source in errors.
        unlabelled: As for `load_data`; ``y_train`` and ``y_test`` may then be missing.

    Returns:
        The data set.

    Raises:
        InputError: A key is missing, or a shape, dtype or value does not fit.
    """
    _check_keys(arrays, name=name, unlabelled=unlabelled)
    x_train, x_test = (_inputs(arrays, x, name=name) for x in _SAMPLES)
    y_train, y_test = (
        check_labels(arrays[y], where=f"{name}: {y}")
        if y in arrays and not (unlabelled and y == "y_train")
        else np.full(len(np.asarray(next(iter(xs.values())))), NO_LABEL)
        for y, xs in zip(_LABELS, (x_train, x_test), strict=True)
    )
    if len(x_train) != len(x_test):
        raise InputError(
            f"{name}: x_train has {len(x_train)} inputs, x_test {len(x_test)}; expected one of "
            "each per input of the model"
        )
    train, test = (
        {key: _samples(x, len(y), where=f"{name}: {key}") for key, x in xs.items()}
        for xs, y in ((x_train, y_train), (x_test, y_test))
    )
    for one, other in zip(train, test, strict=True):
        if train[one].shape[1:] != test[other].shape[1:]:
            raise InputError(
                f"{name}: {one} has samples of shape {train[one].shape[1:]}, "
                f"{other} of {test[other].shape[1:]}; expected the same"
            )
    return Dataset(
        name=name,
        x_train=tuple(train.values()),
        y_train=y_train,
        x_test=tuple(test.values()),
        y_test=y_test,
    )


def _check_keys(arrays: Mapping[str, Any], *, name: str, unlabelled: bool = False) -> None:
    there = {*arrays, *(key for key in _SAMPLES if _numbered(arrays, key))}
    needed = _SAMPLES if unlabelled else ("x_train", "y_train", "x_test", "y_test")
    missing = [key for key in needed if key not in there]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(
            f"{name}: no {', '.join(missing)} (found {found}); expected x_train, y_train, x_test, "
            "y_test, or x_train_0, x_train_1 ... where the model takes several inputs"
        )


def _inputs(arrays: Mapping[str, Any], key: str, *, name: str) -> dict[str, Any]:
    """Return what each input of the model is fed with, in order and under its name.

    Raises:
        InputError: There are both forms, or the numbers have a gap.
    """
    numbered = _numbered(arrays, key)
    expected = [f"{key}_{k}" for k in range(len(numbered))]
    if key in arrays and numbered:
        raise InputError(
            f"{name}: found {key} and {', '.join(numbered)}; expected one of the two forms"
        )
    if numbered != expected:
        raise InputError(
            f"{name}: found {', '.join(numbered)}, expected {', '.join(expected)}: numbers from 0 "
            "without a gap, one for each input of the model"
        )
    if numbered:
        return {each: arrays[each] for each in numbered}
    given = arrays[key]
    if not isinstance(given, tuple | list):
        return {key: given}
    return {f"{key}[{k}]": x for k, x in enumerate(given)}


def _numbered(arrays: Mapping[str, Any], key: str) -> list[str]:
    found = [each for each in arrays if re.fullmatch(rf"{key}_\d+", each)]
    return sorted(found, key=lambda each: (len(each), each))


def _samples(x: Any, num: int, *, where: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim < 1 or len(x) != num:
        raise InputError(
            f"{where}: found shape {x.shape}, expected (N, ...) with N = {num} as in the labels"
        )
    if x.dtype == np.uint8:
        return as_float(x)
    if x.dtype.kind in "iu":
        return x.astype(np.int64)
    if x.dtype.kind != "f":
        raise InputError(f"{where}: found {x.dtype}, expected float32, uint8 or integers")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(
            f"{where}: holds NaN, infinite values, or some beyond float32; clean the data first"
        )
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
        pickled = "Object arrays" in str(error)
        problem = "holds pickled objects" if pickled else "is no npz file"
        raise InputError(
            f"{path}: {problem}; expected plain arrays written by numpy.savez"
        ) from error


def _digits(part: Part, search: Search) -> Images:
    """Return a part of scikit-learn's digits, see `isthmus.data.digits`."""
    del search  # they come with the library
    try:
        from isthmus.data.digits import digits  # noqa: PLC0415  (optional dependency)
    except ImportError as error:
        raise InputError('data digits: needs scikit-learn; pip install "isthmus[fit]"') from error
    return digits(part)


DATASETS: dict[str, Reader] = {
    "cifar10": partial(read_cifar, CIFAR10),
    "cifar100": partial(read_cifar, CIFAR100),
    "digits": _digits,
    "fashion-mnist": fashion_mnist,
}
