"""``method="finite_difference"``: Hessian-vector products from gradients at two points, one of which is at hand.

H v is (gradient at theta + epsilon v - gradient at theta) / epsilon. The look-ahead has made the second one, so a step
costs one more first-order pass; on the first step only the derivative for the channel and pair weights is needed, which
is a forward pass. Networks whose second derivative PyTorch lacks work too.

Rectifiers and max-pooling are held to the side they were on at theta, and what has no derivative to its value there
(:mod:`l2t_fast.bilevel.holding`); without that, a one-sided difference is off by several percent at any epsilon. It
takes the full precision of float32: the passes run without autocast and without TF32. And where the difference is so
small against the gradient that rounding would show in it, the pass is made again with a larger epsilon: along such a
direction the gradient hardly changes, so it is straight for longer. A step on the matching loss has two differences,
of theta's gradient and of the weights', the smaller one as a rule: both count.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from l2t_fast.bilevel.gradients import gradients
from l2t_fast.bilevel.holding import NoteHeld, ReplayHeld
from l2t_fast.bilevel.problem import BilevelProblem
from l2t_fast.bilevel.transposition import HeadWeights, Step, flat

# In square roots of the rounding unit, measured: docs/tuning_step.md. The error by rounding falls with epsilon, that by
# curvature grows.
#: Length of epsilon v over length of theta.
RELATIVE_STEP = 0.004
#: Length of the difference over that of the gradient, of theta and of the weights in the geometric mean, below which
#: rounding shows.
LEAST_DIFFERENCE = 0.15
#: What a larger epsilon aims at then.
WANTED_DIFFERENCE = 0.7
#: How many times larger it may be: at most 5 thousandths of theta's length are gone, in float32.
LARGEST_FACTOR = 3000.0


class FiniteDifference:
    """Second derivatives by one-sided differences, with an automatic step size; an object for each hypergradient.

    Args:
        capturable: the host reads no number and decides nothing, so no pass is made again.
    """

    def __init__(self, *, capturable: bool) -> None:
        self._capturable = capturable
        self._factor = 1.0  # of epsilon, for the steps on the matching loss: what the latest of them needed

    def gradients(self, problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        noted = NoteHeld(problem.dtype)
        found = _gradients(problem, head_weights, step, step.theta, noted)
        if noted.refusal is not None:
            raise ValueError(
                f"target (or matching, or criterion) {noted.refusal}, which method='finite_difference' does not see "
                f"through, {noted.remedy}"
            )
        step.held = noted.notes
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
        usual, length = self._epsilon(problem, step.theta, direction)
        factor = self._factor
        epsilon = usual * factor
        moved = _plus(step.theta, direction, epsilon, own=step.own)
        differences = self._differences(problem, head_weights, step, moved)
        if not self._capturable:
            wanted = min(factor * self._lacking(problem, step, differences, length), LARGEST_FACTOR)
            if wanted > factor:
                del differences  # the pass needs their memory
                moved = _plus(moved, direction, usual * wanted - epsilon, own=True)
                epsilon = usual * wanted
                differences = self._differences(problem, head_weights, step, moved)
                if not step.last:
                    self._factor = wanted
        # Of the first step they are the weights' alone, of the last one theta's alone.
        sums = weight_bars if step.first else theta_bar if step.last else [*theta_bar, *weight_bars]
        if not sums:  # a phi that makes no weights
            return
        with torch.no_grad():
            torch._foreach_add_(list(sums), [d.div_(epsilon) for d in differences])

    @staticmethod
    def _differences(
        problem: BilevelProblem, head_weights: HeadWeights, step: Step, moved: Sequence[Tensor]
    ) -> list[Tensor]:
        """Gradients at ``moved``, theta + epsilon v, minus those at theta."""
        problem.go_back(step.start)
        held = ReplayHeld(step.held)
        if step.first:
            there = _weight_gradients(problem, head_weights, moved, held)
        else:
            there = _gradients(problem, head_weights, step, moved, held)
        return [t.sub_(here) for t, here in zip(there, step.kept, strict=True)]

    @staticmethod
    def _lacking(problem: BilevelProblem, step: Step, differences: Sequence[Tensor], length: Tensor) -> float:
        """How many times larger epsilon must be so that rounding does not show; 1 where it does not.

        ``length``: of the direction, without which there is no difference; else one of 0 is rounding's.

        Of two differences one may be a twentieth of the other, and an epsilon that suits the smaller one alone may be
        where the larger one bends: the geometric mean asks for one in between, and the error is flat around the best.
        """
        of_theta = 0 if step.first else len(step.theta)
        vectors = [v[part] for part in (slice(of_theta), slice(of_theta, None)) for v in (differences, step.kept)]
        found = torch.cat([problem.lengths_of_shares(*vectors), length.reshape(1)]).tolist()
        pairs, along = zip(found[:-1:2], found[1:-1:2], strict=True), found[-1]
        eps = torch.finfo(problem.dtype).eps
        # Where all is the same, rounding may have swallowed half a unit. What is not asked for here has no gradient.
        relative = [max(there / here, eps / 2) for there, here in pairs if here > 0]
        if not (along > 0 and relative):
            return 1.0
        difference = math.prod(relative) ** (1 / len(relative)) / math.sqrt(eps)
        return WANTED_DIFFERENCE / difference if difference < LEAST_DIFFERENCE else 1.0

    @staticmethod
    def _epsilon(
        problem: BilevelProblem, theta: Sequence[Tensor], direction: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """It and the direction's length, both (): their values are not read, which a GPU would have to wait for."""
        relative = RELATIVE_STEP * math.sqrt(torch.finfo(problem.dtype).eps)
        of_theta, length = problem.norms([p.detach() for p in theta], direction)
        epsilon = relative * of_theta / length
        return torch.where(length > 0, epsilon, 1.0), length  # no direction: the differences are 0


@torch.no_grad()
def _plus(theta: Sequence[Tensor], direction: Sequence[Tensor], epsilon: Tensor, *, own: bool) -> list[Tensor]:
    """theta + epsilon v, leaves that require grad, in theta's memory if that is ``own``."""
    start = list(theta) if own else [p.clone().requires_grad_() for p in theta]
    return [p.addcmul_(v, epsilon) for p, v in zip(start, direction, strict=True)]


def _gradients(
    problem: BilevelProblem, head_weights: HeadWeights, step: Step, theta: Sequence[Tensor], held: NoteHeld | ReplayHeld
) -> list[Tensor]:
    """d f / d theta, and of a step on the matching loss d f / d weights after it. The loss is made under ``held``."""
    with held:
        loss = problem.lookahead_loss(list(theta), *head_weights, last=step.last)
    return gradients(loss, list(theta) if step.last else [*theta, *flat(head_weights)])


def _weight_gradients(
    problem: BilevelProblem, head_weights: HeadWeights, theta: Sequence[Tensor], held: ReplayHeld
) -> list[Tensor]:
    """d f / d weights of a step on the matching loss: forward only through the network."""
    with held:  # with theta as in the noted pass, so that the network makes the same calls
        features = problem.gathered(problem.run_target(list(theta))[1])
    features = [f.detach() for f in features]  # not under ``held``: it is no call of the noted pass
    parameters = [theta[i].detach() for i in problem.matching_slots]
    with held:
        loss = problem.matching_loss(parameters, features, *head_weights)
    return gradients(loss, flat(head_weights))
