"""Text with units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import UnitError
from isthmus.units import exact_quantity, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1 Mbit/s", "byte/s", 125_000),
        ("320 KiB", "byte", 327_680),
        ("1 MB", "byte", 1_000_000),
        ("0.4 GMAC/s", "MAC/s", 4e8),
        ("4.6 pJ/MAC", "J/MAC", 4.6e-12),
        ("50 nJ/bit", "J/byte", 4e-7),
        ("8 ms", "s", 0.008),
        ("100MHz", "Hz", 1e8),
        ("1e-3 W", "W", 0.001),
        ("-2 ms", "s", -0.002),
    ],
)
def test_a_quantity_is_converted(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "byte", "1 parsec", "1 KB", "1 s", "nan byte", "inf byte", "1e999 byte", 1, 1.5,
        None, True, [1], "1 byte byte", "2**3 byte", "9**9**9**9 byte", "1 byte/0",
        "1 byte; 2", "(1) byte", "1,5 byte", "\u0661 byte", "1" * 100 + " byte",
        "1 byte\n",
    ],
)  # fmt: skip
def test_what_is_no_quantity_of_bytes_is_refused_in_one_line(text):
    with pytest.raises(UnitError, match=r"^found '.*', expected .*byte") as caught:
        parse_quantity(text, "byte")
    assert "\n" not in str(caught.value)


def test_a_clock_is_no_data_rate():
    with pytest.raises(UnitError, match="found '100 MHz', expected a quantity of another kind"):
        parse_quantity("100 MHz", "byte/s")


@given(st.floats(min_value=0, max_value=1e200))
def test_an_exact_quantity_comes_back_bit_for_bit(value):
    for unit, written in (("byte/s", ("Gbit/s", "kbit/s")), ("J/MAC", ("nJ/MAC",)), ("s", ())):
        assert parse_quantity(exact_quantity(value, unit, written=written), unit) == value


def test_quantities_are_written_as_people_read_them():
    assert format_quantity(157_000, "byte") == "157 kB"
    assert format_quantity(0, "s") == "0 s"
    assert exact_quantity(0.0003, "s", written=("s", "ms", "us")) == "300 us"
    assert (
        exact_quantity(parse_quantity("0.8 nJ/bit", "J/byte"), "J/byte", written=("nJ/bit",))
        == "0.8 nJ/bit"
    )
