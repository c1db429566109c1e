"""The Triton kernels in Triton's interpreter, on any machine: the operators' own tests, in a process of their own.

Triton reads TRITON_INTERPRET when it is imported, and this process may need it without.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# A tile takes the interpreter milliseconds: problems of one map each, and a few larger ones.
SELECTIONS = {
    "values": (
        "tests/ops/test_values.py",
        "test_every_dtype_and_size and not (many or several or float64 or bfloat16 or features) or empty or no_pair"
        " or without_pixels or scalar or several_roles",
    ),
    "operators": (
        "tests/ops/test_operators.py",
        "opcheck_with_some_needs or meta or some_inputs_frozen or wrong_arguments or wrong_directions or not_in_memory",
    ),
    "derivatives": (
        "tests/ops/test_derivatives.py",
        "backward_only_scales or nothing_but_the_loss or somebody_else or loss_scale or factor_is_not_rounded"
        " or batches_of_adjoints",
    ),
    "weights of convolutions": ("tests/ops/test_convolution_weights.py", "same_bits and contiguous or other_kernels"),
    "second derivatives": ("tests/ops/triton/test_second_derivatives.py", "triton"),
    "triton": ("tests/ops/triton", "not interpreter and not resources and not second_derivatives"),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's process")
@pytest.mark.parametrize(
    ("what", "native"),
    [(what, True) for what in SELECTIONS]
    # where the operators have derivatives in Python
    + [(what, False) for what in ("operators", "derivatives", "second derivatives")],
)
def test_in_the_interpreter(what, native):
    pytest.importorskip("triton")
    path, expression = SELECTIONS[what]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", path]
    command += [] if native else ["-W", "ignore", "-p", "tests.without_native"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"}
    done = subprocess.run(
        [*command, "-k", f"triton and ({expression})"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
