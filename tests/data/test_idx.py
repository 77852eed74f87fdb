"""Fashion-MNIST: plain or gzipped, in its folder or directly, and what may be wrong with it."""

import gzip

import numpy as np
import pytest

from isthmus.data import load_data, load_images
from isthmus.data.idx import URL, read_idx
from isthmus.errors import InputError
from tests.data.layouts import idx, made_up, write_fashion_mnist


def refused(path, part="train"):
    with pytest.raises(InputError) as error:
        load_images("fashion-mnist", part, data_dir=path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
def test_the_published_files_are_read(place, gzipped, tmp_path):
    write_fashion_mnist(tmp_path / place, gzipped=gzipped)
    for seed, (part, num) in enumerate({"train": 5, "test": 3}.items()):
        images = load_images("fashion-mnist", part, data_dir=tmp_path)  # type: ignore[arg-type]
        pixels, labels = made_up(num, 10, seed)
        assert np.array_equal(images.x, pixels[:, :784].reshape(num, 1, 28, 28))
        assert np.array_equal(images.y, labels)
        assert images.x.dtype == np.uint8
        assert images.x.flags.writeable
        assert len(images.classes) == images.num_classes == 10
        assert images.superclasses is None
    data = load_data("fashion-mnist", data_dir=tmp_path)
    assert data.x_train[0].shape == (5, 1, 28, 28)
    assert data.x_train[0].max() <= 1


def test_missing_files_are_named_with_the_remedy(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    message = refused(tmp_path)
    assert "-ubyte[.gz] in FashionMNIST/raw or directly; add --download" in message
    assert URL in message


def test_images_and_labels_must_fit_together(tmp_path):
    write_fashion_mnist(tmp_path, gzipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4)))
    assert "found (5, 28, 28), expected (4, 28, 28) as in train-labels-idx1" in refused(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 10, 3, 4])))
    assert "train-labels-idx1-ubyte: found label 10, expected 0 to 9" in refused(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 8, 8))))
    assert "found (3, 8, 8), expected (3, 28, 28)" in refused(tmp_path, "test")


GOOD = idx(np.zeros((2, 3, 3)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing, expected 00000803"),
        (GOOD[:6], "starts with 00000803"),
        (idx(np.zeros(3)), "starts with 00000801, expected 00000803"),
        (b"\0\0\r\3" + GOOD[4:], "starts with 00000d03"),
        (GOOD[:-1], "found 33 bytes, expected 34 for"),
        (GOOD + b"\0", "found 35 bytes, expected 34 for"),
        (b"\0\0\10\3" + b"\xff" * 12, "found 16 bytes, expected 79,228,162,458,924,105,385,"),
    ],
)
def test_a_damaged_file_says_what_it_holds_and_should(data, message, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(InputError, match="x: ") as error:
        read_idx(path, num_dims=3)
    assert message in str(error.value)


def test_a_damaged_gzip_is_one_line(tmp_path):
    path = tmp_path / "x.gz"
    for data in (b"plain", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:-8] + b"12345678"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            read_idx(path, num_dims=3)
