"""A data set as it comes, before anything is chosen."""

from dataclasses import dataclass

import numpy as np
import torch

from l2t_fast.data.images import FileImages
from l2t_fast.errors import L2TFastError


@dataclass
class Pool:
    """Labelled images: ``labels[i]`` in 0 ... classes - 1 belongs to ``images[i]``."""

    images: FileImages | torch.Tensor
    labels: np.ndarray
    where: str  # for messages


@dataclass
class RawData:
    """A data set before any choice. ``test`` is None if it has to be held out of ``train``, ``validation`` likewise.

    Attributes:
        full_scale: the byte that stands for a pixel of 1
        statistics: mean and standard deviation, if they are known
    """

    train: Pool
    validation: Pool | None
    test: Pool | None
    class_names: list[str]
    in_channels: int = 3
    full_scale: float = 255.0
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def check_raw(raw: object, name: str) -> None:
    """Raise ``L2TFastError`` if what the function of a data set returned, one of somebody's own perhaps, is none."""
    if not isinstance(raw, RawData):
        raise L2TFastError(f"the function of the data set {name} must return RawData, not {type(raw).__name__}")
    if not len(raw.class_names):
        raise L2TFastError(f"the data set {name} names no class")
    for pool in (raw.train, raw.validation, raw.test):
        if pool is not None:
            _check_pool(pool, raw.in_channels, len(raw.class_names))


def _check_pool(pool: Pool, channels: int, classes: int) -> None:
    images, labels = pool.images, pool.labels
    if isinstance(images, torch.Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
            raise L2TFastError(
                f"the images of {pool.where} are {images.dtype} {tuple(images.shape)}, they must be torch.uint8 "
                f"(N, {channels}, H, W): its in_channels is {channels}"
            )
    elif not isinstance(images, FileImages):
        raise L2TFastError(
            f"the images of {pool.where} must be a tensor of bytes or FileImages, not {type(images).__name__}"
        )
    elif channels != len(images.mode):
        raise L2TFastError(
            f"the images of {pool.where} are read as {images.mode}, but its in_channels is {channels}: grey ones are "
            "FileImages(paths, mode='L') with 1 channel, colours RGB with 3"
        )
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise L2TFastError(f"the labels of {pool.where} must be whole numbers in a NumPy array (N,)")
    if len(labels) != len(images):
        raise L2TFastError(f"{pool.where} has {len(images)} images, but {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise L2TFastError(
            f"the labels of {pool.where} go from {labels.min()} to {labels.max()}, but for its {classes} classes they "
            f"must be 0 to {classes - 1}"
        )
