"""The data sets as they come: images, labels, class names, divided into train, test and perhaps validation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from l2t_fast.data.config import DataConfig
from l2t_fast.data.images import FileImages, Images
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

# Mean and standard deviation of the training images, channel by channel, pixels in 0 ... 1.
STATISTICS = {
    "digits": ((0.3053,), (0.3760,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}
# scikit-learn's digits count 0 ... 16 dark pixels; 15 times that fits into bytes, exactly.
DIGITS_LEVELS = 16
DIGITS_FACTOR = 15


@dataclass
class Pool:
    """Labelled images: ``labels[i]`` in 0 ... classes - 1 belongs to ``images[i]``."""

    images: Images | torch.Tensor
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


def read_dataset(config: DataConfig) -> RawData:
    """Read the data set that ``config`` names. Raises ``L2TFastError`` if it is not where it should be."""
    if config.dataset == "digits":
        return _digits()
    folder = Path(config.data_dir).expanduser()
    if config.dataset == "imagefolder":
        return _image_folder(folder)
    return _torchvision(config, folder)


def _digits() -> RawData:
    bunch = load_digits()
    images = torch.from_numpy((bunch.images * DIGITS_FACTOR).astype(np.uint8)).unsqueeze(1)
    return RawData(
        train=Pool(images, bunch.target.astype(np.int64), "digits"),
        validation=None,
        test=None,
        class_names=[str(name) for name in bunch.target_names],
        in_channels=1,
        full_scale=float(DIGITS_LEVELS * DIGITS_FACTOR),
        statistics=STATISTICS["digits"],
    )


def _torchvision(config: DataConfig, folder: Path) -> RawData:
    pools = {}
    for part in ("train", "test"):
        try:
            if config.dataset == "stl10":
                data = datasets.STL10(folder, split=part, download=config.download)
                images, labels = torch.from_numpy(data.data), data.labels
            else:
                kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.dataset]
                data = kind(folder, train=part == "train", download=config.download)
                images, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), data.targets
        except Exception as error:
            # torchvision raises RuntimeError for missing and damaged files, and whatever a download raises.
            if config.download:
                reason = printable(str(error).split("\n")[0])
                problem = f"{config.dataset} could not be downloaded into {printable(folder)}: {reason}"
            else:
                problem = (
                    f"{config.dataset} is not in {printable(folder)}, or damaged there: name the folder that holds it "
                    "as torchvision stores it, or set download to true"
                )
            raise L2TFastError(problem) from error
        pools[part] = Pool(images, np.asarray(labels, dtype=np.int64), f"{config.dataset} {part}")
    names = [printable(name) for name in data.classes]
    return RawData(pools["train"], None, pools["test"], names, statistics=STATISTICS[config.dataset])


def _image_folder(folder: Path) -> RawData:
    if not folder.is_dir():
        raise L2TFastError(f"there is no folder {printable(folder)}: data_dir must hold images in one folder a class")
    if not (folder / "train").is_dir():
        pool, names = _folder_of_classes(folder)
        return RawData(pool, None, None, [printable(name) for name in names])
    if not (folder / "test").is_dir():
        raise L2TFastError(f"{printable(folder)} has train but no test beside it: both must hold one folder a class")
    parts = ["train", "test"] + (["val"] if (folder / "val").is_dir() else [])
    pools, classes = {}, {}
    for part in parts:
        pools[part], classes[part] = _folder_of_classes(folder / part)
    for part in parts[1:]:
        _check_same_classes(folder, "train", classes["train"], part, classes[part])
    return RawData(pools["train"], pools.get("val"), pools["test"], [printable(name) for name in classes["train"]])


def _folder_of_classes(folder: Path) -> tuple[Pool, list[str]]:
    try:
        names, numbers = find_classes(folder)
    except FileNotFoundError as error:
        raise L2TFastError(
            f"the folder {printable(folder)} is empty: it must hold one folder of images a class"
        ) from error
    except OSError as error:
        raise L2TFastError(f"the folder {printable(folder)} cannot be read: {error.strerror}") from error
    samples = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    paths = [path for path, _ in samples]
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return Pool(FileImages(paths), labels, printable(folder)), names


def _check_same_classes(folder: Path, first: str, names: list[str], second: str, others: list[str]) -> None:
    for here, there, ours, theirs in ((first, second, names, others), (second, first, others, names)):
        for name in ours:
            if name not in theirs:
                raise L2TFastError(
                    f"{printable(folder)}: the class {printable(name)!r} is in {here} but not in {there}, "
                    "both must have the same classes"
                )
