"""The look-ahead in first order, then its transpose step by step: what "exact" and "finite_difference" share.

Write f_t for the loss of step t and v_t for the adjoint of its gradient. The transposed step needs H v_t, with H = d2
f_t / d theta2, and the hypergradient collects (d2 f_t / d phi d theta) v_t. phi enters a step only through the channel
and pair weights, which are the same in every step: so the mixed derivatives are summed as adjoints of those weights,
and go through the meta networks once. Step 0 has no theta to hand H v to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from l2t_fast.bilevel.kinks import Notes
from l2t_fast.bilevel.lookahead import RandomState
from l2t_fast.bilevel.problem import BilevelProblem, Theta, gradients

HeadWeights = Sequence[Sequence[Tensor] | None]
"""(channel weights, pair weights), or None where there are none: what the meta networks return, cut off from them."""


@dataclass
class Step:
    """One look-ahead step: where it starts, and which loss it takes.

    Attributes:
        theta: the parameters, leaves that require grad.
        random_state: of the generators before the step's forward pass.
        last: it steps on cross-entropy, not on the matching loss.
        first: the look-ahead starts with it.
        kept: tensors that the second-order method keeps from the first-order pass.
        kinks: which way that pass went at rectifiers and poolings, if the method needs to know.
    """

    theta: Theta
    random_state: RandomState
    last: bool
    first: bool
    kept: list[Tensor] = field(default_factory=list)
    kinks: Notes = field(default_factory=list)


class SecondOrder(Protocol):
    """How H v and the mixed derivative are made."""

    def gradients(self, problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        """d f_t / d theta, one a parameter, which the caller may overwrite."""

    def products(
        self, problem: BilevelProblem, head_weights: HeadWeights, step: Step, direction: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """H v, one a parameter (None is zero), and the mixed derivative times v, one a head weight in order.

        On the first step H v is not needed, on the last one the mixed derivative is zero.
        """


def transposed(
    problem: BilevelProblem, meta: nn.Module, source_features: Sequence[Tensor], steps: int, second_order: SecondOrder
) -> list[Tensor]:
    """The hypergradient, one tensor a parameter of meta."""
    with problem.autocast():
        weights = meta(source_features)
    head_weights = [None if w is None else [t.detach().requires_grad_() for t in w] for w in weights]
    flat_weights = flat(head_weights)

    trajectory: list[Step] = []
    theta, buffers = problem.theta, problem.buffers
    for t in range(steps + 1):
        leaves = [p.detach().requires_grad_() for p in theta]
        step = Step(leaves, RandomState(problem.device), last=t == steps, first=t == 0)
        trajectory.append(step)
        found = second_order.gradients(problem, head_weights, step)
        problem.joined_(found, last=step.last)
        theta, buffers = problem.step_(theta, found, buffers)
        del found
    del buffers

    leaves = [p.requires_grad_() for p in theta]
    theta_bar = gradients(problem.cross_entropy(problem.run_target(leaves)[0]), leaves)
    problem.joined_(theta_bar, last=True)
    end = RandomState(problem.device)
    del theta, leaves

    weight_bars: list[Tensor] = [torch.zeros_like(t) for t in flat_weights]
    buffer_bars: list[Tensor | None] = [None] * len(theta_bar)
    while trajectory:
        step = trajectory.pop()
        stepped = [
            s.transpose_(a, b, first=step.first and start is None)
            for s, a, b, start in zip(problem.settings, theta_bar, buffer_bars, problem.buffers, strict=True)
        ]
        direction = [gradient_bar for gradient_bar, _, _ in stepped]
        theta_bar = [direct for _, direct, _ in stepped]
        totals = [total for _, _, total in stepped]
        del stepped
        if step.first and step.last:
            break  # cross-entropy alone: no step sees phi, and there is nothing before step 0
        products, bars = second_order.products(problem, head_weights, step, direction)
        problem.joined_(products, last=step.last)
        with torch.no_grad():
            for bar, product in zip([*theta_bar, *weight_bars], [*products, *bars], strict=True):
                if product is not None:
                    bar.add_(product)
        del products, bars, direction  # the next step needs their memory
        buffer_bars = [s.earlier_(total) for s, total in zip(problem.settings, totals, strict=True)]
    end.restore()

    # Weights are this rank's images' own, so that only what they do to phi is summed.
    phi_bar = pull_back(flat(weights), weight_bars, list(meta.parameters()))
    problem.sum_(phi_bar)
    return phi_bar


def flat(head_weights: HeadWeights) -> list[Tensor]:
    """Channel weights, then pair weights, one after the other."""
    return [t for w in head_weights if w is not None for t in w]


def pull_back(outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Vector-Jacobian product, with zeros where no output depends on an input."""
    found = vector_jacobian(outputs, adjoints, inputs)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


def vector_jacobian(
    outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Vector-Jacobian product, with None where no output depends on an input."""
    reached = [(o, a) for o, a in zip(outputs, adjoints, strict=True) if o.requires_grad]
    if not reached:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad([o for o, _ in reached], inputs, grad_outputs=[a for _, a in reached], allow_unused=True)
    )
