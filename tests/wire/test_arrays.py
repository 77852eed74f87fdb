"""Arrays of weights come back bit for bit, from the shortest form."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from isthmus.errors import InputError
from isthmus.wire.arrays import _forms, decode_array, encode_array


def restored(array):
    form, data = encode_array(array)
    return form, decode_array(form, data, array.shape, str(array.dtype))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@given(data=st.data())
def test_any_array_comes_back(dtype, data):
    shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=9)
    array = data.draw(arrays.arrays(dtype, shapes))
    _, found = restored(array)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()  # also -0.0 and every NaN


def weights(num=4096, seed=0):
    return np.random.default_rng(seed).normal(size=(64, num // 64)).astype(np.float32)


def test_each_form_is_taken_where_it_is_the_shortest():
    x = weights()
    wide = weights(1 << 16)
    few = np.zeros((1, 200), np.float32)
    few[0, [3, 70]] = np.pi, np.e
    half = np.where(np.abs(x) > 0.67, x, 0).astype(np.float32)
    large = x * np.float32(1e6)  # beyond float16
    upper = (large.view(np.uint32) & 0xFFFF0000).view(np.float32)
    rounded = np.round(x * 2).clip(-7, 7).astype(np.int8)
    evenly = np.random.default_rng(1).integers(0, 16, (64, 64)).astype(np.float32) / 7
    cases = {
        "plain": x,
        "half": x.astype(np.float16).astype(np.float32),
        "bfloat16": upper,
        "packed": evenly,
        "coded": rounded,
        "bitmask-plain": half,
        "csr-plain": few,
        "codemask-plain": np.where(np.abs(wide) > 1.65, wide, 0).astype(np.float32),
    }
    assert {name: restored(array)[0] for name, array in cases.items()} == {n: n for n in cases}
    for array in cases.values():
        assert restored(array)[1].tobytes() == array.tobytes()


def sizes_of(array):
    return {form: len(data) for form, data in _forms(array)}


def test_sizes_are_those_of_the_forms():
    x = np.zeros((4, 300), np.float32)
    x[0, :5] = np.pi * np.arange(1, 6)
    sizes = sizes_of(x)
    assert sizes["plain"] == 4 * 1200
    assert sizes["bitmask-plain"] == 1200 // 8 + 4 * 5
    assert sizes["csr-plain"] == 4 * 4 + 2 * 5 + 4 * 5  # rows, columns of 16 bits, values
    assert sizes["packed"] == 2 + 4 * 6 + 3 * 1200 // 8  # count, six values, 3 bits each


def test_an_entropy_code_takes_about_the_entropy():
    x = np.random.default_rng(0).choice([0, 1, -1], p=[0.9, 0.05, 0.05], size=20_000)
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.05)) * len(x) / 8
    assert sizes_of(x.astype(np.int8))["coded"] < 1.03 * entropy + 40
    mask = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)) * len(x) / 8
    sizes = sizes_of(np.where(x, np.pi, 0).astype(np.float32))
    values = sizes["bitmask-plain"] - len(x) // 8
    assert sizes["codemask-plain"] - values < 1.03 * mask + 40


@pytest.mark.parametrize(
    "form", ["plain", "half", "packed", "coded", "bitmask-half", "codemask-half", "csr-plain"]
)
@given(data=st.binary(max_size=80))
def test_damage_is_an_error_or_an_array(form, data):
    with suppress(InputError):
        assert decode_array(form, data, (3, 5), "float32").shape == (3, 5)


def test_a_form_or_shape_that_is_none_is_refused():
    with pytest.raises(InputError, match="in form 'zip'"):
        decode_array("zip", b"", (1,), "float32")
    with pytest.raises(InputError, match="expected float32 or int8"):
        decode_array("plain", b"", (1 << 20, 1 << 20), "float32")
    with pytest.raises(InputError, match="found 1 values, expected 2"):
        decode_array("plain", b"1234", (2,), "float32")
