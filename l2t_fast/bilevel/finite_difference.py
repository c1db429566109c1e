"""``method="finite_difference"``: Hessian-vector products from gradients at two points, one of which is at hand.

H v is (gradient at theta + epsilon v - gradient at theta) / epsilon. The look-ahead has made the second one, so a step
costs one more first-order pass; on the first step only the derivative for the channel and pair weights is needed, which
is a forward pass. Networks whose second derivative PyTorch lacks work too.

Rectifiers and max-pooling are held to the side they were on at theta (:mod:`l2t_fast.bilevel.kinks`); without that, a
one-sided difference is off by several percent at any epsilon. It takes the full precision of float32: the passes run
without autocast and without TF32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from l2t_fast.bilevel.kinks import NoteKinks, ReplayKinks
from l2t_fast.bilevel.problem import BilevelProblem, gradients
from l2t_fast.bilevel.transposition import HeadWeights, Step, flat

#: Length of epsilon v over length of theta, in square roots of the rounding unit: where the error by rounding, which
#: falls with epsilon, and that by curvature meet. Measured: docs/performance.md.
RELATIVE_STEP = 0.01


class FiniteDifference:
    """Second derivatives by one-sided differences, with an automatic step size."""

    def gradients(self, problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        with NoteKinks() as noted:
            found = _gradients(problem, head_weights, step, step.theta)
        step.kinks = noted.notes
        step.kept = found[len(step.theta) :] if step.first else found
        own = found[: len(step.theta)]
        return own if step.first else [g.clone() for g in own]

    def add_products_(
        self,
        problem: BilevelProblem,
        head_weights: HeadWeights,
        step: Step,
        direction: Sequence[Tensor],
        theta_bar: Sequence[Tensor],
        weight_bars: Sequence[Tensor],
    ) -> None:
        epsilon = self._epsilon(problem, step.theta, direction)
        with torch.no_grad():
            moved = [v.mul(epsilon).add_(p).requires_grad_() for p, v in zip(step.theta, direction, strict=True)]
        step.random_state.restore()
        with ReplayKinks(step.kinks):
            if step.first:
                there = _weight_gradients(problem, head_weights, moved)
            else:
                there = _gradients(problem, head_weights, step, moved)
        differences = [t.sub_(here).div_(epsilon) for t, here in zip(there, step.kept, strict=True)]
        # Of the first step they are the weights' alone, of the last one theta's alone.
        sums = weight_bars if step.first else theta_bar if step.last else [*theta_bar, *weight_bars]
        with torch.no_grad():
            torch._foreach_add_(list(sums), differences)

    @staticmethod
    def _epsilon(problem: BilevelProblem, theta: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
        """A 0-dimensional tensor: its value is not read, which a GPU would have to wait for."""
        relative = RELATIVE_STEP * math.sqrt(torch.finfo(theta[0].dtype).eps)
        of_theta, length = problem.norms([p.detach() for p in theta], direction)
        epsilon = relative * of_theta / length
        return torch.where(length > 0, epsilon, 1.0)  # no direction: the differences are 0


def _gradients(problem: BilevelProblem, head_weights: HeadWeights, step: Step, theta: Sequence[Tensor]) -> list[Tensor]:
    """d f / d theta, and of a step on the matching loss d f / d weights after it."""
    loss = problem.lookahead_loss(list(theta), *head_weights, last=step.last)
    return gradients(loss, list(theta) if step.last else [*theta, *flat(head_weights)])


def _weight_gradients(problem: BilevelProblem, head_weights: HeadWeights, theta: Sequence[Tensor]) -> list[Tensor]:
    """d f / d weights of a step on the matching loss: forward only through the network."""
    theta = [p.detach() for p in theta]
    with torch.no_grad():
        features = problem.gathered(problem.run_target(theta)[1])
    loss = problem.matching_loss([theta[i] for i in problem.matching_slots], features, *head_weights)
    return gradients(loss, flat(head_weights))
