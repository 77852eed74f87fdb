"""Tiny data sets in their published layouts, byte by byte as the publishers write them."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np

COARSE = np.arange(100) * 7 % 20  # the superclass of each class


def made_up(num: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (num, 3072) and labels that start with the largest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    labels[0] = num_classes - 1
    return rng.integers(0, 256, (num, 3072), np.uint8), labels


def write_cifar100_binary(folder: Path, *, num_train: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, num) in enumerate({"train.bin": num_train, "test.bin": 4}.items()):
        pixels, labels = made_up(num, 100, seed)
        rows = np.column_stack([COARSE[labels], labels, pixels]).astype(np.uint8)
        (folder / name).write_bytes(rows.tobytes())
    lines = "".join(f"class_{i}\n" for i in range(100))
    (folder / "fine_label_names.txt").write_text(lines)


def write_cifar100_python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, num) in enumerate({"train": 6, "test": 4}.items()):
        pixels, labels = made_up(num, 100, seed)
        batch = {
            "filenames": [f"{i}.png" for i in range(num)],
            "batch_label": "batch 1 of 1",
            "fine_labels": labels.tolist(),
            "coarse_labels": COARSE[labels].tolist(),
            "data": pixels,
        }
        (folder / name).write_bytes(python2_pickle(batch))
    meta = {"fine_label_names": [f"class_{i}" for i in range(100)], "coarse_label_names": []}
    (folder / "meta").write_bytes(python2_pickle(meta))


def write_cifar10_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = made_up(3, 10, seed)
        rows = np.column_stack([labels, pixels]).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("".join(f"class_{i}\n" for i in range(10)) + "\n")


def write_cifar10_python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = made_up(3, 10, seed)
        batch = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": []}
        (folder / name).write_bytes(python2_pickle(batch))
    meta = {"num_cases_per_batch": 10000, "label_names": [f"class_{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(python2_pickle({**meta, "num_vis": 3072}))


def write_fashion_mnist(folder: Path, *, gzipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, num) in enumerate({"train": 5, "t10k": 3}.items()):
        pixels, labels = made_up(num, 10, seed)
        images = pixels[:, : 28 * 28].reshape(num, 28, 28)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            data, path = idx(values), folder / f"{stem}-{name}-ubyte"
            path.write_bytes(data)
            if gzipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
                path.unlink()


def idx(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def pack(folder: Path, archive: Path) -> None:
    """Put a folder into an archive, and remove it."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def python2_pickle(value: object) -> bytes:
    """Pickle as cPickle of Python 2 does, protocol 2: text as bytes, arrays by numpy 1."""
    return b"\x80\x02" + _encode(value) + b"."


def _encode(value: object) -> bytes:
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else _long(data)
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_encode, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_encode(k) + _encode(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(_encode(size) for size in value.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + _encode(value.dtype.str[1:]) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    columns_first = not value.flags.c_contiguous
    raw = _long(value.tobytes("F" if columns_first else "C"))
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return (
        start + b"(K\x01" + shape + dtype + (b"\x88" if columns_first else b"\x89") + raw + b"tb"
    )


def _long(data: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(data)) + data
