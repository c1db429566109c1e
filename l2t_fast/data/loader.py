"""Batches of normalised images whose order and augmentation depend on nothing but (seed, epoch)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from l2t_fast.data.augment import COLUMNS, augment, uniform_numbers
from l2t_fast.data.images import Images
from l2t_fast.errors import L2TFastError

# What the sampler hands to the data set: the epoch, and the images of one batch.
BatchIndex = tuple[int, np.ndarray]


class ImageBatches(Dataset):
    """Turns a ``BatchIndex`` into (images float32 (B, C, size, size), labels int64 (B,)).

    ``images`` is a tensor uint8 (N, C, size, size), or images to be decoded and, for random_resized_crop, of any size.
    """

    def __init__(
        self,
        images: Images | Tensor | list[Tensor],
        labels: np.ndarray,
        *,
        size: int,
        augmentation: str,
        mean: Sequence[float],
        std: Sequence[float],
        full_scale: float,
        seed: int,
    ):
        self.images = images
        self.labels = torch.from_numpy(labels)
        self.size = size
        self.augmentation = augmentation
        self.seed = seed
        # (x / full_scale - mean) / std as one product and one sum
        self.factor = (1 / (full_scale * torch.tensor(std, dtype=torch.float64))).float().view(-1, 1, 1)
        self.shift = -(torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64))
        self.shift = self.shift.float().view(-1, 1, 1)

    def to(self, device: torch.device) -> None:
        """Make batches on `device` from now on, if the images are one tensor; others are read by the CPU."""
        if isinstance(self.images, Tensor):
            self.images, self.labels = self.images.to(device), self.labels.to(device)
            self.factor, self.shift = self.factor.to(device), self.shift.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: BatchIndex) -> tuple[Tensor, Tensor] | L2TFastError:
        try:
            batch = self._batch(*index)
            return batch if get_worker_info() is None else _shared(batch)
        except L2TFastError as error:
            # Raised again by the loader: DataLoader would wrap an exception of a worker process into its traceback.
            return error

    def _batch(self, epoch: int, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        if not len(indices):  # a rank's part of a batch that has fewer images than there are ranks
            x, y = self._batch(epoch, np.zeros(1, dtype=np.int64))
            return x[:0], y[:0]
        picked = torch.from_numpy(indices).to(self.labels.device)
        if isinstance(self.images, Tensor):
            images = self.images[picked]
        else:
            images = [self.images[int(i)] for i in indices]
            if self.augmentation != "random_resized_crop":
                images = torch.stack(images)
        columns = COLUMNS[self.augmentation]
        numbers = uniform_numbers(self.seed, epoch, len(self), columns)[indices]
        images = augment(self.augmentation, images, numbers, self.size)
        return images.to(torch.float32).mul_(self.factor).add_(self.shift), self.labels[picked]


def _shared(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`batch` in the memory that a worker process shares with the main one.

    Left to the queue between them, this would be done in a thread whose errors reach nobody: the main process would
    wait for the batch for ever.
    """
    try:
        return tuple(tensor.share_memory_() for tensor in batch)
    except (RuntimeError, OSError) as error:
        raise L2TFastError(
            f"a worker process cannot hand over a batch of {len(batch[1])} images, {error}: enlarge /dev/shm "
            "(docker run --shm-size), or lower data.workers or data.batch_size"
        ) from error


class EpochSampler(Sampler[BatchIndex]):
    """Batches of indices; shuffled, their order is a function of (seed, epoch).

    A last batch of a single image is left out when shuffled: BatchNorm cannot be trained on it. The order of another
    epoch brings that image back.

    Attributes:
        rank, ranks: which part of each batch to take, where several processes train together. The parts lie one after
            the other in the batch, so the images of a step do not depend on their number; sizes differ by one at most.
    """

    def __init__(self, images: int, batch_size: int, *, shuffle: bool, seed: int = 0):
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.rank, self.ranks = 0, 1

    def __len__(self) -> int:
        full, rest = divmod(self.images, self.batch_size)
        lonely = self.shuffle and rest == 1 and full > 0
        return full + (rest > 0 and not lonely)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = np.arange(self.images)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch, 3)).permutation(order)
        for i in range(len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield self.epoch, np.array_split(batch, self.ranks)[self.rank]

    def joined_images(self, i: int) -> int:
        """How many images all ranks together have in batch `i`."""
        return min(self.batch_size, self.images - i * self.batch_size)


class ImageLoader(DataLoader):
    """A ``DataLoader`` over ``ImageBatches`` that reports mistakes in a worker process as plain ``L2TFastError``."""

    def __init__(self, batches: ImageBatches, sampler: EpochSampler, *, workers: int = 0):
        super().__init__(
            batches,
            sampler=sampler,
            batch_size=None,
            num_workers=0 if isinstance(batches.images, Tensor) else workers,
            persistent_workers=workers > 0 and not isinstance(batches.images, Tensor),
            # Otherwise each pass over the data would draw from PyTorch's global generator.
            generator=torch.Generator(),
        )

    def to(self, device: torch.device) -> None:
        """As `ImageBatches.to`."""
        self.dataset.to(device)

    def feed(self, device: torch.device) -> None:
        """Pin batches that a GPU copies from; for a CPU that would only take memory of a GPU that is there too."""
        self.pin_memory = device.type == "cuda" and self.dataset.labels.device.type == "cpu"

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self.sampler.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().__iter__():
            if isinstance(batch, L2TFastError):
                raise batch
            yield batch
