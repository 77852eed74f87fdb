"""One link, many widths: what crosses, what arrives, and what does not belong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.wire import pack, parse_codec, unpack
from isthmus.wire.nested import (
    Width,
    at_width,
    narrowed,
    parse_width,
    payload_bytes_at,
    read_width,
    tables_at,
    widened,
    widths,
)
from isthmus.wire.tables import as_map, fit_tables

SHAPES = ((12, 5, 3), (7, 6), (9,), (4,))
DTYPES = ("float32", "float32", "float32", "bool")
TEXT = "bottleneck:ratio=1,bits=8,nested=1"


def spec_of(text=TEXT):
    return parse_codec(text, shapes=SHAPES, dtypes=DTYPES)


def symbols_of(spec, seed, spread=20):
    generator = np.random.default_rng(seed)
    middle = 2 ** (spec.bits - 1)
    return tuple(
        generator.integers(2, size=t.shape).astype(np.uint8)
        if t.bits == 1
        else np.clip(generator.normal(middle, spread, t.shape), 0, 2 * middle - 1).astype(np.uint8)
        for t in spec.wire_tensors
    )


def tables_of(spec):
    samples = list(zip(*(symbols_of(spec, seed) for seed in range(40)), strict=True))
    return tuple(
        fit_tables(np.stack([as_map(s) for s in symbols]), spec.bits)
        for symbols, coded in zip(samples, spec.coded, strict=True)
        if coded
    )


CODED = spec_of(f"{TEXT}+entropy")
TABLES = tables_of(CODED)


def arrives(spec, symbols, width):
    narrow = at_width(spec, width)
    return [
        widened(narrowed(s, a, b), a, b)
        for s, a, b in zip(symbols, spec.wire_tensors, narrow.wire_tensors, strict=True)
    ]


def test_the_ratio_doubles_while_every_tensor_keeps_a_channel():
    found = widths(spec_of("bottleneck:ratio=1,bits=4,nested=1"))
    assert [(w.ratio, w.bits) for w in found] == [(r, b) for r in (1, 2, 4) for b in (4, 3, 2)]
    assert widths(spec_of("bottleneck:ratio=1,bits=4")) == ()


@pytest.mark.parametrize(("ratio", "found"), [(2, [2, 4, 8, 16, 32]), (64, [64])])
def test_the_ladder_ends_at_a_ratio_of_32(ratio, found):
    text = f"bottleneck:ratio={ratio},bits=2,nested=1"
    spec = parse_codec(text, shapes=[(256, 2, 2)], dtypes=["float32"])
    assert [width.ratio for width in widths(spec)] == found


def test_the_upper_bits_are_rounded_and_zero_stays_zero():
    full = parse_codec("bottleneck:ratio=1,bits=4,nested=1", shapes=[(6,)], dtypes=["float32"])
    narrow = at_width(full, Width(ratio=2, bits=2))
    a, b = full.wire_tensors[0], narrow.wire_tensors[0]
    symbols = np.array([8, 9, 15, 0, 1, 2], np.uint8)
    crossing = narrowed(symbols, a, b)
    assert crossing.tolist() == [2, 2, 3]  # 9 is nearer to 8 than to 12; 15 has no 16
    assert widened(crossing, a, b).tolist() == [8, 8, 12, 8, 8, 8]  # what did not cross is 0


@pytest.mark.parametrize("width", widths(spec_of()), ids=str)
def test_a_payload_is_as_long_as_its_width_says_and_tells_it(width):
    spec = spec_of()
    symbols = symbols_of(spec, 1)
    payload = pack(spec, symbols, width=width)
    assert len(payload) == payload_bytes_at(spec, width)
    assert read_width(spec, payload) == width
    for found, expected in zip(unpack(spec, payload), arrives(spec, symbols, width), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("width", widths(CODED), ids=str)
def test_an_entropy_coded_width_arrives_by_tables_made_of_the_widest_ones(width):
    for seed, spread in ((2, 20), (3, 60)):
        symbols = symbols_of(CODED, seed, spread)
        payload = pack(CODED, symbols, TABLES, width=width)
        assert len(payload) <= payload_bytes_at(CODED, width)
        found = unpack(CODED, payload, TABLES)
        for a, b in zip(found, arrives(CODED, symbols, width), strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_a_width_the_widest_crosses():
    spec = spec_of()
    symbols = symbols_of(spec, 4)
    assert pack(spec, symbols) == pack(spec, symbols, width=widths(spec)[0])
    assert len(pack(spec, symbols)) == spec.max_payload_bytes == spec.payload_bytes


def test_derived_tables_say_nearly_what_counted_ones_would():
    """Adding up frequencies loses little beside counting the rounded symbols anew."""
    width = Width(ratio=1, bits=5)
    narrow = at_width(CODED, width)
    full, fewer = CODED.wire_tensors[:1], narrow.wire_tensors[:1]
    rounded = [narrowed(symbols_of(CODED, seed)[0], full[0], fewer[0]) for seed in range(40)]
    derived = tables_at(TABLES[:1], full, fewer)
    counted = fit_tables(np.stack(rounded), 5)
    one = parse_codec("uniform:bits=5+entropy", shapes=[SHAPES[0]], dtypes=["float32"])
    sizes = [
        sum(len(pack(one, [s], (tables,))) for s in rounded) for tables in (derived[0], counted)
    ]
    assert sizes[0] <= 1.05 * sizes[1]


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_give_symbols_in_range_or_a_typed_error(data, coded):
    spec, tables = (CODED, TABLES) if coded else (spec_of(), ())
    try:
        found = unpack(spec, data, tables)
    except InputError:
        return
    for array, tensor in zip(found, spec.wire_tensors, strict=True):
        assert array.shape == tensor.shape
        assert array.max() < 2**tensor.bits


def test_the_first_byte_is_checked():
    spec = spec_of()
    payload = pack(spec, symbols_of(spec, 5), width=Width(ratio=4, bits=3))
    with pytest.raises(InputError, match="found an empty payload, expected its width"):
        unpack(spec, b"")
    with pytest.raises(InputError, match="ratio=8,bits=3, expected a ratio of 1, 2, 4 and 2 to 8"):
        unpack(spec, bytes([payload[0] + 16]) + payload[1:])
    with pytest.raises(InputError, match="found a payload of"):
        unpack(spec, payload + b"\0")


def test_other_codecs_have_one_width():
    spec = spec_of("bottleneck:ratio=1,bits=8")
    with pytest.raises(InputError, match="it has only one; plan with nested=1"):
        pack(spec, symbols_of(spec, 6), width=Width(ratio=2, bits=8))


@pytest.mark.parametrize(
    "text", ["8", "ratio=8", "ratio=8,ratio=4", "ratio=x,bits=4", "ratio=2,bits=4,"]
)
def test_a_width_is_read_as_people_write_it(text):
    assert parse_width("ratio=8,bits=4") == Width(ratio=8, bits=4)
    assert parse_width(str(Width(ratio=3, bits=2))) == Width(ratio=3, bits=2)
    with pytest.raises(InputError, match=r"^width "):
        parse_width(text)
