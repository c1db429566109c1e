"""The matching loss written from the paper's sentence, pixel by pixel: slow, float64, shares no code with l2t_fast."""

import math

import torch


def bilinear(source, height, width):
    """Half-pixel centres, clamped at the border, no antialias; (C, H, W) -> (C, height, width)."""
    channels, h, w = source.shape
    if (h, w) == (height, width):
        return source
    out = source.new_zeros(channels, height, width)
    for i in range(height):
        for j in range(width):
            fy = min(max((i + 0.5) * h / height - 0.5, 0.0), h - 1)
            fx = min(max((j + 0.5) * w / width - 0.5, 0.0), w - 1)
            y0, x0 = math.floor(fy), math.floor(fx)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = fy - y0, fx - x0
            top = (1 - dx) * source[:, y0, x0] + dx * source[:, y0, x1]
            bottom = (1 - dx) * source[:, y1, x0] + dx * source[:, y1, x1]
            out[:, i, j] = (1 - dy) * top + dy * bottom
    return out


def matching_loss(sources, targets, projections, pairs, channel_weights, pair_weights, betas):
    """Sum over pairs of beta * batch mean of lambda * sum_c w_c * pixel mean of the squared difference."""
    total = torch.zeros((), dtype=torch.float64)
    for p, (m, n) in enumerate(pairs):
        source, target = sources[m].double(), targets[n].double()
        weight, bias = projections[p]
        weight = weight.double().flatten(1)
        batch = len(target)
        for b in range(batch):
            resized = bilinear(source[b], *target.shape[2:])
            projected = torch.tensordot(weight, target[b], dims=1)
            if bias is not None:
                projected = projected + bias.double()[:, None, None]
            per_channel = ((projected - resized) ** 2).mean(dim=(1, 2))
            weighted = per_channel.mean() if channel_weights is None else channel_weights[p][b].double() @ per_channel
            if pair_weights is not None:
                weighted = (
                    weighted * pair_weights[p].double().expand(batch, -1).reshape(batch, -1)[b, 0]
                    if (pair_weights[p].dim() == 2)
                    else weighted * pair_weights[p][b].double()
                )
            total = total + betas[p] * weighted / batch
    return total
