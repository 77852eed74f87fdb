"""PNG as a payload, by Pillow."""

from io import BytesIO
from struct import pack
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image

from isthmus.errors import InputError

_MODES = {1: "L", 3: "RGB"}
_COLOUR_TYPES = {1: 0, 3: 2}


def encode_png(symbols: npt.NDArray[np.generic]) -> bytes:
    """Return a uint8 image (1 or 3, height, width) as a PNG of 8 bits per channel."""
    channels = symbols.shape[0]
    pixels = symbols.transpose(1, 2, 0).astype(np.uint8, copy=False)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def decode_png(payload: bytes | memoryview, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Restore a uint8 image of a known shape.

    The first bytes of such a PNG hold its size and kind and nothing else; they are compared
    before anything is decoded, so no payload can make us hold more than the image.

    Raises:
        InputError: Not a PNG, one of another size or kind, or a damaged one.
    """
    opening = _opening(shape)
    if payload[: len(opening)] != opening:
        raise InputError(f"codec png: expected a PNG of {shape}, 8 bits, not interlaced")
    try:
        with Image.open(BytesIO(payload), formats=("PNG",)) as image:
            pixels = np.array(image.convert(_MODES[shape[0]]), np.uint8)
    except Exception as error:  # Pillow raises many types on a damaged file
        raise InputError(f"codec png: damaged payload ({error})") from error
    return np.ascontiguousarray(pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1))


def _opening(shape: tuple[int, int, int]) -> bytes:
    """Return the signature and the IHDR chunk."""
    channels, height, width = shape
    header = b"IHDR" + pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header))
