"""One message on a link: 14 bytes of header, and the payload.

.. code-block:: none

    request u32 | crossing u8 | width u8 | length u32 | checksum u32

All little-endian. The transport carries the two in one message: a payload of up to 16 KiB behind
its header, as a copy costs less than a second part; a longer one with the header beside it, as
zenoh's attachment, so that it is not copied. The checksum is the low half of
XXH3-64 over the payload, with the first eight bytes of the header as its seed. What is constant
(codec, shapes, scales) is agreed once and is not repeated here. The width is what nested crossings
of this request are to take, as `isthmus.wire.nested` writes it in one byte; 0 leaves it to each
sender.
"""

import struct

from xxhash import xxh3_64_intdigest

from isthmus.errors import InputError, RunError

HEADER_BYTES = 14
MAX_PAYLOAD_BYTES = 64 << 20

_HEADER = struct.Struct("<QHI")  # the seed, the rest of the length, the checksum


def encode_header(request: int, crossing: int, payload: bytes, width: int = 0) -> bytes:
    """Return the header that goes with a payload.

    Raises:
        InputError: A number does not fit its field, or the payload is over 64 MiB.
    """
    num_bytes = len(payload)
    if num_bytes > MAX_PAYLOAD_BYTES:
        raise InputError(
            f"crossing {crossing}: found a payload of {num_bytes} bytes, expected at most "
            f"{MAX_PAYLOAD_BYTES}; choose another cut or a narrower codec"
        )
    if not (0 <= request < 1 << 32 and 0 <= crossing < 1 << 8 and 0 <= width < 1 << 8):
        raise InputError(
            f"request {request}, crossing {crossing}, width {width}: expected 32, 8 and 8 bits"
        )
    seed = request | crossing << 32 | width << 40 | (num_bytes & 0xFFFF) << 48
    checksum = xxh3_64_intdigest(payload, seed) & 0xFFFFFFFF
    return _HEADER.pack(seed, num_bytes >> 16, checksum)


def decode_header(header: bytes, payload: bytes) -> tuple[int, int, int]:
    """Check a payload by its header, and return what that says.

    Returns:
        Request, crossing and width, as `encode_header` took them.

    Raises:
        RunError: One of them is short, long or damaged.
    """
    if len(header) != HEADER_BYTES:
        raise RunError(f"frame: found a header of {len(header)} bytes, expected {HEADER_BYTES}")
    seed, more, checksum = _HEADER.unpack(header)
    num_bytes = seed >> 48 | more << 16
    if len(payload) != num_bytes or num_bytes > MAX_PAYLOAD_BYTES:
        raise RunError(
            f"frame: found {len(payload)} bytes beside the header, which says {num_bytes}"
        )
    request, crossing, width = seed & 0xFFFFFFFF, seed >> 32 & 0xFF, seed >> 40 & 0xFF
    if checksum != xxh3_64_intdigest(payload, seed) & 0xFFFFFFFF:
        raise RunError(
            f"frame: wrong checksum on request {request}, crossing {crossing}; send it again"
        )
    return request, crossing, width
