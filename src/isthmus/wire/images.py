"""PNG as a payload, by Pillow, and what it takes at most."""

from io import BytesIO
from struct import pack
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from isthmus.errors import InputError

_MODES = {1: "L", 3: "RGB"}
_COLOUR_TYPES = {1: 0, 3: 2}


def encode_png(symbols: npt.NDArray[np.generic]) -> bytes:
    """Return a uint8 image (1 or 3, height, width) as a PNG of 8 bits per channel."""
    pillow = _pillow()
    channels = symbols.shape[0]
    pixels = symbols.transpose(1, 2, 0).astype(np.uint8, copy=False)
    image = pillow.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def decode_png(payload: bytes | memoryview, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Restore a uint8 image of a known shape.

    The first bytes of such a PNG hold its size and kind and nothing else; they are compared
    before anything is decoded, so no payload can make us hold more than the image.

    Raises:
        InputError: Not a PNG, one of another size or kind, or a damaged one.
    """
    pillow = _pillow()
    opening = _opening(shape)
    if payload[: len(opening)] != opening:
        raise InputError(f"codec png: expected a PNG of {shape}, 8 bits, not interlaced")
    try:
        with pillow.open(BytesIO(payload), formats=("PNG",)) as image:
            pixels = np.array(image.convert(_MODES[shape[0]]), np.uint8)
    except Exception as error:  # Pillow raises many types on a damaged file
        raise InputError(f"codec png: damaged payload ({error})") from error
    return np.ascontiguousarray(pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1))


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415  few bundles need it
    except ImportError as error:
        raise InputError('codec png needs Pillow: pip install "isthmus[fit]"') from error
    return Image


def _opening(shape: tuple[int, ...]) -> bytes:
    """Return the signature and the IHDR chunk."""
    channels, height, width = shape
    header = b"IHDR" + pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header))


def max_png_bytes(shape: tuple[int, ...]) -> int:
    """Bound a PNG: its fixed chunks, and every row with its filter byte, deflated at worst.

    The bound of deflate is the larger of zlib's and zlib-ng's for any parameters; the stream is
    cut into chunks of 32 KiB or more, 12 bytes around each.
    """
    channels, height, width = shape
    raw = height * (1 + channels * width)
    deflated = raw + (raw + 7) // 8 + (raw + 63) // 64 + 11
    return 8 + 25 + 12 + deflated + 12 * (1 + deflated // (1 << 15))
