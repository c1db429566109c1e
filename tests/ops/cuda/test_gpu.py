"""What only a GPU can show of the CUDA backend: what it shows of Triton's, but for what Triton compiles."""

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
