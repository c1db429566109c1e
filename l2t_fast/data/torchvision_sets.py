"""CIFAR-10, CIFAR-100 and STL-10 in the files that torchvision reads and downloads."""

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from l2t_fast.data.config import DataConfig
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

# Mean and standard deviation of the training images, channel by channel, pixels in 0 ... 1.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}


def read_torchvision(config: DataConfig, folder: Path) -> RawData:
    """The set that ``config`` names, from ``folder``; downloaded into it if ``config`` says so."""
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
