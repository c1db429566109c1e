"""Times and memory of the matching loss on the CPU, as ratios within one run.

    python -m benchmarks.matching_cpu --workloads cifar imagenet --threads 2 --repeats 9

Providers take turns, so that a slow moment of the machine meets all of them; the ratio is that of medians. The first
call of each (torch.compile compiles there) is not counted. Peak memory is what PyTorch's allocator hands out above the
inputs, at its highest; the results (gradients) are in it, and are counted on their own beside it. With ``--output``, a
row per measurement is appended to a CSV file.
"""

import argparse
import csv
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.providers import MEASURES, PROVIDERS, provides
from benchmarks.workloads import WORKLOADS
from l2t_fast.environment import source_commit

COLUMNS = (
    "date", "commit", "device", "capability", "torch", "python", "threads", "workload", "measure", "provider",
    "runs", "median_ms", "p20_ms", "p80_ms", "ratio_to_fused", "peak_extra_mib", "results_mib",
)  # fmt: skip


def times(workload: str, measure: str, providers: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of ``repeats`` runs, a list a provider."""
    tensors = WORKLOADS[workload].tensors()
    losses = {name: PROVIDERS[name]() for name in providers}
    run = MEASURES[measure]
    for loss in losses.values():
        run(loss, tensors)
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(repeats):
        for name, loss in losses.items():
            start = time.perf_counter()
            run(loss, tensors)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_extra_mib(workload: str, measure: str, provider: str) -> tuple[float, float]:
    """The most memory held during one run beyond the inputs, and the size of the results, both in MiB."""
    tensors, loss = WORKLOADS[workload].tensors(), PROVIDERS[provider]()
    run = MEASURES[measure]
    run(loss, tensors)  # torch.compile compiles here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        results = run(loss, tensors)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20, sum(result.nbytes for result in results) / 2**20


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["cifar", "imagenet"])
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--repeats", type=int, default=9, help="runs a provider, after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="CSV file to append the rows to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows = []
    for workload in arguments.workloads:
        for measure in arguments.measures:
            providers = [name for name in arguments.providers if provides(name, measure)]
            seconds = times(workload, measure, providers, arguments.repeats)
            fused = statistics.median(seconds["fused"]) if "fused" in seconds else None
            for name in providers:
                memory = peak_extra_mib(workload, measure, name)
                ordered = sorted(1e3 * value for value in seconds[name])
                row = {
                    "date": datetime.date.today().isoformat(),
                    "commit": source_commit(),
                    "device": _processor(),
                    "capability": torch.backends.cpu.get_cpu_capability(),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "threads": arguments.threads,
                    "workload": workload,
                    "measure": measure,
                    "provider": name,
                    "runs": arguments.repeats,
                    "median_ms": f"{statistics.median(ordered):.1f}",
                    "p20_ms": f"{ordered[round(0.2 * (len(ordered) - 1))]:.1f}",
                    "p80_ms": f"{ordered[round(0.8 * (len(ordered) - 1))]:.1f}",
                    "ratio_to_fused": f"{statistics.median(seconds[name]) / fused:.2f}" if fused else "",
                    "peak_extra_mib": f"{memory[0]:.1f}",
                    "results_mib": f"{memory[1]:.1f}",
                }
                rows.append(row)
                print(
                    f"{workload:<24} {measure:<15} {name:<8} {row['median_ms']:>9} ms  "
                    f"({row['p20_ms']} to {row['p80_ms']})  {row['ratio_to_fused']:>6} x fused  "
                    f"{row['peak_extra_mib']:>8} MiB, results {row['results_mib']}",
                    flush=True,
                )
    if arguments.output:
        new = not arguments.output.exists()
        with arguments.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
