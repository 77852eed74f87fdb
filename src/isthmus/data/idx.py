"""Fashion-MNIST in its published layout: idx files of unsigned bytes, plain or gzipped.

    two zero bytes | type, 8: unsigned byte | number of dimensions | sizes, uint32 | values

References:
    Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", 2017, arXiv:1708.07747. The idx format: LeCun, Cortes, Burges, "The MNIST
    database".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from isthmus.data.images import Images, Part, check_labels
from isthmus.data.published import Published, Search, obtain
from isthmus.errors import InputError

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FOLDER = Path("FashionMNIST", "raw")
LOOKED_FOR = "{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] in FashionMNIST/raw or directly"
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
SIDE = 28

# Name, MD5 and size of the gzipped file.
_FILES = (
    ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
    ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
    ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
    ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
)
PUBLISHED = {
    str(FOLDER / f"{name}.gz"): Published(url=f"{URL}/{name}.gz", md5=md5, num_bytes=num_bytes)
    for name, md5, num_bytes in _FILES
}


def fashion_mnist(part: Part, search: Search) -> Images:
    """Read 60,000 training or 10,000 test images of clothes, (N, 1, 28, 28), 10 classes.

    The files are looked for in ``FashionMNIST/raw`` and in the data folder itself.

    Raises:
        InputError: A file is missing or damaged.
    """
    files = obtain(
        "fashion-mnist",
        search,
        find=_find,
        looked_for=LOOKED_FOR,
        published=PUBLISHED,
        publisher=URL,
    )
    stem = "train" if part == "train" else "t10k"
    images, labels = files[f"{stem}-images-idx3-ubyte"], files[f"{stem}-labels-idx1-ubyte"]
    y = check_labels(read_idx(labels, num_dims=1), where=str(labels), num_classes=len(CLASSES))
    x, expected = read_idx(images, num_dims=3), (len(y), SIDE, SIDE)
    if x.shape != expected:
        raise InputError(f"{images}: found {x.shape}, expected {expected} as in {labels.name}")
    return Images(x=x[:, None], y=y, num_classes=len(CLASSES), classes=CLASSES)


def read_idx(path: Path, *, num_dims: int) -> np.ndarray:
    """Read an idx file of unsigned bytes.

    Args:
        path: The file; gzipped where it ends in ``.gz``.
        num_dims: How many dimensions it must have.

    Returns:
        The values, uint8.

    Raises:
        InputError: It cannot be read, is no such file, or is longer or shorter than it says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error
    start, magic = 4 + 4 * num_dims, bytes([0, 0, 8, num_dims])
    if data[:4] != magic or len(data) < start:
        raise InputError(
            f"{path}: starts with {data[:4].hex() or 'nothing'}, expected {magic.hex()}: "
            f"an idx file of unsigned bytes in {num_dims} dimensions"
        )
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(data) != start + math.prod(shape):
        raise InputError(
            f"{path}: found {len(data):,} bytes, expected {start + math.prod(shape):,} for "
            f"{shape}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _find(folder: Path) -> dict[str, Path] | None:
    """Return all four files by name, from the first place that has them; plain before gzipped."""
    for place in (folder / FOLDER, folder):
        files = {
            name: path
            for name, _, _ in _FILES
            for path in (place / f"{name}.gz", place / name)
            if path.is_file()
        }
        if len(files) == len(_FILES):
            return files
    return None
