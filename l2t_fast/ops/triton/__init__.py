"""The matching op in Triton, for NVIDIA GPUs: one call computes all pairs in a fixed number of launches.

``matching_loss`` is the backend's side of the contract in :mod:`l2t_fast.ops`. How the kernels work: README.md here.
"""

from collections.abc import Sequence

from torch import Tensor

from l2t_fast.ops.slots import flat, needs_of
from l2t_fast.ops.triton.operators import OPS

Pairs = Sequence[tuple[int, int]]


def matching_loss(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    alpha: Tensor,
    pairs: Pairs,
) -> Tensor:
    """The matching loss, a float32 scalar, twice differentiable in targets, weights, biases and alpha.

    The gradients of the inputs that require grad are made along with the loss, and kept for the backward pass, which
    only scales them; under ``torch.no_grad()`` nothing but the loss is computed.

    Raises:
        ValueError: shapes or devices that do not fit, or a source that requires grad.
        TypeError: dtypes that do not fit; float64.
        NotImplementedError: a forward-mode tangent reaches the loss, or a third derivative is taken.
    """
    needs = needs_of(targets, weights, biases, alpha)
    return OPS.matching_loss(list(sources), list(targets), list(weights), list(biases), alpha, flat(pairs), needs)
