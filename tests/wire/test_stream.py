import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.wire import reference, stream
from isthmus.wire.tables import TOTAL, Tables, fit_tables

GOLDEN = Path(__file__).parent / "streams.json"


def maps_of(seed, *, bits=3, shape=(3, 4, 5), num_samples=20):
    """Return symbols (N, C, H, W) that resemble their neighbours, peaked at the middle."""
    rng = np.random.default_rng(seed)
    steps = rng.laplace(size=(num_samples, *shape)) * rng.uniform(0.1, 1, (shape[0], 1, 1))
    values = np.round(steps.cumsum(axis=-1) / 2 + 2 ** (bits - 1))
    return np.clip(values, 0, 2**bits - 1).astype(np.uint8)


def drawn(data):
    """Return tables and a map they carry: like the fitted ones, or anything at all."""
    bits = data.draw(st.integers(1, 8))
    shape = tuple(data.draw(st.integers(1, most)) for most in (4, 5, 5))
    seed = data.draw(st.integers(0, 2**32 - 1))
    fitted_on = maps_of(seed, bits=bits, shape=shape)
    tables = fit_tables(fitted_on, bits, max_rows=data.draw(st.integers(1, 40)))
    rng = np.random.default_rng(seed)
    other = rng.integers(0, 2**bits, shape).astype(np.uint8)
    symbols = fitted_on[0] if data.draw(st.booleans()) else other
    return tables, symbols[: data.draw(st.integers(1, shape[0]))]


@given(st.data())
def test_symbols_survive_the_way_and_both_coders_make_the_same_bytes(data):
    maps = [drawn(data) for _ in range(data.draw(st.integers(1, 3)))]
    made = stream.encode(maps)
    assert made == reference.encode(maps)
    shapes = [(tables, symbols.shape) for tables, symbols in maps]
    for (_, sent), one, other in zip(
        maps, stream.decode(shapes, made), reference.decode(shapes, made), strict=True
    ):
        np.testing.assert_array_equal(one, sent)
        np.testing.assert_array_equal(other, sent)


def decoded(decoder, maps, data):
    try:
        return [found.tolist() for found in decoder(maps, data)]
    except InputError as error:
        return str(error)


@given(st.data())
def test_any_bytes_give_symbols_in_range_or_an_error_alike_in_both_decoders(data):
    tables, symbols = drawn(data)
    noise = data.draw(st.binary(max_size=40))
    maps = [(tables, symbols.shape)]
    found = decoded(stream.decode, maps, noise)
    if not noise.endswith(b"\0"):
        assert found == decoded(reference.decode, maps, noise)
    if not isinstance(found, str):
        assert np.shape(found[0]) == symbols.shape
        assert np.max(found[0]) < 2**tables.bits


def check_changed_streams(num_cases):
    rng = np.random.default_rng(0)
    fitted_on = maps_of(1, bits=4, shape=(4, 6, 6))
    maps = [(fit_tables(fitted_on, 4), fitted_on[0].shape)]
    streams = [stream.encode([(maps[0][0], symbols)]) for symbols in fitted_on]
    num_refused = 0
    for _ in range(num_cases):
        changed = bytearray(streams[rng.integers(len(streams))])
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed))] = rng.integers(256)
        try:
            (symbols,) = stream.decode(maps, bytes(changed[: rng.integers(len(changed) + 1)]))
        except InputError:
            num_refused += 1
        else:
            assert symbols.shape == maps[0][1]
            assert symbols.max() < 16
    assert num_refused > 0.9 * num_cases  # a state of 0 at the end is a check by itself


def test_changed_streams_give_symbols_in_range_or_an_error():
    check_changed_streams(5_000)


@pytest.mark.slow
def test_100_000_changed_streams_give_symbols_in_range_or_an_error():
    check_changed_streams(100_000)


def golden_maps(case):
    """Return fixed maps by integers alone: the golden streams must not hang on a generator."""
    tables = Tables.from_bytes(bytes.fromhex(case["tables"]))
    return [(tables, np.array(symbols, np.uint8)) for symbols in case["maps"]]


def digest(tables):
    return hashlib.sha256(tables.to_bytes()).hexdigest()


def written_golden():
    cases = []
    for bits, shape in ((1, (2, 3, 4)), (2, (5, 1, 7)), (4, (3, 6, 6)), (8, (2, 4, 5))):
        fitted_on = maps_of(bits, bits=bits, shape=shape)
        tables = fit_tables(fitted_on, bits)
        odd = (np.arange(np.prod(shape)) * 7 % 2**bits).reshape(shape).astype(np.uint8)
        maps = [(tables, symbols) for symbols in (fitted_on[0], fitted_on[1], odd)]
        cases.append(
            {
                "tables": tables.to_bytes().hex(),
                "digest": digest(tables),
                "maps": [symbols.tolist() for _, symbols in maps],
                "stream": stream.encode(maps).hex(),
            }
        )
    return cases


def test_streams_are_the_golden_ones(request):
    if request.config.getoption("--write-expected"):
        GOLDEN.write_text(json.dumps(written_golden()) + "\n", encoding="utf-8")
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 4
    for case in cases:
        maps = golden_maps(case)
        assert digest(maps[0][0]) == case["digest"]
        assert stream.encode(maps).hex() == case["stream"]
        assert reference.encode(maps).hex() == case["stream"]


def test_the_librarys_table_is_the_integer_one():
    """A symbol of frequency f takes log2(2^16 / f) bits: the state says it to the last digit."""
    frequency = np.array([[40000, 20000, 5000, 536, 0]], np.uint32)
    tables = Tables(
        bits=2,
        frequencies=frequency,
        row_of=np.zeros((1, 1), np.uint8),
        centre=np.zeros(1, np.uint8),
        edges=np.zeros((2, 0), np.uint16),
    )
    for symbol, start in ((0, 0), (1, 40000), (2, 60000), (3, 65000)):
        made = stream.encode([(tables, np.full((1, 1, 1), symbol, np.uint8))])
        assert int.from_bytes(made, "little") == start << 8


def test_the_stream_is_as_long_as_the_frequencies_say():
    fitted_on = maps_of(3, bits=4, shape=(4, 16, 16), num_samples=40)
    tables = fit_tables(fitted_on, 4)
    share = np.bincount(fitted_on[0].ravel(), minlength=16) / fitted_on[0].size
    entropy_bytes = -(share[share > 0] * np.log2(share[share > 0])).sum() * 1024 / 8
    assert len(stream.encode([(tables, fitted_on[0])])) < entropy_bytes


@pytest.mark.parametrize("side", [1, 4, 40])
def test_a_stream_takes_what_its_symbols_are_worth_and_at_most_three_bytes_more(side):
    rng = np.random.default_rng(side)
    fitted_on = rng.binomial(15, 0.3, (200, 4, side, side)).astype(np.uint8)
    tables = fit_tables(fitted_on, 4)
    assert tables.num_levels == 1
    rows_C = tables.row_of[:4, 0]
    for symbols in fitted_on[:20]:
        counts = tables.frequencies[rows_C[:, None], symbols.reshape(4, -1)]
        assert counts.all()
        worth_bits = -np.log2(counts / TOTAL).sum()
        length_bits = 8 * len(stream.encode([(tables, symbols)]))
        assert worth_bits - 8 < length_bits < worth_bits + 24 + 8


def test_neighbours_are_looked_at_where_that_pays_and_only_there():
    rng = np.random.default_rng(0)
    clustered = maps_of(0, bits=4, shape=(2, 16, 16))
    noise = rng.permuted(clustered, axis=0)
    assert fit_tables(clustered, 4).num_levels > 1
    for axis in (2, 3):
        noise = rng.permuted(noise, axis=axis)
    assert fit_tables(noise, 4).num_levels == 1


def test_a_row_sums_to_the_total_and_what_was_never_seen_can_still_be_sent():
    counted = np.full((3, 1, 2, 2), 200, np.uint8)
    tables = fit_tables(counted, 8)
    assert (tables.frequencies.sum(axis=1) == TOTAL).all()
    symbols = np.array([[[200, 0], [255, 200]]], np.uint8)
    made = stream.encode([(tables, symbols)])
    (found,) = stream.decode([(tables, (1, 2, 2))], made)
    np.testing.assert_array_equal(found, symbols)


@given(st.data())
def test_any_bytes_are_tables_or_an_error(data):
    written = bytearray(fit_tables(maps_of(0), 3).to_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
    del written[data.draw(st.integers(0, len(written))) or len(written) :]
    for found in (bytes(written), data.draw(st.binary(max_size=60))):
        try:
            tables = Tables.from_bytes(found)
        except InputError:
            continue
        assert tables.to_bytes() == found


def test_tables_of_another_version_are_refused():
    with pytest.raises(InputError, match="found version 9"):
        Tables.from_bytes(b"\x09" + fit_tables(maps_of(0), 3).to_bytes()[1:])


def test_a_map_of_too_many_channels_and_a_symbol_of_too_many_bits_are_refused():
    tables = fit_tables(maps_of(0), 3)
    with pytest.raises(InputError, match="1 to 3 channels"):
        stream.encode([(tables, np.zeros((4, 4, 5), np.uint8))])
    with pytest.raises(InputError, match="over 3 bits"):
        stream.encode([(tables, np.full((3, 4, 5), 8, np.uint8))])


@settings(max_examples=20)
@given(st.data())
def test_without_the_library_the_same_bytes_are_made_and_read(data):
    maps = [drawn(data)]
    shapes = [(tables, symbols.shape) for tables, symbols in maps]
    made = stream.encode(maps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "library", None)
        assert stream.encode(maps) == made
        np.testing.assert_array_equal(stream.decode(shapes, made)[0], maps[0][1])
