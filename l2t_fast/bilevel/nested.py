"""``method="double_backward"``: the whole look-ahead as one autograd graph, differentiated once more.

The slow oracle: every look-ahead step's graph, with the graph of its gradient, is alive until the end.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from l2t_fast.bilevel.problem import BilevelProblem, gradients


def double_backward(
    problem: BilevelProblem, meta: nn.Module, source_features: Sequence[Tensor], steps: int
) -> list[Tensor]:
    """The hypergradient, one tensor a parameter of meta."""
    with problem.autocast():
        channel_weights, pair_weights = meta(source_features)
    theta = [p.detach().requires_grad_() for p in problem.theta]
    buffers = problem.buffers
    for t in range(steps + 1):
        loss = problem.lookahead_loss(theta, channel_weights, pair_weights, last=t == steps)
        found = problem.joined(gradients(loss, theta, create_graph=True))
        theta, buffers = problem.step(theta, found, buffers)
    logits, _ = problem.run_target(theta)
    phi_bar = gradients(problem.cross_entropy(logits), list(meta.parameters()))
    problem.sum_(phi_bar)
    return phi_bar
