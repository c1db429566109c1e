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
from torch.autograd.graph import GradientEdge, get_gradient_edge

from l2t_fast.bilevel.gradients import gradients, pull_back
from l2t_fast.bilevel.holding import Notes
from l2t_fast.bilevel.lookahead import RandomState
from l2t_fast.bilevel.problem import (
    BilevelProblem,
    HeadWeights,
    Moment,
    Theta,
    check_teaches,
    cut_weights,
)
from l2t_fast.bilevel.second_order import SmallPooling


@dataclass
class Step:
    """One look-ahead step: where it starts, and which loss it takes.

    Attributes:
        theta: the parameters, leaves that require grad.
        start: what its forward pass of the target starts from.
        last: it steps on the task's loss, not on the matching loss.
        first: the look-ahead starts with it.
        next: its second derivative is the first one that is made, right after the look-ahead's end.
        kept: where the step's gradient hangs in its graph, if the second-order method keeps that from the first-order
            pass.
        own: nobody looks at theta once the step's products are made, which may overwrite it.
        held: what second passes at other parameters hold as it was in that pass, if the method needs to know.
        tangents: whether those of the features tell all about that pass, if the method needs to know.
    """

    theta: Theta
    start: Moment
    last: bool
    first: bool
    next: bool
    own: bool
    kept: list[GradientEdge | None] = field(default_factory=list)
    held: Notes = field(default_factory=dict)
    tangents: bool = False


class SecondOrder(Protocol):
    """How H v and the mixed derivative are made."""

    def gradients(self, problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        """d f_t / d theta, one a parameter, which the caller may overwrite."""

    def add_products_(
        self,
        problem: BilevelProblem,
        head_weights: HeadWeights,
        step: Step,
        direction: Sequence[Tensor],
        theta_bar: Sequence[Tensor],
        weight_bars: Sequence[Tensor],
    ) -> None:
        """Add H v to `theta_bar` and the mixed derivative times v to `weight_bars`, which follow the head weights.

        On the first step H v is not needed, on the last one the mixed derivative is zero.
        """


def transposed(
    problems: Sequence[BilevelProblem],
    meta: nn.Module,
    source_features: Sequence[Tensor],
    steps: int,
    second_order: SecondOrder,
) -> list[Tensor]:
    """The hypergradient, one tensor a parameter of meta.

    ``problems`` are those of the pieces in which the batch goes through the networks, one after the other; their losses
    add up to that of the batch. ``source_features`` are the whole batch's.
    """
    problem = problems[0]  # theta and the optimizer are the same for all
    weights = problem.head_weights(meta, source_features)
    # Not in less than theta's precision, in which the steps' adjoints of them would be rounded.
    pieces = [
        [None if w is None else [_leaf(t, problem.dtype) for t in w] for w in head_weights]
        for head_weights in cut_weights(weights, [p.matched for p in problems])
    ]

    trajectory: list[list[Step]] = []
    theta, buffers = problem.theta, problem.buffers
    for t in range(steps + 1):
        leaves = [p.detach().requires_grad_() for p in theta]
        trajectory.append([])
        found: list[Tensor | None] = [None] * len(leaves)
        for piece, head_weights in zip(problems, pieces, strict=True):
            last = t == steps
            soon = last and piece is problems[-1]
            own = t > 0 and len(problems) == 1
            step = Step(leaves, piece.moment(), last=last, first=t == 0, next=soon, own=own)
            trajectory[-1].append(step)
            found = _sum(found, second_order.gradients(piece, head_weights, step))
        problem.joined_(found, last=t == steps)
        theta, buffers = problem.step_(theta, found, buffers)
        del found
    del buffers, step  # the last step's parameters end with it below

    leaves = [p.requires_grad_() for p in theta]
    theta_bar: list[Tensor | None] = [None] * len(leaves)
    for piece in problems:
        with SmallPooling():  # where the last step's graph is kept, most memory is held here
            loss = piece.task_loss(piece.run_target(leaves)[0])
        theta_bar = _sum(theta_bar, gradients(loss, leaves))
        del loss
    check_teaches(problems)
    problem.joined_(theta_bar, last=True)
    end = RandomState(problem.device)
    del theta, leaves

    weight_bars = [[torch.zeros_like(t) for t in flat(head_weights)] for head_weights in pieces]
    buffer_bars: list[Tensor | None] = [None] * len(theta_bar)
    try:
        while trajectory:
            of_pieces = trajectory.pop()
            first, last = of_pieces[0].first, of_pieces[0].last
            direction, theta_bar, totals = problem.transpose_(theta_bar, buffer_bars, first=first)
            if first and last:
                break  # the task's loss alone: no step sees phi, and there is nothing before step 0
            # One process adds to the adjoint itself; ranks sum what they add before.
            joint = problem.joint and not first
            products = [torch.zeros_like(t) for t in theta_bar] if joint else theta_bar
            for piece, head_weights, bars in reversed(list(zip(problems, pieces, weight_bars, strict=True))):
                second_order.add_products_(piece, head_weights, of_pieces.pop(), direction, products, bars)
            if joint:
                problem.joined_(products, last=last)
                theta_bar = _sum(theta_bar, products)
            del products, direction  # the next step needs their memory
            buffer_bars = problem.earlier_(totals)
            del totals
    finally:  # each pass that is made again has set the generators back
        end.restore()

    # Weights are this rank's own, of its images or of its pairs, so that only what they do to phi is summed.
    flat_weights = flat(weights)
    bars = [_whole(of_weight, w).to(w.dtype) for *of_weight, w in zip(*weight_bars, flat_weights, strict=True)]
    phi_bar = pull_back(flat_weights, bars, list(meta.parameters()))
    problem.phi_joined_(phi_bar)
    return phi_bar


def _leaf(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A head weight to differentiate by, in theta's precision or its own if that is more."""
    wider = torch.promote_types(weight.dtype, dtype)
    # float64 does not mix with other types: the loss says so.
    return weight.detach().to(weight.dtype if wider == torch.float64 else wider).requires_grad_()


def _whole(of_pieces: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The adjoint of a weight from those of what `cut_weights` made of it."""
    if len(of_pieces) == 1:
        return of_pieces[0]
    split = sum(len(bar) for bar in of_pieces) == len(weight)
    return torch.cat(of_pieces) if split else torch.stack(of_pieces).sum(0)


@torch.no_grad()
def _sum(sums: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """``sums`` and ``more`` added in the former's memory; None is zero."""
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, more, strict=True)]


def flat(head_weights: HeadWeights) -> list[Tensor]:
    """Channel weights, then pair weights, one after the other."""
    return [t for w in head_weights if w is not None for t in w]


def edges(tensors: Sequence[Tensor]) -> list[GradientEdge | None]:
    """Where each tensor hangs in its graph, None where in none: enough to differentiate it, without its memory."""
    return [get_gradient_edge(t) if t.requires_grad else None for t in tensors]


def pull_back_onto_(
    outputs: Sequence[GradientEdge | None],
    adjoints: Sequence[Tensor],
    inputs: Sequence[Tensor],
    sums: Sequence[Tensor],
) -> None:
    """Add the vector-Jacobian product of what hangs at some :func:`edges` to `sums`, one tensor an input.

    Each input's product is added as soon as it is complete and its memory is free again, so that no second set of
    tensors of theta's size ever exists. Inputs are leaves; their ``grad`` is left as it was.
    """
    reached = [(o, a) for o, a in zip(outputs, adjoints, strict=True) if o is not None]
    if not reached or not inputs:  # a phi that makes no weights leaves the first step without one
        return
    before = [i.grad for i in inputs]
    try:
        for i, total in zip(inputs, sums, strict=True):
            i.grad = total
        torch.autograd.backward([o for o, _ in reached], [a for _, a in reached], inputs=list(inputs))
    finally:
        for i, grad in zip(inputs, before, strict=True):
            i.grad = grad
