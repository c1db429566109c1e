"""The matching loss, its gradient and Hessian-vector product in float64: what every provider is held against.

It shares no code with the providers of ours: the loss is that of the naive training step. It goes pair by pair, so
that a thousand pairs need no more memory than one.
"""

import torch
from torch import Tensor

from l2t_fast.bench.losses import in_feature_dtype
from l2t_fast.bench.workloads import Tensors


def truth(tensors: Tensors, mode: str) -> list[Tensor]:
    """What ``LOSS_MODES[mode]`` returns, in float64 on the tensors' device."""
    inputs = [t.detach().double() for t in tensors.inputs()]
    loss = torch.zeros((), dtype=torch.float64, device=inputs[0].device)
    gradients = [torch.zeros_like(t) for t in inputs] if mode != "forward" else []
    products = [torch.zeros_like(t) for t in inputs] if mode == "second_order" else []
    slots = _slots(tensors)
    for p, pair in enumerate(tensors.pairs):
        own = [inputs[slot].requires_grad_() for slot in slots[p]]
        target, weight, bias, channels, where = own
        source = tensors.source_features[pair[0]].double()
        value = in_feature_dtype(Tensors([source], [target], [(weight, bias)], [(0, 0)], [channels], [where]))
        loss += value.detach()
        if mode == "forward":
            continue
        first = torch.autograd.grad(value, own, create_graph=mode == "second_order")
        for slot, gradient in zip(slots[p], first, strict=True):
            gradients[slot] += gradient.detach()
        if mode == "second_order":
            second = torch.autograd.grad(first, own, [t.detach() for t in own])
            for slot, product in zip(slots[p], second, strict=True):
                products[slot] += product
    return [loss, *gradients, *products]


def _slots(tensors: Tensors) -> list[tuple[int, int, int, int, int]]:
    """Per pair, where its target, weight, bias, channel weight and pair weight stand in ``Tensors.inputs()``."""
    maps, pairs = len(tensors.target_features), len(tensors.pairs)
    return [
        (n, maps + 2 * p, maps + 2 * p + 1, maps + 2 * pairs + p, maps + 3 * pairs + p)
        for p, (_, n) in enumerate(tensors.pairs)
    ]
