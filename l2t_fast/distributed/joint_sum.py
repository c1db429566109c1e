"""A sum over the ranks that can be differentiated any number of times, backwards and forwards."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from l2t_fast.distributed.group import Group


def joint_sum(values: Tensor, group: Group) -> Tensor:
    """The sum of ``values`` over the ranks of ``group``, the same on all of them.

    Seen as one function of what all ranks put in, its transpose hands to each rank the sum of the adjoints of all
    ranks' results: it is its own backward. So all ranks must run the same backward passes.
    """
    return values if group.size == 1 else _JointSum.apply(values, group)


class _JointSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = values.clone(memory_format=torch.contiguous_format)
        group.sum_([total])
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, adjoint: Tensor) -> tuple[Tensor, None]:
        return joint_sum(adjoint, ctx.group), None

    @staticmethod
    def jvp(ctx: FunctionCtx, tangent: Tensor, _: None) -> Tensor:
        return joint_sum(tangent, ctx.group)
