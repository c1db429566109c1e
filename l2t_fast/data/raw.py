"""A data set as it comes, before anything is chosen."""

from dataclasses import dataclass

import numpy as np
import torch

from l2t_fast.data.images import Images


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
