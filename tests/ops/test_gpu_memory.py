"""What a call on a GPU takes beside its results, counted without one, against plain PyTorch's there."""

import pytest
import torch
from torch import Tensor

from l2t_fast import _native
from l2t_fast.bench.memory import peak
from l2t_fast.bench.timing import Run
from l2t_fast.bench.workloads import WORKLOADS
from l2t_fast.ops import native

# MiB that the rows of an H100 have for plain PyTorch's loss and gradient in float32, and the share of it that ours may
# take; both without the results.
OF_EAGER = {"cifar": (190, 1 / 4), "imagenet": (2070, 1 / 8), "multi_source_128": (4461, 1 / 20)}


def tensors_of(name: str, device: str) -> tuple[list[Tensor], ...]:
    """Sources, targets, weights, biases and alpha without values, at the GPU's batch size."""
    workload = WORKLOADS[name]
    batch = workload.gpu_batch

    def empty(*size: int) -> Tensor:
        return torch.empty(*size, device=device)

    sources = [empty(batch, *size) for size in workload.sources]
    targets = [empty(batch, *size) for size in workload.targets]
    weights = [empty(workload.sources[m][0], workload.targets[n][0]) for m, n in workload.pairs]
    biases = [empty(len(weight)) for weight in weights]
    return sources, targets, weights, biases, [empty(batch, sum(map(len, weights)))]


def assert_small(name: str, taken: int, results: list[Tensor]) -> None:
    eager, share = OF_EAGER[name]
    own = sum(map(lambda t: t.numel() * t.element_size(), results))
    assert 0 < taken < share * (eager * 2**20 - own)


@pytest.mark.parametrize("name", OF_EAGER)
@pytest.mark.skipif(_native.extension is None, reason="there is no native extension")
def test_of_the_cuda_kernels(name):
    sources, targets, weights, biases, [alpha] = tensors_of(name, "cpu")
    results = [*targets, *weights, *biases, alpha]
    arguments = sources, targets, weights, biases, alpha, WORKLOADS[name].pairs, [True] * len(results)
    _native.extension.emulate_cuda(132, host_alone=True)
    try:
        with torch.backends.cudnn.flags(allow_tf32=True):
            held = peak(Run(lambda: native.loss_and_gradients(*arguments)), torch.device("cpu")).allocator
    finally:
        _native.extension.emulate_cuda(0)
    assert_small(name, held - sum(t.numel() * t.element_size() for t in results), results)


@pytest.mark.parametrize("name", OF_EAGER)
def test_of_the_triton_kernels(name):
    pytest.importorskip("triton")
    from l2t_fast.ops.triton.arguments import Arguments
    from l2t_fast.ops.triton.planning import Planner
    from l2t_fast.ops.triton.tiles import TABLES

    sources, targets, weights, biases, [alpha] = tensors_of(name, "meta")
    results = [*targets, *weights, *biases, alpha]
    pairs = [index for pair in WORKLOADS[name].pairs for index in pair]
    arguments = Arguments(sources, targets, weights, biases, alpha, pairs, [True] * len(results))
    options = {"precision": "tf32", "tiles": TABLES["tf32"], "processors": 132, "compiles": True}
    plan = Planner(arguments, None, results, **options).plan()
    tables = sum(launch.items.numel() * launch.items.element_size() for launch in plan.launches)
    assert_small(name, plan.workspace + tables, results)
