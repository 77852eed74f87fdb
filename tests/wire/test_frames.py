import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from isthmus.errors import InputError, RunError
from isthmus.wire import HEADER_BYTES, decode_frame, encode_frame
from isthmus.wire.frames import MAX_PAYLOAD_BYTES

MESSAGE = encode_frame(7, 2, b"payload")


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=100)
)
def test_a_frame_survives_the_way(request_number, crossing, width, payload):
    message = encode_frame(request_number, crossing, memoryview(payload), width)
    frame = decode_frame(message)
    assert len(message) == HEADER_BYTES + len(payload)
    assert (frame.request, frame.crossing, frame.width) == (request_number, crossing, width)
    assert frame.payload == payload


def test_the_header_is_14_bytes_whose_meaning_never_changes():
    seed = int.from_bytes(MESSAGE[:8], "little")
    checksum = xxh3_64_intdigest(b"payload", seed) & 0xFFFFFFFF
    assert HEADER_BYTES == 14
    assert struct.unpack("<IBBII", MESSAGE[:14]) == (7, 2, 0, 7, checksum)


def test_the_payload_is_not_copied():
    message = bytearray(MESSAGE)
    payload = decode_frame(memoryview(message)).payload
    message[-1] ^= 1
    assert payload[-1] == message[-1]


@pytest.mark.parametrize("length", range(len(MESSAGE)))
def test_a_short_frame_is_refused(length):
    with pytest.raises(RunError, match=r"^frame: found"):
        decode_frame(MESSAGE[:length])


def test_a_long_frame_is_refused():
    with pytest.raises(RunError, match="found 8 bytes after the header, which says 7"):
        decode_frame(MESSAGE + b"!")


@pytest.mark.parametrize("position", range(len(MESSAGE)))
def test_a_changed_byte_is_noticed(position):
    damaged = bytearray(MESSAGE)
    damaged[position] ^= 16
    with pytest.raises(RunError, match=r"^frame: "):
        decode_frame(bytes(damaged))


@given(st.binary(max_size=64))
def test_noise_is_no_frame(noise):
    with pytest.raises(RunError):
        decode_frame(noise)


def test_a_payload_over_the_limit_is_refused():
    with pytest.raises(InputError, match="choose another cut or a narrower codec"):
        encode_frame(0, 0, bytes(MAX_PAYLOAD_BYTES + 1))


def test_a_number_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="expected 32, 8 and 8 bits"):
        encode_frame(0, 1 << 16, b"")
