"""A GPU without enough memory is told with the batch size that fits, which was tried. The GPU here is pretended."""

import gc
import weakref

import pytest
import torch

from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import Trainer, run
from l2t_fast.transfer.memory import largest_batch_that_fits


class Gpu:
    """Room for the images of a step, all tensors of one step included."""

    def __init__(self, images):
        self.images = images
        self.alive = []
        self.tried = []

    def step(self, x, y):
        gc.collect()
        assert not [tensor for tensor in self.alive if tensor() is not None], "a failed step's tensors are still there"
        held = x * 2
        self.alive.append(weakref.ref(held))
        self.tried.append(len(y))
        if len(y) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return held.sum(), held.sum(), held.sum()


@pytest.mark.parametrize(("room", "found"), [(100, 50), (49, 25), (7, 6), (2, None), (1, None)])
def test_halves_until_a_step_goes_through(room, found):
    gpu = Gpu(room)
    assert largest_batch_that_fits(gpu.step, torch.zeros(100, 1), torch.zeros(100)) == found
    assert gpu.tried == [size for size in (50, 25, 12, 6, 3) if size >= (found or 3)]


def test_other_errors_of_a_small_batch_count_as_no_fit():
    def step(x, y):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    assert largest_batch_that_fits(step, torch.zeros(8, 1), torch.zeros(8)) is None


@pytest.mark.parametrize(("room", "said"), [(5, r"a step on 4 was tried and fits"), (1, "not even a step on two fits")])
def test_training_names_the_batch_that_fits_and_the_checkpoint_that_stays(make_config, quiet, monkeypatch, room, said):
    config = make_config(method="scratch", epochs=3)
    gpu = Gpu(room)
    step = Trainer.train_batch

    def limited(trainer, x, y, joined=None):
        return gpu.step(x, y) if trainer.reached.epoch == 1 else step(trainer, x, y, joined)

    monkeypatch.setattr(Trainer, "train_batch", limited)
    wanted = (
        rf"too little memory for a step on 16 images \({said}\), the checkpoint of epoch 1 in .* is intact: lower data"
    )
    with pytest.raises(L2TFastError, match=wanted):
        run(config, progress=quiet)
    assert gpu.tried[0] == 16
