"""``method="exact"``: Hessian-vector products of one look-ahead step at a time, by reverse over reverse.

The gradient of step t is made with its graph, and that graph is differentiated in direction v_t: no graph spans two
steps, so memory does not grow with their number beyond the look-ahead parameters (the last step's graph waits for the
gradient at the end, which takes less than what is done with the graph then), and the second derivatives of
convolution and batch normalisation are cheap ones (:mod:`l2t_fast.bilevel.second_order`). docs/design.md counts why
this is chosen over forward over reverse, which has to run the network once more where the graph is at hand.

The first look-ahead step hands H v to nobody: only the mixed derivative with the channel and pair weights is needed
there, which is the tangent of the features in direction v_0, one forward pass on dual numbers. They know nothing of
hooks and of ``torch.no_grad()``, and not every operation takes them: a target with one of these has its first step
differentiated as the others are.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from l2t_fast.bilevel.gradients import gradients
from l2t_fast.bilevel.holding import HOOKS, SET_GRAD_ENABLED
from l2t_fast.bilevel.problem import BilevelProblem
from l2t_fast.bilevel.second_order import CheapSecondDerivatives
from l2t_fast.bilevel.transposition import HeadWeights, Step, edges, flat, pull_back_onto_
from l2t_fast.ops import own_dual_level


class Exact:
    """Second derivatives by autograd.

    Args:
        keep_graphs: keep the graphs of all steps' gradients, not only the last one's, instead of making them again. A
            tenth less arithmetic at T = 2, but one step's activations more a look-ahead step.
    """

    def __init__(self, *, keep_graphs: bool = False) -> None:
        self.keep_graphs = keep_graphs

    def gradients(self, problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        if (self.keep_graphs or step.next) and not step.first:
            found = self._with_graph(problem, head_weights, step)
            step.kept = edges(found)
            return [g.detach().clone() for g in found]  # what is overwritten must not be what the graph has saved
        with _Watch() as watch:  # of the target alone, which the tangents go through
            outputs = problem.run_target(step.theta)
        step.tangents = not watch.seen
        loss = problem.loss_of(outputs, step.theta, *head_weights, last=step.last)
        del outputs
        return gradients(loss, step.theta)

    def add_products_(
        self,
        problem: BilevelProblem,
        head_weights: HeadWeights,
        step: Step,
        direction: Sequence[Tensor],
        theta_bar: Sequence[Tensor],
        weight_bars: Sequence[Tensor],
    ) -> None:
        weights = flat(head_weights)
        if step.first and step.tangents:
            problem.go_back(step.start)
            try:
                mixed = _mixed_gradients(problem, head_weights, step, direction)
            except RuntimeError:  # an operation without a forward derivative, or one that needs a graph
                pass
            else:
                pull_back_onto_(*mixed, weights, weight_bars)
                return
        if not step.kept:
            problem.go_back(step.start)
            step.kept = edges(self._with_graph(problem, head_weights, step))
        found, step.kept = step.kept, []
        pull_back_onto_(found, direction, [*step.theta, *weights], [*theta_bar, *weight_bars])

    @staticmethod
    def _with_graph(problem: BilevelProblem, head_weights: HeadWeights, step: Step) -> list[Tensor]:
        with CheapSecondDerivatives():
            loss = problem.lookahead_loss(step.theta, *head_weights, last=step.last)
        return gradients(loss, step.theta, create_graph=True)


#: What a target reads that does otherwise with a graph than without. Each access makes another object, equal to these.
_ASKS_FOR_GRAPH = (*HOOKS, Tensor.requires_grad.__get__, Tensor.is_leaf.__get__)
_KNOWN = ("aten", "prims", "l2t_fast")


def _library(operator: OpOverload | OpOverloadPacket) -> str:
    packet = operator.overloadpacket if isinstance(operator, OpOverload) else operator
    return packet._qualified_op_name.partition("::")[0]


class _Watch(TorchFunctionMode):
    """Whether a pass did what its tangents do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Where grad mode is off already, a torch.autograd.Function runs, which brings its derivatives.
        stops = function is SET_GRAD_ENABLED and torch.is_grad_enabled()
        # Operators that were registered with a gradient alone drop tangents without a word.
        registered = isinstance(function, (OpOverload, OpOverloadPacket)) and _library(function) not in _KNOWN
        told = stops or registered or function in _ASKS_FOR_GRAPH
        self.seen |= told or torch.compiler.is_compiling()  # what is compiled shows some of its calls only
        return function(*args, **(kwargs or {}))


# PyTorch has one level of dual numbers in a process, and a thread that meets another's is refused.
_DUAL_NUMBERS = RLock()


@functools.cache
def _load_decompositions() -> None:
    """PyTorch's first dual number makes what others need, and warns of ``torch.jit.script``, which it uses there."""
    # Filters are the process's: one thread at a time changes them and puts them back.
    with _DUAL_NUMBERS, warnings.catch_warnings(), own_dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def _mixed_gradients(
    problem: BilevelProblem, head_weights: HeadWeights, step: Step, direction: Sequence[Tensor]
) -> tuple[list[GradientEdge | None], list[Tensor]]:
    """What, pulled back to the weights, is (d2 f / d weights d theta) v of the matching loss, which K2 does.

    Its gradient for features and projections, where it hangs in its graph, and their tangents in direction v: the
    network on dual numbers.
    """
    _load_decompositions()
    slots = problem.matching_slots
    parameters = [step.theta[i] for i in slots]
    with _DUAL_NUMBERS, own_dual_level():  # grad mode is on, as in the other passes, but nothing requires grad
        duals = [p.detach() for p in step.theta]
        for i in problem.target_slots:
            duals[i] = forward_ad.make_dual(duals[i], direction[i])
        unpacked = [forward_ad.unpack_dual(f) for f in problem.run_target(duals)[1]]
        features = [u.primal.detach() for u in unpacked]
        tangents = [torch.zeros_like(u.primal) if u.tangent is None else u.tangent.detach() for u in unpacked]
    gathered = problem.gathered([*features, *tangents])  # once, and nothing goes back: only the weights are looked at
    features = [f.detach().requires_grad_() for f in gathered[: len(features)]]
    tangents = gathered[len(features) :]
    loss = problem.matching_loss(parameters, features, *head_weights)
    found = gradients(loss, [*features, *parameters], create_graph=True)
    return edges(found), [*tangents, *(direction[i] for i in slots)]
