"""Derivatives of the operators, in Python: for installations without native code, which has them in C++.

They are what csrc/ops/matching_autograd.cpp defines for either kind of kernels, and take the host longer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from l2t_fast.ops import inside_dual_level
from l2t_fast.ops.slots import spread
from l2t_fast.ops.triton.arguments import Arguments, needed, scale_in_place

OPS = torch.ops.l2t_fast_triton

_NO_THIRD_DERIVATIVE = (
    "the fused matching loss can be differentiated twice, not three times; "
    'backend="reference" can be differentiated any number of times'
)
_FORWARD_MODE = (
    "the fused matching loss got a forward-mode tangent, which it cannot carry; take the operator matching_hvp for the "
    'derivative along a direction, or backend="reference"'
)


@dataclass(frozen=True)
class _Node:
    """What a node keeps beside tensors. Tensors are kept flat: sources, then the slots that have one."""

    keyset: Any
    sources: int
    targets: int
    biased: tuple[bool, ...]
    pairs: Sequence[int]
    needs: Sequence[bool]

    @staticmethod
    def of(keyset: Any, arguments: Arguments) -> "_Node":
        biased = tuple(bias is not None for bias in arguments.biases)
        return _Node(keyset, len(arguments.sources), len(arguments.targets), biased, arguments.pairs, arguments.needs)

    def arguments(self, flat: Sequence[Tensor]) -> tuple[Arguments, Sequence[Tensor]]:
        """The arguments, and what follows them in ``flat``."""
        following = iter(flat)
        sources = [next(following) for _ in range(self.sources)]
        targets = [next(following) for _ in range(self.targets)]
        weights = [next(following) for _ in self.biased]
        biases = [next(following) if has else None for has in self.biased]
        alpha = next(following)
        return Arguments(sources, targets, weights, biases, alpha, self.pairs, self.needs), list(following)


def _inputs(arguments: Arguments) -> list[Tensor]:
    return needed(arguments.slots)


def _flat(arguments: Arguments) -> tuple:
    """The arguments as the operators take them, but ``needs``."""
    a = arguments
    return a.sources, a.targets, a.weights, a.biases, a.alpha, a.pairs


def _below_autograd(operator: Any, keyset: Any, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator.default.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _requires_grad(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check(arguments: Arguments, *others: Tensor | None) -> None:
    if inside_dual_level():
        for tensor in (*arguments.sources, *_inputs(arguments), *needed(others)):
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError(_FORWARD_MODE)


def _refuse_sources(arguments: Arguments) -> None:
    if not torch.is_grad_enabled():
        return
    for i, source in enumerate(arguments.sources):
        if source.requires_grad:
            raise ValueError(
                f"source feature {i} requires grad, but the fused matching loss has no derivative for sources; "
                'detach it, or take backend="reference"'
            )


class _NoThirdDerivative(Function):
    """Whatever a double backward computes hangs below one of these, so that a third derivative raises."""

    @staticmethod
    def forward(ctx, compute: Callable[[], Sequence[Tensor]], *depends_on: Tensor):
        ctx.set_materialize_grads(False)
        return tuple(compute())

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(_NO_THIRD_DERIVATIVE)


def _hvp_autograd(keyset, sources, targets, weights, biases, alpha, pairs, directions, needs):
    arguments = Arguments(sources, targets, weights, biases, alpha, pairs, needs)
    _check(arguments, *directions)
    depends_on = [*sources, *_inputs(arguments), *needed(directions)]

    def compute() -> list[Tensor]:
        return _below_autograd(OPS.matching_hvp, keyset, *_flat(arguments), directions, needs)

    return list(_NoThirdDerivative.apply(compute, *depends_on)) if _requires_grad(depends_on) else compute()


def _scaled_hvp(grad_loss: Tensor | None, arguments: Arguments, directions: list[Tensor | None]) -> list[Tensor | None]:
    """grad_loss * Hessian * directions, one entry a slot.

    Every term of the Hessian holds alpha or its direction once, except alpha's own, so small tensors are scaled only.
    """

    def scaled(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or grad_loss is None else tensor * grad_loss

    if not any(arguments.needs) or all(direction is None for direction in directions):
        return [None] * arguments.slot_count
    arguments = replace(arguments, alpha=scaled(arguments.alpha))
    # a gradient, whose type a direction has, may be wider than its input
    directions = [d if d is None else d.to(t.dtype) for d, t in zip(directions, arguments.slots, strict=True)]
    directions[-1] = scaled(directions[-1])
    slots = spread(OPS.matching_hvp(*_flat(arguments), directions, arguments.needs), arguments.needs)
    return [*slots[:-1], scaled(slots[-1])]


def _wanted(ctx, arguments: Arguments, edge: int) -> list[bool]:
    """The slots that the running backward wants, the first one being input number ``edge`` of the node."""
    wanted = []
    for tensor in arguments.slots:
        wanted.append(tensor is not None and ctx.needs_input_grad[edge])
        edge += tensor is not None
    return wanted


class _MatchingBackward(Function):
    """apply(node, sources, gradients, grad_loss, *inputs): grad_loss * gradients, differentiated as what it stands for.

    The gradients are values, whose dependence on the problem does not show; their derivative is the Hessian.
    """

    @staticmethod
    def forward(ctx, node: _Node, sources, gradients, grad_loss: Tensor, *inputs: Tensor):
        ctx.set_materialize_grads(False)
        ctx.node = node
        # The derivative along grad_loss alone reads the gradients, and they are as large as the maps.
        ctx.save_for_backward(*sources, *inputs, grad_loss, *(gradients if grad_loss.requires_grad else ()))
        arguments, _ = node.arguments([*sources, *inputs])
        scaled = _below_autograd(
            OPS.matching_backward, node.keyset, grad_loss, gradients, *_flat(arguments), node.needs
        )
        return tuple(scaled)

    @staticmethod
    def backward(ctx, *directions: Tensor | None):
        arguments, (grad_loss, *gradients) = ctx.node.arguments(ctx.saved_tensors)
        grad_grad_loss = None
        if ctx.needs_input_grad[3]:
            # sum of direction * gradient; it depends on the problem too, which the saved gradients do not show
            moved = [(d, g) for d, g in zip(directions, gradients, strict=True) if d is not None]

            def compute() -> tuple[Tensor]:
                return (sum(((d.float() * g.float()).sum() for d, g in moved), torch.zeros_like(grad_loss)),)

            depends_on = [*_inputs(arguments), *(d for d, _ in moved)]
            (grad_grad_loss,) = (
                _NoThirdDerivative.apply(compute, *depends_on) if _requires_grad(depends_on) else compute()
            )
        slots = spread(directions, arguments.needs)
        wanted = replace(arguments, needs=_wanted(ctx, arguments, 4))
        products = _scaled_hvp(grad_loss, wanted, slots)
        own = [product for product, slot in zip(products, arguments.slots, strict=True) if slot is not None]
        return None, None, None, grad_grad_loss, *own


def _check_backward(arguments: Arguments, gradients: int) -> None:
    """What the node's backward pass goes by; anyone may call the operator."""
    needs, slots = arguments.needs, len(arguments.targets) + len(arguments.weights) + len(arguments.biases) + 1
    if len(needs) != slots:
        raise ValueError(f"got {len(needs)} needs for {slots} slots")
    if gradients != sum(needs):
        raise ValueError(f"got {gradients} gradients for {sum(needs)} needs")


def _backward_autograd(keyset, grad_loss, gradients, sources, targets, weights, biases, alpha, pairs, needs):
    arguments = Arguments(sources, targets, weights, biases, alpha, pairs, needs)
    _check_backward(arguments, len(gradients))
    _check(arguments, grad_loss)
    _refuse_sources(arguments)
    inputs = _inputs(arguments)
    if _requires_grad([grad_loss, *inputs]):
        node = _Node.of(keyset, arguments)
        return list(_MatchingBackward.apply(node, sources, gradients, grad_loss, *inputs))
    return _below_autograd(OPS.matching_backward, keyset, grad_loss, gradients, *_flat(arguments), needs)


def _may_consume(grad_loss: Tensor, gradients: Sequence[Tensor]) -> bool:
    """Whether nothing but this node will ever read the saved gradients again, so that they may be scaled in place."""
    if (
        torch.is_grad_enabled()
        or torch._C._autograd._get_current_graph_task_keep_graph()
        or torch._C._len_torch_dispatch_stack()
        or _is_captured(grad_loss)  # a CUDA graph, which may be replayed more often than they are made
    ):
        return False
    # held by the saved tensor, the one unpacked from it, and the storage object asked here; a fourth is the caller's
    return all(map(_is_plain, [grad_loss, *gradients])) and all(
        torch._C._storage_Use_Count(g.untyped_storage()._cdata) <= 3 for g in gradients
    )


def _is_captured(tensor: Tensor) -> bool:
    """Whether work on a tensor's device goes into a CUDA graph; which one, Python is not told."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is numbers in memory: no subclass, nothing of ``torch.func`` and no batch of autograd's own vmap."""
    functorch = torch._C._functorch
    wrapped = functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    return type(tensor) is Tensor and not wrapped


class _MatchingForward(Function):
    """apply(node, sources, *inputs) -> loss, *gradients; the gradients are differentiable too."""

    @staticmethod
    def forward(ctx, node: _Node, sources, *inputs: Tensor):
        ctx.set_materialize_grads(False)
        ctx.node = node
        arguments, _ = node.arguments([*sources, *inputs])
        # A hook or a mode may hold the gradients without a sign, and a CUDA graph makes them anew by itself.
        ctx.watched = (
            torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
            or torch._C._len_torch_dispatch_stack() > 0
            or _is_captured(arguments.alpha)
        )
        loss, gradients = _below_autograd(OPS.matching_forward, node.keyset, *_flat(arguments), node.needs)
        ctx.save_for_backward(*sources, *inputs, *gradients)
        return loss, *gradients

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, *directions: Tensor | None):
        arguments, gradients = ctx.node.arguments(ctx.saved_tensors)
        needs, wanted = arguments.needs, _wanted(ctx, arguments, 2)
        slots: list[Tensor | None] = [None] * arguments.slot_count
        if grad_loss is not None:
            consume = not ctx.watched and _may_consume(grad_loss, gradients)
            asked = [need and want for need, want in zip(needs, wanted, strict=True)]
            made = spread(gradients, needs)
            chosen = [gradient.detach() for gradient, ask in zip(made, asked, strict=True) if ask]
            if consume:
                scale_in_place(chosen, grad_loss)
            else:
                chosen = OPS.matching_backward(grad_loss, chosen, *_flat(arguments), asked)
            slots = spread(chosen, asked)
        # only for callers of the operator itself that differentiate the gradients it returned
        products = _scaled_hvp(None, replace(arguments, needs=wanted), spread(directions, needs))
        own = []
        for tensor, slot, product in zip(arguments.slots, slots, products, strict=True):
            if tensor is not None:
                own.append(product if slot is None else slot if product is None else slot + product)
        return None, None, *own


def _forward_autograd(keyset, sources, targets, weights, biases, alpha, pairs, needs):
    arguments = Arguments(sources, targets, weights, biases, alpha, pairs, needs)
    _check(arguments)
    _refuse_sources(arguments)
    inputs = _inputs(arguments)
    if not _requires_grad(inputs):
        return _below_autograd(OPS.matching_forward, keyset, *_flat(arguments), needs)
    for slot, tensor in enumerate(arguments.slots):
        if tensor is not None and tensor.requires_grad and not (slot < len(needs) and needs[slot]):
            raise ValueError(
                f"input {slot} (of targets, weights, biases, alpha) requires grad, but needs says its gradient is not "
                "wanted"
            )
    loss, *gradients = _MatchingForward.apply(_Node.of(keyset, arguments), sources, *inputs)
    return loss, gradients


def _loss_autograd(keyset, *problem_and_needs):
    return _forward_autograd(keyset, *problem_and_needs)[0]


AUTOGRAD = {
    "matching_forward": _forward_autograd,
    "matching_loss": _loss_autograd,
    "matching_backward": _backward_autograd,
    "matching_hvp": _hvp_autograd,
}
"""By operator."""
