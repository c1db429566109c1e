"""alpha: everything that scales the squared differences of all pairs, one number a sample and channel.

    alpha[b, column] = beta_p lambda_p[b] w_p[b, c] / (B P)

has its columns pair by pair, so the None cases, the pairs' numbers and sizes are gone before any backend runs.

:func:`by_pair` is the definition, a few operators a pair. The others compute the same bits faster, since an operator
costs the host more than such small tensors cost the device: :func:`native`, one operator beside the joining of weights,
forward, backward and backward of that; :func:`at_once`, for what is constant and where Triton runs without native code,
in a number of PyTorch's operators that does not grow with the pairs.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from l2t_fast import _native
from l2t_fast.autocast import autocast_off
from l2t_fast.ops import why_unavailable

Pairs = Sequence[tuple[int, int]]


class Sizes(NamedTuple):
    """What the constant factors depend on.

    Attributes:
        pairs: (source index, target index) each
        source_channels: C_m of every source map
        target_pixels: H_n * W_n of every target map
        betas: one a pair
        batch: B
        averaged: no channel weights are given, w = 1 / C_m
    """

    pairs: Pairs
    source_channels: Sequence[int]
    target_pixels: Sequence[int]
    betas: Sequence[float]
    batch: int
    averaged: bool

    def channels(self) -> list[int]:
        """C_m, one a pair."""
        return [self.source_channels[m] for m, _ in self.pairs]

    def scales(self) -> list[float]:
        """What multiplies lambda w, one a pair."""
        batch = max(self.batch, 1)
        scales = [beta / (batch * self.target_pixels[n]) for (_, n), beta in zip(self.pairs, self.betas, strict=True)]
        if not self.averaged:
            return scales
        return [scale / channels for scale, channels in zip(scales, self.channels(), strict=True)]


def by_pair(
    sizes: Sizes,
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """alpha (B, sum of C_m), of operators that every transform of PyTorch knows."""
    columns = []
    for p, (channels, scale) in enumerate(zip(sizes.channels(), sizes.scales(), strict=True)):
        if pair_weights is not None:
            column = (pair_weights[p].reshape(-1, 1).to(dtype) * scale).expand(sizes.batch, channels)
            if channel_weights is not None:
                column = column * channel_weights[p].to(dtype)
        elif channel_weights is not None:
            column = channel_weights[p].to(dtype) * scale
        else:
            column = (torch.ones(1, 1, dtype=dtype, device=device) * scale).expand(sizes.batch, channels)
        columns.append(column)
    return torch.cat(columns, dim=1)


def native(
    sizes: Sizes, channel_weights: Sequence[Tensor] | None, pair_weights: Sequence[Tensor] | None, dtype: torch.dtype
) -> Tensor:
    """alpha (B, sum of C_m) for ordinary tensors, some weights among them, where :func:`native_serves`.

    Differentiable any number of times in reverse mode; the same bits from run to run.
    """
    columns = sizes.channels(), sizes.scales(), sizes.batch
    return _native.extension.coefficients(channel_weights, pair_weights, *columns, dtype == torch.float64)


@functools.cache
def native_serves(device: torch.device) -> bool:
    """Whether the native code, of this installation, computes alpha on a device."""
    if not hasattr(_native.extension, "coefficients"):
        return False
    if device.type != "cuda":
        return device.type == "cpu"
    return why_unavailable("cuda", device) is None


def at_once(
    sizes: Sizes,
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """alpha (B, sum of C_m) for ordinary tensors, differentiable any number of times in reverse mode.

    The same bits from run to run: a pair's sum over its channels has a fixed order, on a GPU too.
    """
    layout = _layout(sizes, dtype, device)
    if layout is None:
        return by_pair(sizes, channel_weights, pair_weights, dtype, device)
    factors = layout.scales
    if pair_weights is not None:
        factors = _joined_pair_weights(pair_weights, sizes.batch, dtype) * factors
    if layout.blocks is not None:
        factors = _ToBlocks.apply(factors, layout.blocks)
    # Multiplied block by block, so that the sum over a block's channels in the derivative is multiplication's own.
    by_block = sizes.batch, factors.shape[1], layout.width
    alpha = factors[:, :, None].expand(by_block)
    if channel_weights is not None:
        alpha = alpha * _joined(channel_weights).to(dtype).view(by_block)
    return alpha.reshape(sizes.batch, by_block[1] * by_block[2])


def _joined_pair_weights(pair_weights: Sequence[Tensor], batch: int, dtype: torch.dtype) -> Tensor:
    """(B, pairs), or (1, pairs) where every pair weight is (1, 1)."""
    if len({weight.shape for weight in pair_weights}) > 1:  # the only case that takes operators of each pair's own
        pair_weights = [weight.reshape(-1, 1).to(dtype).expand(batch, 1) for weight in pair_weights]
    return _joined(pair_weights).to(dtype)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return _Joined.apply(*tensors)


class _Joined(Function):
    """Tensors (B, any number) side by side, or tensors (B,) as columns.

    The derivative of ``torch.cat`` and ``torch.stack`` cuts out each tensor's part by an operator of its own, the
    derivative of which is a whole matrix with zeros elsewhere; here it is one operator, whose derivative joins again.
    """

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tensor:
        # Autocast refuses types that are lower than its own, and promotion alone is wanted.
        with autocast_off(tensors[0].device.type):
            if tensors[0].dim() == 1:
                ctx.widths = None
                return torch.stack(tensors, dim=1)
            ctx.widths = [tensor.shape[1] for tensor in tensors]
            return torch.cat(tensors, dim=1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.widths is None:
            return gradient.unbind(1)
        return gradient.split_with_sizes(ctx.widths, dim=1)


@dataclass(frozen=True)
class _Blocks:
    """Pairs of unequally many blocks.

    Attributes:
        pair_of_block: (blocks,), the pair that a block belongs to
        blocks_of_pair: (pairs * most blocks,), the blocks of each pair, filled up with one behind the last
        zero: (1, 1), what stands behind the last block
    """

    pair_of_block: Tensor
    blocks_of_pair: Tensor
    zero: Tensor


class _ToBlocks(Function):
    """(rows, pairs) -> (rows, blocks): each pair's number for each of its blocks."""

    @staticmethod
    def forward(ctx, values: Tensor, blocks: _Blocks) -> Tensor:
        ctx.blocks, ctx.pairs = blocks, values.shape[1]
        return values.index_select(1, blocks.pair_of_block)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _FromBlocks.apply(gradient, ctx.blocks, ctx.pairs), None


class _FromBlocks(Function):
    """(rows, blocks) -> (rows, pairs): each pair's sum over its blocks.

    The derivative that PyTorch has for ``index_select`` adds in whatever order a GPU's threads come.
    """

    @staticmethod
    def forward(ctx, values: Tensor, blocks: _Blocks, pairs: int) -> Tensor:
        ctx.blocks = blocks
        rows = values.shape[0]
        filled = torch.cat([values, blocks.zero.expand(rows, 1)], dim=1).index_select(1, blocks.blocks_of_pair)
        return filled.view(rows, pairs, blocks.blocks_of_pair.shape[0] // pairs).sum(dim=2)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _ToBlocks.apply(gradient, ctx.blocks), None, None


# ---- constants on the device ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """The constants of one set of sizes, on a device.

    A block is as many columns as the greatest common divisor of the pairs' channels: so a pair is a whole number of
    blocks, and few of them.

    Attributes:
        scales: (1, pairs)
        width: of a block, in columns
        blocks: None where every pair is one block
    """

    scales: Tensor
    width: int
    blocks: _Blocks | None


_KEPT = 64  # layouts, so that sizes or betas that change with every call do not fill the memory
_layouts: dict[tuple[Sizes, torch.dtype, torch.device], _Layout] = {}
_captured: dict[tuple[Sizes, torch.dtype, torch.device], _Layout] = {}  # a CUDA graph may read these ever after


def _layout(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> _Layout | None:
    """The constants, from an earlier call if there was one; None where a CUDA graph is captured and there was none."""
    key = sizes, dtype, device
    found = _captured.get(key) or _layouts.get(key)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if found is not None:
        if capturing:
            _captured[key] = found
        return found
    if capturing:
        return None  # nothing can be copied to the device now
    made = _make_layout(sizes, dtype, device)
    while len(_layouts) >= _KEPT:
        _layouts.pop(next(iter(_layouts)), None)
    _layouts[key] = made
    return made


def _make_layout(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> _Layout:
    channels = sizes.channels()
    width = math.gcd(*channels)
    # A copy of a Python list is complete when it returns, so that any stream may read it. Made in inference mode, it
    # could not be saved for a backward pass.
    with torch.inference_mode(False):
        scales = torch.tensor([sizes.scales()], dtype=dtype, device=device)
        if all(count == width for count in channels):
            return _Layout(scales, width, None)
        pair_of_block, blocks_of_pair = _block_indices([count // width for count in channels])
        blocks = _Blocks(
            torch.tensor(pair_of_block, device=device),
            torch.tensor(blocks_of_pair, device=device),
            torch.zeros(1, 1, dtype=dtype, device=device),
        )
        return _Layout(scales, width, blocks)


def _block_indices(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """``pair_of_block`` and ``blocks_of_pair`` of :class:`_Blocks`, from each pair's number of blocks."""
    pair_of_block, blocks_of_pair = [], []
    behind_last, most = sum(counts), max(counts)
    for p, count in enumerate(counts):
        first = len(pair_of_block)
        blocks_of_pair += [*range(first, first + count), *[behind_last] * (most - count)]
        pair_of_block += [p] * count
    return pair_of_block, blocks_of_pair
