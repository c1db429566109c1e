"""The augmentations against torchvision's own transforms, given the same box."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from l2t_fast.data.augment import COLUMNS, augment, padded_crop, resized_crop, uniform_numbers


def pictures(count, size, channels=3):
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


@pytest.mark.parametrize(("size", "pad"), [(32, 4), (8, 1), (5, 1), (100, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_padded_crop_equals_crop_and_flip_one_by_one(size, pad, channels):
    images = pictures(50, size, channels)
    numbers = uniform_numbers(1, 2, 50, 3)
    result = padded_crop(images, numbers, flip=True)
    for image, row, actual in zip(images, numbers, result, strict=True):
        top, left = (int(v * (2 * pad + 1)) for v in row[:2])
        expected = transforms.crop(F.pad(image, (pad,) * 4), top, left, size, size)
        expected = transforms.horizontal_flip(expected) if row[2] < 0.5 else expected
        assert torch.equal(actual, expected)


def test_padded_crop_reaches_every_offset_and_flips_half():
    # One white pixel in the middle says where the crop and the flip put it.
    images = torch.zeros(6000, 1, 32, 32, dtype=torch.uint8)
    images[:, 0, 16, 16] = 255
    rows, columns = np.unravel_index(
        padded_crop(images, uniform_numbers(0, 0, 6000, 3), flip=True).flatten(1).argmax(1).numpy(), (32, 32)
    )
    assert set(rows) == set(range(12, 21))
    assert np.abs(np.bincount(rows)[12:] / 6000 - 1 / 9).max() < 0.02
    # Unflipped it lands in columns 12 ... 20, flipped in 31 - 20 ... 31 - 12; 20 and 11 are reached one way only.
    assert set(columns) == set(range(11, 21))
    assert abs((columns == 20).mean() - 1 / 18) < 0.02 and abs((columns == 11).mean() - 1 / 18) < 0.02


def test_without_flip_no_image_is_mirrored():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    result = padded_crop(image, uniform_numbers(0, 0, 200, 2), flip=False)[:, 0, 1:-1, 1:-1].int()
    assert (result[:, :, 1:] - result[:, :, :-1] == 1).all()


def test_resized_crop_has_torchvisions_distribution_of_boxes():
    # The mean position and size of the crop, seen through an image whose pixels are their own coordinates.
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)
    image = torch.stack([ramp.view(1, -1).expand(64, 64), ramp.view(-1, 1).expand(64, 64), torch.zeros(64, 64)]).byte()
    numbers = uniform_numbers(0, 0, 3000, COLUMNS["random_resized_crop"])
    ours = torch.stack([resized_crop(image, row, 16) for row in numbers]).double()
    torch.manual_seed(0)
    theirs_transform = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()])
    theirs = torch.stack([theirs_transform(image) for _ in range(3000)]).double()

    def describe(crops):
        width = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]).abs()
        height = crops[:, 1, -1, 0] - crops[:, 1, 0, 0]
        flipped = (crops[:, 0, 0, -1] < crops[:, 0, 0, 0]).double()
        values = [width, height, crops[:, 0].mean((1, 2)), crops[:, 1].mean((1, 2)), flipped * 255]
        return torch.stack([v.mean() for v in values] + [v.std() for v in values[:4]])

    assert (describe(ours) - describe(theirs)).abs().max() < 6  # of 255; the standard error of the means is about 1


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (1, 1), (3, 40)])
def test_resized_crop_takes_images_of_any_shape(shape):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    for row in uniform_numbers(0, 0, 20, COLUMNS["random_resized_crop"]):
        assert resized_crop(image, row, 8).shape == (3, 8, 8)


def test_no_augmentation_changes_nothing():
    images = pictures(3, 8)
    assert augment("none", images, uniform_numbers(0, 0, 3, 0), 8) is images


def test_numbers_depend_on_seed_and_epoch_only():
    first = uniform_numbers(1, 2, 10, 3).copy()
    for other in ((2, 1), (1, 3), (0, 2)):
        assert not np.array_equal(uniform_numbers(*other, 10, 3), first)
    uniform_numbers.cache_clear()
    assert np.array_equal(uniform_numbers(1, 2, 10, 3), first)
