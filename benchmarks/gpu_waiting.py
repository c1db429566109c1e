"""How long a GPU's kernels take at least, by a model of one, without a GPU: where warps wait, and for what.

    FAKE_GPU_TIMED=1 FAKE_GPU_CODE=compiled FAKE_GPU_PROCESSORS=132 python -m tests.fake_gpu benchmarks.gpu_waiting \\
        --workloads imagenet --batch 8 --times 8 --output benchmarks/results/gpu_waiting.csv

Each block of a launch has a time of its own (tests/fake_gpu/ptx/timeline.h) and a number of instructions. Here blocks
are put on processors as a GPU does, in order, as many at a time as registers and shared memory allow: a block takes its
own time, or that of the instructions of all that share its processor, whichever is longer. A launch takes what the last
of its processors takes, or what the memory takes for its bytes. `--times 8` stands for an eightfold batch: the blocks
follow each other so often.
"""

import argparse
import heapq
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.csv_rows import append
from benchmarks.cuda_resources import REGISTERS, find_cuobjdump
from benchmarks.gpu_instructions import FORMS
from l2t_fast import _native
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS
from l2t_fast.bench.workloads import WORKLOADS, Case

# of an H100
CLOCK = 1.7e6  # cycles a millisecond
MEMORY, SECOND_CACHE = 2.5e9, 5.5e9  # bytes a millisecond
SHARED = 227 << 10
"""Of a processor, bytes of shared memory that blocks can have; each takes a kilobyte more than it asks for."""


def registers_of_kernels() -> dict[str, int]:
    """What the extension's kernels take, compiled for sm_90, by their mangled names."""
    told = subprocess.run(
        [find_cuobjdump() or "cuobjdump", "-res-usage", _native.extension.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, int] = {}
    name, is_sm_90 = "", False
    for line in told.splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            is_sm_90 = match[1] == "90"
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif (match := re.search(r"REG:(\d+)", line)) and is_sm_90:
            found[name] = int(match[1])
    return found


def of_launch(launch: dict, registers: int, processors: int, times: int) -> dict:
    """Milliseconds by the model, of the whole launch and of what bounds it."""
    threads, shared = launch["threads"], launch["shared_bytes"] + 1024
    resident = max(1, min(2048 // threads, REGISTERS // (registers * threads), SHARED // shared, 32))
    blocks = list(zip(launch["cycles"], launch["instructions"], strict=True)) * times
    at_once = min(resident, -(-len(blocks) // processors))
    ends = [0.0] * min(processors * resident, len(blocks))
    for cycles, instructions in blocks:
        begin = heapq.heappop(ends)
        heapq.heappush(ends, begin + max(cycles, at_once * instructions / 4))
    issue = sum(instructions for _, instructions in blocks) / (4 * processors)
    memory = times * max(launch["lines_of_memory"] * 128 / MEMORY, launch["global_sectors"] * 32 / SECOND_CACHE)
    return {
        "launches": 1,
        "blocks": len(blocks),
        "resident": resident,
        "ms": max(max(ends) / CLOCK, memory),
        "issue_ms": issue / CLOCK,
        "memory_ms": memory,
        "longest_block_ms": max(cycles for cycles, _ in blocks) / CLOCK,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["imagenet"], choices=WORKLOADS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--times", type=int, default=8, help="how often the blocks of a launch follow each other")
    parser.add_argument("--backends", nargs="+", default=["cuda"], choices=("cuda", "triton"))
    parser.add_argument("--forms", nargs="+", default=["auto"], choices=FORMS, help="of the cuda backend")
    parser.add_argument("--modes", nargs="+", default=["forward_backward"], choices=LOSS_MODES)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument(
        "--waits", type=int, default=0, help="print so many places of each kernel where blocks wait longest"
    )
    parser.add_argument("--output", type=Path, help="CSV file that rows are appended to")
    given = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda")
    path = Path(tempfile.mkdtemp()) / "counts"
    os.environ["FAKE_GPU_COUNTS"] = str(path)  # read at the first launch
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    shared = {"run": now(), **conditions(torch.device("cpu")), "processors": processors}
    registers = registers_of_kernels()
    cases = [
        (workload, dtype, backend, form, mode)
        for workload in given.workloads
        for dtype in given.dtypes
        for backend in given.backends
        for form in (given.forms if backend == "cuda" else ["auto"])
        for mode in given.modes
    ]
    for workload, dtype, backend, form, mode in cases:
        _native.extension.force_algorithm(form)
        tensors = Case(WORKLOADS[workload], given.batch, dtype, "NCHW").tensors(device)
        path.write_text("")
        LOSS_MODES[mode](LOSS_PROVIDERS[backend].make(), tensors)
        launches = [json.loads(line) for line in path.read_text().splitlines()]
        if not any("cycles" in launch for launch in launches):
            sys.exit("error: no launch was timed; run it as its documentation says, with FAKE_GPU_TIMED=1")
        kernels: dict[str, dict] = {}
        for launch in launches:
            name = re.search(r"([a-z][a-z_]*)_kernel", launch["kernel"])
            found = of_launch(launch, registers.get(launch["kernel"], 128), processors, given.times)
            own = kernels.setdefault(
                name[1] if name else launch["kernel"], {"waits": Counter()} | dict.fromkeys(found, 0)
            )
            for field, value in found.items():
                own[field] = max(own[field], value) if field in ("resident", "longest_block_ms") else own[field] + value
            own["waits"].update(launch["waits"])
        everything = {
            field: sum(own[field] for own in kernels.values())
            for field in ("launches", "blocks", "ms", "issue_ms", "memory_ms")
        }
        kernels["all"] = {"waits": Counter(), "resident": "", "longest_block_ms": ""} | everything
        for kernel, found in kernels.items():
            waits = found.pop("waits")
            numbers = {
                field: round(found[field], 4) if isinstance(found[field], float) else found[field] for field in FIELDS
            }
            row = {
                "workload": workload,
                "batch": given.batch,
                "times": given.times,
                "dtype": dtype,
                "backend": backend,
                "form": form,
                "mode": mode,
                "kernel": kernel,
                **numbers,
            }
            print(*row.values(), flush=True)
            total = sum(waits.values())
            for place, cycles in waits.most_common(given.waits):
                print(f"    {cycles / total:6.1%} of the waits at {place}")
            if given.output:
                append([shared | row], given.output)


FIELDS = ("launches", "blocks", "resident", "ms", "issue_ms", "memory_ms", "longest_block_ms")

if __name__ == "__main__":
    main()
