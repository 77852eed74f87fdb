"""Images of one's own in folders: one folder for each class, under train/ and test/ or val/.

    DIR/train/cat/1.jpg   DIR/train/dog/a.png   DIR/test/cat/2.jpg   DIR/test/dog/b.png

Every image becomes a square of SIZE x SIZE pixels in RGB: turned as its camera says, its shorter
side scaled to SIZE (bilinear, over all pixels that a new one covers), its centre kept. What is
transparent is white.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from isthmus.data.images import NO_LABEL, Images, Part
from isthmus.data.published import Search
from isthmus.errors import InputError, few

SIZE = 224  # pixels, where the reference names no other
SIZES = (8, 1024)
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
MOST_BYTES = 4 << 30  # of one part, as a byte for each value


def image_folder(
    folder: Path, size: int, part: Part, search: Search, *, unlabelled: bool = False
) -> Images:
    """Read one part of a folder of images, (N, 3, size, size); the other part stays unread.

    Args:
        folder: Has train, and test or val, with the same classes.
        size: Pixels along each side.
        part: ``"train"`` or ``"test"``; the latter is read from ``test``, or from ``val`` where
            there is no ``test``.
        search: Is told of every image; nothing is fetched.
        unlabelled: Take the images of ``train`` however they lie, and those of a ``test`` without
            folders; they have no labels.

    Raises:
        InputError: A folder, a class or its images are missing, an image cannot be read or is
            too large, or all together take too much memory.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise InputError(
            f"data imagefolder:{folder}: size {size}, expected {SIZES[0]} to {SIZES[1]}"
        )
    instead = (folder / "val").is_dir() and not (folder / "test").is_dir()
    places = {"train": folder / "train", "test": folder / ("val" if instead else "test")}
    place = places[part]
    if unlabelled:
        classes = () if part == "train" or not _folders(place) else _classes(place)
    else:
        classes = _classes(places["train"])
        _check_same(places["train"], classes, places["test"], _classes(places["test"]))
    files = [(path, label) for label, name in enumerate(classes) for path in _images(place / name)]
    files = files if classes else [(path, NO_LABEL) for path in _images(place)]
    needed = len(files) * 3 * size * size
    if needed > MOST_BYTES:
        raise InputError(
            f"{place}: {len(files):,} images of {size} x {size} take {needed / 2**30:.1f} GiB, "
            f"expected at most {MOST_BYTES >> 30}; name a smaller size, imagefolder:{folder}:64"
        )
    x = np.empty((len(files), 3, size, size), np.uint8)
    for index, (path, _) in enumerate(files):
        x[index] = read_image(path, size)
        search.progress(f"read images, {part}", index + 1, len(files))
    y = np.array([label for _, label in files], np.int64)
    return Images(x=x, y=y, num_classes=len(classes), classes=classes)


def _classes(place: Path) -> tuple[str, ...]:
    """Return the names of the folders in one, sorted; their places are the labels."""
    if not place.is_dir():
        raise InputError(
            f"{place}: no such folder; expected train, and test or val, each with a folder of "
            "images for every class"
        )
    names = _folders(place)
    if not names:
        raise InputError(f"{place}: holds no folder; expected one for each class")
    return names


def _folders(place: Path) -> tuple[str, ...]:
    paths = place.iterdir() if place.is_dir() else ()
    return tuple(sorted(p.name for p in paths if p.is_dir() and not p.name.startswith(".")))


def _check_same(train: Path, ours: Sequence[str], test: Path, theirs: Sequence[str]) -> None:
    for place, names, others in ((test, theirs, ours), (train, ours, theirs)):
        lacking = [name for name in others if name not in names]
        if lacking:
            raise InputError(
                f"{place}: has no class {few(lacking)}; expected the same folders in "
                f"{train.name} and {test.name}"
            )


def _images(place: Path) -> list[Path]:
    """Return the images of one class, also from folders within, in order."""
    found = sorted(
        path
        for path in place.rglob("*")
        if path.suffix.lower() in KINDS and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise InputError(
            f"{place}: holds no image; expected files that end in {', '.join(KINDS)}, or remove "
            "the folder"
        )
    return found


def read_image(path: Path, size: int) -> np.ndarray:
    """Read one image as (3, size, size), uint8; see `image_folder`.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # some 90 megapixels
            with Image.open(path, formats=sorted(set(KINDS.values()))) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"pixels of kind {image.mode}, expected 8 bits for a value")
                ImageOps.exif_transpose(image, in_place=True)
                opaque = _opaque(image)
        square = ImageOps.fit(opaque, (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged image raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); mend it or remove it") from error
    return np.asarray(square).transpose(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image in RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")
