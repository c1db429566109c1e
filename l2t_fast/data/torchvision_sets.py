"""CIFAR-10, CIFAR-100 and STL-10 in the files that torchvision reads and downloads."""

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

# Mean and standard deviation of the training images, channel by channel, pixels in 0 ... 1.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}

KINDS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}


def stored_in(folder: Path) -> list[str]:
    """Which of these sets are in ``folder``, whole or not, as torchvision stores them."""
    return [name for name, kind in KINDS.items() if (folder / kind.base_folder).is_dir()]


def read_torchvision(name: str, folder: Path, download: bool) -> RawData:
    """One of the sets from ``folder``, or downloaded into it."""
    pools = {}
    for part in ("train", "test"):
        try:
            kind = KINDS[name]
            if kind is datasets.STL10:
                data = kind(folder, split=part, download=download)
                images, labels = torch.from_numpy(data.data), data.labels
            else:
                data = kind(folder, train=part == "train", download=download)
                images, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), data.targets
        except Exception as error:
            # torchvision raises RuntimeError for missing and damaged files, and whatever a download raises.
            if download:
                reason = printable(str(error).split("\n")[0])
                problem = f"{name} could not be downloaded into {printable(folder)}: {reason}"
            else:
                problem = f"{name} cannot be read: {_what_is_wrong(KINDS[name], folder)}"
            raise L2TFastError(problem) from error
        pools[part] = Pool(images, np.asarray(labels, dtype=np.int64), f"{name} {part}")
    names = [printable(name) for name in data.classes]
    return RawData(pools["train"], None, pools["test"], names, statistics=STATISTICS[name])


def _what_is_wrong(kind: type, folder: Path) -> str:
    """Why torchvision does not find a set in ``folder``, and what would be right."""
    base, shown = folder / kind.base_folder, printable(folder)
    if not base.is_dir():
        if folder.name == kind.base_folder and folder.is_dir():
            return f"name the folder above {shown}, which holds {kind.base_folder}"
        if (folder / kind.filename).is_file():
            return f"unpack {kind.filename} in {shown}, or set download to true"
        return f"{shown} has no folder {kind.base_folder}: name the one that does, or set download to true"
    meta = [(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []
    for name, md5 in [*kind.train_list, *kind.test_list, *meta]:
        if not check_integrity(str(base / name), md5):
            state = "damaged or not whole" if (base / name).is_file() else "missing"
            return f"{printable(base / name)} is {state}: unpack {kind.filename} again, or set download to true"
    return f"{printable(base)} is damaged: unpack {kind.filename} again, or set download to true"
