"""The CUDA kernels in the extension take no more of a chip than it has, and no local memory. No GPU is needed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.cuda_resources import KERNELS, MULTIPLY, Resources, find_cuobjdump, kernels_of
from benchmarks.machine_code import CHOSEN_FOR, SHARED_BYTES, read_resources
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


@pytest.mark.parametrize("architecture", CHOSEN_FOR)
def test_no_kernel_spills(kernels, architecture):
    own = [kernel for kernel in kernels if kernel.architecture == architecture]
    assert {(k.kernel, k.products, k.derivative) for k in own if k.kernel in MULTIPLY} == MULTIPLYING
    for kernel in own:
        assert kernel.stack == kernel.local == 0, kernel
        # two blocks of 256 threads a processor, where shared memory is enough for two
        alone = architecture < 90 or (kernel.products == "tf32x3" and kernel.kernel not in THREE_PRODUCTS)
        assert kernel.registers <= (255 if alone else 128), kernel


def test_the_shared_memory_it_asks_for_is_there(kernels):
    own = {k.static_shared for k in kernels if k.kernel in MULTIPLY and k.architecture == 80}
    for architecture, available in SHARED_BYTES.items():
        assert _native.extension.cuda_shared_bytes + max(own) <= available, architecture


def test_the_ptx_for_newer_chips_compiles_without_spills(kernels, tmp_path):
    """What a driver makes of it for a GPU that there is no machine code for, here one of 12.0."""
    ptxas = shutil.which("ptxas", path="/usr/local/cuda/bin") or shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("there is no ptxas, of a CUDA toolkit")
    library = Path(_native.extension.__file__).resolve()
    subprocess.run([find_cuobjdump(), "-xptx", "all", library], check=True, capture_output=True, cwd=tmp_path)
    compiled = 0
    for ptx in tmp_path.glob("*.ptx"):
        command = [ptxas, "-arch=sm_120", "-v", ptx, "-o", tmp_path / "cubin"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", told)
        assert all(bytes_of == ("0", "0") for bytes_of in spills), told
        compiled += len(spills)
    assert compiled == sum(kernel.architecture == 80 for kernel in kernels)


def test_the_recorded_report_has_every_kernel_and_no_problem():
    """Made by `python -m benchmarks.cuda_resources --output benchmarks/results/cuda_resources.csv`."""
    rows = read_resources(REPORT, Resources)
    for architecture in CHOSEN_FOR:
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
