"""Providers of the hypergradient by itself: our methods, and the libraries that one would otherwise take.

All differentiate the same look-ahead: T SGD steps on beta L_wfm and one on the cross-entropy from the present theta and
momentum, then the cross-entropy. The source's features are given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from l2t_fast.bench.setups import Training
from l2t_fast.bilevel import METHODS, hypergradient

#: Makes the function that returns one tensor a parameter of phi.
Hypergradient = Callable[[Training], Callable[[], list[Tensor]]]


def _ours(method: str) -> Hypergradient:
    def make(training: Training) -> Callable[[], list[Tensor]]:
        features = training.source(training.x).features

        def call() -> list[Tensor]:
            return hypergradient(
                training.target,
                training.method.matching,
                training.method.meta,
                training.optimizer,
                features,
                training.x,
                training.y,
                steps=training.setup.steps,
                beta=training.method.beta,
                method=method,
            )

        return call

    return make


class _Objective(nn.Module):
    """Target and projections as the one module that libraries want; ``forward`` gives a look-ahead step's loss.

    Unused parameters are added with weight zero: the method lets weight decay and momentum move them as well, while
    the libraries leave out parameters without a gradient.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.target, self.matching = training.target, training.method.matching
        self._beta = training.method.beta

    def forward(self, x: Tensor, y: Tensor, features: list[Tensor], weights: tuple, last: bool) -> Tensor:
        logits, maps = self.target(x)
        unused = 0.0 * sum(p.sum() for p in self.parameters())
        if last:
            return F.cross_entropy(logits, y) + unused
        return self.matching(features, maps, weights[0], self._beta, weights[1]) + unused


def _objectives(training: Training) -> list[bool]:
    """Per look-ahead step, whether its loss is the cross-entropy."""
    return [False] * training.setup.steps + [True]


def _torchopt(training: Training) -> Callable[[], list[Tensor]]:
    """TorchOpt's explicit gradient: its differentiable SGD as a function of theta, its state and the gradient."""
    import torchopt

    objective = _Objective(training)
    names = [name for name, _ in objective.named_parameters()]
    group = training.optimizer.param_groups[0]
    sgd = torchopt.sgd(lr=group["lr"], momentum=group["momentum"], weight_decay=group["weight_decay"])
    features = training.source(training.x).features

    def loss(theta: list[Tensor], buffers: dict[str, Tensor], weights: tuple, last: bool) -> Tensor:
        # A copy of the buffers, so that BatchNorm's statistics stay as they are.
        state = dict(zip(names, theta, strict=True)) | {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(objective, state, (training.x, training.y, features, weights, last))

    def call() -> list[Tensor]:
        buffers = dict(objective.named_buffers())
        theta = [p.detach().clone().requires_grad_() for p in objective.parameters()]
        momenta = [training.optimizer.state[p]["momentum_buffer"].clone() for p in objective.parameters()]
        state = tuple(s._replace(trace=momenta) if hasattr(s, "trace") else s for s in sgd.init(theta))
        weights = training.method.meta(features)
        for last in _objectives(training):
            gradients = torch.autograd.grad(loss(theta, buffers, weights, last), theta, create_graph=True)
            updates, state = sgd.update(list(gradients), state, params=theta, inplace=False)
            theta = list(torchopt.apply_updates(theta, updates, inplace=False))
        return list(torch.autograd.grad(loss(theta, buffers, weights, True), training.phi()))

    return call


def _higher(training: Training) -> Callable[[], list[Tensor]]:
    """higher's inner loop: a functional copy of the module and a differentiable copy of the optimizer."""
    import higher

    objective = _Objective(training)
    features = training.source(training.x).features

    def call() -> list[Tensor]:
        weights = training.method.meta(features)
        with higher.innerloop_ctx(objective, training.optimizer, copy_initial_weights=True) as (copied, sgd):
            for last in _objectives(training):
                sgd.step(copied(training.x, training.y, features, weights, last))
            loss = copied(training.x, training.y, features, weights, True)
            return list(torch.autograd.grad(loss, training.phi()))

    return call


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (`pip install l2t_fast[bench]`)"
    return None


def hypergradient_providers() -> dict[str, tuple[Hypergradient, dict[str, Any], str | None]]:
    """Provider by name, with the options of ``StepSetup.build`` that it wants, and why it cannot run, or None.

    The libraries get the plain matching loss, as their users would have it; ``*_fused`` are the same library over ours,
    which tells how much is the loss and how much the method.
    """
    reference = {"backend": "reference"}
    return {
        "eager": (_ours("double_backward"), reference, None),
        "torchopt": (_torchopt, reference, _missing("torchopt")),
        "torchopt_fused": (_torchopt, {}, _missing("torchopt")),
        "higher": (_higher, reference, _missing("higher")),
        **{method: (_ours(method), {}, None) for method in METHODS},
    }
