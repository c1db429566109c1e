"""What a call asks of all its tensors, None for one that is not there.

Python would take as long for it as for the launches, so it is the native code that asks, where there is any.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2t_fast._native import extension
from l2t_fast.ops.triton.arguments import Arguments
from l2t_fast.ops.triton.arguments import empty_results as _empty_results


def facts(tensors: Sequence[Tensor | None]) -> bytes | tuple:
    """Something to look up that is equal where the tensors are to a plan: addresses count by their alignment alone."""
    return extension.facts(tensors) if extension else tuple(map(_facts, tensors))


def _facts(tensor: Tensor | None) -> tuple | None:
    if tensor is None:
        return None
    is_strided = tensor.layout == torch.strided
    where = (tensor.stride(), tensor.data_ptr() % 16 == 0) if is_strided else ()
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout, *where


def addresses(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """int64; 0 for None."""
    if extension:
        return np.frombuffer(extension.addresses(tensors), dtype=np.int64)
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.int64)


def empty_results(arguments: Arguments) -> list[Tensor | None]:
    """As arguments.empty_results, for tensors with data."""
    if extension:
        return extension.empty_results(arguments.slots, list(arguments.needs), len(arguments.targets))
    return _empty_results(arguments)
