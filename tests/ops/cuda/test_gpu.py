"""What only a GPU can show of the CUDA backend: what it shows of Triton's, but for what Triton compiles."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from l2t_fast.ops import implementation, why_unavailable
from tests.ops.conftest import Backend
from tests.ops.cuda.conftest import gram_form, same_bits
from tests.ops.cuda.test_gram import SHAPES
from tests.ops.problems import assert_accurate, draw, draw_directions, solve
from tests.ops.triton.test_gpu import (
    test_a_cuda_graph_replays_with_new_numbers,  # noqa: F401
    test_a_stream_of_its_own,  # noqa: F401
    test_graphs_of_a_backward_pass_scale_once,  # noqa: F401
    test_more_than_two_to_the_31_elements,  # noqa: F401
    test_peak_memory_holds_no_projected_map,  # noqa: F401
    test_the_second_device,  # noqa: F401
    test_with_tf32_the_error_is_at_most_twice_that_of_plain_pytorch,  # noqa: F401
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def gpu_backend():
    problem = why_unavailable("cuda")
    if problem is not None:
        pytest.skip(f"the cuda backend is not available: {problem}")
    return Backend("cuda", "cuda", implementation("cuda"), (torch.float32, torch.bfloat16, torch.float16))


CONTEXTS = """
import torch
from l2t_fast.environment import describe_environment
from l2t_fast.ops import why_unavailable
torch.cuda.init()
def contexts():
    return [int(torch._C._cuda_hasPrimaryContext(gpu)) for gpu in range(2)]
describe_environment(torch.device("cpu"))
print(*contexts())
why_unavailable("cuda", torch.device("cuda", 1))
print(*contexts(), torch.cuda.current_device())
describe_environment(torch.device("cuda", 1))
print(*contexts())
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second device")
def test_the_second_device_alone_is_asked_what_it_runs():
    """Each that is asked has a context from then on, some 500 MiB of its memory."""
    ran = subprocess.run([sys.executable, "-c", CONTEXTS], capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["0 0", "0 1 0", "0 1"], ran.stdout + ran.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_form(gpu_backend, shape, dtype):
    """Which problems as small as these do not take by themselves."""
    problem = draw(*SHAPES[shape], batch=3, dtype=dtype).map(lambda tensor: tensor.to("cuda"))
    directions = draw_directions(problem)
    with gram_form():
        answer, again = (solve(gpu_backend.matching_loss, problem, directions) for _ in range(2))
    assert_accurate(answer, problem, directions, roundings=4 * 2**12)
    assert same_bits(answer.parts(), again.parts())


@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_gradients_times_a_factor(gpu_backend, factor):
    """They are scaled where they lie, and not even read where the factor is one."""
    count = 90  # of pairs, each with a weight and a bias: more results than one launch takes
    sizes = [(3, 4, 4), (130, 40, 30)], [(5, 4, 4), (66, 40, 30)], [(0, 0)] * count + [(1, 1)]
    problem = draw(*sizes, batch=2, dtype=torch.float32).map(lambda tensor: tensor.to("cuda"))
    problem = replace(problem, targets=[problem.targets[0], problem.targets[1].bfloat16()])
    inputs = [tensor.requires_grad_() for tensor in (*problem.targets, *problem.weights, *problem.biases)]

    def gradients(factor):
        loss = gpu_backend.matching_loss(
            problem.sources, problem.targets, problem.weights, problem.biases, problem.alpha, problem.pairs
        )
        return torch.autograd.grad(loss, inputs, torch.full_like(loss, factor))

    plain = gradients(1.0)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for found, gradient in zip(gradients(factor), plain, strict=True):
        assert torch.equal(found, (factor * gradient.float()).to(gradient.dtype))
