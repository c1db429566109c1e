"""From a ``DataConfig`` to three loaders."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2t_fast.data.config import DataConfig
from l2t_fast.data.datasets import read_dataset
from l2t_fast.data.images import FileImages, Fitted, Images, check_one_size, fit, read_all
from l2t_fast.data.loader import EpochSampler, ImageBatches, ImageLoader
from l2t_fast.data.raw import Pool, RawData, check_raw
from l2t_fast.data.split_files import Split, check_part, read_split
from l2t_fast.data.splits import check_no_class_is_empty, hold_out_test, hold_out_validation, limit_per_class
from l2t_fast.errors import L2TFastError
from l2t_fast.models.named_maps import IMAGENET_MEAN, IMAGENET_STD

CACHE_LIMIT = 2**30  # bytes of decoded images that are kept in memory by default
RESIZED_CROP_SIZE = 224  # pixels, if random_resized_crop is chosen without an image size
RESIZED_CROP_MARGIN = 256 / 224  # test images are resized to this times the size, and their centre is taken


@dataclass
class DataBundle:
    """Training, validation and test images in batches (x float32 (B, in_channels, image_size, image_size), y int64
    (B,)).

    Attributes:
        name: the data set's
        class_names: in the order of the labels 0, 1, ...
        resize_to: the shorter side of validation and test images before their centre is taken
        mean: of the normalisation, one a channel, for pixels in 0 ... 1
        std: likewise
    """

    train: ImageLoader
    validation: ImageLoader
    test: ImageLoader
    name: str
    class_names: list[str]
    in_channels: int
    image_size: int
    resize_to: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to(self, device: torch.device) -> None:
        """Make batches on `device` from now on, where the images are in memory as one tensor."""
        for loader in (self.train, self.validation, self.test):
            loader.to(device)

    def feed(self, device: torch.device) -> None:
        """Say where batches are used: those for a GPU are pinned from now on, if the CPU makes them."""
        for loader in (self.train, self.validation, self.test):
            loader.feed(device)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass over the training images."""
        self.train.set_epoch(epoch)

    def take_part(self, rank: int, ranks: int) -> None:
        """Give only part `rank` of every batch, of `ranks` parts."""
        for loader in (self.train, self.validation, self.test):
            loader.sampler.rank, loader.sampler.ranks = rank, ranks

    def describe(self) -> str:
        """One line: what the images are, and how many of them are where."""
        counts = np.bincount(self.train.dataset.labels.cpu().numpy(), minlength=self.num_classes)
        least, most = counts.min(), counts.max()
        a_class = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"{self.name}: {self.num_classes} classes, {self.in_channels}x{self.image_size}x{self.image_size}; "
            f"{counts.sum()} training images ({a_class} a class), {len(self.validation.dataset)} validation, "
            f"{len(self.test.dataset)} test; augment {self.train.dataset.augmentation}"
        )


def load_data(config: DataConfig) -> DataBundle:
    """Read, divide and prepare the images that ``config`` describes.

    Raises ``L2TFastError`` for whatever is wrong with the configuration or the data.
    """
    config.check()
    raw = read_dataset(config.dataset, config.data_dir, download=config.download)
    check_raw(raw, config.dataset)
    split = read_split(config.splits) if config.splits is not None else None
    classes = _chosen_classes(raw, config.classes if split is None else split.classes)
    train, validation, test = _divide(raw, classes, config, split)
    size = _image_size((train, validation, test), config)
    crops = config.augment == "random_resized_crop"
    resize_to = round(size * RESIZED_CROP_MARGIN) if crops else size

    train_images = _resident(train.images, config) if crops else _fitted(train.images, size, size, config)
    mean, std = _normalization(raw, config, train_images, size)
    common = {"size": size, "mean": mean, "std": std, "full_scale": raw.full_scale, "seed": config.seed}

    def loader(pool: Pool, images: Images | Tensor, augmentation: str) -> ImageLoader:
        shuffle = pool is train
        batches = ImageBatches(images, pool.labels, augmentation=augmentation, **common)
        sampler = EpochSampler(len(batches), config.batch_size, shuffle=shuffle, seed=config.seed)
        return ImageLoader(batches, sampler, workers=config.workers)

    return DataBundle(
        train=loader(train, train_images, config.augment),
        validation=loader(validation, _fitted(validation.images, size, resize_to, config), "none"),
        test=loader(test, _fitted(test.images, size, resize_to, config), "none"),
        name=config.dataset,
        class_names=list(classes.values()),
        in_channels=raw.in_channels,
        image_size=size,
        resize_to=resize_to,
        mean=mean,
        std=std,
    )


def _chosen_classes(raw: RawData, chosen: list[int] | None) -> dict[int, str]:
    """Number in the data set -> name of the classes to use, in the order of their new labels."""
    known = len(raw.class_names)
    numbers = range(known) if chosen is None else chosen
    for number in numbers:
        if not 0 <= number < known:
            raise L2TFastError(f"classes names {number}, but {raw.train.where} has the classes 0 to {known - 1}")
    if known < 2:
        raise L2TFastError(f"{raw.train.where} has only the class {raw.class_names[0]!r}, at least two are needed")
    # Numbers, or texts of NumPy, would make checkpoints that hold more than plain values.
    classes = {number: str(raw.class_names[number]) for number in numbers}
    for pool in (raw.train, raw.validation, raw.test):
        if pool is not None:
            check_no_class_is_empty(pool.labels, classes, pool.where)
    return classes


def _divide(raw: RawData, classes: dict[int, str], config: DataConfig, split: Split | None) -> tuple[Pool, Pool, Pool]:
    """Train, validation and test images of the chosen classes, relabelled."""
    labels, where = raw.train.labels, raw.train.where
    chosen = list(classes)
    if split is not None:
        return _divide_as_published(raw, classes, config, split)
    rest = np.flatnonzero(np.isin(labels, chosen))
    if raw.test is None:
        rest, held_out = hold_out_test(labels, config.test_share, classes, where)
        test = _pick(raw.train, held_out, chosen)
    else:
        test = _pick(raw.test, np.flatnonzero(np.isin(raw.test.labels, chosen)), chosen)
    if raw.validation is None:
        share, seed = config.validation_share, config.seed
        rest, held_out = hold_out_validation(labels, rest, share, classes, where, seed)
        validation = _pick(raw.train, held_out, chosen)
    else:
        validation = _pick(raw.validation, np.flatnonzero(np.isin(raw.validation.labels, chosen)), chosen)
    if config.per_class is not None:
        rest = limit_per_class(labels, rest, config.per_class, classes, where, config.seed)
    return _pick(raw.train, rest, chosen), validation, test


def _divide_as_published(
    raw: RawData, classes: dict[int, str], config: DataConfig, split: Split
) -> tuple[Pool, Pool, Pool]:
    if raw.test is None or raw.validation is not None:
        wrong = "no test images" if raw.test is None else "validation images of its own"
        raise L2TFastError(
            f"splits counts in a training part, which it divides, and a test part, but {raw.train.where} has {wrong}"
        )
    chosen = list(classes)
    for name, indices, pool in (
        ("train", split.train, raw.train),
        ("val", split.validation, raw.train),
        ("test", split.test, raw.test),
    ):
        check_part(indices, pool, chosen, name)
    rest = split.train
    if config.per_class is not None:
        rest = limit_per_class(raw.train.labels, rest, config.per_class, classes, raw.train.where, config.seed)
    return (
        _pick(raw.train, rest, chosen),
        _pick(raw.train, split.validation, chosen),
        _pick(raw.test, split.test, chosen),
    )


def _pick(pool: Pool, indices: np.ndarray, chosen: list[int]) -> Pool:
    """The images at ``indices``, whose labels become positions in ``chosen``."""
    indices = np.sort(indices)
    if isinstance(pool.images, Tensor):
        images = pool.images[torch.from_numpy(indices)]
    else:
        images = FileImages([pool.images.paths[i] for i in indices], pool.images.mode)
    position = np.full(max(chosen) + 1, -1)
    position[chosen] = np.arange(len(chosen))
    return Pool(images, position[pool.labels[indices]], pool.where)


def _image_size(pools: tuple[Pool, ...], config: DataConfig) -> int:
    if config.image_size is not None:
        return config.image_size
    if config.augment == "random_resized_crop":
        return RESIZED_CROP_SIZE
    images = pools[0].images
    if isinstance(images, Tensor):
        return images.shape[-1]
    paths = [path for pool in pools for path in pool.images.paths]
    return check_one_size(FileImages(paths))


def _fitted(images: Images | Tensor, size: int, resize_to: int, config: DataConfig) -> Images | Tensor:
    """The images at ``size``, in memory as one tensor (N, C, size, size) unless that is too large."""
    if isinstance(images, Tensor) and images.shape[-2:] == (size, size) and resize_to == size:
        return images
    if not _keep(len(images) * 3 * size**2, config):
        return Fitted(images, size, resize_to)
    if isinstance(images, Tensor):
        return torch.cat([fit(some, size, resize_to) for some in images.split(500)])
    return torch.stack(read_all(Fitted(images, size, resize_to)))


def _resident(images: Images | Tensor, config: DataConfig) -> Images | Tensor | list[Tensor]:
    """The images at their own sizes, in memory unless they are files and too large together."""
    if isinstance(images, Tensor):
        return images
    keep = _are_few(images) if config.cache is None else config.cache
    return read_all(images) if keep else images


def _are_few(images: FileImages) -> bool:
    """Whether the images at their own sizes, which may differ a lot, are kept in memory; reads headers only."""
    size = 0
    for index in range(len(images)):
        size += 3 * math.prod(images.size(index))
        if size > CACHE_LIMIT:
            return False
    return True


def _keep(size: int, config: DataConfig) -> bool:
    return size <= CACHE_LIMIT if config.cache is None else config.cache


def _normalization(
    raw: RawData, config: DataConfig, train_images: Images | Tensor | list[Tensor], size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    choice = config.normalization
    if choice is None:
        choice = "imagenet" if raw.in_channels == 3 else "dataset"
    if not isinstance(choice, str):
        mean, std = choice
    elif choice == "imagenet":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        mean, std = raw.statistics or _statistics(Fitted(train_images, size, size), raw.full_scale)
    if len(mean) != raw.in_channels:
        raise L2TFastError(
            f"normalization has {len(mean)} numbers a row, but the images of {config.dataset} have "
            f"{raw.in_channels} channel{'s' if raw.in_channels > 1 else ''}"
        )
    return tuple(map(float, mean)), tuple(map(float, std))  # statistics may be NumPy's


def _statistics(images: Images, full_scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all pixels, channel by channel, in units of ``full_scale``."""
    total = squares = 0.0
    pixels = 0
    for i in range(len(images)):
        image = images[i].double() / full_scale
        total = total + image.sum((1, 2))
        squares = squares + (image**2).sum((1, 2))
        pixels += image.shape[1] * image.shape[2]
    mean = total / pixels
    # A channel of one colour throughout has no deviation to divide by.
    std = (squares / pixels - mean**2).clamp(min=1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
