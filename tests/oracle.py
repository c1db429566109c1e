"""The matching loss written from the paper's sentence: plain float64 sums that share no code with l2t_fast."""

import math

import torch


def bilinear_weights(size, new_size):
    """(new_size, size): what each old pixel counts for in each new one, along one axis.

    Half-pixel centres, clamped at the border, no antialias.
    """
    weights = torch.zeros(new_size, size, dtype=torch.float64)
    for i in range(new_size):
        position = min(max((i + 0.5) * size / new_size - 0.5, 0.0), size - 1)
        below = math.floor(position)
        above = min(below + 1, size - 1)
        weights[i, below] += 1 - (position - below)
        weights[i, above] += position - below
    return weights


def bilinear(source, height, width):
    """(..., h, w) -> (..., height, width)."""
    if source.shape[-2:] == (height, width):
        return source
    rows, columns = bilinear_weights(source.shape[-2], height), bilinear_weights(source.shape[-1], width)
    return torch.einsum("ih,jw,...hw->...ij", rows.to(source), columns.to(source), source)


def matching_loss(sources, targets, projections, pairs, channel_weights, pair_weights, betas):
    """Sum over pairs of beta * batch mean of lambda * sum_c w_c * pixel mean of the squared difference."""
    total = torch.zeros((), dtype=torch.float64)
    for p, (m, n) in enumerate(pairs):
        source, target = sources[m].double(), targets[n].double()
        weight, bias = projections[p]
        projected = torch.einsum("mn,bnhw->bmhw", weight.double().flatten(1), target)
        if bias is not None:
            projected = projected + bias.double()[:, None, None]
        squares = (projected - bilinear(source, *target.shape[2:])) ** 2
        per_channel = squares.mean(dim=(2, 3))
        weighted = (
            per_channel.mean(1) if channel_weights is None else (channel_weights[p].double() * per_channel).sum(1)
        )
        if pair_weights is not None:
            weighted = pair_weights[p].double().flatten() * weighted
        total = total + betas[p] * weighted.sum() / max(len(target), 1)
    return total
