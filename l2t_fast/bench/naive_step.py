"""A whole L2T-ww training step in plain PyTorch, the way the published code does it: the step benchmark's baseline.

Written from the description of the method and of what that code does, with none of l2t_fast's shortcuts: the source
network runs again in every look-ahead step and every replay, all state is deep-copied before each look-ahead step, the
look-ahead is replayed backwards with nested autograd, and the loss is one convolution, resize and subtraction a pair.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def eager_matching_loss(
    projections: nn.ModuleList,
    pairs: Sequence[tuple[int, int]],
    source_features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    channel_weights: Sequence[Tensor],
    pair_weights: Sequence[Tensor],
    beta: float,
) -> Tensor:
    """beta L_wfm with one eager chain of operators a pair; shapes as in :func:`l2t_fast.feature_matching_loss`."""
    loss = source_features[0].new_zeros(())
    for p, (m, n) in enumerate(pairs):
        source, projected = source_features[m], projections[p](target_features[n])
        if source.shape[2:] != projected.shape[2:]:
            source = F.interpolate(source, size=projected.shape[2:], mode="bilinear", align_corners=False)
        per_channel = (source - projected).pow(2).mean(dim=(2, 3))
        per_sample = (per_channel * channel_weights[p]).sum(dim=1) * pair_weights[p].squeeze(1)
        loss = loss + beta * per_sample.mean()
    return loss


class NaiveStep:
    """One call is one training step: a real SGD step of theta, the look-ahead, its replay, and an Adam step of phi.

    Args:
        source: frozen network, ``source(x)`` returns (logits, features).
        target: network to train, same call.
        matching: one 1x1 convolution a pair, with ``pairs``; its forward is not used.
        meta: ``meta(source_features)`` returns (channel weights, pair weights).
        optimizer: SGD with momentum and weight decay (no dampening, no Nesterov) of target's and matching's parameters.
        meta_optimizer: of meta's parameters.
        steps: T, look-ahead steps on the matching loss.
        beta: weight of the matching loss.
    """

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module,
        matching: nn.ModuleList,
        meta: nn.Module,
        optimizer: torch.optim.SGD,
        meta_optimizer: torch.optim.Optimizer,
        *,
        steps: int = 2,
        beta: float = 0.5,
    ) -> None:
        self.source, self.target, self.matching, self.meta = source, target, matching, meta
        self.optimizer, self.meta_optimizer = optimizer, meta_optimizer
        self.steps, self.beta = steps, beta
        self._stateful = [target, matching, optimizer]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on the batch x (B, 3, H, W), y (B,); returns the cross-entropy at the end of the look-ahead."""

        def matching_loss() -> Tensor:
            return self._losses(x, y)[1]

        def cross_entropy() -> Tensor:
            return F.cross_entropy(self.target(x)[0], y)

        self.optimizer.zero_grad(set_to_none=False)
        sum(self._losses(x, y)).backward()
        self.optimizer.step()

        history = []
        for objective in [matching_loss] * self.steps + [cross_entropy]:
            history.append((copy.deepcopy([s.state_dict() for s in self._stateful]), objective))
            self.optimizer.zero_grad(set_to_none=False)
            objective().backward()
            self.optimizer.step()

        self.optimizer.zero_grad(set_to_none=False)
        self.meta_optimizer.zero_grad(set_to_none=False)
        outer = cross_entropy()
        outer.backward()
        self._replay(history)
        self.meta_optimizer.step()
        return outer.detach()

    def _losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, target_features = self.target(x)
        with torch.no_grad():
            _, source_features = self.source(x)
        weights = self.meta(source_features)
        pairs = self.matching.pairs
        matching = eager_matching_loss(self.matching, pairs, source_features, target_features, *weights, self.beta)
        return F.cross_entropy(logits, y), matching

    def _replay(self, history: list[tuple[list[dict], Callable[[], Tensor]]]) -> None:
        """Walk the look-ahead backwards; leaves the hypergradient in meta's ``.grad`` and the first state restored."""
        group_of = [(group, p) for group in self.optimizer.param_groups for p in group["params"]]
        parameters = [p for _, p in group_of]
        theta_bar = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        buffer_bar = [torch.zeros_like(p) for p in parameters]
        for state, objective in reversed(history):
            for stateful, saved in zip(self._stateful, state, strict=True):
                stateful.load_state_dict(saved)
            found = torch.autograd.grad(objective(), parameters, create_graph=True, allow_unused=True)
            product = 0.0
            for (group, _), g, a, c in zip(group_of, found, theta_bar, buffer_bar, strict=True):
                if g is not None:
                    product = product + (g * (c - group["lr"] * a)).sum()
            self.optimizer.zero_grad(set_to_none=False)
            product.backward()
            for i, (group, p) in enumerate(group_of):
                total = buffer_bar[i] - group["lr"] * theta_bar[i]
                theta_bar[i] = theta_bar[i] + group["weight_decay"] * total + (0 if p.grad is None else p.grad)
                buffer_bar[i] = group["momentum"] * total
