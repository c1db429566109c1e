"""The CPU code of every instruction set the machine has: PyTorch's variable chooses it when a process starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l2t_fast.ops import why_unavailable

ROOT = Path(__file__).resolve().parents[2]
BELOW = {"DEFAULT": [], "AVX2": ["default"], "AVX512": ["default", "avx2"]}
LOWER = BELOW.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_lower_instruction_sets(capability):
    """The machine's highest is what all other tests run."""
    if (problem := why_unavailable("cpu")) is not None:
        pytest.skip(f"the cpu backend is not available: {problem}")
    if capability not in LOWER:
        pytest.skip(f"{capability} is not below this machine's {torch.backends.cpu.get_cpu_capability()}")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("tests/ops/test_values.py", "tests/test_convolution.py"),
            *("-k", "every_dtype_and_size or at_most_twice or in_float64 or drawn_shapes"),
        ],
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
