"""Second derivatives by the Triton kernels, in C++ or, where there is no native code, in Python.

What test_derivatives.py shows in float64, which the kernels do not compute, is compared with the reference in float32.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from l2t_fast.ops import reference
from tests.ops.problems import Problem, assert_accurate, draw, draw_directions, in_dtype, solve


@pytest.fixture
def problem(triton_backend) -> Problem:
    problem = draw([(3, 2, 3)], [(2, 3, 3)], [(0, 0)], dtype=torch.float32)
    return problem.map(lambda t: t.to(triton_backend.device)).requiring_grad()


def close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_factor_on_the_loss_is_differentiated_along(triton_backend, problem):
    factor = torch.tensor(0.7, device=triton_backend.device, requires_grad=True)

    def products(matching_loss: Callable[..., Tensor]) -> Sequence[Tensor]:
        loss = factor**3 * problem.loss(matching_loss)
        gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
        return torch.autograd.grad(gradients, [factor, *problem.inputs], draw_directions(problem))

    close(products(triton_backend.matching_loss), products(reference.matching_loss))


def test_the_operator_s_loss_and_gradients_differentiated_together(triton_backend, problem):
    def derivative(loss: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(3 * loss + sum(g.square().sum() for g in gradients), problem.inputs)

    found = derivative(*triton_backend.ops.matching_forward(*problem.operator_arguments()))
    loss = problem.loss(reference.matching_loss)
    close(found, derivative(loss, torch.autograd.grad(loss, problem.inputs, create_graph=True)))


def test_maps_of_float16(triton_backend, problem):
    """Gradients may leave the node wider than their inputs; directions come back as wide."""
    problem = in_dtype(problem, torch.float16)
    directions = draw_directions(problem)
    assert_accurate(solve(triton_backend.matching_loss, problem, directions), problem, directions)


def test_a_third_derivative_through_the_directions_raises(triton_backend, problem):
    problem = problem.map(Tensor.detach)
    moved = torch.ones_like(problem.targets[0]).requires_grad_()
    *arguments, needs = problem.operator_arguments()
    products = triton_backend.ops.matching_hvp(*arguments, [moved, None, None, None], needs)
    with pytest.raises(NotImplementedError, match="three times"):
        torch.autograd.grad(products[0].sum(), moved)


def test_a_third_derivative_through_a_factor_on_the_loss_raises(triton_backend, problem):
    factor = torch.ones((), device=triton_backend.device, requires_grad=True)
    loss = factor * problem.loss(triton_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    (slope,) = torch.autograd.grad(gradients, factor, draw_directions(problem), create_graph=True)
    with pytest.raises(NotImplementedError, match="three times"):
        torch.autograd.grad(slope, problem.inputs)


def test_a_source_that_requires_grad_is_refused_by_the_backward_operator_too(triton_backend, problem):
    arguments = problem.map(Tensor.detach).operator_arguments()
    _, gradients = triton_backend.ops.matching_forward(*arguments)
    arguments[0][0].requires_grad_()
    with pytest.raises(ValueError, match="source feature 0 requires grad"):
        triton_backend.ops.matching_backward(torch.ones((), device=triton_backend.device), gradients, *arguments)


@pytest.mark.parametrize("which", range(4))
def test_a_forward_mode_tangent_of_a_direction_raises(triton_backend, problem, which):
    *arguments, needs = problem.map(Tensor.detach).operator_arguments()
    with forward_ad.dual_level():
        directions = [
            forward_ad.make_dual(v, v) if slot == which else v for slot, v in enumerate(draw_directions(problem))
        ]
        with pytest.raises(NotImplementedError, match="forward-mode tangent"):
            triton_backend.ops.matching_hvp(*arguments, directions, needs)
