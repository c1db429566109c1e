"""`torch.autograd.grad` with zeros where nothing depends, and each result in memory of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(loss: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """d loss / d inputs, as :func:`pull_back` makes it."""
    return pull_back([loss], None, inputs, create_graph=create_graph)


def pull_back(
    outputs: Sequence[Tensor],
    adjoints: Sequence[Tensor] | None,
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """Vector-Jacobian product, with zeros where no output depends on an input; None for the adjoint of a loss, 1.

    Without ``create_graph`` each has memory of its own, which the caller may overwrite.
    """
    reached = [i for i, output in enumerate(outputs) if output.requires_grad]
    asked = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    found: dict[int, Tensor | None] = {}
    if reached and asked:
        along = None if adjoints is None else [adjoints[i] for i in reached]
        leaves = [inputs[i] for i in asked]
        made = torch.autograd.grad(
            [outputs[i] for i in reached], leaves, along, create_graph=create_graph, allow_unused=True
        )
        found = dict(zip(asked, made, strict=True))
    present = [torch.zeros_like(tensor) if found.get(i) is None else found[i] for i, tensor in enumerate(inputs)]
    return present if create_graph else _apart(present, inputs)


def _apart(tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Autograd may hand out one tensor for several inputs (those of a sum), or an expanded one: copies of these.

    Copies too of those that lie otherwise than their inputs, about which autograd warns where it adds to them.
    """
    seen: set[int] = set()
    apart = []
    for tensor, like in zip(tensors, inputs, strict=True):
        strides, storage = _strides(tensor), tensor.untyped_storage().data_ptr()
        if 0 in strides or strides != _strides(like) or storage in seen:
            tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        seen.add(storage)
        apart.append(tensor)
    return apart


def _strides(tensor: Tensor) -> list[int]:
    """Those that say where numbers lie: not those of dimensions of one."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
