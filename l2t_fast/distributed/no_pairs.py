"""What a rank computes that has no pair of its own while the other ranks look at theirs.

It has to take part in every exchange of the target's maps, forwards and backwards, at the same place in the same order.
Autograd leaves out whatever nothing depends on, so the loss and its gradient are zeros that do depend on their inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class NoPairs(nn.Module):
    """In the place of :class:`l2t_fast.FeatureMatching`, on a rank without a pair: the loss is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[int, int]] = []

    def forward(
        self,
        source_features: Sequence[Tensor],
        target_features: Sequence[Tensor],
        weight: Sequence[Tensor] | None = None,
        beta: float | Sequence[float] = 1.0,
        loss_weight: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """0, which autograd takes for a function of the target's features and the weights."""
        return _Zero.apply(*target_features, *(weight or ()), *(loss_weight or ()))


class NoWeights(nn.Module):
    """In the place of :class:`l2t_fast.MetaNetworks`, on a rank without a pair: a phi that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(1, 1))

    def forward(self, source_features: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        """One tensor (1, 1), for :class:`NoPairs`."""
        return [self.phi * 1], None


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        dtype = torch.promote_types(inputs[0].dtype, torch.float32)
        return torch.zeros((), dtype=dtype, device=inputs[0].device)

    @staticmethod
    def backward(ctx: FunctionCtx, adjoint: Tensor) -> tuple[Tensor, ...]:
        return _ZeroGradient.apply(adjoint, *ctx.saved_tensors)


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, adjoint: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(adjoint, *inputs)
        return tuple(torch.zeros_like(t) for t in inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, *adjoints: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("no third derivative goes through a loss without pairs")
        return tuple(torch.zeros_like(t) for t in ctx.saved_tensors)
