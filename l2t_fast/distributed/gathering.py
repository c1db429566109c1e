"""All ranks' rows of some tensors on every rank, differentiable any number of times, backwards and forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

if TYPE_CHECKING:
    from l2t_fast.distributed.group import Group


def gather(tensors: Sequence[Tensor], group: Group, sizes: Sequence[int]) -> list[Tensor]:
    """Each tensor with the rows of all ranks, one rank after the other; one exchange for all tensors of a dtype.

    Seen as one function of what all ranks put in, its transpose hands to each rank the sum of the adjoints of its rows
    over all ranks. The transpose of that is the gathering again: two linear functions that are each other's derivative.
    So all ranks must run the same backward passes, those that have no use for a result too.

    Args:
        tensors: (B, ...) each, B this rank's number of rows, 0 included; the other sizes and the dtypes are the same on
            all ranks.
        group: the ranks.
        sizes: B of every rank.

    Raises:
        ValueError: a tensor does not have the rows that ``sizes`` says.
    """
    wanted = sizes[group.rank]
    for i, tensor in enumerate(tensors):
        if len(tensor) != wanted:
            raise ValueError(f"tensors[{i}] has {len(tensor)} rows, but sizes says {wanted} for rank {group.rank}")
    if group.size == 1:
        return list(tensors)
    return list(_Gather.apply(group, tuple(sizes), *tensors)) if tensors else []


def sum_scatter(tensors: Sequence[Tensor], group: Group, sizes: Sequence[int]) -> list[Tensor]:
    """This rank's rows of tensors with those of all ranks, summed over the ranks: the transpose of :func:`gather`."""
    if group.size == 1:
        return list(tensors)
    return list(_SumScatter.apply(group, tuple(sizes), *tensors)) if tensors else []


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, group: Group, sizes: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.sizes, ctx.forms = group, sizes, _forms(tensors)
        found = list(tensors)
        for slots in _slots_by_dtype(tensors):
            own = torch.cat([tensors[i].reshape(-1) for i in slots])
            values = [tensors[i].shape[1:].numel() for i in slots]
            received = [size * sum(values) for size in sizes]
            incoming = group.exchange(own.repeat(group.size), [len(own)] * group.size, received)
            of_ranks = [
                piece.split([size * v for v in values])
                for piece, size in zip(incoming.split(received), sizes, strict=True)
            ]
            for slot, of_tensor in zip(slots, zip(*of_ranks, strict=True), strict=True):
                joined = torch.cat(of_tensor).view(sum(sizes), *tensors[slot].shape[1:])
                found[slot] = _in_layout_of(tensors[slot], joined)
        return tuple(found)

    @staticmethod
    def backward(ctx: FunctionCtx, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *sum_scatter(adjoints, ctx.group, ctx.sizes)

    @staticmethod
    def jvp(ctx: FunctionCtx, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(gather(_filled(tangents[2:], ctx.forms), ctx.group, ctx.sizes))


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, group: Group, sizes: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.sizes, ctx.forms = group, sizes, _forms(tensors)
        mine = sizes[group.rank]
        found = list(tensors)
        for slots in _slots_by_dtype(tensors):
            of_tensors = [tensors[i].split(sizes) for i in slots]
            outgoing = torch.cat([t.reshape(-1) for of_rank in zip(*of_tensors, strict=True) for t in of_rank])
            values = [tensors[i].shape[1:].numel() for i in slots]
            received = mine * sum(values)
            incoming = group.exchange(outgoing, [size * sum(values) for size in sizes], [received] * group.size)
            # Added up here, in the ranks' order: the same bits each time, and half precision is rounded once.
            total = incoming.view(group.size, received).sum(0, dtype=_summed_in(incoming.dtype)).to(incoming.dtype)
            for slot, piece in zip(slots, total.split([mine * v for v in values]), strict=True):
                found[slot] = piece.view(mine, *tensors[slot].shape[1:])
        return tuple(found)

    @staticmethod
    def backward(ctx: FunctionCtx, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *gather(adjoints, ctx.group, ctx.sizes)

    @staticmethod
    def jvp(ctx: FunctionCtx, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(sum_scatter(_filled(tangents[2:], ctx.forms), ctx.group, ctx.sizes))


_Form = tuple[torch.Size, torch.dtype, torch.device]


def _forms(tensors: Sequence[Tensor]) -> list[_Form]:
    return [(t.shape, t.dtype, t.device) for t in tensors]


def _filled(tangents: Sequence[Tensor | None], forms: Sequence[_Form]) -> list[Tensor]:
    """Zeros in place of the tangents that are not there: all ranks exchange the same."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if tangent is None else tangent
        for tangent, (shape, dtype, device) in zip(tangents, forms, strict=True)
    ]


def _slots_by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    dtypes = dict.fromkeys(t.dtype for t in tensors)
    return [[i for i, t in enumerate(tensors) if t.dtype == dtype] for dtype in dtypes]


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _in_layout_of(own: Tensor, joined: Tensor) -> Tensor:
    """What goes between the ranks is contiguous; a rank computes in the layout it uses itself."""
    if own.dim() == 4 and not own.is_contiguous() and own.is_contiguous(memory_format=torch.channels_last):
        return joined.contiguous(memory_format=torch.channels_last)
    return joined
