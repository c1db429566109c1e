"""What the host does for a call of the matching loss on a GPU, measured without one.

    python -m benchmarks.host_time --output benchmarks/results/host_time.csv

Everything up to a launch is done: checks, coefficients, plans, memory, autograd's nodes. CUDA's kernels are left out by
their emulator, Triton's are compiled for sm_90 and handed to a driver that counts them. So results have no value, and
what is missing is the driver's own time, and the copy of Triton's table to the GPU. Where small maps leave a GPU little
to do, this is what a call takes; its ratios carry over from machine to machine, its times do not.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.csv_rows import append
from l2t_fast import _native, ops
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS, Loss
from l2t_fast.bench.workloads import WORKLOADS, Case
from l2t_fast.ops.triton import operators

PROCESSORS = 132  # of an H100


class CountingDriver:
    """Triton's driver of a GPU that is not there: kernels are compiled for it, counted, and not run."""

    def __init__(self) -> None:
        self.launches: list[tuple] = []  # what a launch was handed over with, its grid first
        self.launcher_cls = lambda source, metadata: lambda *arguments: self.launches.append(arguments)
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 64, 0, 1024),  # module, function, registers, spills, threads
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": PROCESSORS},
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def without_cuda_kernels() -> Loss:
    _native.extension.emulate_cuda(PROCESSORS, host_alone=True)
    return LOSS_PROVIDERS["cpu"].make()


def without_triton_kernels(counting: CountingDriver) -> Loss:
    """For the rest of the process, CPU tensors are what Triton's operators take."""
    driver.set_active(counting)
    properties = SimpleNamespace(name="none", multi_processor_count=PROCESSORS)
    torch.cuda.get_device_properties = lambda device: properties
    ops._why_no_triton = lambda gpu: None
    ops.kind_of_devices = lambda backend: None

    # Gradients are scaled in one launch on a GPU. Here it would be a pass over the maps, so they are left as they are.
    torch._foreach_mul_ = lambda tensors, factor: None

    def copies(grad_loss, gradients, *problem):
        return [torch._lazy_clone(gradient) for gradient in gradients]

    for name, compute in (
        ("matching_forward", operators._forward),
        ("matching_backward", copies),
        ("matching_hvp", operators._hvp),
    ):
        operators._LIBRARY.impl(name, compute, "CPU", allow_override=True)
    return LOSS_PROVIDERS["triton"].make()


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["cifar"], choices=WORKLOADS)
    parser.add_argument("--calls", type=int, default=300, help="of each kind")
    parser.add_argument("--output", type=Path, help="CSV file that rows are appended to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = True
    shared = {"run": now(), **conditions(torch.device("cpu"))}
    counting = CountingDriver()
    for backend in ("cuda", "triton"):
        loss = without_cuda_kernels() if backend == "cuda" else without_triton_kernels(counting)
        for name in given.workloads:
            batch = WORKLOADS[name].gpu_batch
            tensors = Case(WORKLOADS[name], batch, "float32", "NCHW").tensors(torch.device("cpu"))
            for mode, run in LOSS_MODES.items():
                call = partial(run, loss, tensors)
                call()  # makes the plan, and with Triton the kernels
                before = len(counting.launches)
                call()
                launches = len(counting.launches) - before if backend == "triton" else None
                taken = sorted(seconds(call) for _ in range(given.calls))
                row = {"workload": name, "batch": batch, "backend": backend, "mode": mode, "launches": launches}
                row["calls"] = given.calls
                row["tenth_us"] = round(taken[len(taken) // 10] * 1e6)  # what is above is other work's
                row["median_us"] = round(taken[len(taken) // 2] * 1e6)
                print(*row.values(), flush=True)
                if given.output:
                    append([shared | row], given.output)


if __name__ == "__main__":
    main()
