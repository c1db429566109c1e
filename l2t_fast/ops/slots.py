"""What both kinds of operators, C++ and Triton, are told beside the tensors.

*Slots* are the differentiable inputs in the order all targets, one weight a pair, one bias a pair (None where the pair
has none), alpha.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def needs_of(
    targets: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None], alpha: Tensor
) -> list[bool]:
    """Which slots' gradients the backward pass will ask for: none under ``torch.no_grad()``."""
    slots = (*targets, *weights, *biases, alpha)
    if not torch.is_grad_enabled():
        return [False] * len(slots)
    return [slot is not None and slot.requires_grad for slot in slots]


def spread(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """One entry a slot: the next of ``tensors`` where it is needed, else None."""
    following = iter(tensors)
    return [next(following) if need else None for need in needs]


def flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """m0, n0, m1, n1, ..."""
    return [index for pair in pairs for index in pair]
