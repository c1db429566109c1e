"""Where the time of the matching loss goes on a GPU: each kernel's time, the GPU's in all, and the host's.

    python -m benchmarks.gpu_profile [--workloads cifar ...] [--backends cuda ...] [--forms auto direct gram] [--ieee]

``host`` is what a call takes to return, without waiting for the GPU; ``events`` what it takes between two CUDA events
on a cold cache; ``graph`` the same of a replayed CUDA graph, in which the host takes no part. ``--forms`` compares the
forms that the cuda backend chooses from (csrc/cuda/README.md); the other backends have one. All times are taken before
the first look at single kernels: once PyTorch's profiler has run in a process, every launch takes the host longer.
Rows are written as they come, one of each call first, without launches and kernels' time, then one of each kernel.
"""

import argparse
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.csv_rows import append
from l2t_fast import _native
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS
from l2t_fast.bench.timing import Stopwatch
from l2t_fast.bench.workloads import WORKLOADS, Case, Tensors

CALLS = 5
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    case: Case
    backend: str
    form: str
    mode: str
    ieee: bool

    def __str__(self) -> str:
        return "{workload} B={batch} {dtype} {products} {backend} {form} {mode}".format(**self.columns())

    def columns(self) -> dict[str, object]:
        return {
            "workload": self.case.workload.name,
            "batch": self.case.batch,
            "dtype": self.case.dtype,
            "products": "ieee" if self.ieee else "tf32",
            "backend": self.backend,
            "form": self.form,
            "mode": self.mode,
        }

    def call(self) -> Callable[[], object]:
        """One that has been made some times already."""
        if _native.extension is not None:
            _native.extension.force_algorithm(self.form)
        loss, tensors = LOSS_PROVIDERS[self.backend].make(), tensors_of(self.case)

        def call() -> object:
            return LOSS_MODES[self.mode](loss, tensors)

        for _ in range(3):
            call()
        torch.cuda.synchronize()
        return call


@functools.cache
def tensors_of(case: Case) -> Tensors:
    """Made once: drawing those of 128 pairs takes the host seconds."""
    return case.tensors(DEVICE)


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call."""

    host_ms: float
    events_ms: float
    graph_ms: float | None


def times(call: Callable[[], object]) -> Times:
    host, events = 1e3 * host_seconds(call), 1e3 * event_seconds(call)
    graph = graph_seconds(call)
    return Times(host, events, None if graph is None else 1e3 * graph)


def kernel_times(call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Launches and milliseconds of one call by kernel, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name].append(event.device_time / 1e3)
    by_time = sorted(found.items(), key=lambda item: -sum(item[1]))
    return {name: (len(taken) // CALLS, sum(taken) / CALLS) for name, taken in by_time}


def host_seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


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


def row_of_call(subject: Subject, taken: Times) -> dict[str, object]:
    graph = "" if taken.graph_ms is None else f", graph {taken.graph_ms:.3f} ms"
    print(f"{subject}: host {taken.host_ms:.3f} ms, events {taken.events_ms:.3f} ms{graph}", flush=True)
    return subject.columns() | {"kernel": "", "launches": None, "kernels_ms": None} | rounded(asdict(taken))


def rows_of_kernels(subject: Subject, kernels: dict[str, tuple[int, float]], shown: int) -> list[dict[str, object]]:
    launches, total = sum(count for count, _ in kernels.values()), sum(ms for _, ms in kernels.values())
    print(f"{subject}: kernels {total:.3f} ms in {launches} launches", flush=True)
    for name, (count, ms) in list(kernels.items())[:shown]:
        print(f"    {1e3 * ms:9.1f} us  {count:4d} x  {name[:100]}", flush=True)
    no_times = dict.fromkeys(field.name for field in fields(Times))
    return [
        subject.columns() | {"kernel": name, "launches": count} | rounded({"kernels_ms": ms}) | no_times
        for name, (count, ms) in kernels.items()
    ]


def rounded(columns: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 5) for name, value in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["tiny", "cifar", "imagenet", "multi_source_128"])
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    parser.add_argument("--forms", nargs="+", default=["auto"], choices=["auto", "direct", "gram"])
    parser.add_argument("--modes", nargs="+", default=["forward_backward", "second_order"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument(
        "--kernels", type=int, default=12, help="so many kernels are listed; 0: times of whole calls only"
    )
    parser.add_argument("--ieee", action="store_true", help="products in float32 as asked for without TF32")
    parser.add_argument("--output", type=Path, help="CSV file that rows are appended to, of all kernels")
    given = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = not given.ieee
    print(torch.cuda.get_device_name(), flush=True)
    shared = {"run": now(), **conditions(DEVICE)}
    subjects = [
        Subject(WORKLOADS[name].case(DEVICE, dtype=dtype), backend, form, mode, given.ieee)
        for dtype in given.dtypes
        for name in given.workloads
        for backend in given.backends
        for form in (given.forms if backend == "cuda" else ["auto"])
        for mode in given.modes
    ]

    def keep(rows: list[dict[str, object]]) -> None:
        if given.output and rows:
            append([shared | row for row in rows], given.output)

    for subject in subjects:
        keep([row_of_call(subject, times(subject.call()))])
    for subject in subjects if given.kernels else []:
        keep(rows_of_kernels(subject, kernel_times(subject.call()), given.kernels))


if __name__ == "__main__":
    main()
