"""How far a provider's results are from those in float64, and how far they may be."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def relative_error(result: Tensor, truth: Tensor) -> float:
    """||result - truth|| / ||truth|| in the 2-norm; infinite where the result is not finite."""
    result, truth = result.detach().double().cpu(), truth.detach().double().cpu()
    if not torch.isfinite(result).all():
        return float("inf")
    difference, scale = torch.linalg.vector_norm(result - truth).item(), torch.linalg.vector_norm(truth).item()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale


def largest_error(results: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """The largest relative error of corresponding tensors."""
    return max(relative_error(result, truth) for result, truth in zip(results, truths, strict=True))


def outcome_error(result: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest relative error of results with the same names."""
    return max(relative_error(result[name], truth[name]) for name in truth)
