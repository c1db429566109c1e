"""Random crops and flips whose randomness is a function of (seed, epoch, image), nothing else.

torchvision's own random transforms draw from PyTorch's global generator, so what an image becomes would depend on the
images before it, the number of workers and whether a run was resumed. Here the numbers are drawn first, and
torchvision's functional transforms, or one gather for a whole batch, apply them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

# RandomResizedCrop as torchvision has it by default: share of the area, aspect ratio, tries before the centre is taken.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
# Uniform numbers an image needs: row, column and flip; for the resized crop each try's area and aspect ratio too.
COLUMNS = {"none": 0, "crop": 2, "crop_flip": 3, "random_resized_crop": 3 + 2 * TRIES}


@lru_cache(maxsize=2)
def uniform_numbers(seed: int, epoch: int, images: int, columns: int) -> np.ndarray:
    """float32 (images, columns) in [0, 1): one row an image, drawn once an epoch."""
    return np.random.default_rng((seed, epoch, 2)).random((images, columns), dtype=np.float32)


def augment(kind: str, images: Tensor | Sequence[Tensor], numbers: np.ndarray, size: int) -> Tensor:
    """Augment a batch: uint8 images (B, C, size, size), of any size for random_resized_crop -> (B, C, size, size).

    ``numbers`` are the rows of ``uniform_numbers`` that belong to the images, (B, ``COLUMNS[kind]``).
    """
    if kind == "random_resized_crop":
        return torch.stack([resized_crop(image, row, size) for image, row in zip(images, numbers, strict=True)])
    if kind == "none":
        return images
    return padded_crop(images, numbers, flip=kind == "crop_flip")


def padded_crop(images: Tensor, numbers: np.ndarray, flip: bool) -> Tensor:
    """Pad with black by an eighth of the size (4 at 32 pixels), crop at random to the same size, flip half of them.

    One gather for the whole batch: a Python loop over 8x8 images would take longer than their training step.
    """
    batch, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    # The indices are made on the CPU, where the numbers are, and follow the images.
    offsets = torch.from_numpy((numbers[:, :2] * (2 * pad + 1)).astype(np.int64))
    rows = offsets[:, :1] + torch.arange(height)
    columns = offsets[:, 1:] + torch.arange(width)
    if flip:
        columns = torch.where(torch.from_numpy(numbers[:, 2:3] < 0.5), columns.flip(1), columns)
    samples, rows, columns = (i.to(images.device, non_blocking=True) for i in (torch.arange(batch), rows, columns))
    # Advanced indices around a slice put their own dimensions first: (B, H, W, C).
    gathered = padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2)


def resized_crop(image: Tensor, numbers: np.ndarray, size: int) -> Tensor:
    """torchvision's RandomResizedCrop and a flip in half of the cases, from given uniform numbers."""
    top, left, height, width = _crop_box(image.shape[1], image.shape[2], numbers)
    image = transforms.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    return transforms.horizontal_flip(image) if numbers[2] < 0.5 else image


def _crop_box(height: int, width: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    row, column = float(numbers[0]), float(numbers[1])
    for area_number, aspect_number in numbers[3:].reshape(TRIES, 2).astype(float):
        area = height * width * (AREA[0] + area_number * (AREA[1] - AREA[0]))
        aspect = math.exp(math.log(ASPECT[0]) + aspect_number * math.log(ASPECT[1] / ASPECT[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(height * ASPECT[1])
    return (height - h) // 2, (width - w) // 2, h, w
