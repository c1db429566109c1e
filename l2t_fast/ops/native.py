"""The native operators, ``torch.ops.l2t_fast.*``: one call computes all pairs, on the device the tensors are on.

``matching_loss`` is the backend's side of the contract in :mod:`l2t_fast.ops`. The two functions below it are what it
is made of, for code that differentiates by hand. They speak of *slots*: the differentiable inputs in the order all
targets, one weight a pair, one bias a pair (None where the pair has none), alpha.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from l2t_fast import _native  # noqa: F401  (loads the operators)
from l2t_fast.ops.slots import flat, needs_of, spread

Pairs = Sequence[tuple[int, int]]


def matching_loss(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    alpha: Tensor,
    pairs: Pairs,
) -> Tensor:
    """The matching loss, a scalar of alpha's dtype, twice differentiable in targets, weights, biases and alpha.

    The gradients of the inputs that require grad are made along with the loss, and kept for the backward pass, which
    only scales them; under ``torch.no_grad()`` nothing but the loss is computed.

    Raises:
        ValueError: shapes or devices that do not fit, or a source that requires grad.
        TypeError: dtypes that do not fit.
        NotImplementedError: a forward-mode tangent reaches the loss, or a third derivative is taken.
    """
    needs = needs_of(targets, weights, biases, alpha)
    return torch.ops.l2t_fast.matching_loss(
        list(sources), list(targets), list(weights), list(biases), alpha, flat(pairs), needs
    )


def loss_and_gradients(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    alpha: Tensor,
    pairs: Pairs,
    needs: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and its gradients, one a slot; None where ``needs``, one a slot, is False."""
    loss, gradients = torch.ops.l2t_fast.matching_forward(
        list(sources), list(targets), list(weights), list(biases), alpha, flat(pairs), list(needs)
    )
    return loss, spread(gradients, needs)


def hessian_vector_product(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    alpha: Tensor,
    pairs: Pairs,
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The loss's Hessian times ``directions`` (one a slot, of its shape and dtype; None is zero), one product a slot.

    It is the derivative of the gradients along the directions too. None where ``needs``, one a slot, is False.
    """
    products = torch.ops.l2t_fast.matching_hvp(
        list(sources), list(targets), list(weights), list(biases), alpha, flat(pairs), list(directions), list(needs)
    )
    return spread(products, needs)
