"""Rectifiers and max-pooling held to one side of their kinks, for differences of gradients.

Between theta and theta + epsilon v some units of a network switch on or off. The gradient jumps there, and the jumps
add up to as much as the difference that is looked for, however small epsilon is: the derivative of the gradient, which
"exact" computes, knows nothing of them. So the pass at theta notes which units are on and which pixels are the largest,
and the pass at theta + epsilon v goes by those notes: a smooth function with the same derivatives at theta.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RECTIFIERS = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu)
_POOLING = (F.max_pool2d, torch.max_pool2d)

Notes = list[Tensor]
"""A rectifier's mask (bool, its input's shape) or max-pooling's indices (int64, its output's), in the calls' order."""


class NoteKinks(TorchFunctionMode):
    """While active, rectifiers and 2D max-pooling add their choices to ``notes``."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: Notes = []

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _RECTIFIERS:
            result = function(*args, **kwargs)
            self.notes.append(result.detach() > 0)
            return result
        if function in _POOLING and _plain(args, kwargs):
            result, indices = F.max_pool2d_with_indices(*args, **kwargs)
            self.notes.append(indices)
            return result
        return function(*args, **kwargs)


class ReplayKinks(TorchFunctionMode):
    """While active, the calls of a pass that `NoteKinks` watched choose as they did then."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes: Iterator[Tensor] = iter(notes)

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _RECTIFIERS:
            return _input(args, kwargs) * next(self._notes)
        if function in _POOLING and _plain(args, kwargs):
            indices = next(self._notes)
            return _input(args, kwargs).flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
        return function(*args, **kwargs)


def _input(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    return kwargs["input"] if "input" in kwargs else args[0]


def _plain(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """A call on a batch that returns the maxima alone: return_indices is the seventh argument."""
    return _input(args, kwargs).dim() == 4 and not kwargs.get("return_indices", False) and len(args) < 7
