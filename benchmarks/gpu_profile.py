"""Where the time of the matching loss goes on a GPU: each kernel's time, the GPU's in all, and the host's.

    python -m benchmarks.gpu_profile [--workloads cifar ...] [--backends cuda ...] [--forms auto direct gram] [--ieee]

``host`` is what a call takes to return, without waiting for the GPU; ``events`` what it takes between two CUDA events
on a cold cache; ``graph`` the same of a replayed CUDA graph, in which the host takes no part. ``--forms`` compares the
forms that the cuda backend chooses from (csrc/cuda/README.md); the other backends have one.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from l2t_fast import _native
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS
from l2t_fast.bench.timing import Stopwatch
from l2t_fast.bench.workloads import WORKLOADS, Case

CALLS = 5
DEVICE = torch.device("cuda")


def kernel_times(call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Launches and microseconds of one call by kernel, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name].append(event.device_time)
    by_time = sorted(found.items(), key=lambda item: -sum(item[1]))
    return {name: (len(times) // CALLS, sum(times) / CALLS) for name, times in by_time}


def host_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def event_seconds(call: Callable[[], object], repeats: int = 15) -> float:
    watch = Stopwatch(DEVICE)
    return statistics.median(watch.seconds(call) for _ in range(repeats))


def graph_seconds(call: Callable[[], object]) -> float | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = call()  # noqa: F841  (the graph writes into it)
    except Exception as problem:
        print(f"    no graph: {problem}")
        return None
    return event_seconds(graph.replay)


def report(case: Case, backend: str, form: str, mode: str, shown: int) -> None:
    loss, tensors = LOSS_PROVIDERS[backend].make(), case.tensors(DEVICE)
    if _native.extension is not None:
        _native.extension.force_algorithm(form)

    def call() -> object:
        return LOSS_MODES[mode](loss, tensors)

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    kernels = kernel_times(call)
    total = sum(time for _, time in kernels.values())
    graph = graph_seconds(call)
    print(
        f"{case.workload.name} B={case.batch} {case.dtype} {backend} {form} {mode}: "
        f"host {host_seconds(call) * 1e3:.3f} ms, "
        f"events {event_seconds(call) * 1e3:.3f} ms, "
        + ("" if graph is None else f"graph {graph * 1e3:.3f} ms, ")
        + f"kernels {total / 1e3:.3f} ms in {sum(n for n, _ in kernels.values())} launches"
    )
    for kernel, (launches, taken) in list(kernels.items())[:shown]:
        print(f"    {taken:9.1f} us  {launches:4d} x  {kernel[:100]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["tiny", "cifar", "imagenet", "multi_source_128"])
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    parser.add_argument("--forms", nargs="+", default=["auto"], choices=["auto", "direct", "gram"])
    parser.add_argument("--modes", nargs="+", default=["forward_backward", "second_order"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--kernels", type=int, default=12, help="so many kernels are listed")
    parser.add_argument("--ieee", action="store_true", help="products in float32 as asked for without TF32")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = not arguments.ieee
    print(torch.cuda.get_device_name())
    for dtype in arguments.dtypes:
        for name in arguments.workloads:
            case = WORKLOADS[name].case(DEVICE, dtype=dtype)
            for backend in arguments.backends:
                for form in arguments.forms if backend == "cuda" else ["auto"]:
                    for mode in arguments.modes:
                        report(case, backend, form, mode, arguments.kernels)


if __name__ == "__main__":
    main()
