"""What the CUDA kernels take of a chip, read from the machine code in the extension: no GPU is needed.

    python -m benchmarks.cuda_resources --output benchmarks/results/cuda_resources.csv

Exit code 1 if any kernel spills registers or takes local memory, or computes its products without tensor cores.
Shared memory is taken at launch and not in the machine code: every kernel that multiplies takes the same amount.
"""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine_code import tool_of_triton
from l2t_fast import _native

REGISTERS = 65_536
"""Of a multiprocessor, on all of them."""

THREADS = 256
"""Of a block, csrc/cuda/records.h."""

MULTIPLY = ("differences", "gradients", "gram_products", "gram_projections", "gram_targets")
BATCH_NORM = ("planar_sums", "planar_maps", "row_sums", "row_maps")
KERNELS = (*MULTIPLY, "gram_planes", "pack", "finish", "coefficients", "scaling", "upload", "witness", *BATCH_NORM)


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel."""

    compiler: str  # nvcc's version
    architecture: int
    kernel: str
    products: str  # tf32, tf32x3 or bfloat16, of kernels that are compiled for each
    derivative: int  # 1: loss and gradient, 2: Hessian times vector; 0: the same kernel serves both
    registers: int
    stack: int  # bytes a thread, spilled registers among them
    local: int  # bytes a thread
    static_shared: int  # bytes a block, beside what a launch asks for
    tensor_core_instructions: int
    instructions: int

    @property
    def problem(self) -> str | None:
        if self.stack or self.local:
            return f"takes {self.stack} bytes of stack and {self.local} of local memory a thread"
        if self.kernel in MULTIPLY and not self.tensor_core_instructions:
            return "uses no tensor cores"
        if self.registers * THREADS > REGISTERS:
            return f"takes {self.registers} registers a thread, more than a processor has"
        return None


def find_cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one that Triton brings."""
    path = shutil.which("cuobjdump", path="/usr/local/cuda/bin") or shutil.which("cuobjdump")
    if path is None:
        try:
            beside = tool_of_triton("cuobjdump")
        except ImportError:
            return None
        path = str(beside) if beside.exists() else None
    return path


def kernels_of(library: Path, cuobjdump: str, compiler: str, sass: bool = True) -> list[Resources]:
    """Every kernel of the library for every architecture; without ``sass`` instructions are not counted."""
    counts = _instruction_counts(told(library, cuobjdump, "-sass")) if sass else {}
    found = []
    for (architecture, name), (registers, stack, static_shared, local) in usages(library, cuobjdump):
        products = re.search(r"(tf32x3|tf32|bfloat16)", name, re.IGNORECASE)
        kernel = next((k for k in KERNELS if f"{k}_kernel" in name or k in name), name)
        derivative = (2 if "Lb1E" in name else 1) if kernel == "differences" else 0
        found.append(
            Resources(
                *(compiler, architecture, kernel, products[1].lower() if products else ""),
                *(derivative, registers, stack, local, static_shared),
                *counts.get((architecture, name), (0, 0)),
            )
        )
    return sorted(found, key=lambda r: (r.architecture, r.kernel, r.products, r.derivative))


def told(library: Path, cuobjdump: str, option: str) -> str:
    return subprocess.run([cuobjdump, option, str(library)], capture_output=True, text=True, check=True).stdout


def usages(library: Path, cuobjdump: str) -> Iterator[tuple[tuple[int, str], list[int]]]:
    """(architecture, mangled name), and its registers, stack, static shared and local memory: of every kernel."""
    architecture, name = 0, ""
    for line in told(library, cuobjdump, "-res-usage").splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            yield (architecture, name), [int(number) for number in match.groups()]


def _instruction_counts(sass: str) -> dict[tuple[int, str], tuple[int, int]]:
    """(architecture, function) -> instructions of the tensor cores, all instructions."""
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    architecture, name = 0, ""
    for line in sass.splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.search(r"Function : (\S+)", line):
            name = match[1]
            counts[architecture, name] = (0, 0)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/\s", line):
            products, all_of_them = counts[architecture, name]
            counts[architecture, name] = (products + bool(re.search(r"\bH[G]?MMA", line)), all_of_them + 1)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    cuobjdump = find_cuobjdump()
    if cuobjdump is None or not hasattr(_native.extension, "kernel_image"):
        print("error: there is no cuobjdump, or the extension has no CUDA kernels", file=sys.stderr)
        return 2
    rows = kernels_of(Path(_native.extension.__file__), cuobjdump, _native.extension.build_info()["cuda"])
    for row in rows:
        print(" ".join(f"{value!s:>9}" for value in asdict(row).values()), row.problem or "", flush=True)
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
