import sys
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isthmus.errors import InputError
from isthmus.wire import pack, parse_codec, unpack

SPECS = {
    "floats": parse_codec("raw", shapes=[(2, 3)], dtypes=["float32"]),
    "half": parse_codec("raw:bits=16", shapes=[(5,)], dtypes=["float32"]),
    "integers": parse_codec("raw", shapes=[(3,), (9,)], dtypes=["int64", "bool"]),
    "uniform": parse_codec("uniform:bits=3", shapes=[(3, 5), ()], dtypes=["float32"] * 2),
    "bottleneck": parse_codec("bottleneck:ratio=2,bits=7", shapes=[(5, 3, 3)], dtypes=["float32"]),
    "pixels": parse_codec("pixels", shapes=[(1, 2, 3)], dtypes=["float32"]),
    "grey png": parse_codec("png", shapes=[(1, 4, 5)], dtypes=["float32"]),
    "rgb png": parse_codec("png", shapes=[(3, 4, 5)], dtypes=["float32"]),
    "label": parse_codec("label", shapes=[(10,)], dtypes=["float32"]),
    "long label": parse_codec("label", shapes=[(1000,)], dtypes=["float32"]),
}
PNG = SPECS["rgb png"]
IMAGE = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def assert_fits(spec, symbols):
    """Symbols have the shapes, dtypes and ranges that the spec promises."""
    for array, tensor in zip(symbols, spec.wire_tensors, strict=True):
        assert array.shape == tensor.shape
        assert array.dtype == tensor.dtype
        if tensor.dtype == "uint8":
            assert array.max(initial=0) < 2**tensor.bits
    if spec.name == "label":
        assert 0 <= symbols[0] < spec.shapes[0][0]


def random_symbols(spec, rng):
    limit = spec.shapes[0][0] if spec.name == "label" else 1 << 15
    return [
        rng.integers(0, min(limit, 2**t.bits), t.shape).astype(t.dtype) for t in spec.wire_tensors
    ]


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 2**32 - 1))
def test_symbols_survive_the_way(name, seed):
    spec = SPECS[name]
    symbols = random_symbols(spec, np.random.default_rng(seed))
    payload = pack(spec, symbols)
    assert len(payload) <= spec.max_payload_bytes
    assert not spec.fixed_rate or len(payload) == spec.payload_bytes
    for sent, arrived in zip(symbols, unpack(spec, memoryview(payload)), strict=True):
        np.testing.assert_array_equal(sent, arrived)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.fixed_rate])
@given(data=st.data())
def test_any_payload_gives_symbols_in_range_or_an_error(name, data):
    spec = SPECS[name]
    size = spec.max_payload_bytes
    payload = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=2 * size))
    try:
        symbols = unpack(spec, payload)
    except InputError:
        assert len(payload) != size or spec.name == "label"
    else:
        assert_fits(spec, symbols)


@given(st.data())
def test_any_damaged_png_gives_an_image_or_an_error(data):
    payload = bytearray(pack(PNG, [IMAGE]))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(0, len(payload))) :]
    try:
        symbols = unpack(PNG, bytes(payload))
    except InputError:
        return
    assert_fits(PNG, symbols)


@pytest.mark.parametrize(
    ("size", "mode"),
    [((5, 3), "RGB"), ((300, 200), "L"), ((300, 200), "RGBA"), ((20_000, 20_000), "1")],
)
def test_a_png_of_another_size_or_kind_is_refused_before_it_is_decoded(size, mode):
    file = BytesIO()
    Image.new(mode, size).save(file, format="PNG")
    spec = parse_codec("png", shapes=[(3, 200, 300)], dtypes=["float32"])
    with pytest.raises(InputError, match=r"expected a PNG of \(3, 200, 300\)"):
        unpack(spec, file.getvalue())


def test_another_image_format_is_refused():
    file = BytesIO()
    Image.new("RGB", (5, 4)).save(file, format="GIF")
    with pytest.raises(InputError, match="expected a PNG"):
        unpack(PNG, file.getvalue())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 33, 65), (3, 200, 300)])
def test_noise_stays_below_the_bound_of_a_png(shape):
    spec = parse_codec("png", shapes=[shape], dtypes=["float32"])
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    payload = pack(spec, [noise])
    assert len(payload) <= spec.payload_bytes
    np.testing.assert_array_equal(unpack(spec, payload)[0], noise)


def test_symbols_of_another_shape_or_dtype_are_refused():
    spec = SPECS["label"]
    for wrong in (np.zeros((1,), np.uint8), np.zeros((), np.int64)):
        with pytest.raises(InputError, match="codec label: found symbols"):
            pack(spec, [wrong])


def test_a_label_out_of_range_is_refused():
    with pytest.raises(InputError, match="found 10, expected 0 to 9"):
        unpack(SPECS["label"], b"\x0a")


def test_numbers_are_little_endian_on_the_wire():
    assert pack(SPECS["long label"], [np.int16(0x0102)]) == b"\x02\x01"


def test_a_png_without_pillow_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "isthmus.wire.images", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delattr("isthmus.wire.images", raising=False)
    with pytest.raises(InputError, match=r'pip install "isthmus\[fit\]"'):
        pack(PNG, [IMAGE])
