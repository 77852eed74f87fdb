import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isthmus.errors import InputError
from isthmus.wire.bits import pack_bits, unpack_bits


@given(st.data(), st.integers(1, 8), st.integers(0, 70))
def test_symbols_survive_packing(data, bits, count):
    symbols = data.draw(arrays(np.uint8, count, elements=st.integers(0, 2**bits - 1)))
    packed = pack_bits(symbols, bits)
    assert len(packed) == (count * bits + 7) // 8
    np.testing.assert_array_equal(unpack_bits(packed, count, bits), symbols)


@given(st.data(), st.integers(1, 8), st.integers(0, 70))
def test_any_bytes_of_the_right_length_are_symbols_in_range(data, bits, count):
    num_bytes = (count * bits + 7) // 8
    symbols = unpack_bits(
        data.draw(st.binary(min_size=num_bytes, max_size=num_bytes)), count, bits
    )
    assert symbols.shape == (count,)
    assert symbols.max(initial=0) < 2**bits


@pytest.mark.parametrize(
    ("bits", "packed"),
    [
        (1, "aa 00"),
        (2, "e4 e4 00"),
        (3, "a8 ce 78 00"),
        (4, "50 fa 94 3e 08"),
        (5, "a0 a8 47 b3 1f 08"),
        (6, "40 a9 bc 54 ee 0d 28"),
        (7, "80 92 f2 4d c9 79 07 28"),
        (8, "00 25 4a 6f 94 b9 de 03 28"),
    ],
)
def test_the_bytes_never_change(bits, packed):
    symbols = (37 * np.arange(9) % 2**bits).astype(np.uint8)
    assert pack_bits(symbols, bits).hex(" ") == packed


def test_the_lowest_bits_come_first():
    assert pack_bits(np.array([1, 0, 1], np.uint8), 1) == bytes([0b101])
    assert pack_bits(np.array([0b001, 0b010, 0b111], np.uint8), 3) == bytes([0b11_010_001, 0b1])


def test_an_array_of_any_shape_and_order_is_packed_as_rows():
    symbols = np.arange(15, dtype=np.uint8).reshape(3, 5)
    assert pack_bits(symbols.T.copy().T, 4) == pack_bits(symbols.reshape(-1), 4)


def test_a_symbol_that_needs_more_bits_is_refused():
    with pytest.raises(InputError, match="found symbol 8, expected 0 to 7: 3 bits"):
        pack_bits(np.array([0, 8], np.uint8), 3)


@pytest.mark.parametrize("data", [b"", b"12", b"1234"])
def test_data_of_another_length_is_refused(data):
    with pytest.raises(InputError, match="expected 3 for 7 symbols of 3 bits"):
        unpack_bits(data, 7, 3)
