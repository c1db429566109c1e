"""The CUDA kernels in the extension take no more of a chip than it has, and no local memory. No GPU is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.cuda_resources import KERNELS, MULTIPLY, Resources, find_cuobjdump, kernels_of
from benchmarks.machine_code import SHARED_BYTES, read_resources
from l2t_fast import _native

REPORT = Path(__file__).parents[3] / "benchmarks" / "results" / "cuda_resources.csv"
MULTIPLYING = {
    (kernel, products, derivative)
    for products in ("tf32", "tf32x3", "bfloat16")
    for kernel, derivative in (("differences", 1), ("differences", 2), ("gradients", 0))
} | {
    *(("gram_products", products, 0) for products in ("tf32x3", "bfloat16")),
    ("gram_projections", "", 0),
    *(("gram_targets", products, 0) for products in ("tf32", "bfloat16")),
}
THREE_PRODUCTS = ("gram_products", "gram_projections")  # of tf32, as kernels with tf32x3 in their names


@pytest.fixture(scope="module")
def kernels():
    if not hasattr(_native.extension, "kernel_image"):
        pytest.skip("the extension is built without CUDA")
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump, neither of a CUDA toolkit nor of Triton")
    return kernels_of(Path(_native.extension.__file__), cuobjdump, "", sass=False)


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_no_kernel_spills(kernels, architecture):
    own = [kernel for kernel in kernels if kernel.architecture == architecture]
    assert {(k.kernel, k.products, k.derivative) for k in own if k.kernel in MULTIPLY} == MULTIPLYING
    for kernel in own:
        assert kernel.stack == kernel.local == 0, kernel
        # two blocks of 256 threads a processor, where shared memory is enough for two
        alone = architecture < 90 or (kernel.products == "tf32x3" and kernel.kernel not in THREE_PRODUCTS)
        assert kernel.registers <= (255 if alone else 128), kernel


def test_the_shared_memory_it_asks_for_is_there(kernels):
    for kernel in kernels:
        assert _native.extension.cuda_shared_bytes + kernel.static_shared <= SHARED_BYTES[kernel.architecture], kernel


def test_the_recorded_report_has_every_kernel_and_no_problem():
    """Made by `python -m benchmarks.cuda_resources --output benchmarks/results/cuda_resources.csv`."""
    rows = read_resources(REPORT, Resources)
    for architecture in SHARED_BYTES:
        own = [row for row in rows if row.architecture == architecture]
        assert {(row.kernel, row.products, row.derivative) for row in own if row.kernel in MULTIPLY} == MULTIPLYING
        assert {row.kernel for row in own} == set(KERNELS)
    assert not [row for row in rows if row.problem]


def test_the_host_calls_no_function_of_the_device(kernels):
    """Inside a template nvcc does not object: it compiles such a call to exit(1), which ends the process."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("there is no nm, of binutils")
    listing = [nm, "--dynamic", "--undefined-only", _native.extension.__file__]
    imported = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    assert "cudaGetLastError" in imported
    assert not [line for line in imported.splitlines() if line.split()[-1].split("@")[0] == "exit"]
