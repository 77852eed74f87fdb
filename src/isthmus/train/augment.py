"""Images as training sees them: moved, mirrored and turned, a whole batch at a time.

Everything is drawn from a generator on the images' own device, and every image gets its own.

Shapes: B images, C channels, H height, W width.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
        padding: Pixels added on every side before a crop of the old size is taken at random; 0
            leaves the image where it is.
        border: What is added: zeros (black), or the image reflected.
        flip: Whether every second image, at random, is mirrored from left to right.
        rotation_deg: Largest angle, in degrees, by which it is turned about its centre either way.

    Raises:
        InputError: A number is negative.
    """

    padding: int = 4
    border: Literal["zeros", "reflection"] = "zeros"
    flip: bool = True
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        if self.padding < 0 or self.rotation_deg < 0:
            raise InputError(
                f"augmentation: found padding {self.padding} and rotation_deg "
                f"{self.rotation_deg:g}, expected 0 or more"
            )


def augmentation_for(data: str) -> Augmentation | None:
    """Return what may happen to the images of a data set without changing what they show.

    Args:
        data: As the command line takes it.

    Returns:
        Crops and mirroring for the photographs of CIFAR; None where nothing is known, as a
        mirrored digit or letter is another one.
    """
    return Augmentation(border="reflection") if data in ("cifar10", "cifar100") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    r"""What is subtracted from pixels in [0, 1], and what they are divided by then.

    .. math:: y = (x / 255 - m) / s

    Attributes:
        mean: m of each channel, or one for all.
        std: s of each channel, or one for all.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def normalization_of(images_NCHW: Tensor) -> Normalization:
    """Return the mean and the standard deviation of each channel, from exact counts.

    Args:
        images_NCHW: uint8; a training set.

    Returns:
        Both in units of the full range, 255. A channel of one value only is not divided.
    """
    levels_L = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images_NCHW.unbind(1):
        share_L = torch.bincount(channel.flatten(), minlength=256).cpu() / channel.numel()
        mean.append(float(share_L.double() @ levels_L))
        std.append(float(share_L.double() @ (levels_L - mean[-1]) ** 2) ** 0.5 or 1.0)
    return Normalization(mean=tuple(mean), std=tuple(std))


def to_float(images_BCHW: Tensor, normalization: Normalization) -> Tensor:
    """Return 8-bit images as float32, normalized."""
    mean_C11, std_C11 = _constants(normalization, images_BCHW.device)
    return (images_BCHW / 255 - mean_C11) / std_C11


@cache  # else every batch would wait for its constants to reach the device
def _constants(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    return mean.view(-1, 1, 1).to(device), std.view(-1, 1, 1).to(device)


def augment(
    images_BCHW: Tensor, augmentation: Augmentation, *, generator: torch.Generator
) -> Tensor:
    """Move, mirror and turn each image of a batch, by the nearest pixel.

    The three are one map from the new image's pixels to the old one's, so that a turned image has
    black corners only where the old one, with its border, has nothing to show there.

    Args:
        images_BCHW: uint8, or floats.
        augmentation: What may happen.
        generator: What is drawn comes from here; it is on the images' device.

    Returns:
        New images of the same shape, type and values; the images themselves where nothing may
        happen.
    """
    if not (augmentation.padding or augmentation.flip or augmentation.rotation_deg):
        return images_BCHW
    batch, device, padding = len(images_BCHW), images_BCHW.device, augmentation.padding
    shift_B2 = torch.randint(-padding, padding + 1, (batch, 2), generator=generator, device=device)
    drawn_2B = torch.rand(2, batch, generator=generator, device=device)
    mirror_B = drawn_2B[0] < 0.5 * augmentation.flip
    angle_B = torch.deg2rad((2 * drawn_2B[1] - 1) * augmentation.rotation_deg)
    return moved(images_BCHW, shift_B2, mirror_B, angle_B, border=augmentation.border)


def moved(
    images_BCHW: Tensor,
    shift_B2: Tensor,
    mirror_B: Tensor,
    angle_B: Tensor,
    *,
    border: Literal["zeros", "reflection"],
) -> Tensor:
    """Return each image cropped elsewhere, then mirrored, then turned, by the nearest pixel.

    Args:
        images_BCHW: uint8, or floats.
        shift_B2: How far the crop moves to the right and down, in pixels.
        mirror_B: Whether it is then mirrored from left to right.
        angle_B: By how much it is then turned about its centre, clockwise, in radians.
        border: What lies outside the old image.

    Returns:
        New images of the same shape and type.
    """
    height, width = images_BCHW.shape[-2:]
    sign_B = 1 - 2 * mirror_B.float()
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    # Coordinates run from -1 to 1 between the centres of the outermost pixels.
    half_x, half_y = max(width - 1, 1) / 2, max(height - 1, 1) / 2
    x_B3 = torch.stack(
        [sign_B * cos_B, sign_B * sin_B * half_y / half_x, shift_B2[:, 0] / half_x], dim=1
    )
    y_B3 = torch.stack([-sin_B * half_x / half_y, cos_B, shift_B2[:, 1] / half_y], dim=1)
    grid_BHW2 = F.affine_grid(
        torch.stack([x_B3, y_B3], dim=1), list(images_BCHW.shape), align_corners=True
    )
    found_BCHW = F.grid_sample(
        images_BCHW.float(), grid_BHW2, mode="nearest", padding_mode=border, align_corners=True
    )
    return found_BCHW.to(images_BCHW.dtype)
