"""The device and the backend that a run asks for, or one sentence that says why they cannot be had."""

import torch

from l2t_fast.distributed.group import ALONE, Group
from l2t_fast.errors import L2TFastError
from l2t_fast.ops import BACKENDS, ENVIRONMENT_VARIABLE, backend_of_environment, kind_of_devices, why_unavailable


def check_backend(name: str, device: torch.device) -> None:
    """Raise L2TFastError if the backend that is asked for, here or by the environment, cannot run on the device."""
    if name == "auto":
        name = backend_of_environment()
    if name not in BACKENDS:
        raise L2TFastError(f"{ENVIRONMENT_VARIABLE} is {name!r}, it must be one of {', '.join(BACKENDS)}")
    problem = None if name == "auto" else why_unavailable(name, device)
    if problem is None and kind_of_devices(name) not in (None, device.type):
        problem = f"it takes {kind_of_devices(name)} tensors, but the run is on {device}"
    if problem is not None:
        raise L2TFastError(f"backend {name!r} cannot run: {problem}")


def choose_device(name: str, group: Group = ALONE) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one, else the CPU. Each rank takes a GPU of its own.

    Raises:
        L2TFastError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if group.size > 1 and name.startswith("cuda"):
        name = f"cuda:{group.local_rank}"
        if group.local_rank >= torch.cuda.device_count():
            raise L2TFastError(
                f"rank {group.rank} is number {group.local_rank + 1} on this machine, which has "
                f"{torch.cuda.device_count()} GPU: start one rank a GPU, or name --device cpu"
            )
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what names no GPU is for this one: pinned memory, streams, questions
        torch.empty(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # pages follow, of every other device there is
        raise L2TFastError(f"device {name!r} cannot be used here ({reason}), try auto or cpu") from error
    return device
