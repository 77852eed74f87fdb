import numpy as np
import pytest

from isthmus.data import DATASETS, from_arrays, load_data, load_images, read_arrays
from isthmus.errors import InputError


def arrays(**changes):
    good = {
        "x_train": np.zeros((4, 1, 2, 2), np.uint8),
        "y_train": np.array([0, 1, 2, 0]),
        "x_test": np.full((2, 1, 2, 2), 255, np.uint8),
        "y_test": np.array([1, 2], np.uint8),
    }
    return {**good, **changes}


def test_digits_are_all_there_and_every_class_has_its_share():
    data = load_data("digits")
    assert len(data.y_train) + len(data.y_test) == 1797
    assert np.bincount(data.y_test).min() >= 34
    assert data.x_train[0].dtype == np.float32
    assert (data.x_train[0].min(), data.x_train[0].max()) == (0, 1)
    assert load_data("digits").x_test[0].tobytes() == data.x_test[0].tobytes()


def test_digits_survive_being_sent_as_bytes():
    x = load_data("digits").x_test[0]
    assert np.array_equal(np.rint(x * 255).astype(np.uint8).astype(np.float32) / 255, x)


def test_images_are_the_bytes_of_which_a_data_set_is_made(tmp_path):
    x, images = load_data("digits").x_test[0], load_images("digits", "test")
    assert np.array_equal(images.x.astype(np.float32) / np.float32(255), x)
    np.savez(tmp_path / "d.npz", **arrays())
    own = load_images(f"npz:{tmp_path / 'd.npz'}", "test")
    assert own.x.dtype == np.uint8
    assert (own.x.shape, own.num_classes) == ((2, 1, 2, 2), 3)
    assert own.y.tolist() == [1, 2]


@pytest.mark.parametrize("x", [np.zeros((2, 1, 2, 2)), np.zeros((2, 4), np.uint8), b""])
def test_only_bytes_in_the_shape_of_images_are_images(x, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(x_test=x))
    with pytest.raises(InputError, match=r"x_test: found .*, expected uint8 images"):
        load_images(f"npz:{tmp_path / 'd.npz'}", "test")


def test_unsigned_bytes_are_divided_by_255_and_labels_become_int64():
    data = from_arrays(arrays(), name="mine")
    assert data.x_test[0].dtype == np.float32
    assert data.x_test[0].max() == 1
    assert data.y_test.dtype == np.int64
    assert data.num_classes == 3


def test_floats_are_fed_as_they_are_and_tokens_become_int64():
    x = np.array([[-3.5], [7.25]], np.float32)
    data = from_arrays(arrays(x_test=x, x_train=np.zeros((4, 1), np.float64)), name="mine")
    assert np.array_equal(data.x_test[0], x)
    tokens = arrays(x_train=np.ones((4, 5), np.int32), x_test=np.ones((2, 5), np.int32))
    assert from_arrays(tokens, name="mine").x_train[0].dtype == np.int64
    one_each = arrays(x_train=np.arange(4), x_test=np.arange(2))
    assert from_arrays(one_each, name="mine").x_train[0].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((3, 1, 2, 2), np.uint8)}, "x_train: found shape"),
        ({"x_test": np.zeros((2, 1, 3, 3), np.uint8)}, "expected the same"),
        ({"y_test": np.array([0.5, 1.0])}, "y_test: found float64"),
        ({"y_test": np.array([[1], [2]])}, "expected integer labels"),
        ({"y_test": np.array([-1, 1])}, "found label -1"),
        ({"y_train": [[0], [1, 2]]}, "y_train: .*; expected integer labels"),
        ({"y_train": np.array([], np.int64)}, "y_train: found"),
        ({"x_test": np.full((2, 1, 2, 2), np.nan, np.float32)}, "NaN"),
        ({"x_test": np.full((2, 1, 2, 2), 1e300)}, "beyond float32"),
        ({"x_test": np.array([["a"], ["b"]])}, "expected float32, uint8"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_what_was_expected(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        from_arrays(arrays(**changes), name="mine")
    assert "\n" not in str(caught.value)


def test_a_missing_array_is_named_with_what_was_found(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=np.zeros((1, 1)), y_train=np.zeros(1, int))
    with pytest.raises(InputError, match=r"no x_test, y_test \(found x_train, y_train\)"):
        load_data(f"npz:{tmp_path / 'd.npz'}")


def several(**changes):
    """Arrays for a model of two inputs: images and tokens."""
    good = {
        "x_train_0": np.full((4, 1, 2, 2), 255, np.uint8),
        "x_train_1": np.arange(20).reshape(4, 5),
        "y_train": np.array([0, 1, 2, 0]),
        "x_test_0": np.zeros((2, 1, 2, 2), np.uint8),
        "x_test_1": np.arange(10).reshape(2, 5),
        "y_test": np.array([1, 2]),
    }
    return {key: x for key, x in {**good, **changes}.items() if x is not None}


def test_numbered_arrays_feed_the_inputs_of_a_model_in_order(tmp_path):
    np.savez(tmp_path / "d.npz", **dict(reversed(several().items())))
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    images, tokens = data.x_train
    assert images.shape == (4, 1, 2, 2)
    assert images.dtype == np.float32
    assert images.max() == 1
    assert tokens.dtype == np.int64
    assert tokens[3].tolist() == [15, 16, 17, 18, 19]
    assert [x.shape for x in data.x_test] == [(2, 1, 2, 2), (2, 5)]


def test_eleven_inputs_stand_in_the_order_of_their_numbers():
    halves = {"train": 4, "test": 2}
    xs = {f"x_{h}_{k}": np.full((n, 1), k) for h, n in halves.items() for k in range(11)}
    found = from_arrays(several(**xs), name="mine").x_test
    assert [int(x[0, 0]) for x in found] == list(range(11))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train_1": None}, "x_train has 1 inputs, x_test 2; expected one of each per input"),
        ({"x_train_0": None}, "found x_train_1, expected x_train_0: numbers from 0 without a gap"),
        (
            {"x_test_3": np.zeros((2, 1))},
            "found x_test_0, x_test_1, x_test_3, expected x_test_0, x",
        ),
        ({"x_test_01": np.zeros((2, 1))}, "expected x_test_0, x_test_1, x_test_2: numbers from"),
        ({"x_train": np.zeros((4, 1))}, "x_train and x_train_0, x_train_1; expected one of the"),
        ({"x_test_1": np.zeros((3, 5))}, r"x_test_1: found shape \(3, 5\), .* N = 2 as in the"),
        ({"x_train_0": None, "x_train_1": None}, r"no x_train \(found x_test_0, .*x_train_0"),
        ({"x_test_1": np.zeros((2, 6))}, r"x_train_1 has samples of shape \(5,\), x_test_1 of"),
    ],
)
def test_numbered_arrays_that_do_not_fit_are_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        from_arrays(several(**changes), name="mine")
    assert "\n" not in str(caught.value)


def test_the_images_of_a_data_set_are_one_input(tmp_path):
    np.savez(tmp_path / "d.npz", **several())
    with pytest.raises(InputError, match="x_test: found 2 inputs, expected one of uint8 images"):
        load_images(f"npz:{tmp_path / 'd.npz'}", "test")
    one = {key: x for key, x in several().items() if not key.endswith("_1")}
    np.savez(tmp_path / "d.npz", **one)
    assert load_images(f"npz:{tmp_path / 'd.npz'}", "test").x.shape == (2, 1, 2, 2)


def test_pickled_objects_are_refused_and_nothing_in_them_runs(tmp_path):
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    np.savez(tmp_path / "d.npz", x_train=np.array([Malicious()], dtype=object))
    with pytest.raises(InputError, match="pickled objects"):
        load_data(f"npz:{tmp_path / 'd.npz'}")
    assert not marker.exists()


def test_a_text_is_no_npz_file(tmp_path):
    (tmp_path / "d.npz").write_text("hi")
    with pytest.raises(InputError, match="is no npz file"):
        load_data(f"npz:{tmp_path / 'd.npz'}")


def test_a_truncated_file_is_one_line(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is no npz file"):
        read_arrays(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(tmp_path / "absent.npz")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match="digits, fashion-mnist, imagefolder:DIR, npz:FILE"):
        load_data("digit")
    assert sorted(DATASETS) == ["cifar10", "cifar100", "digits", "fashion-mnist"]


def test_a_function_in_a_file_may_make_the_data(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def make():\n"
        "    x = np.zeros((2, 3), np.float32)\n"
        "    return dict(x_train=(x, x), y_train=[0, 1], x_test=(x, x), y_test=[1, 0])\n"
        "def bad():\n"
        "    return 3\n"
    )
    assert len(load_data(f"{path}:make").x_train) == 2
    with pytest.raises(InputError, match="returned int"):
        load_data(f"{path}:bad")
    with pytest.raises(InputError, match="no function 'absent'"):
        load_data(f"{path}:absent")
    path.write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"failed when run \(line \d+, ZeroDivisionError"):
        load_data(f"{path}:make")


def test_labels_of_the_training_half_are_left_out_and_those_of_the_test_half_may_be_missing():
    x = np.zeros((3, 4), np.float32)
    arrays = {"x_train": x, "y_train": [0, 1, 1], "x_test": x[:2], "y_test": [1, 0]}
    assert not from_arrays(arrays, name="here").unlabelled
    data = from_arrays(arrays, name="here", unlabelled=True)
    assert data.unlabelled
    assert data.y_train.tolist() == [-1, -1, -1]
    assert data.y_test.tolist() == [1, 0]
    bare = from_arrays({"x_train_0": x, "x_test": (x[:2],)}, name="here", unlabelled=True)
    assert (bare.y_train.tolist(), bare.y_test.tolist()) == ([-1, -1, -1], [-1, -1])
    with pytest.raises(InputError, match="no x_test"):
        from_arrays({"x_train": x}, name="here", unlabelled=True)


def test_a_published_data_set_can_be_read_without_its_training_labels():
    data = load_data("digits", unlabelled=True)
    assert set(data.y_train.tolist()) == {-1}
    assert set(data.y_test.tolist()) == set(range(10))
