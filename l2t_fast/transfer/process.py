"""What a run sets for its whole process, and gives back to a program or a notebook that goes on."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from l2t_fast.transfer.randomness import random_state, restore_random_state

_alone = threading.RLock()


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """The process as a run needs it: to itself, with PyTorch's own modes; afterwards as it was.

    A run seeds the process's random generators, chooses the number of threads and asks cuDNN for deterministic
    algorithms. So runs of several threads wait for each other.
    """
    with _alone, contextlib.ExitStack() as to_undo:
        # In this order back: the generators last, when nothing draws from them any more.
        to_undo.callback(restore_random_state, random_state())
        to_undo.callback(setattr, torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
        to_undo.callback(torch.set_num_threads, torch.get_num_threads())
        to_undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        to_undo.enter_context(torch.inference_mode(False))
        to_undo.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                to_undo.enter_context(torch.autocast(device, enabled=False))
        yield
