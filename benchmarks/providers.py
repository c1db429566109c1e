"""Whose implementation of the matching loss is measured, and what of it: one registry of each."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.workloads import Tensors
from l2t_fast import feature_matching_loss

Loss = Callable[[Tensors], Tensor]


def _by_backend(backend: str) -> Loss:
    def loss(tensors: Tensors) -> Tensor:
        return feature_matching_loss(
            tensors.source_features,
            tensors.target_features,
            tensors.projections,
            tensors.pairs,
            tensors.channel_weights,
            tensors.pair_weights,
            backend=backend,
        )

    return loss


# A provider is made anew for every run: torch.compile keeps what it compiled.
PROVIDERS: dict[str, Callable[[], Loss]] = {
    "fused": lambda: _by_backend("cpu"),
    "eager": lambda: _by_backend("reference"),
    "compile": lambda: torch.compile(_by_backend("reference")),
}

TWICE_DIFFERENTIABLE = ("fused", "eager")  # torch.compile cannot be differentiated twice


def gradient(loss: Loss, tensors: Tensors) -> list[Tensor]:
    """The loss and its gradient."""
    value = loss(tensors)
    return [value, *torch.autograd.grad(value, tensors.inputs())]


def hessian_vector(loss: Loss, tensors: Tensors) -> list[Tensor]:
    """The loss, its gradient, and the Hessian times a direction (each input's own values) by nested autograd."""
    inputs = tensors.inputs()
    value = loss(tensors)
    gradients = torch.autograd.grad(value, inputs, create_graph=True)
    products = torch.autograd.grad(gradients, inputs, [tensor.detach() for tensor in inputs])
    return [value, *gradients, *products]


MEASURES: dict[str, Callable[[Loss, Tensors], list[Tensor]]] = {
    "gradient": gradient,
    "hessian_vector": hessian_vector,
}


def provides(provider: str, measure: str) -> bool:
    return measure == "gradient" or provider in TWICE_DIFFERENTIABLE
