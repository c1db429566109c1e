"""Providers of the matching loss, and what is measured of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2t_fast import feature_matching_loss
from l2t_fast.bench.naive_step import eager_matching_loss
from l2t_fast.bench.workloads import Tensors
from l2t_fast.ops import why_unavailable

Loss = Callable[[Tensors], Tensor]


@dataclass(frozen=True)
class LossProvider:
    """One implementation of the matching loss.

    Attributes:
        make: gives a fresh one; what torch.compile keeps is made anew with it
        devices: kinds of device it runs on
        twice: whether it can be differentiated twice
        why_not: why it cannot run in this installation, or None
        backend: of ours that it is, or None
    """

    make: Callable[[], Loss]
    devices: tuple[str, ...] = ("cpu", "cuda")
    twice: bool = True
    why_not: Callable[[], str | None] = lambda: None
    backend: str | None = None


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


def in_feature_dtype(tensors: Tensors) -> Tensor:
    """One convolution, resize and subtraction a pair, all of it in the features' own dtype.

    It is what somebody with bfloat16 features would write first: fast, and rounded at every operator.
    """
    dtype = tensors.target_features[0].dtype
    projections = [_Projection(weight, bias, dtype) for weight, bias in tensors.projections]
    channel_weights = [weight.to(dtype) for weight in tensors.channel_weights]
    pair_weights = [weight.to(dtype) for weight in tensors.pair_weights]
    features = tensors.source_features, tensors.target_features
    return eager_matching_loss(projections, tensors.pairs, *features, channel_weights, pair_weights, 1.0)


class _Projection:
    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.to(dtype)[:, :, None, None], bias.to(dtype)

    def __call__(self, features: Tensor) -> Tensor:
        return nn.functional.conv2d(features, self._weight, self._bias)


def _fused(backend: str, device: str) -> LossProvider:
    return LossProvider(
        lambda: _by_backend(backend),
        devices=(device,),
        why_not=lambda: why_unavailable(backend),
        backend=backend,
    )


#: ``eager`` is the loss in plain PyTorch with float32 sums, as ours has; with float32 features it is what one writes.
LOSS_PROVIDERS: dict[str, LossProvider] = {
    "eager": LossProvider(lambda: _by_backend("reference")),
    "eager_low_precision": LossProvider(lambda: in_feature_dtype),
    "compile": LossProvider(lambda: torch.compile(_by_backend("reference")), twice=False),
    "cpu": _fused("cpu", "cpu"),
    "cuda": _fused("cuda", "cuda"),
    "triton": _fused("triton", "cuda"),
}


def forward(loss: Loss, tensors: Tensors) -> list[Tensor]:
    """The loss alone, without a graph."""
    with torch.no_grad():
        return [loss(tensors)]


def forward_backward(loss: Loss, tensors: Tensors) -> list[Tensor]:
    """The loss and its gradient for every input."""
    value = loss(tensors)
    return [value.detach(), *torch.autograd.grad(value, tensors.inputs())]


def second_order(loss: Loss, tensors: Tensors) -> list[Tensor]:
    """The loss, its gradient, and the Hessian times a direction (each input's own values) by nested autograd."""
    inputs = tensors.inputs()
    value = loss(tensors)
    gradients = torch.autograd.grad(value, inputs, create_graph=True)
    products = torch.autograd.grad(gradients, inputs, [tensor.detach() for tensor in inputs])
    return [value.detach(), *(gradient.detach() for gradient in gradients), *products]


#: In the order of what they need: each mode's results begin with those of the mode before it.
LOSS_MODES: dict[str, Callable[[Loss, Tensors], list[Tensor]]] = {
    "forward": forward,
    "forward_backward": forward_backward,
    "second_order": second_order,
}


def why_not(name: str, mode: str, dtype: str, device: torch.device) -> str | None:
    """Why a provider has no figure for a mode here, in words; None if it can run."""
    provider = LOSS_PROVIDERS[name]
    if device.type not in provider.devices:
        return f"runs on {' and '.join(provider.devices)} only"
    if mode == "second_order" and not provider.twice:
        return "torch.compile cannot be differentiated twice"
    if name == "eager_low_precision" and dtype == "float32":
        return "the same as eager for float32 features"
    return provider.why_not()
