"""One message on a link: 14 bytes of header, then the payload.

.. code-block:: none

    request u32 | crossing u8 | width u8 | length u32 | checksum u32 | payload

All little-endian. The checksum is the low half of XXH3-64 over the payload, with the first eight
bytes of the header as its seed. All that is constant (codec, shapes, scales) is agreed once and is
not repeated here. The width is what nested crossings of this request are to take, as
`isthmus.wire.nested` writes it in one byte; 0 leaves it to each sender.
"""

import struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from isthmus.errors import InputError, RunError

HEADER_BYTES = 14
MAX_PAYLOAD_BYTES = 64 << 20

_HEADER = struct.Struct("<IBBII")


class Frame(NamedTuple):
    """A message that arrived whole.

    Attributes:
        request: Number of the request, 0 to 2**32 - 1.
        crossing: Number of the crossing, 0 to 255.
        payload: What the codec sent: a view of the message, not a copy.
        width: What nested crossings are to take; 0 leaves it to each sender.
    """

    request: int
    crossing: int
    payload: memoryview
    width: int = 0


def encode_frame(
    request: int, crossing: int, payload: bytes | memoryview, width: int = 0
) -> bytes:
    """Put a header before a payload.

    Raises:
        InputError: A number does not fit its field, or the payload is over 64 MiB.
    """
    num_bytes = memoryview(payload).nbytes
    if num_bytes > MAX_PAYLOAD_BYTES:
        raise InputError(
            f"crossing {crossing}: found a payload of {num_bytes} bytes, expected at most "
            f"{MAX_PAYLOAD_BYTES}; choose another cut or a narrower codec"
        )
    if not (0 <= request < 1 << 32 and 0 <= crossing < 1 << 8 and 0 <= width < 1 << 8):
        raise InputError(
            f"request {request}, crossing {crossing}, width {width}: expected 32, 8 and 8 bits"
        )
    checksum = _checksum(request, crossing | width << 8, num_bytes, payload)
    return b"".join((_HEADER.pack(request, crossing, width, num_bytes, checksum), payload))


def decode_frame(message: bytes | memoryview) -> Frame:
    """Check a message and take it apart, without copying the payload.

    Raises:
        RunError: It is short, long or damaged.
    """
    view = memoryview(message)
    if len(view) < HEADER_BYTES:
        raise RunError(f"frame: found {len(view)} bytes, expected at least {HEADER_BYTES}")
    request, crossing, width, num_bytes, checksum = _HEADER.unpack_from(view)
    payload = view[HEADER_BYTES:]
    if len(payload) != num_bytes or num_bytes > MAX_PAYLOAD_BYTES:
        raise RunError(
            f"frame: found {len(payload)} bytes after the header, which says {num_bytes}"
        )
    if checksum != _checksum(request, crossing | width << 8, num_bytes, payload):
        raise RunError(
            f"frame: wrong checksum on request {request}, crossing {crossing}; send it again"
        )
    return Frame(request=request, crossing=crossing, payload=payload, width=width)


def _checksum(request: int, where: int, num_bytes: int, payload: bytes | memoryview) -> int:
    seed = request | where << 32 | (num_bytes & 0xFFFF) << 48
    return xxh3_64_intdigest(payload, seed) & 0xFFFFFFFF
