"""Finds out which part of a step turned NaN or infinite first."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from l2t_fast.transfer.methods import Batch, Method
from l2t_fast.transfer.source import FrozenSources


def name_non_finite(
    batch: Batch,
    source: FrozenSources | None,
    target: nn.Module,
    logits: Tensor,
    features: Sequence[Tensor],
    cross_entropy: Tensor,
    terms: Mapping[str, Tensor],
    method: Method,
) -> str:
    """A clause that names the first part that is not finite, in the order in which a step computes them."""
    if not _finite(batch.x):
        return "the images are not finite"
    if source is not None and batch.source is not None:
        for name, feature in zip(source.feature_names, batch.source.features, strict=True):
            if not _finite(feature):
                return f"feature map {name} of the source is not finite"
    for name, feature in zip(target.feature_names, features, strict=True):
        if not _finite(feature):
            return f"feature map {name} of the target is not finite"
    if not _finite(logits):
        return "the target's logits are not finite"
    if not _finite(cross_entropy):
        return "the cross-entropy is not finite"
    part = method.non_finite_part(batch, features)
    if part is not None:
        return f"{part} is not finite"
    for name, term in terms.items():
        if not _finite(term):
            return f"the {name} is not finite"
    return "the sum of the loss terms is not finite"


def first_non_finite_parameter(modules: Mapping[str, nn.Module]) -> str | None:
    """The first parameter or buffer that holds NaN or infinity, by module and name; None if all are finite."""
    named = [
        (f"{owner} {name}", tensor)
        for owner, module in modules.items()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    ]
    if not named:
        return None
    # One number a tensor, one transfer for all.
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
