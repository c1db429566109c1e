"""The matching loss in plain PyTorch: the fallback, the oracle of every test and the baseline of every benchmark.

It is written to be read. It runs on any device, in any floating dtype, under ``torch.func``, in forward mode and to any
order of derivative, and it makes every projected and resized feature map that the fused backends avoid.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from l2t_fast.autocast import autocast_off


def matching_loss(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    alpha: Tensor,
    pairs: Sequence[tuple[int, int]],
) -> Tensor:
    """Sum over pairs, samples and channels of ``alpha * sum over pixels of (W T + b - resized S)^2``.

    Shapes and dtypes are those of :mod:`l2t_fast.ops`; the arithmetic and the loss have ``alpha``'s dtype.
    """
    dtype = alpha.dtype
    # Autocast would run the projection in half precision; the contract accumulates in float32.
    with autocast_off(alpha.device.type):
        loss = alpha.new_zeros(())
        columns = alpha.split([weight.shape[0] for weight in weights], dim=1)
        # Once a map and not once a pair: the pairs' gradients of a target in half precision are added up in `dtype`.
        sources, targets = [s.to(dtype) for s in sources], [t.to(dtype) for t in targets]
        for (m, n), weight, bias, coefficient in zip(pairs, weights, biases, columns, strict=True):
            source, target = sources[m], targets[n]
            if source.shape[2:] != target.shape[2:]:
                source = F.interpolate(source, size=target.shape[2:], mode="bilinear", align_corners=False)
            projected = F.conv2d(target, weight.to(dtype)[:, :, None, None], None if bias is None else bias.to(dtype))
            squares = (projected - source).pow(2).sum(dim=(2, 3))
            loss = loss + (coefficient * squares).sum()
        return loss
