"""CIFAR-10 and -100: both layouts, folder or archive, and what may be wrong with them."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isthmus.data import load_data, load_images
from isthmus.errors import InputError
from tests.data import layouts
from tests.data.layouts import COARSE, made_up, pack, python2_pickle

Write = Callable[[Path], None]
LAYOUTS: dict[str, tuple[str, str, Write]] = {
    "cifar-10-batches-bin": ("cifar10", "cifar-10-binary.tar.gz", layouts.write_cifar10_binary),
    "cifar-10-batches-py": ("cifar10", "cifar-10-python.tar.gz", layouts.write_cifar10_python),
    "cifar-100-binary": ("cifar100", "cifar-100-binary.tar.gz", layouts.write_cifar100_binary),
    "cifar-100-python": ("cifar100", "cifar-100-python.tar.gz", layouts.write_cifar100_python),
}


def expected(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "cifar100":
        pixels, labels = made_up(6, 100, 0) if part == "train" else made_up(4, 100, 1)
    elif part == "test":
        pixels, labels = made_up(3, 10, 5)
    else:
        batches = [made_up(3, 10, seed) for seed in range(5)]
        pixels, labels = (np.concatenate(both) for both in zip(*batches, strict=True))
    return pixels.reshape(-1, 3, 32, 32), labels


def refused(path: Path, name: str = "cifar100", part: str = "train") -> str:
    with pytest.raises(InputError) as error:
        load_images(name, part, data_dir=path)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def binary(tmp_path):
    layouts.write_cifar100_binary(tmp_path / "cifar-100-binary")
    return tmp_path


@pytest.fixture
def python(tmp_path):
    layouts.write_cifar100_python(tmp_path / "cifar-100-python")
    return tmp_path


@pytest.mark.parametrize("folder", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "directly", "archive"])
def test_every_layout_gives_the_same_images(folder, form, tmp_path):
    name, archive, write = LAYOUTS[folder]
    write(tmp_path if form == "directly" else tmp_path / folder)
    if form == "archive":
        pack(tmp_path / folder, tmp_path / archive)
    for part in ("train", "test"):
        images = load_images(name, part, data_dir=tmp_path)
        x, y = expected(name, part)
        assert np.array_equal(images.x, x)
        assert np.array_equal(images.y, y)
        assert images.x.dtype == np.uint8
        assert images.x.flags.c_contiguous
        assert images.x.flags.writeable
        assert images.classes == tuple(f"class_{i}" for i in range(images.num_classes))
        if name == "cifar100":
            assert images.superclasses is not None
            assert np.array_equal(images.superclasses[y], COARSE[y])
            assert set(images.superclasses[np.setdiff1d(np.arange(100), y)]) == {-1}
        else:
            assert images.superclasses is None


def test_a_data_set_is_the_images_divided_by_255(binary, monkeypatch):
    monkeypatch.setenv("ISTHMUS_DATA", str(binary))
    data = load_data("cifar100")
    x, y = expected("cifar100", "train")
    assert data.x_train[0].dtype == np.float32
    assert np.array_equal(data.x_train[0], x.astype(np.float32) / np.float32(255))
    assert np.array_equal(data.y_train, y)
    assert (len(data.y_test), data.num_classes) == (4, 100)


def test_the_other_part_stays_unread(binary):
    (binary / "cifar-100-binary" / "test.bin").write_bytes(b"damaged")
    assert len(load_images("cifar100", "train", data_dir=binary).y) == 6
    assert "test.bin: found 7 bytes" in refused(binary, part="test")


def test_images_stored_column_by_column_and_by_python_3_are_read_too(python):
    pixels, labels = made_up(6, 100)
    path = python / "cifar-100-python" / "train"
    batch = {"fine_labels": labels.tolist(), "coarse_labels": COARSE[labels].tolist()}
    for data in (
        python2_pickle({**batch, "data": np.asfortranarray(pixels)}),
        pickle.dumps({**batch, "data": pixels}, protocol=2),
        pickle.dumps({**batch, "data": np.asfortranarray(pixels)}, protocol=4),
    ):
        path.write_bytes(data)
        images = load_images("cifar100", "train", data_dir=python)
        assert np.array_equal(images.x.reshape(6, -1), pixels)
        assert images.x.flags.c_contiguous


def test_missing_files_are_named_with_the_layouts_and_the_remedy(tmp_path):
    message = refused(tmp_path)
    assert "cifar-100-binary/[train.bin, test.bin] or cifar-100-binary.tar.gz" in message
    assert "cifar-100-python/[train, test] or cifar-100-python.tar.gz; add --download" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in message
    layouts.write_cifar10_python(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    assert "cifar-10-batches-py/[data_batch_1 to data_batch_5, test_batch]" in refused(
        tmp_path, "cifar10"
    )


def test_a_file_that_is_no_row_of_records_gives_both_sizes(binary):
    path = binary / "cifar-100-binary" / "train.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert "train.bin: found 18,344 bytes, expected records of 3,074" in refused(binary)
    path.write_bytes(b"")
    assert "found 0 bytes" in refused(binary)


def test_labels_out_of_range_are_named(binary):
    path = binary / "cifar-100-binary" / "train.bin"
    data = bytearray(path.read_bytes())
    data[3074 + 1] = 100
    path.write_bytes(data)
    assert "train.bin: found label 100, expected 0 to 99" in refused(binary)
    data[3074 : 3074 + 2] = bytes([20, 1])
    path.write_bytes(data)
    assert "superclasses: found label 20, expected 0 to 19" in refused(binary)


def test_a_class_has_one_superclass(binary):
    path = binary / "cifar-100-binary" / "train.bin"
    data = bytearray(path.read_bytes())
    data[3074 : 3074 + 2] = bytes([COARSE[99] + 1, 99])
    path.write_bytes(data)
    assert "class 99 has several superclasses" in refused(binary)


def test_the_names_of_the_classes_may_be_absent_but_not_too_few(binary):
    path = binary / "cifar-100-binary" / "fine_label_names.txt"
    path.write_text("apple\nbaby\n")
    assert "found 2 names, expected 100" in refused(binary)
    path.unlink()
    assert load_images("cifar100", "train", data_dir=binary).classes == ()


PIXELS, LABELS = made_up(6, 100)
GOOD = {"data": PIXELS, "fine_labels": LABELS.tolist(), "coarse_labels": COARSE[LABELS].tolist()}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "it holds a list"),
        ({}, "no data (found nothing)"),
        ({"data": PIXELS}, "no fine_labels (found data)"),
        ({**GOOD, "data": PIXELS[:5]}, "found pixels (5, 3072), expected (6, 3072)"),
        ({**GOOD, "data": [[1], [1, 2]]}, "found pixels list"),
        ({**GOOD, "data": PIXELS.astype(np.int32)}, "an array of i4"),
        ({**GOOD, "fine_labels": [0, 1, 2, 3, 4, 100]}, "found label 100, expected 0 to 99"),
        ({**GOOD, "fine_labels": ["a"] * 6}, "expected integer labels"),
        ({**GOOD, "fine_labels": [[1], [1, 2]]}, "expected integer labels"),
        ({**GOOD, "coarse_labels": [1, 2]}, "superclasses: found 2, expected 6"),
    ],
)
def test_a_batch_that_does_not_fit_says_what_was_expected(batch, message, python):
    (python / "cifar-100-python" / "train").write_bytes(python2_pickle(batch))
    assert message in refused(python)


@pytest.mark.parametrize("cut", [0, 1, 2, 40, 300, 5000, -1])
def test_a_truncated_batch_is_one_line(cut, python):
    path = python / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:cut])
    assert "expected the published pickle" in refused(python)


class Runs:
    """Has a function called when it is unpickled by ordinary means."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_batch_runs_nothing(protocol, python):
    marker = python / "ran"
    for attack in (
        Runs(os.mkdir, str(marker)),
        Runs(open, str(marker), "w"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(np.fromfile, str(marker)),
        Runs(getattr, "text", "upper"),
    ):
        for batch in (attack, {**GOOD, "data": attack}, {**GOOD, "fine_labels": [attack]}):
            data = pickle.dumps(batch, protocol=protocol)
            (python / "cifar-100-python" / "train").write_bytes(data)
            assert "it asks for" in refused(python)
    assert not marker.exists()


def test_a_persistent_object_and_a_strange_codec_are_refused(python):
    path = python / "cifar-100-python" / "train"
    path.write_bytes(b"Psomewhere\n.")
    assert "expected the published pickle" in refused(python)
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVzip\ntR.")
    assert "bytes as zip" in refused(python)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"evil", link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size = 0 if link else len(data)
    member.type, member.linkname = (tarfile.SYMTYPE if link else tarfile.REGTYPE), link
    tar.addfile(member, None if link else io.BytesIO(data))


def test_an_archive_with_paths_that_escape_writes_nothing(binary):
    data = (binary / "cifar-100-binary" / "train.bin").read_bytes()
    for file in (binary / "cifar-100-binary").iterdir():
        file.unlink()
    (binary / "cifar-100-binary").rmdir()
    archive = binary / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, "../escaped")
        add(tar, str(binary / "absolute"))
        add(tar, "cifar-100-binary/../../cifar-100-binary/train.bin")
        add(tar, "./cifar-100-binary/train.bin", data)
        add(tar, "cifar-100-binary/test.bin", link="/etc/passwd")
    assert len(load_images("cifar100", "train", data_dir=binary).y) == 6
    assert "holds no file cifar-100-binary/test.bin" in refused(binary, part="test")
    assert [path.name for path in binary.iterdir()] == [archive.name]
    assert not (binary.parent / "escaped").exists()


def test_a_damaged_archive_is_one_line(binary):
    archive = binary / "cifar-100-binary.tar.gz"
    pack(binary / "cifar-100-binary", archive)
    whole = archive.read_bytes()
    checksum = bytearray(whole)
    checksum[-8] ^= 1
    for data in (b"", b"<html>", whole[:100], whole[:-20], bytes(checksum)):
        archive.write_bytes(data)
        assert "get it again" in refused(binary)
