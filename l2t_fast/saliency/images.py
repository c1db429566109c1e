"""The same test images for every run."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2t_fast.data import DataBundle, DataConfig

#: Settings that say which images the test set holds, and how large they are; the seed and N do not.
TEST_SET = ("dataset", "data_dir", "splits", "classes", "test_share", "image_size", "augment")


def test_set(data: DataConfig) -> dict[str, object]:
    """The settings of `TEST_SET`; of the augmentation, only whether it changes the size of test images."""
    settings = {name: getattr(data, name) for name in TEST_SET}
    settings["augment"] = "random_resized_crop" if data.augment == "random_resized_crop" else "others"
    return settings


def choose_images(labels: Sequence[int], number: int, seed: int) -> list[int]:
    """Indices of `number` images, drawn with `seed`: one of each class in random order, then another of each.

    `labels` are the classes of all test images; fewer come back where there are fewer.
    """
    draw = np.random.default_rng(seed)
    labels = np.asarray(labels)
    queues = [draw.permutation(np.flatnonzero(labels == label)) for label in draw.permutation(np.unique(labels))]
    rounds = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return [int(index) for index in rounds[:number]]


def read_images(data: DataBundle, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(images float32 (B, channels, H, W), normalised, and labels int64 (B,)) of the test set."""
    batch = data.test.dataset[0, np.asarray(indices)]
    if isinstance(batch, Exception):
        raise batch
    return batch


def pixels(data: DataBundle, x: Tensor) -> np.ndarray:
    """Normalised images as uint8 (B, H, W, channels), for showing."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    unit = x.cpu() * std + mean
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
