"""What can be chosen about the images."""

import math
from dataclasses import dataclass

from l2t_fast.data.datasets import IN_PACKAGES, dataset_names
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
NORMALIZATIONS = ("imagenet", "dataset")


#: Processes that load images.
MOST_WORKERS = 256


@dataclass
class DataConfig:
    """The images, how they are divided, and how they reach the network.

    Attributes:
        dataset: digits (scikit-learn's) | letters (of matplotlib's fonts) | cifar10 | cifar100 | stl10 | cub200 |
            mit67 | stanford40 | stanford_dogs | tinyimagenet | imagefolder (any folder of images) | one of your own
            (docs/extending.md)
        data_dir: folder that holds the data set; digits and letters need none
        download: fetch cifar10, cifar100 or stl10 into data_dir if it is not there
        classes: numbers of the classes to use, relabelled 0, 1, ... in this order; null takes all
        splits: files PREFIX-train, PREFIX-val and PREFIX-test that say which images are for what, as the authors of
            L2T-ww publish them; null divides as the options below say
        per_class: N training images a class, besides the validation images; null takes all
        validation_share: share of each class's training images that is held out, before per_class is applied
        test_share: share of each class that is the test set where the data has none (digits, letters, a folder
            without train/)
        image_size: height and width that images are resized to; null keeps theirs, which must then be equal
        augment: none | crop (pad an eighth, crop at random) | crop_flip | random_resized_crop (and flip; tests see the
            centre)
        normalization: imagenet | dataset | [[mean ...], [std ...]] for pixels in 0 ... 1; null takes imagenet for
            colour images, which the published weights expect, and dataset for grey ones
        batch_size: images a step
        workers: processes that read images which do not fit into memory; 0 reads them in the main process
        cache: keep the decoded images in memory; null does if they take less than 1 GiB
        on_device: keep images that are in memory on the run's device, and choose, augment and normalise batches there
        seed: of the held-out images, the N a class, the order of the images and their augmentation
    """

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    classes: list[int] | None = None
    splits: str | None = None
    per_class: int | None = None
    validation_share: float = 0.1
    test_share: float = 0.2
    image_size: int | None = None
    augment: str = "none"
    normalization: list[list[float]] | str | None = None
    batch_size: int = 128
    workers: int = 0
    cache: bool | None = None
    on_device: bool = False
    seed: int = 0

    def check(self, group: str = "data") -> None:
        """Raise ``L2TFastError`` for the first value that is out of range, naming its key and what would be right.

        Args:
            group: key of the group that these options stand in.
        """
        for name, known, others in (
            ("dataset", dataset_names(), ", or one that --plugin FILE brings"),
            ("augment", AUGMENTATIONS, ""),
        ):
            if getattr(self, name) not in known:
                raise L2TFastError(
                    f"{group}.{name} is {getattr(self, name)!r}, it must be one of {', '.join(known)}{others}"
                )
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise L2TFastError(f"{group}.{name} is {getattr(self, name)}, it must be above 0 and below 1")
        for name, lowest in (("per_class", 1), ("image_size", 1), ("batch_size", 1), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise L2TFastError(f"{group}.{name} is {value}, it must be at least {lowest}")
        for name in ("data_dir", "splits"):
            if getattr(self, name) == "":  # a variable of the shell that is not set: the folder one is in is named .
                raise L2TFastError(f"{group}.{name} is empty, it must be a path, or null")
        if self.workers > MOST_WORKERS:
            raise L2TFastError(f"{group}.workers is {self.workers}, it must be at most {MOST_WORKERS}")
        if self.classes is not None:
            self._check_classes(f"{group}.classes", self.classes)
            if self.splits is not None:
                raise L2TFastError(f"{group}.splits says which classes there are: leave {group}.classes out")
        if self.normalization is not None:
            self._check_normalization(f"{group}.normalization", self.normalization)
        if self.dataset not in IN_PACKAGES and self.data_dir is None:
            raise L2TFastError(f"{group}.dataset {self.dataset} needs {group}.data_dir, the folder that holds it")
        if self.dataset in IN_PACKAGES and self.data_dir is not None:
            raise L2TFastError(
                f"{group}.data_dir is {printable(self.data_dir)}, but the {self.dataset} are in no folder: set "
                f"{group}.dataset to what it holds, imagefolder for images of your own"
            )

    @staticmethod
    def _check_classes(key: str, classes: list[int]) -> None:
        if len(classes) < 2:
            raise L2TFastError(f"{key} is {classes}, it must name at least two")
        if len(set(classes)) < len(classes):
            raise L2TFastError(f"{key} is {classes}, each must stand there once")

    @staticmethod
    def _check_normalization(key: str, value: str | list[list[float]]) -> None:
        if isinstance(value, str):
            if value not in NORMALIZATIONS:
                wanted = f"{', '.join(NORMALIZATIONS)} or [[mean ...], [std ...]]"
                raise L2TFastError(f"{key} is {printable(value)!r}, it must be {wanted}")
            return
        check_mean_and_std(key, value)


def check_mean_and_std(name: str, value: list[list[float]]) -> None:
    """Raise ``L2TFastError`` if the key ``name`` does not hold one row of means and one of standard deviations."""
    right = len(value) == 2 and len(value[0]) == len(value[1]) in (1, 3)
    if not right or not all(math.isfinite(v) for row in value for v in row) or min(value[1]) <= 0:
        raise L2TFastError(
            f"{name} is {value}, it must be [[mean ...], [std ...]] with one number a channel and every std above 0"
        )
