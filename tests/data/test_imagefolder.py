"""Images in folders: how they become squares, and what may be wrong with them."""

import numpy as np
import pytest
from PIL import Image

from isthmus.data import imagefolder, load_data, load_images
from isthmus.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, color, *, size=(12, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    """Two classes: cats are red, dogs are green; a file of notes lies among them."""
    for place, num in (("train", 3), ("test", 1)):
        for name, color in (("cat", RED), ("dog", GREEN)):
            for index in range(num):
                save(tmp_path / place / name / f"{index}.png", color, size=(9 + index, 8))
            (tmp_path / place / name / "notes.txt").write_text("mine")
    return tmp_path


def read(folder, part="train", size=8):
    return load_images(f"imagefolder:{folder}:{size}", part)


def refused(folder, part="train", size=8):
    with pytest.raises(InputError) as error:
        read(folder, part, size)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_folders_are_classes_in_the_order_of_their_names(pets):
    images = read(pets)
    assert images.x.shape == (6, 3, 8, 8)
    assert images.x.dtype == np.uint8
    assert images.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.classes == ("cat", "dog")
    assert images.num_classes == 2
    assert images.x[0, :, 4, 4].tolist() == list(RED)
    assert images.x[3, :, 4, 4].tolist() == list(GREEN)
    data = load_data(f"imagefolder:{pets}:8")
    assert data.x_test[0].shape == (2, 3, 8, 8)
    assert data.x_test[0].max() == 1
    assert load_images(f"imagefolder:{pets}", "test").x.shape == (2, 3, 224, 224)


def test_val_is_read_where_there_is_no_test_and_only_one_part_is_opened(pets):
    (pets / "test").rename(pets / "val")
    (pets / "train" / "cat" / "0.png").write_bytes(b"no image")
    assert len(read(pets, "test").y) == 2


def test_the_centre_of_the_shorter_side_is_kept(tmp_path):
    # 32 x 8: a red edge of 12, the middle 8 green, a blue edge; halved to 4 x 4 it is all green.
    image = Image.new("RGB", (32, 8), GREEN)
    image.paste(RED, (0, 0, 12, 8))
    image.paste(BLUE, (20, 0, 32, 8))
    wide, high = (
        image.resize((256, 64), Image.Resampling.NEAREST),
        image.transpose(Image.Transpose.ROTATE_90),
    )
    for place in ("train", "test"):
        for name, each in (("high", high), ("wide", wide)):
            (tmp_path / place / name).mkdir(parents=True)
            each.save(tmp_path / place / name / "1.png")
    for square in read(tmp_path).x:
        assert (square[:, 2:6, 2:6] == np.array(GREEN)[:, None, None]).all()


def test_grey_transparent_and_turned_images_are_what_people_see(pets):
    folder = pets / "train" / "cat"
    save(folder / "a-grey.jpg", 128, mode="L")
    save(folder / "b-clear.png", (255, 0, 0, 0), mode="RGBA")
    turned = Image.new("RGB", (8, 8), "black")
    turned.paste("white", (0, 0, 8, 4))  # white above, in the file
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(folder / "c-turned.jpg", exif=exif, quality=100)
    by_name = dict(
        zip(sorted(path.stem for path in folder.glob("*.*g")), read(pets).x, strict=False)
    )
    assert by_name["a-grey"][:, 4, 4].tolist() == [128, 128, 128]
    assert by_name["b-clear"][:, 4, 4].tolist() == [255, 255, 255]
    assert by_name["c-turned"][0, 0].max() < 10 < 245 < by_name["c-turned"][0, -1].min()


def test_a_damaged_image_is_named(pets):
    path = pets / "train" / "dog" / "1.png"
    whole = path.read_bytes()
    for data in (b"", b"no image", whole[:50], whole[:40]):
        path.write_bytes(data)
        assert refused(pets).startswith(f"{path}: cannot be read (")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-500])
    assert "cannot be read (image file is truncated" in refused(pets)
    save(path, 70_000, mode="I;16")
    assert "pixels of kind I;16, expected 8 bits for a value" in refused(pets)


def test_an_image_of_too_many_pixels_is_named_before_it_is_unpacked(pets, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    assert "1.png: cannot be read (Image size (80" not in refused(pets)
    assert "2.png: cannot be read (Image size (88 pixels) exceeds limit" in refused(pets)


def test_more_than_memory_should_hold_is_refused_with_the_remedy(pets, monkeypatch):
    monkeypatch.setattr(imagefolder, "MOST_BYTES", 1 << 10)
    line = refused(pets)
    assert "train: 6 images of 8 x 8 take 0.0 GiB, expected at most 0" in line
    assert line.endswith(f"name a smaller size, imagefolder:{pets}:64")


def test_what_is_missing_is_named(pets):
    assert "size 4, expected 8 to 1024" in refused(pets, size=4)
    (pets / "train" / "fish").mkdir()
    assert refused(pets).endswith("test: has no class fish; expected the same folders in train "
                                  "and test")  # fmt: skip
    (pets / "test" / "fish").mkdir()
    assert "train/fish: holds no image; expected files that end in .jpg, .jpeg, " in refused(pets)
    (pets / "test" / "bird").mkdir()
    assert "train: has no class bird; expected the same folders in test and" not in refused(pets)
    assert "train: has no class bird" in refused(pets)
    assert refused(pets / "train").startswith(
        f"{pets}/train/train: no such folder; expected train"
    )
    empty = pets / "empty"
    (empty / "train").mkdir(parents=True)
    assert refused(empty).endswith("holds no folder; expected one for each class")
    save(empty / "train" / "cat" / "1.png", RED)
    assert refused(empty).startswith(f"{empty}/test: no such folder")


def test_without_labels_training_images_may_lie_anywhere_and_test_images_too(pets):
    for path in list((pets / "train").rglob("*.png")):
        path.rename(pets / "train" / f"{path.parent.name}{path.name}")
    data = load_data(f"imagefolder:{pets}:8", unlabelled=True)
    assert data.x_train[0].shape == (6, 3, 8, 8)
    assert data.y_train.tolist() == [-1] * 6
    assert data.y_test.tolist() == [0, 1]
    for path in list((pets / "test").rglob("*.png")):
        path.rename(pets / "test" / f"{path.parent.name}{path.name}")
    for folder in ("cat", "dog"):
        (pets / "test" / folder / "notes.txt").unlink()
        (pets / "test" / folder).rmdir()
    assert load_data(f"imagefolder:{pets}:8", unlabelled=True).y_test.tolist() == [-1, -1]
    assert "holds no folder" in refused(pets)  # where labels are asked for
