import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from isthmus.errors import InputError, RunError
from isthmus.wire import HEADER_BYTES, decode_header, encode_header
from isthmus.wire.frames import MAX_PAYLOAD_BYTES

PAYLOAD = b"payload"
HEADER = encode_header(7, 2, PAYLOAD)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=100)
)
def test_a_frame_survives_the_way(request_number, crossing, width, payload):
    header = encode_header(request_number, crossing, payload, width)
    assert len(header) == HEADER_BYTES
    assert decode_header(header, payload) == (request_number, crossing, width)


def test_the_header_is_14_bytes_whose_meaning_never_changes():
    seed = int.from_bytes(HEADER[:8], "little")
    checksum = xxh3_64_intdigest(PAYLOAD, seed) & 0xFFFFFFFF
    assert HEADER_BYTES == 14
    assert struct.unpack("<IBBII", HEADER) == (7, 2, 0, 7, checksum)


@pytest.mark.parametrize("header", [b"", HEADER[:-1], HEADER + b"!"])
def test_a_header_of_another_length_is_refused(header):
    with pytest.raises(RunError, match=r"^frame: found a header of \d+ bytes, expected 14$"):
        decode_header(header, PAYLOAD)


@pytest.mark.parametrize("payload", [b"", PAYLOAD[:-1], PAYLOAD + b"!"])
def test_a_payload_of_another_length_is_refused(payload):
    with pytest.raises(RunError, match=r"found \d bytes beside the header, which says 7"):
        decode_header(HEADER, payload)


@pytest.mark.parametrize("position", range(len(HEADER + PAYLOAD)))
def test_a_changed_byte_is_noticed(position):
    damaged = bytearray(HEADER + PAYLOAD)
    damaged[position] ^= 16
    with pytest.raises(RunError, match=r"^frame: "):
        decode_header(bytes(damaged[:14]), bytes(damaged[14:]))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_noise_is_no_frame(header, payload):
    with pytest.raises(RunError):
        decode_header(header, payload)


def test_a_payload_over_the_limit_is_refused():
    with pytest.raises(InputError, match="choose another cut or a narrower codec"):
        encode_header(0, 0, bytes(MAX_PAYLOAD_BYTES + 1))


def test_a_number_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="expected 32, 8 and 8 bits"):
        encode_header(0, 1 << 16, b"")
