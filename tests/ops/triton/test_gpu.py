"""What only a GPU can show of the Triton backend: tf32 and bfloat16, streams, graphs, large maps, compilations."""

import pytest
import torch

from l2t_fast import feature_matching_loss
from l2t_fast.ops import reference
from tests.ops.problems import Problem, draw, draw_directions, in_dtype, solve, truth
from tests.ops.test_values import REALISTIC, relative_errors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def gpu_backend(triton_backend):
    if triton_backend.device != "cuda":
        pytest.skip("Triton's interpreter runs the kernels on the CPU here")
    return triton_backend


def on_gpu(problem: Problem) -> Problem:
    return problem.map(lambda tensor: tensor.to("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", REALISTIC)
def test_with_tf32_the_error_is_at_most_twice_that_of_plain_pytorch(gpu_backend, sizes, dtype):
    problem = on_gpu(in_dtype(draw(*REALISTIC[sizes], batch=4), dtype))
    directions = draw_directions(problem)
    exact = truth(problem, directions)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        found = relative_errors(solve(gpu_backend.matching_loss, problem, directions), exact)
        plain = relative_errors(solve(reference.matching_loss, problem, directions), exact)
    for name, error in found.items():
        # one number, or a plain result that was not rounded to tf32 at all, may happen to be nearly exact
        assert error <= max(2 * plain[name], torch.finfo(torch.float16).eps), f"{name}: {error:.2g}, {plain[name]:.2g}"


def test_a_stream_of_its_own(gpu_backend):
    problem = on_gpu(draw([(16, 9, 9)], [(24, 17, 17)], [(0, 0)], batch=8, dtype=torch.float32))
    directions = draw_directions(problem)
    wanted = solve(gpu_backend.matching_loss, problem, directions).parts()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = solve(gpu_backend.matching_loss, problem, directions).parts()
    torch.cuda.synchronize()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_second_device(gpu_backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    problem = draw([(16, 9, 9)], [(24, 17, 17)], [(0, 0)], dtype=torch.float32)
    directions = draw_directions(problem)
    one, two = (
        solve(gpu_backend.matching_loss, problem.map(lambda t, d=d: t.to(d)), [v.to(d) for v in directions]).parts()
        for d in ("cuda:0", "cuda:1")
    )
    assert all(torch.equal(one[name].cpu(), two[name].cpu()) for name in one)


def test_a_gpu_that_is_the_default_device(gpu_backend, monkeypatch):
    """What the host makes stays the host's; here all of it, as in a process's first call."""
    source, target, weight = (torch.randn(shape, device="cuda") for shape in [(2, 3, 5, 4), (2, 5, 3, 4), (3, 5)])
    arguments = [source], [target.requires_grad_()], [(weight, None)], [(0, 0)]
    (wanted,) = torch.autograd.grad(feature_matching_loss(*arguments, backend="reference"), target)
    monkeypatch.setattr("l2t_fast.ops.triton.launching._arena", None)
    with torch.device("cuda"):
        (found,) = torch.autograd.grad(feature_matching_loss(*arguments, backend=gpu_backend.name), target)
    torch.testing.assert_close(found, wanted)


def test_a_cuda_graph_replays_with_new_numbers(gpu_backend):
    problem = on_gpu(draw([(16, 9, 9), (8, 4, 4)], [(24, 17, 17)], [(0, 0), (1, 0)], dtype=torch.float32))
    problem = problem.requiring_grad()

    def step():
        loss = problem.loss(gpu_backend.matching_loss)
        return [loss, *torch.autograd.grad(loss, problem.inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in [*problem.sources, *problem.inputs]:
            tensor.mul_(1.5)
    # other calls in between, whose tables lie elsewhere
    other = on_gpu(draw([(3, 5, 5)], [(4, 6, 6)], [(0, 0)], dtype=torch.float32)).requiring_grad()
    other.loss(gpu_backend.matching_loss).backward()
    graph.replay()
    for found, wanted in zip(captured, step(), strict=True):
        assert torch.equal(found, wanted)


def test_graphs_of_a_backward_pass_scale_once(gpu_backend):
    """Forward and backward pass have a graph each, and the second is replayed more often than the first."""
    source, target = torch.randn(2, 4, 5, 5, device="cuda"), torch.randn(2, 6, 5, 5, device="cuda", requires_grad=True)
    weight = torch.randn(4, 6, device="cuda", requires_grad=True)

    def loss(target, weight):
        return feature_matching_loss([source], [target], [(weight, None)], [(0, 0)], backend=gpu_backend.name)

    wanted = torch.autograd.grad(2 * loss(target, weight), [target, weight])
    graphed = torch.cuda.make_graphed_callables(loss, (target, weight))(target, weight)
    for _ in range(3):
        found = torch.autograd.grad(2 * graphed, [target, weight], retain_graph=True)
        torch.testing.assert_close(found, wanted)


def test_a_capture_of_sizes_never_seen_says_what_to_do(gpu_backend):
    problem = on_gpu(draw([(5, 7, 7)], [(6, 11, 3)], [(0, 0)], dtype=torch.float32))
    problem.loss(gpu_backend.matching_loss)  # compiled, for these sizes
    fewer = problem.map(lambda t: t[:1] if t.dim() == 4 or t is problem.alpha else t)
    with pytest.raises(RuntimeError, match="call it once before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fewer.loss(gpu_backend.matching_loss)


def test_another_batch_size_compiles_nothing(gpu_backend):
    from l2t_fast.ops.triton import kernels

    def compiled() -> int:
        functions = (kernels.pack_kernel, kernels.differences_kernel, kernels.gradients_kernel, kernels.sums_kernel)
        return sum(len(cache[0]) for function in functions for cache in function.device_caches.values())

    def call(batch: int) -> None:
        problem = on_gpu(draw([(16, 14, 14)], [(64, 28, 28)], [(0, 0)], batch=batch, dtype=torch.float32))
        solve(gpu_backend.matching_loss, problem, draw_directions(problem))

    call(3)
    before = compiled()
    for batch in (1, 16, 37):
        call(batch)
    assert compiled() == before


def test_more_than_two_to_the_31_elements(gpu_backend):
    """Of a map that is strided so: only two samples of it are real memory, far apart."""
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)  # filling it with NaN would take as long as the rest
    memory = torch.empty(2**31 + 4096, dtype=torch.bfloat16, device="cuda")
    channels, side = 16, 8
    far = memory.as_strided((2, channels, side, side), (2**31, side * side, side, 1))
    problem = on_gpu(draw([(16, 8, 8)], [(16, 8, 8)], [(0, 0)], batch=2, dtype=torch.bfloat16))
    far.copy_(problem.targets[0])
    wanted = problem.loss(gpu_backend.matching_loss)
    problem.targets[0] = far
    assert torch.equal(problem.loss(gpu_backend.matching_loss), wanted)
    whole = memory[: 2**31].view(1, 2**11, 2**10, 2**10).zero_()
    source = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16, device="cuda")
    whole[0, -1, -1, -1] = 4
    weight = torch.ones(1, 2**11, dtype=torch.bfloat16, device="cuda")
    loss = feature_matching_loss([source], [whole], [(weight, None)], [(0, 0)], backend=gpu_backend.name)
    assert loss.item() == pytest.approx(16 / 2**20)


def test_peak_memory_holds_no_projected_map(gpu_backend):
    """Eight sources of one target: results, and E of some samples, whatever the batch."""
    problem = on_gpu(
        draw([(64, 28, 28)] * 8, [(64, 28, 28)], [(m, 0) for m in range(8)], batch=256, dtype=torch.float32)
    )
    problem = problem.requiring_grad()
    torch.use_deterministic_algorithms(False)
    problem.loss(gpu_backend.matching_loss)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = problem.loss(gpu_backend.matching_loss)
    torch.cuda.synchronize()
    one_map = problem.targets[0].nbytes
    assert torch.cuda.max_memory_allocated() - before < 3 * one_map, loss
