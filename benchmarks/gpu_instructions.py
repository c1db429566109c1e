"""What the GPU kernels execute, counted on a CPU: instructions of PTX by kernel, and what they ask of the memories.

    FAKE_GPU_CODE=compiled FAKE_GPU_PROCESSORS=132 python -m tests.fake_gpu benchmarks.gpu_instructions \\
        --workloads imagenet --batch 8 --output benchmarks/results/gpu_instructions.csv

What nvcc and Triton made of the kernels runs in a machine for PTX (docs/development.md, "A fake GPU"). An instruction
counts once for a warp. ptxas makes machine code of PTX, keeps what loops ask for again and again, and splits 64-bit
arithmetic, so the GPU's own numbers differ; and they are no times.
"""

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.csv_rows import append
from l2t_fast import _native
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS
from l2t_fast.bench.workloads import WORKLOADS, Case

FORMS = ("auto", "direct", "gram")


def kind_of(opcode: str) -> str:
    """What an instruction is counted as besides."""
    head = opcode.split(".")[0]
    if "mma" in opcode and "fence" not in opcode and "group" not in opcode:
        return "tensor_cores"
    if head in ("ld", "st", "cp", "ldmatrix", "stmatrix"):
        return "memory"
    return "float" if head in ("add", "sub", "mul", "fma", "div") and ".f" in opcode else "other"


def kernel_of(launch: dict) -> str:
    # a mangled name has its parts' lengths before them
    name = re.search(r"([a-z][a-z_]*)_kernel", launch["kernel"])
    return name[1] if name else launch["kernel"]


def counted(launches: list[dict]) -> dict[str, Counter]:
    """The launches that were counted, added up by kernel."""
    kernels: dict[str, Counter] = defaultdict(Counter)
    for launch in launches:
        found = kernels[kernel_of(launch)]
        found["launches"] += 1
        for opcode, runs in launch["opcodes"].items():
            found["instructions"] += runs
            found[kind_of(opcode)] += runs
        for field in ("blocks", "global_sectors", "shared_wavefronts", "shared_least"):
            found[field] += launch[field]
    return kernels


def add_arguments(parser: argparse.ArgumentParser, backends: list[str]) -> None:
    parser.add_argument("--workloads", nargs="+", default=["imagenet"], choices=WORKLOADS)
    parser.add_argument("--batch", type=int, default=8, help="what is executed grows with it; 8 takes a minute")
    parser.add_argument("--backends", nargs="+", default=backends, choices=("cuda", "triton"))
    parser.add_argument("--forms", nargs="+", default=["auto"], choices=FORMS, help="of the cuda backend")
    parser.add_argument("--modes", nargs="+", default=["forward_backward"], choices=LOSS_MODES)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--output", type=Path, help="CSV file that rows are appended to")


def processors() -> int:
    return torch.cuda.get_device_properties(torch.device("cuda")).multi_processor_count


def launches_of_cases(given: argparse.Namespace) -> Iterator[tuple[dict, list[dict]]]:
    """What each case of the arguments is, and what the fake GPU tells of its launches."""
    torch.backends.cudnn.allow_tf32 = True
    path = Path(tempfile.mkdtemp()) / "counts"
    os.environ["FAKE_GPU_COUNTS"] = str(path)  # read at the first launch
    for workload, dtype, backend in itertools.product(given.workloads, given.dtypes, given.backends):
        for form, mode in itertools.product(given.forms if backend == "cuda" else ["auto"], given.modes):
            _native.extension.force_algorithm(form)
            tensors = Case(WORKLOADS[workload], given.batch, dtype, "NCHW").tensors(torch.device("cuda"))
            path.write_text("")
            LOSS_MODES[mode](LOSS_PROVIDERS[backend].make(), tensors)
            case = {"workload": workload, "batch": given.batch, "dtype": dtype, "backend": backend, "form": form}
            yield case | {"mode": mode}, [json.loads(line) for line in path.read_text().splitlines()]


FIELDS = (
    *("launches", "blocks", "instructions", "tensor_cores", "memory", "float", "other"),
    *("global_sectors", "shared_wavefronts", "shared_least"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, backends=["cuda", "triton"])
    given = parser.parse_args()
    shared = {"run": now(), **conditions(torch.device("cpu")), "processors": processors()}
    # nvcc leaves PTX for sm_80 in the extension; Triton compiles for the GPU that it finds.
    architectures = {"cuda": 80, "triton": 10 * torch.cuda.get_device_capability()[0]}
    for case, launches in launches_of_cases(given):
        kernels = counted(launches)
        if not kernels:
            sys.exit("error: no launch was counted; run it as its documentation says: with FAKE_GPU_CODE=compiled")
        kernels["all"] = sum(kernels.values(), Counter())
        for kernel, found in kernels.items():
            row = {"architecture": architectures[case["backend"]], **case, "kernel": kernel}
            row |= {field: found[field] for field in FIELDS}
            print(*row.values(), flush=True)
            if given.output:
                append([shared | row], given.output)


if __name__ == "__main__":
    main()
