"""What a call on a GPU takes beside its results, counted without one, against plain PyTorch's there."""

import pytest
import torch
from torch import Tensor

from l2t_fast import _native
from l2t_fast.bench.memory import peak
from l2t_fast.bench.timing import Run
from l2t_fast.bench.workloads import WORKLOADS
from l2t_fast.ops import native
from tests.ops.empty_workloads import empty_tensors

# MiB that the rows of an H100 have for plain PyTorch's loss and gradient in float32, and the share of it that ours may
# take; both without the results.
OF_EAGER = {"cifar": (190, 1 / 4), "imagenet": (2070, 1 / 8), "multi_source_128": (4461, 1 / 20)}


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def assert_small(name: str, taken: int, results: list[Tensor]) -> None:
    eager, share = OF_EAGER[name]
    assert 0 < taken < share * (eager * 2**20 - bytes_of(results))


@pytest.mark.parametrize("name", OF_EAGER)
@pytest.mark.skipif(_native.extension is None, reason="there is no native extension")
def test_of_the_cuda_kernels(name):
    tensors = empty_tensors(name, "cpu")
    results = tensors.slots
    arguments = *tensors, WORKLOADS[name].pairs, [True] * len(results)
    _native.extension.emulate_cuda(132, host_alone=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            held = peak(Run(lambda: native.loss_and_gradients(*arguments)), torch.device("cpu")).allocator
    finally:
        _native.extension.emulate_cuda(0)
    assert_small(name, held - bytes_of(results), results)


@pytest.mark.parametrize("name", OF_EAGER)
def test_of_the_triton_kernels(name):
    pytest.importorskip("triton")
    from tests.ops.triton.test_gram import planner_of

    plan = planner_of(name).plan()
    tables = bytes_of([launch.items for launch in plan.launches])
    assert_small(name, plan.workspace + tables, empty_tensors(name, "meta").slots)
