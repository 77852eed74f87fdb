import pytest

from isthmus.errors import InputError
from isthmus.plan.accuracy import AccuracyRow, AccuracyTable, merge


def row(cut=3, codec="uniform:bits=4", accuracy=0.8, origin="post-hoc", **rest):
    return AccuracyRow(cut=cut, codec=codec, accuracy=accuracy, samples=100, origin=origin, **rest)


def table(*rows, whole=0.9):
    return AccuracyTable(graph="abc", whole=whole, rows=rows)


def test_a_pair_that_was_measured_has_its_drop_and_another_is_unknown():
    known = table(row())
    assert known.row(3, "uniform:bits=4") == row()
    assert known.drop(3, "uniform:bits=4") == pytest.approx(0.1)
    assert known.row(4, "uniform:bits=4") is None
    assert known.drop(4, "uniform:bits=4") is known.drop(3, "uniform:bits=5") is None


@pytest.mark.parametrize("codec", ["raw", "pixels", "png", "label"])
def test_a_lossless_codec_drops_nothing_anywhere(codec):
    assert table().drop(0, codec) == 0


def test_pixels_drop_what_a_row_measured():
    assert table(row(0, "pixels", 0.85)).drop(0, "pixels") == pytest.approx(0.05)


def test_sixteen_bits_in_place_of_32_are_not_known_to_be_lossless():
    assert table().drop(3, "raw:bits=16") is None


def test_a_row_of_other_samples_is_compared_with_the_whole_model_on_those():
    assert table(row(accuracy=0.7, whole=0.75)).drop(3, "uniform:bits=4") == pytest.approx(0.05)


def test_a_gain_does_not_pay_for_another_loss():
    assert table(row(accuracy=0.95)).drop(3, "uniform:bits=4") == 0


def test_what_was_trained_counts_before_what_was_only_calibrated():
    trained = row(accuracy=0.5, origin="trained")
    assert merge(table(row()), [trained]).rows == (trained,)
    assert merge(table(trained), [row()]).rows == (trained,)


def test_of_two_fits_the_one_that_loses_less_on_its_own_samples_counts():
    far = row(accuracy=0.88, whole=0.95, origin="trained")
    near = row(accuracy=0.7, whole=0.71, origin="trained")
    assert merge(table(), [far, near]).rows == merge(table(), [near, far]).rows == (near,)


def test_merged_rows_are_in_the_order_of_cuts():
    rows = merge(table(), [row(5), row(3, "raw:bits=16"), row(3)]).rows
    assert [(r.cut, r.codec) for r in rows] == [
        (3, "raw:bits=16"),
        (3, "uniform:bits=4"),
        (5, "uniform:bits=4"),
    ]


def test_an_impossible_accuracy_is_refused():
    with pytest.raises(InputError, match=r"accuracy: found 80, expected 0 to 1"):
        row(accuracy=80)


def test_a_table_for_another_model_is_refused_in_one_line():
    table().check("abc")
    with pytest.raises(InputError, match=r"found graph abc, expected def; .* measure anew"):
        table().check("def")


@pytest.mark.parametrize(
    "make",
    [
        lambda: table(whole=1.2),
        lambda: row(accuracy=-0.1),
        lambda: row(whole=float("nan")),
        lambda: table(row(), row()),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()
