"""What comes before a training step: its batch."""

import functools
import statistics

import numpy as np
import torch

from l2t_fast.bench.setups import StepSetup
from l2t_fast.bench.timing import Stopwatch
from l2t_fast.data.loader import ImageBatches

#: Height and width of the decoded images that crops of 224 pixels are taken from.
DECODED = 256


def data_seconds(setup: StepSetup, device: torch.device, batch: int, repeats: int) -> float:
    """Median seconds for a batch as the trainer's loader makes it: augmented, normalised and put on the device.

    By the training process itself and from decoded images, without decoding files: with workers, or images kept on the
    device, a step waits for less.
    """
    crops = setup.image_size == 224
    size = DECODED if crops else setup.image_size
    images = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8)
    batches = ImageBatches(
        list(images) if crops else images,
        np.zeros(len(images), dtype=np.int64),
        size=setup.image_size,
        augmentation="random_resized_crop" if crops else "crop_flip",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        full_scale=255,
        seed=0,
    )

    def make(epoch: int) -> None:
        x, y = batches[epoch, np.arange(batch) * 4]
        if device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    make(0)
    watch = Stopwatch(device, cold=False)
    return statistics.median(watch.seconds(functools.partial(make, epoch)) for epoch in range(1, repeats + 1))
