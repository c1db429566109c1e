"""How long a GPU's kernels take at least, by a model of one, without a GPU: where warps wait, and for what.

    FAKE_GPU_TIMED=1 FAKE_GPU_CODE=compiled FAKE_GPU_PROCESSORS=132 python -m tests.fake_gpu benchmarks.gpu_waiting \\
        --workloads imagenet --batch 64 --output benchmarks/results/gpu_waiting.csv

Each block of a launch has a time of its own (tests/fake_gpu/ptx/timeline.h) and a number of instructions. Here blocks
are put on processors as a GPU does, in order, as many at a time as registers and shared memory allow, where they share
what a processor can issue. A launch takes what the last of its processors takes, or what the memory takes for its
bytes, or the second cache for what a block does not find in the first, or the first and shared memory, which are one
and bring 128 bytes a cycle. A call of B=64 takes minutes: how work is cut depends on the batch.
"""

import argparse
import heapq
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch

from benchmarks.csv_rows import append
from benchmarks.cuda_resources import REGISTERS, find_cuobjdump, usages
from benchmarks.gpu_instructions import add_arguments, kernel_of, launches_of_cases, processors
from l2t_fast import _native
from l2t_fast.bench.conditions import conditions, now

# of an H100
CLOCK = 1.7e6  # cycles a millisecond
MEMORY, SECOND_CACHE = 2.5e9, 5.5e9  # bytes a millisecond
SHARED = 227 << 10
"""Of a processor, bytes of shared memory that blocks can have; each takes a kilobyte more than it asks for."""


def registers_of_kernels() -> dict[str, int]:
    """Of a thread, what the extension's kernels take, compiled for sm_90, by their mangled names."""
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        sys.exit("error: there is no cuobjdump, which tells the kernels' registers; it comes with CUDA and with Triton")
    found = usages(Path(_native.extension.__file__), cuobjdump)
    return {name: numbers[0] for (architecture, name), numbers in found if architecture == 90}


def time_of_processors(blocks: list[tuple[int, int]], processors: int, resident: int) -> float:
    """Cycles until the last of some blocks, of so many cycles and instructions each, has ended.

    They begin in order, at most ``resident`` on a processor. Those on one advance together, each as it would alone, or
    all slower if their instructions are more than its four schedulers can issue.
    """
    waiting = iter(blocks)
    now = [0.0] * processors
    # on each processor, of each block: the cycles left to it alone, and what a scheduler issues of it a cycle
    running: list[list[list[float]]] = [[] for _ in range(processors)]

    def begin(processor: int) -> bool:
        cycles, instructions = next(waiting, (0, 0))
        if cycles:
            alone = max(cycles, instructions / 4)
            running[processor].append([alone, instructions / 4 / alone])
        return cycles > 0

    def pace(processor: int) -> float:
        return max(1.0, sum(issued for _, issued in running[processor]))

    def next_end(processor: int) -> float:
        return now[processor] + min(left for left, _ in running[processor]) * pace(processor)

    for _ in range(resident):
        for processor in range(processors):
            begin(processor)
    ends = [(next_end(processor), processor) for processor in range(processors) if running[processor]]
    heapq.heapify(ends)
    last = 0.0
    while ends:
        last, processor = heapq.heappop(ends)
        advanced = (last - now[processor]) / pace(processor)
        now[processor] = last
        running[processor] = [
            [left - advanced, issued] for left, issued in running[processor] if left - advanced > 1e-6
        ]
        while len(running[processor]) < resident and begin(processor):
            pass
        if running[processor]:
            heapq.heappush(ends, (next_end(processor), processor))
    return last


def of_launch(launch: dict, registers: int, processors: int) -> dict:
    """Milliseconds by the model, of the whole launch and of what bounds it."""
    threads, shared = launch["threads"], launch["shared_bytes"] + 1024
    resident = max(1, min(2048 // threads, REGISTERS // (registers * threads), SHARED // shared, 32))
    blocks = list(zip(launch["cycles"], launch["instructions"], strict=True))
    took = time_of_processors(blocks, processors, resident)
    issue = sum(instructions for _, instructions in blocks) / (4 * processors)
    memory = max(launch["lines_of_memory"] * 128 / MEMORY, launch["sectors_of_second_cache"] * 32 / SECOND_CACHE)
    on_chip = (launch["shared_wavefronts"] + launch["sectors_of_first_cache"] / 4) / (processors * CLOCK)
    return {
        "launches": 1,
        "blocks": len(blocks),
        "resident": resident,
        "ms": max(took / CLOCK, memory, on_chip),
        "issue_ms": issue / CLOCK,
        "memory_ms": memory,
        "on_chip_ms": on_chip,
        "longest_block_ms": max(cycles for cycles, _ in blocks) / CLOCK,
    }


FIELDS = ("launches", "blocks", "resident", "ms", "issue_ms", "memory_ms", "on_chip_ms", "longest_block_ms")
LARGEST = ("resident", "longest_block_ms")
"""Those of a kernel's launches of which the largest counts, and not the sum."""


def added_up(launches: list[dict]) -> dict:
    return {field: (max if field in LARGEST else sum)(launch[field] for launch in launches) for field in FIELDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, backends=["cuda"])
    parser.add_argument(
        "--places",
        type=int,
        default=0,
        help="print so many places of each kernel where blocks wait longest, and where shared memory's banks conflict",
    )
    given = parser.parse_args()
    shared = {"run": now(), **conditions(torch.device("cpu")), "processors": processors()}
    registers = registers_of_kernels()
    for case, launches in launches_of_cases(given):
        if not any("cycles" in launch for launch in launches):
            sys.exit("error: no launch was timed; run it as its documentation says, with FAKE_GPU_TIMED=1")
        kernels: dict[str, list[dict]] = defaultdict(list)
        places: dict[str, dict[str, Counter]] = defaultdict(lambda: {"waits": Counter(), "conflicts": Counter()})
        for launch in launches:
            own = launch["registers"] or registers[launch["kernel"]]
            kernels[kernel_of(launch)].append(of_launch(launch, own, shared["processors"]))
            for what, at_places in places[kernel_of(launch)].items():
                at_places.update(launch[what])
        kernels["all"] = [found for of_kernel in kernels.values() for found in of_kernel]
        for kernel, found in kernels.items():
            numbers = {field: round(value, 4) for field, value in added_up(found).items()}
            row = case | {"kernel": kernel} | numbers
            print(*row.values(), flush=True)
            for what, at_places in places[kernel].items():
                for place, cycles in at_places.most_common(given.places):
                    print(f"    {cycles / at_places.total():6.1%} of the {what} at {place}")
            if given.output:
                append([shared | row], given.output)


if __name__ == "__main__":
    main()
