"""What is alive when a training step holds most memory on a CPU: bytes by the operator that took them, and for whom.

    python -m benchmarks.step_memory [--workloads cifar ...] [--providers exact ...] [--batch 128]

`benchmarks.gpu_step_profile --memory` is the same for a GPU. Scratch that libraries take for themselves is not seen.
"""

import argparse
import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch._C._profiler import _EventType, _ProfilerEvent
from torch.profiler import ProfilerActivity, profile

from l2t_fast.bench.memory import alive_at_peak, without_profiler_log
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.steps import make_step

CPU = torch.device("cpu")
CALLERS = 5  # so many names of operators and of our own functions say where a block comes from


def peak_by_place(call: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """(bytes, blocks) by where they come from, the most first, when one call holds most.

    What was there before does not count.
    """
    with (
        without_profiler_log(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, with_stack=True) as profiled,
    ):
        result = call()
    del result
    events = list(profiled.profiler.kineto_results.experimental_event_tree())
    blocks: list[_ProfilerEvent] = []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            blocks.append(event)
    blocks.sort(key=lambda event: event.start_time_ns)
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for size, event in alive_at_peak((e.extra_fields.ptr, e.extra_fields.alloc_size, e) for e in blocks):
        place = where(event)
        of_place, count = found[place]
        found[place] = of_place + size, count + 1
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def where(event: _ProfilerEvent) -> str:
    """The operators and the functions of this package that an allocation is made in, the innermost first."""
    names: list[str] = []
    caller = event.parent
    while caller is not None and len(names) < CALLERS:
        if caller.tag == _EventType.TorchOp or "l2t_fast/" in caller.name:
            names.append(re.sub(r".*l2t_fast/", "", caller.name))
        caller = caller.parent
    return " < ".join(names) or "?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["cifar", "imagenet"])
    parser.add_argument("--providers", nargs="+", default=["exact"])
    parser.add_argument("--batch", type=int, help="images of the batch, instead of the set-up's own number")
    parser.add_argument("--lines", type=int, default=25, help="so many lines are printed")
    arguments = parser.parse_args()
    for name in arguments.workloads:
        setup = STEP_SETUPS[name]
        setup = dataclasses.replace(setup, cpu_batch=arguments.batch or setup.cpu_batch)
        for provider in arguments.providers:
            _, run = make_step(setup, provider, CPU)
            run.call()
            run.prepare()
            found = peak_by_place(run.call)
            total = sum(size for size, _ in found.values())
            print(f"{name}, B={setup.cpu_batch}, {provider}: {total / 2**20:.1f} MiB at the peak")
            for place, (size, count) in list(found.items())[: arguments.lines]:
                print(f"  {size / 2**20:8.1f} MiB in {count:4d}  {place}")


if __name__ == "__main__":
    main()
