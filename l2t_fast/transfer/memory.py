"""What to say when a GPU's memory is too small for a step."""

from collections.abc import Callable

import torch
from torch import Tensor

#: Batch normalisation cannot train on a single image of one pixel.
SMALLEST_BATCH = 2


def largest_batch_that_fits(step: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor) -> int | None:
    """Half the images, a quarter and so on, until a step on them goes through; None if none does.

    What a step takes depends on the network, the method and the libraries' choices of algorithm, so it is tried and not
    estimated. The steps change whatever `step` changes: the run must end after this.

    Args:
        step: a training step on images and labels.
        x: the images (B, channels, H, W) of the step that failed; no tensor of that step may be alive.
        y: their labels (B,).
    """
    size = len(y) // 2
    while size >= SMALLEST_BATCH:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if _goes_through(step, x[:size], y[:size]):
            return size
        size //= 2
    return None


def _goes_through(step: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor) -> bool:
    # Where the except clause ends, the failed step's tensors, which the exception's frames hold, are let go.
    try:
        step(x, y)
    except RuntimeError:
        return False
    return True
