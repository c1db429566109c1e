"""``method="exact"``: the look-ahead in first order, then its transpose with Hessian-vector products, step by step.

Write f_t for the loss of step t and v_t for the adjoint of its gradient. The transposed step needs H v_t, with H = d2
f_t / d theta2, and the hypergradient collects (d2 f_t / d phi d theta) v_t. Both come from one forward-over-reverse
pass (the mixed mode of Kemaev et al. 2025, arXiv 2505.00793): the target network runs on dual numbers theta + epsilon
v_t, the loss head's gradient and Hessian-vector product are taken by themselves (for the matching loss that is one
fused kernel), and the backward pass of the network runs on dual numbers again. No graph outlives its step, so memory
does not grow with the number of steps beyond the look-ahead parameters.

phi enters a step only through the channel and pair weights, which are the same in every step. So the mixed derivatives
are summed as adjoints of those weights and go through the meta networks once. Step 0 has no theta to hand H v to: it
runs forward only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from l2t_fast.bilevel.lookahead import RandomState
from l2t_fast.bilevel.problem import BilevelProblem, Theta, gradients


def exact(problem: BilevelProblem, meta: nn.Module, source_features: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The hypergradient, one tensor a parameter of meta."""
    weights = meta(source_features)
    head_weights = [None if w is None else [t.detach().requires_grad_() for t in w] for w in weights]
    flat_weights = [t for w in head_weights if w is not None for t in w]

    trajectory, theta = _look_ahead(problem, head_weights, steps)
    leaves = [p.requires_grad_() for p in theta]
    theta_bar = gradients(problem.cross_entropy(problem.run_target(leaves)[0]), leaves)
    end = RandomState(theta[0].device)

    weight_bars = [torch.zeros_like(t) for t in flat_weights]
    buffer_bars: list[Tensor | None] = [None] * len(theta)
    for t in range(steps, -1, -1):
        theta_t, random_state = trajectory.pop()
        stepped = [
            s.transpose(a, b, first=t == 0 and start is None)
            for s, a, b, start in zip(problem.settings, theta_bar, buffer_bars, problem.buffers, strict=True)
        ]
        direction = [gradient_bar for gradient_bar, _, _ in stepped]
        theta_bar = [direct for _, direct, _ in stepped]
        buffer_bars = [earlier for _, _, earlier in stepped]
        if t == steps == 0:
            break  # cross-entropy alone: no step sees phi, and there is nothing before step 0
        random_state.restore()
        if t == steps:
            products = _network_hessian_vector(problem, theta_t, direction)
        else:
            products, bars = _matching_hessian_vector(
                problem, theta_t, direction, head_weights, flat_weights, weights_only=t == 0
            )
            weight_bars = [total + bar for total, bar in zip(weight_bars, bars, strict=True)]
        theta_bar = [a if h is None else a + h for a, h in zip(theta_bar, products, strict=True)]
    end.restore()

    outputs = [t for w in weights if w is not None for t in w]
    return _pull_back(outputs, weight_bars, list(meta.parameters()))


def _look_ahead(
    problem: BilevelProblem, head_weights: Sequence[Sequence[Tensor] | None], steps: int
) -> tuple[list[tuple[Theta, RandomState]], Theta]:
    """Run the steps; return (theta, random state) before each one, and theta after the last."""
    trajectory = []
    theta, buffers = problem.theta, problem.buffers
    for t in range(steps + 1):
        leaves = [p.detach().requires_grad_() for p in theta]
        trajectory.append((theta, RandomState(theta[0].device)))
        found = gradients(problem.lookahead_loss(leaves, *head_weights, last=t == steps), leaves)
        with torch.no_grad():
            theta, buffers = problem.step(theta, found, buffers)
    return trajectory, theta


def _matching_hessian_vector(
    problem: BilevelProblem,
    theta: Theta,
    direction: Sequence[Tensor],
    head_weights: Sequence[Sequence[Tensor] | None],
    flat_weights: Sequence[Tensor],
    *,
    weights_only: bool,
) -> tuple[list[Tensor | None], list[Tensor]]:
    """H v of beta L_wfm for theta (Nones with ``weights_only``), and the mixed derivative for the weights."""
    slots = problem.matching_slots
    parameters = [theta[i] for i in slots]
    tangents = [direction[i] for i in slots]
    mixed: list[Tensor] = []
    products: list[Tensor | None] = [None] * len(theta)

    def head(features: list[Tensor], feature_tangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        primals = [t.detach().requires_grad_() for t in [*features, *parameters]]
        loss = problem.matching_loss(primals[len(features) :], primals[: len(features)], *head_weights)
        inputs = [*primals, *flat_weights]
        first = gradients(loss, inputs, create_graph=True)
        first_theta = first[: len(primals)]
        if weights_only:
            mixed.extend(_pull_back(first_theta, [*feature_tangents, *tangents], flat_weights))
            return None
        second = _pull_back(first_theta, [*feature_tangents, *tangents], inputs)
        mixed.extend(second[len(primals) :])
        for slot, product in zip(slots, second[len(features) : len(primals)], strict=True):
            products[slot] = product
        return [g.detach() for g in first[: len(features)]], second[: len(features)]

    def outputs(logits: Tensor, features: list[Tensor]) -> list[Tensor]:
        return features

    for slot, product in _through_network(problem, theta, direction, outputs, head):
        products[slot] = product if products[slot] is None else products[slot] + product
    return products, mixed


def _network_hessian_vector(problem: BilevelProblem, theta: Theta, direction: Sequence[Tensor]) -> list[Tensor | None]:
    """H v of the cross-entropy with respect to theta; None where the cross-entropy does not see an entry."""

    def head(logits: list[Tensor], tangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        primal = logits[0].detach().requires_grad_()
        first = gradients(problem.cross_entropy(primal), [primal], create_graph=True)
        return [first[0].detach()], _pull_back(first, tangents, [primal])

    def outputs(logits: Tensor, features: list[Tensor]) -> list[Tensor]:
        return [logits]

    products: list[Tensor | None] = [None] * len(theta)
    for slot, product in _through_network(problem, theta, direction, outputs, head):
        products[slot] = product
    return products


Head = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]] | None]


def _through_network(
    problem: BilevelProblem,
    theta: Theta,
    direction: Sequence[Tensor],
    outputs: Callable[[Tensor, list[Tensor]], list[Tensor]],
    head: Head,
) -> list[tuple[int, Tensor]]:
    """Push ``direction`` forward through the network, let ``head`` turn output tangents into adjoints and their
    tangents, and pull those back; returns (slot, tangent of the gradient) for every target parameter that has one.

    Reverse over forward would need the derivative of the tangents, which is wrong through BatchNorm; forward over
    reverse differentiates the backward formulas themselves.
    """
    slots = problem.target_slots
    with forward_ad.dual_level():
        duals = list(theta)
        for i in slots:
            duals[i] = forward_ad.make_dual(theta[i].detach().requires_grad_(), direction[i])
        results = outputs(*problem.run_target(duals))
        unpacked = [forward_ad.unpack_dual(r) for r in results]
        primals = [u.primal.detach() for u in unpacked]
        tangents = [torch.zeros_like(u.primal) if u.tangent is None else u.tangent.detach() for u in unpacked]
        adjoints = head(primals, tangents)
        if adjoints is None:
            return []
        reached = [(r, a, t) for r, a, t in zip(results, *adjoints, strict=True) if r.requires_grad]
        found = torch.autograd.grad(
            [r for r, _, _ in reached],
            [duals[i] for i in slots],
            grad_outputs=[forward_ad.make_dual(a, t) for _, a, t in reached],
            allow_unused=True,
        )
        pulled = [
            (slot, forward_ad.unpack_dual(g).tangent) for slot, g in zip(slots, found, strict=True) if g is not None
        ]
        return [(slot, tangent) for slot, tangent in pulled if tangent is not None]


def _pull_back(outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Vector-Jacobian product, with zeros where no output depends on an input."""
    reached = [(o, a) for o, a in zip(outputs, adjoints, strict=True) if o.requires_grad]
    if not reached:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(
        [o for o, _ in reached], inputs, grad_outputs=[a for _, a in reached], allow_unused=True
    )
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]
