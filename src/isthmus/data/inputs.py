"""Inputs for a service from files: arrays as numpy keeps them, and images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from isthmus.backends import Array
from isthmus.errors import InputError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_inputs(
    paths: Sequence[Path], shape: Sequence[int], dtype: str
) -> Iterator[tuple[str, Array]]:
    """Read one sample after the other, as a model takes them.

    Args:
        paths: ``.npy`` files that hold a sample or samples along axis 0; images, which are cut
            and scaled as in `isthmus.data.imagefolder` and divided by 255; folders of both.
        shape: Of a sample.
        dtype: Of a sample.

    Yields:
        The name of each sample, and the sample.

    Raises:
        InputError: A file is missing, damaged or of another shape; names it.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in (*IMAGES, ".npy"))
            if not found:
                raise InputError(f"{path}: holds no .npy file and no image ({', '.join(IMAGES)})")
            yield from read_inputs(found, shape, dtype)
        elif path.suffix.lower() in IMAGES:
            yield str(path), _image(path, tuple(shape), dtype)
        else:
            yield from _arrays(path, tuple(shape), dtype)


def _arrays(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[tuple[str, Array]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a .npy file, an image, or a folder")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it holds several; save the one to send by itself")
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        reason = "it holds objects, or something else" if "pickle" in reason else reason
        raise InputError(f"{path}: is no array as numpy.save writes it ({reason})") from error
    if array.dtype.name != dtype or array.shape[max(0, array.ndim - len(shape)) :] != shape:
        raise InputError(
            f"{path}: found {array.dtype.name}{list(array.shape)}, expected {dtype}{list(shape)}, "
            "or more of them along axis 0"
        )
    if array.ndim == len(shape):
        yield str(path), np.array(array)
    elif array.ndim == len(shape) + 1 and len(array):
        for index in range(len(array)):
            yield f"{path}[{index}]", np.array(array[index])
    else:
        raise InputError(
            f"{path}: found {list(array.shape)}, expected {list(shape)}, or one sample or more of "
            "it along axis 0"
        )


def _image(path: Path, shape: tuple[int, ...], dtype: str) -> Array:
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3) or dtype != "float32":
        raise InputError(
            f"{path}: an image cannot be {dtype}{list(shape)}; give the input as a .npy file"
        )
    from isthmus.data.imagefolder import read_image  # noqa: PLC0415  Pillow is an extra

    pixels = read_image(path, shape[1])
    if shape[0] == 1:  # the weights of ITU-R 601, as Pillow's own conversion to grey
        pixels = np.rint(np.tensordot([0.299, 0.587, 0.114], pixels, 1))[np.newaxis]
    return (pixels / np.float32(255)).astype(np.float32)
