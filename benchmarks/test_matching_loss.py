"""``pytest benchmarks/``: the matching loss under pytest-benchmark, over the registries of ``l2t_fast.bench``.

A provider's results are held against float64 first; a wrong one fails instead of being timed. Set-up and the first call
are outside the figure. For recorded rows, memory and ratios use ``l2t-fast bench run``, whose providers take turns.
"""

import pytest
import torch

from l2t_fast.bench.errors import largest_error
from l2t_fast.bench.loss_suite import tolerance
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS, why_not
from l2t_fast.bench.truth import truth
from l2t_fast.bench.workloads import WORKLOADS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("tiny", "single", "cifar", "imagenet")


@pytest.mark.parametrize("provider", LOSS_PROVIDERS)
@pytest.mark.parametrize("mode", LOSS_MODES)
@pytest.mark.parametrize("workload", NAMES)
def test_matching_loss(benchmark, workload, mode, provider):
    reason = why_not(provider, mode, "float32", DEVICE)
    if reason:
        pytest.skip(reason)
    case = WORKLOADS[workload].case(DEVICE)
    tensors = case.tensors(DEVICE)
    torch.compiler.reset()
    loss = LOSS_PROVIDERS[provider].make()

    def call():
        results = LOSS_MODES[mode](loss, tensors)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return results

    error = largest_error(call(), truth(tensors, mode))
    assert error <= tolerance(case, DEVICE)
    benchmark.group = f"{workload}, B={case.batch}, {mode}"
    benchmark.extra_info["error"] = error
    benchmark.pedantic(call, warmup_rounds=1, rounds=5)
