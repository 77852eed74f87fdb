"""CIFAR-10 and CIFAR-100 in their published layouts: records of bytes, or pickles of Python.

    cifar-10-batches-bin    label | 3,072 bytes of pixels
    cifar-100-binary        superclass | class | 3,072 bytes of pixels
    cifar-10-batches-py     a dictionary with data (N, 3072) and labels
    cifar-100-python        a dictionary with data (N, 3072), fine_labels and coarse_labels

The pixels of an image are three planes of 32 x 32: red, green, blue. Each layout is read from its
folder, from the data folder itself, or from the published archive as it is.

Shapes: N images, P = 3072 values of one, K classes.

References:
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.images import Images, Part, check_labels
from isthmus.data.pickled import read_pickled, text
from isthmus.data.published import MIB, Published, Search, obtain
from isthmus.errors import InputError

PIXELS = 3072
URL = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one file holds.

    Attributes:
        pixels: uint8 of shape (N, P).
        labels: Class of each image, (N,).
        superclasses: Superclass of each image, (N,), where the data set has any.
    """

    pixels: np.ndarray
    labels: np.ndarray
    superclasses: np.ndarray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one layout, and how the bytes of one are read.

    Attributes:
        folder: Where the files lie, in the archive too.
        archive: The published file that holds the folder.
        train: The files of the training part, in order.
        test: The files of the test part.
        names: The file that has the classes in words; it may be absent.
        read: Reads a file of images, as yet unchecked; the path is for errors.
        read_names: Reads the classes in words.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    read: Callable[[bytes, Path], Batch]
    read_names: Callable[[bytes, Path], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        name: Its name among the data sets.
        num_classes: K.
        num_superclasses: 0 where it has none.
        layouts: The first that is there whole is read.
        published: The archive to fetch, the one without pickles.
    """

    name: str
    num_classes: int
    num_superclasses: int
    layouts: tuple[Layout, ...]
    published: Published


def read_cifar(cifar: Cifar, part: Part, search: Search) -> Images:
    """Read one part of either data set: 50,000 training or 10,000 test images, (N, 3, 32, 32).

    Fewer images than published will do.

    Raises:
        InputError: A file is missing or damaged.
    """
    layout, place = obtain(
        cifar.name,
        search,
        find=partial(_find, cifar.layouts),
        looked_for=" or ".join(map(_in_words, cifar.layouts)),
        published={cifar.layouts[0].archive: cifar.published},
        publisher=cifar.published.url,
    )
    files = layout.train if part == "train" else layout.test
    contents = _contents(layout, place, files)
    batches = [
        _checked(layout.read(contents[name], place / name), cifar, place / name) for name in files
    ]
    names: Sequence[str] = ()
    if layout.names in contents:
        names = layout.read_names(contents[layout.names], place / layout.names)
        if len(names) != cifar.num_classes:
            raise InputError(
                f"{place / layout.names}: found {len(names)} names, expected {cifar.num_classes}"
            )
    y = np.concatenate([batch.labels for batch in batches])
    x = np.concatenate(
        [batch.pixels for batch in batches], out=np.empty((len(y), PIXELS), np.uint8)
    )
    return Images(
        x=x.reshape(-1, 3, 32, 32),
        y=y,
        num_classes=cifar.num_classes,
        classes=tuple(names),
        superclasses=_superclasses(cifar, batches, place),
    )


def _in_words(layout: Layout) -> str:
    first, last = layout.train[0], layout.train[-1]
    train = first if first == last else f"{first} to {last}"
    return f"{layout.folder}/[{train}, {layout.test[0]}] or {layout.archive}"


def _find(layouts: Sequence[Layout], folder: Path) -> tuple[Layout, Path] | None:
    """Return the first layout that is there whole, with its folder or archive."""
    for layout in layouts:
        for place in (folder / layout.folder, folder):
            if all((place / name).is_file() for name in (*layout.train, *layout.test)):
                return layout, place
    for layout in layouts:
        if (folder / layout.archive).is_file():
            return layout, folder / layout.archive
    return None


def _contents(layout: Layout, place: Path, files: Sequence[str]) -> dict[str, bytes]:
    """Return the files by name, and the one with the classes in words where it is there."""
    wanted = {*files, layout.names}
    try:
        if place.is_dir():
            paths = [place / name for name in wanted]
            return {path.name: path.read_bytes() for path in paths if path.is_file()}
        contents = _members(place, layout.folder, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{place}: cannot be read ({error}); get it again") from error
    for name in files:
        if name not in contents:
            raise InputError(f"{place}: holds no file {layout.folder}/{name}; get it again")
    return contents


def _members(archive: Path, folder: str, wanted: set[str]) -> dict[str, bytes]:
    """Read files of one folder in a tar archive: nothing is unpacked, no link is followed."""
    contents: dict[str, bytes] = {}
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                file = tar.extractfile(member) if member.isreg() else None
                if file and parent == folder and name in wanted:
                    contents[name] = file.read()
        while stream.read(MIB):  # to the end, where the checksum stands
            pass
    return contents


def _checked(batch: Batch, cifar: Cifar, path: Path) -> Batch:
    """Return the batch with its labels as int64; all of it fits together."""
    labels = check_labels(batch.labels, where=str(path), num_classes=cifar.num_classes)
    expected = (len(labels), PIXELS)
    if getattr(batch.pixels, "shape", None) != expected:
        found = getattr(batch.pixels, "shape", type(batch.pixels).__name__)
        raise InputError(f"{path}: found pixels {found}, expected {expected} as in the labels")
    superclasses = batch.superclasses
    if superclasses is not None:
        where = f"{path}: superclasses"
        superclasses = check_labels(superclasses, where=where, num_classes=cifar.num_superclasses)
        if len(superclasses) != len(labels):
            raise InputError(f"{where}: found {len(superclasses)}, expected {len(labels)}")
    return Batch(pixels=batch.pixels, labels=labels, superclasses=superclasses)


def _superclasses(cifar: Cifar, batches: Sequence[Batch], place: Path) -> np.ndarray | None:
    """Return the superclass of each class, checked to be one."""
    if not cifar.num_superclasses:
        return None
    of_class = np.full(cifar.num_classes, -1)
    for batch in batches:
        of_class[batch.labels] = batch.superclasses
    for batch in batches:
        wrong = batch.labels[of_class[batch.labels] != batch.superclasses]
        if wrong.size:
            raise InputError(
                f"{place}: class {wrong[0]} has several superclasses, expected one; get it again"
            )
    return of_class


def _read_records(data: bytes, path: Path, *, num_labels: int) -> Batch:
    """Read the binary layout: the last label is the class, the first of two its superclass."""
    size = num_labels + PIXELS
    if not data or len(data) % size:
        raise InputError(
            f"{path}: found {len(data):,} bytes, expected records of {size:,}; get it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return Batch(
        pixels=records[:, num_labels:],
        labels=records[:, num_labels - 1],
        superclasses=records[:, 0] if num_labels > 1 else None,
    )


def _read_lines(data: bytes, path: Path) -> Sequence[str]:
    del path  # nothing can be wrong with text but its length
    return data.decode(errors="replace").split()


def _read_pickle(data: bytes, path: Path, *, labels: str, superclasses: str | None) -> Batch:
    """Read the layout of Python, under its keys."""
    batch = read_pickled(data, where=str(path))
    return Batch(
        pixels=_value(batch, "data", path),
        labels=_value(batch, labels, path),
        superclasses=_value(batch, superclasses, path) if superclasses else None,
    )


def _read_meta(data: bytes, path: Path, *, key: str) -> Sequence[str]:
    names = _value(read_pickled(data, where=str(path)), key, path)
    return [text(name) for name in names] if isinstance(names, list) else []


def _value(batch: dict[str, Any], key: str, path: Path) -> Any:
    if key not in batch:
        found = ", ".join(sorted(batch)) or "nothing"
        raise InputError(f"{path}: no {key} (found {found}); get it again")
    return batch[key]


CIFAR10 = Cifar(
    name="cifar10",
    num_classes=10,
    num_superclasses=0,
    layouts=(
        Layout(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test=("test_batch.bin",),
            names="batches.meta.txt",
            read=partial(_read_records, num_labels=1),
            read_names=_read_lines,
        ),
        Layout(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            names="batches.meta",
            read=partial(_read_pickle, labels="labels", superclasses=None),
            read_names=partial(_read_meta, key="label_names"),
        ),
    ),
    published=Published(
        url=f"{URL}/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        num_bytes=170_052_171,
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    num_classes=100,
    num_superclasses=20,
    layouts=(
        Layout(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            train=("train.bin",),
            test=("test.bin",),
            names="fine_label_names.txt",
            read=partial(_read_records, num_labels=2),
            read_names=_read_lines,
        ),
        Layout(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test=("test",),
            names="meta",
            read=partial(_read_pickle, labels="fine_labels", superclasses="coarse_labels"),
            read_names=partial(_read_meta, key="fine_label_names"),
        ),
    ),
    published=Published(
        url=f"{URL}/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        num_bytes=168_513_733,
    ),
)
