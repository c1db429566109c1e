"""Where the time and memory of a training step go on a GPU: kernels by name, operators of the host, what is alive at
the peak.

    python -m benchmarks.gpu_step_profile [--workloads cifar ...] [--providers exact ...] [--memory]

``host`` is what a call takes to return, which waits once for the loss; ``step`` what it takes until the GPU is done.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from l2t_fast.bench.memory import alive_at_peak
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.steps import make_step

DEVICE = torch.device("cuda")


def seconds(call: Callable[[], object], repeats: int = 7) -> tuple[float, float]:
    """Medians of the time until it returns, and until the GPU is done."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        returned = time.perf_counter()
        torch.cuda.synchronize()
        times.append((returned - start, time.perf_counter() - start))
    return tuple(statistics.median(column) for column in zip(*times, strict=True))


def kernels(profiler: profile) -> dict[str, list[float]]:
    """Microseconds of every launch by the kernel's name, the longest in all first."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.profiler.kineto_results.events():  # profiler.events() takes seconds for thousands
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            found[event.name()].append(event.duration_ns() / 1e3)
    return dict(sorted(found.items(), key=lambda item: -sum(item[1])))


def print_peak(call: Callable[[], object], rows: int) -> None:
    """What one call has allocated when most is alive: bytes by the line of ours or of PyTorch's modules."""
    torch.cuda.memory._record_memory_history("all", stacks="python")
    call()
    torch.cuda.synchronize()
    trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    torch.cuda.memory._record_memory_history(None)
    taken = {"alloc": 1, "free_completed": 0}
    changes = [(e["addr"], taken[e["action"]] * e["size"], e) for e in trace if e["action"] in taken]
    of_line: dict[str, int] = defaultdict(int)
    for size, event in alive_at_peak(changes):
        frames = [f"{f['filename'].rpartition('/')[2]}:{f['line']} {f['name']}" for f in event["frames"]]
        of_line[" < ".join(frames[:4]) or "autograd"] += size
    print(f"    peak {sum(of_line.values()) / 2**20:.0f} MiB beyond what was there before:")
    for line, size in sorted(of_line.items(), key=lambda item: -item[1])[:rows]:
        print(f"    {size / 2**20:9.1f} MiB  {line[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["cifar", "imagenet"])
    parser.add_argument("--providers", nargs="+", default=["exact"])
    parser.add_argument("--kernels", type=int, default=25, help="so many kernels are listed")
    parser.add_argument("--memory", action="store_true", help="what is alive at the peak, too")
    parser.add_argument("--operators", type=int, default=25, help="so many operators of the host are listed")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name())
    for name in arguments.workloads:
        for provider in arguments.providers:
            _, run = make_step(STEP_SETUPS[name], provider, DEVICE)
            for _ in range(3):
                run.call()
            host, step = seconds(run.call)
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                run.call()
                torch.cuda.synchronize()
            found = kernels(profiler)
            total = sum(sum(times) for times in found.values())
            launches = sum(len(times) for times in found.values())
            print(
                f"{name} {provider}: host {host * 1e3:.2f} ms, step {step * 1e3:.2f} ms, "
                f"kernels {total / 1e3:.2f} ms in {launches} launches"
            )
            for kernel, times in list(found.items())[: arguments.kernels]:
                print(f"    {sum(times) / 1e3:9.3f} ms {len(times):6d}  {kernel[:150]}")
            if arguments.memory and not provider.endswith("_graph"):
                print_peak(run.call, arguments.kernels)
            if arguments.operators and not provider.endswith("_graph"):
                with profile(activities=[ProfilerActivity.CPU]) as profiler:
                    run.call()
                    torch.cuda.synchronize()
                table = profiler.key_averages().table(
                    sort_by="self_cpu_time_total", row_limit=arguments.operators, max_name_column_width=50
                )
                print(table, flush=True)


if __name__ == "__main__":
    main()
