import math

import pytest
import torch
from torch.nn import functional as F

from isthmus.errors import InputError
from isthmus.train.augment import (
    Augmentation,
    Normalization,
    augment,
    moved,
    normalization_of,
    to_float,
)

NOTHING = Augmentation(padding=0, flip=False)


def random_images(num=64, height=9, width=12):
    generator = torch.Generator().manual_seed(1)
    shape = (num, 3, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def augmented(images, augmentation, seed=0):
    return augment(images, augmentation, generator=torch.Generator().manual_seed(seed))


def windows(image_CHW, padding, mode):
    """Every crop of the old size out of the padded image, by its place."""
    height, width = image_CHW.shape[1:]
    padded = F.pad(image_CHW[None].float(), (padding,) * 4, mode=mode)[0].byte()
    return {
        (x - padding, y - padding): padded[:, y : y + height, x : x + width]
        for y in range(2 * padding + 1)
        for x in range(2 * padding + 1)
    }


def one_move(image_HW, *, right=0, down=0, mirror=False, degrees=0.0, border="zeros"):
    return moved(
        torch.as_tensor(image_HW)[None, None],
        torch.tensor([[right, down]]),
        torch.tensor([mirror]),
        torch.tensor([math.radians(degrees)]),
        border=border,
    )[0, 0]


def test_an_image_to_which_nothing_may_happen_is_handed_on():
    images = random_images()
    assert augmented(images, NOTHING) is images


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("reflection", "reflect")])
def test_a_crop_is_a_window_of_the_padded_image_and_every_window_is_drawn(border, mode):
    image = random_images(1)
    images = image.expand(400, -1, -1, -1)
    cropped = augmented(images, Augmentation(padding=2, border=border, flip=False))
    places = windows(image[0], 2, mode)
    found = {
        next(place for place, window in places.items() if torch.equal(window, crop))
        for crop in cropped
    }
    assert cropped.dtype == torch.uint8
    assert found == set(places)


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = random_images(200)
    flipped = augmented(images, Augmentation(padding=0, flip=True))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130


def test_a_crop_comes_before_the_mirror():
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    assert one_move(image, right=1).tolist() == [[2, 3, 0], [5, 6, 0]]
    assert one_move(image, right=-1).tolist() == [[0, 1, 2], [0, 4, 5]]
    assert one_move(image, down=1).tolist() == [[4, 5, 6], [0, 0, 0]]
    assert one_move(image, right=1, mirror=True).tolist() == [[0, 3, 2], [0, 6, 5]]
    assert one_move(image, right=1, border="reflection").tolist() == [[2, 3, 2], [5, 6, 5]]


def test_a_quarter_turn_is_clockwise_and_comes_last():
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(5, 5)
    assert torch.equal(one_move(image, degrees=90), image.rot90(-1))
    assert torch.equal(one_move(image, mirror=True, degrees=90), image.flip(1).rot90(-1))
    # a wide image keeps its shape: the middle square turns, the rest of the sides is cut or black
    wide = torch.arange(1, 16, dtype=torch.uint8).reshape(3, 5)
    expected = F.pad(wide[:, 1:4].rot90(-1), (1, 1))
    assert torch.equal(one_move(wide, degrees=90), expected)


def test_a_rotation_moves_a_dot_along_its_circle_by_at_most_the_angle_either_way():
    images = torch.zeros(300, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 30] = 255  # 14 pixels to the right of the centre
    turned = augmented(images, Augmentation(padding=0, flip=False, rotation_deg=15))
    angles = []
    for image in turned[:, 0]:
        rows, columns = torch.nonzero(image, as_tuple=True)
        if len(rows) == 0:
            continue  # the nearest pixel of every new one was another
        down, right = float(rows.float().mean()) - 16, float(columns.float().mean()) - 16
        assert math.hypot(down, right) == pytest.approx(14, abs=0.8)
        angles.append(math.degrees(math.atan2(down, right)))
    assert len(angles) > 200
    assert max(map(abs, angles)) < 15 + math.degrees(0.7 / 14)
    assert min(angles) < -10
    assert max(angles) > 10


def test_a_turned_image_has_black_corners_unless_they_are_reflected():
    images = torch.full((50, 3, 32, 32), 200, dtype=torch.uint8)
    black = augmented(images, Augmentation(padding=0, flip=False, rotation_deg=15))
    mirror = Augmentation(padding=0, flip=False, rotation_deg=15, border="reflection")
    assert set(black.unique().tolist()) == {0, 200}
    assert (black[:, :, 8:24, 8:24] == 200).all()
    assert torch.equal(augmented(images, mirror), images)


def test_every_image_gets_its_own_and_the_same_seed_gives_the_same():
    images = random_images(1).expand(64, -1, -1, -1)
    everything = Augmentation(rotation_deg=15)
    first = augmented(images, everything, seed=3)
    assert torch.equal(first, augmented(images, everything, seed=3))
    assert not torch.equal(first, augmented(images, everything, seed=4))
    assert len(first.flatten(1).unique(dim=0)) > 50


def test_a_negative_number_is_refused():
    with pytest.raises(InputError, match="found padding -1"):
        Augmentation(padding=-1)
    with pytest.raises(InputError, match="rotation_deg -15"):
        Augmentation(rotation_deg=-15)


def test_normalization_is_by_the_channels_own_mean_and_deviation():
    images = random_images()
    images[:, 2] = 7
    normalization = normalization_of(images)
    pixels = images.double() / 255
    assert normalization.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert normalization.std[:2] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist()[:2])
    assert normalization.std[2] == 1
    normal = to_float(images, normalization)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_without_constants_pixels_are_divided_by_255():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert to_float(images, Normalization()).flatten().tolist() == pytest.approx([0, 0.2, 1])
    shifted = to_float(images, Normalization(mean=(0.2,), std=(0.5,)))
    assert shifted.flatten().tolist() == pytest.approx([-0.4, 0, 1.6])
