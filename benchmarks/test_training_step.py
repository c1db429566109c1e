"""``pytest benchmarks/``: whole training steps and hypergradients under pytest-benchmark."""

import functools

import pytest
import torch

from l2t_fast.bench.hypergradients import hypergradient_providers
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.step_suite import hypergradient_field, step_field
from l2t_fast.bench.steps import step_providers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIELDS = {
    "step": (step_field, list(step_providers(DEVICE))),
    "hypergradient": (hypergradient_field, list(hypergradient_providers())),
}


@functools.cache
def field(mode, setup):
    make, names = FIELDS[mode]
    return make(STEP_SETUPS[setup], names, DEVICE)


@pytest.mark.parametrize(("mode", "provider"), [(mode, name) for mode, (_, names) in FIELDS.items() for name in names])
@pytest.mark.parametrize("setup", ["tiny", "cifar"])
def test_training(benchmark, setup, mode, provider):
    contender = field(mode, setup).contenders[provider]
    if contender.why_not:
        pytest.skip(contender.why_not)
    contender.start()
    contender.run.prepare()
    contender.run.call()
    error = contender.error()
    assert error <= max(field(mode, setup).tolerance, contender.approximation)
    benchmark.group = f"{setup}, {mode}"
    benchmark.extra_info["error"] = error
    benchmark.pedantic(contender.run.call, setup=contender.run.prepare, rounds=5)
