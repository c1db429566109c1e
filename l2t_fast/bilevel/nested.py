"""``method="double_backward"``: the whole look-ahead as one autograd graph, differentiated once more.

The slow oracle: every look-ahead step's graph, with the graph of its gradient, is alive until the end.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from l2t_fast.bilevel.gradients import gradients
from l2t_fast.bilevel.problem import BilevelProblem, check_teaches, cut_weights
from l2t_fast.bilevel.second_order import RightSecondDerivatives


def double_backward(
    problems: Sequence[BilevelProblem], meta: nn.Module, source_features: Sequence[Tensor], steps: int
) -> list[Tensor]:
    """The hypergradient, one tensor a parameter of meta; ``problems`` as for `transposition.transposed`."""
    problem = problems[0]
    weights = problem.head_weights(meta, source_features)
    pieces = cut_weights(weights, [p.matched for p in problems])
    theta = [p.detach().requires_grad_() for p in problem.theta]
    buffers = problem.buffers
    for t in range(steps + 1):
        with RightSecondDerivatives():
            losses = [p.lookahead_loss(theta, *w, last=t == steps) for p, w in zip(problems, pieces, strict=True)]
        found = problem.joined(gradients(sum(losses), theta, create_graph=True))
        theta, buffers = problem.step(theta, found, buffers)
    task_loss = sum(p.task_loss(p.run_target(theta)[0]) for p in problems)
    check_teaches(problems)
    phi_bar = gradients(task_loss, list(meta.parameters()))
    problem.phi_joined_(phi_bar)
    return phi_bar
