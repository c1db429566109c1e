"""What runs around the kernels on a GPU, on a fake one: the quick part of `make fakegpu`."""

import os
import subprocess
import sys

import pytest
import torch

from tests.fake_gpu.build import ROOT, why_not

QUICK = (
    *("tests/ops/cuda/test_gpu.py", "tests/ops/cuda/test_coefficients.py", "tests/transfer/test_step_graph_gpu.py"),
    *("tests/ops/test_operators.py", "-k"),
    "stream_of or second_device or graph_replays or gpu- or scratch or (exact and plain) or (gram_form and flat) "
    "or (without_graph_breaks and cuda)",
)
COMPILED = (
    *("tests/ops/cuda/test_gpu.py", "tests/ops/triton/test_gpu.py", "tests/bilevel/test_second_order.py"),
    "-k",
    "stream_of or default_device or (plain_pytorch and smaller and not cpu and not dtype2) or (gram_form and flat) "
    "or (as_good_as_pytorch and cuda)",
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("code", ["emulator", "compiled"])
def test_on_a_fake_gpu(code):
    """Some of the tests that need a GPU, our kernels in their emulator; and what nvcc and Triton made of them."""
    tests = QUICK if code == "emulator" else COMPILED
    told = on_a_fake_gpu("pytest", "-q", "--tb=short", "-n", "0", *tests, code=code)
    assert " passed" in told[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_instructions_are_counted():
    """Every kernel of a small call, and what they add up to."""
    told = on_a_fake_gpu(
        "benchmarks.gpu_instructions", "--workloads", "tiny", "--batch", "2", "--backends", "cuda", code="compiled"
    )
    rows = {row.split()[7]: [int(number) for number in row.split()[8:]] for row in told}
    assert {"differences", "gradients", "pack", "finish", "all"} <= set(rows)
    *kernels, whole = rows.values()
    assert [sum(numbers) for numbers in zip(*kernels, strict=True)] == whole
    instructions, *kinds = whole[2:7]  # those of tensor cores first
    assert kinds[0] > 0 and sum(kinds) == instructions


def on_a_fake_gpu(*arguments: str, code: str) -> list[str]:
    """The lines that a module prints in a process of its own with two GPUs."""
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    environment = os.environ | {"FAKE_GPUS": "2", "FAKE_GPU_CODE": code}
    command = [sys.executable, "-m", "tests.fake_gpu", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    return ran.stdout.splitlines()
