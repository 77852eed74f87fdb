import sys
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isthmus.errors import InputError
from isthmus.wire import pack, parse_codec, unpack
from isthmus.wire.tables import as_map, fit_tables, from_map, map_shape

SPECS = {
    "floats": parse_codec("raw", shapes=[(2, 3)], dtypes=["float32"]),
    "half": parse_codec("raw:bits=16", shapes=[(5,)], dtypes=["float32"]),
    "integers": parse_codec("raw", shapes=[(3,), (9,)], dtypes=["int64", "bool"]),
    "uniform": parse_codec("uniform:bits=3", shapes=[(3, 5), ()], dtypes=["float32"] * 2),
    "vector": parse_codec("uniform:bits=3,per=vector", shapes=[(3, 7)], dtypes=["float32"]),
    "bf16": parse_codec("float:format=bf16", shapes=[(3, 7)], dtypes=["float32"]),
    "blocks": parse_codec("float:format=mxfp6-e2m3", shapes=[(3, 17)], dtypes=["float32"]),
    "bottleneck": parse_codec("bottleneck:ratio=2,bits=7", shapes=[(5, 3, 3)], dtypes=["float32"]),
    "coded": parse_codec(
        "uniform:bits=3+entropy", shapes=[(3, 5, 4), (4,)], dtypes=["float32", "bool"]
    ),
    "coded tokens": parse_codec("bottleneck:ratio=2+entropy", shapes=[(9, 6)], dtypes=["float32"]),
    "pixels": parse_codec("pixels", shapes=[(1, 2, 3)], dtypes=["float32"]),
    "grey png": parse_codec("png", shapes=[(1, 4, 5)], dtypes=["float32"]),
    "rgb png": parse_codec("png", shapes=[(3, 4, 5)], dtypes=["float32"]),
    "label": parse_codec("label", shapes=[(10,)], dtypes=["float32"]),
    "long label": parse_codec("label", shapes=[(1000,)], dtypes=["float32"]),
}
PNG = SPECS["rgb png"]
CODED = SPECS["coded"]
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


def skewed(seed, *, num_samples=8):
    """Return samples of the coded codec whose small symbols come most."""
    rng = np.random.default_rng(seed)
    return [
        [np.minimum(rng.geometric(0.7, (3, 5, 4)) - 1, 7).astype(np.uint8), np.zeros(4, np.uint8)]
        for _ in range(num_samples)
    ]


def fitted(samples):
    return (fit_tables(np.stack([as_map(sample[0]) for sample in samples]), 3),)


@given(seed=st.integers(0, 2**32 - 1))
def test_symbols_survive_the_entropy_stage_and_most_get_shorter(seed):
    samples = skewed(seed)
    tables = fitted(samples[1:])
    noise = [*random_symbols(CODED, np.random.default_rng(seed))]
    for symbols in (samples[0], noise):
        payload = pack(CODED, symbols, tables)
        assert len(payload) <= CODED.max_payload_bytes
        for sent, arrived in zip(symbols, unpack(CODED, payload, tables), strict=True):
            np.testing.assert_array_equal(sent, arrived)
    assert len(pack(CODED, samples[0], tables)) < CODED.max_payload_bytes


@given(st.binary(max_size=CODED.max_payload_bytes + 1))
def test_any_coded_payload_gives_symbols_in_range_or_an_error(payload):
    tables = fitted(skewed(0))
    try:
        symbols = unpack(CODED, payload, tables)
    except InputError:
        return
    assert_fits(CODED, symbols)


def test_tables_of_another_codec_and_none_where_some_are_needed_are_refused():
    tables = fitted(skewed(0))
    other = parse_codec("uniform:bits=4+entropy", shapes=[(3, 5, 4)], dtypes=["float32"])
    with pytest.raises(InputError, match=r"found tables of \(bits, channels\) \[\(3, 3\)\]"):
        pack(other, [np.zeros((3, 5, 4), np.uint8)], tables)
    with pytest.raises(InputError, match=r"found tables of \(bits, channels\) \[\]"):
        unpack(other, b"\x01")


def test_channels_are_the_same_in_every_layout():
    for shape in ((), (3,), (5, 3), (3, 4, 5), (3, 2, 4, 5)):
        symbols = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
        map_CHW = as_map(symbols)
        assert map_CHW.shape == map_shape(shape)
        np.testing.assert_array_equal(from_map(map_CHW, shape), symbols)
        if len(shape) == 2:
            np.testing.assert_array_equal(map_CHW[1, 0], symbols[:, 1])


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
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r'pip install "isthmus\[fit\]"'):
        pack(PNG, [IMAGE])
