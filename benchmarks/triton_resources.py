"""What the Triton kernels take of a chip, read from the machine code: no GPU is needed.

    python -m benchmarks.triton_resources --output benchmarks/results/triton_resources.csv

Every tile of the tables in l2t_fast/ops/triton/tiles.py is compiled from scratch for the GPUs it is for, for every type
of products and way a map may lie. Exit code 1 if any spills registers, takes local memory, more shared memory than the
chip has, computes its products without tensor cores, or has registers of products that are in flight written anew.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.csv_rows import append
from benchmarks.machine_code import SHARED_BYTES, tool_of_triton
from l2t_fast.ops.triton import gram_kernels, kernels
from l2t_fast.ops.triton.arguments import gradient_dtype
from l2t_fast.ops.triton.gram_planning import most_channels
from l2t_fast.ops.triton.planning import TYPES
from l2t_fast.ops.triton.tiles import GRAM, GRAM_SECOND, TABLES, Tile

# name -> types of maps and of projections, how float32 products are computed
PRODUCTS = {
    "tf32": (torch.float32, torch.float32, "tf32"),
    "tf32x3": (torch.float32, torch.float32, "tf32x3"),
    "bfloat16": (torch.bfloat16, torch.bfloat16, "tf32"),
    "float16": (torch.float16, torch.float16, "tf32"),
    # where ieee is asked for
    "bfloat16 in tf32x3": (torch.bfloat16, torch.bfloat16, "tf32x3"),
    "float16 in tf32x3": (torch.float16, torch.float16, "tf32x3"),
    # as mixed precision has them
    "bfloat16 maps": (torch.bfloat16, torch.float32, "tf32"),
    "float16 maps": (torch.float16, torch.float32, "tf32"),
}

# name -> whether maps are channels_last, whether sizes are multiples of 16 bytes, whether rows of a channel are in line
LAYOUTS = {
    "NCHW even": (False, True, True),
    "NCHW odd": (False, False, False),
    "channels_last even": (True, True, True),
}

KERNELS = {
    "differences": kernels.differences_kernel,
    "gradients": kernels.gradients_kernel,
    "gram_planes": gram_kernels.gram_planes_kernel,
    "gram_products": gram_kernels.gram_products_kernel,
    "gram_projections": gram_kernels.gram_projections_kernel,
    "gram_targets": gram_kernels.gram_targets_kernel,
}


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel."""

    triton: str  # version; others allocate registers otherwise
    architecture: int
    kernel: str
    derivative: int
    rows: int
    columns: int
    channels: int
    step: int
    warps: int
    stages: int
    products: str
    layout: str
    registers: int
    stack: int  # bytes a thread, spilled registers among them
    local: int  # bytes a thread
    shared: int  # bytes a block
    instruction: str  # of the tensor cores: tcgen05, wgmma, mma or none
    in_flight: int  # products, see in_flight()

    @property
    def tile(self) -> Tile:
        return Tile(self.rows, self.columns, self.channels, self.step, self.warps, self.stages)

    @property
    def problem(self) -> str | None:
        if self.stack or self.local:
            return f"spills {self.stack} bytes, takes {self.local} of local memory"
        if self.shared > SHARED_BYTES[self.architecture]:
            return f"takes {self.shared} bytes of shared memory of {SHARED_BYTES[self.architecture]}"
        if self.in_flight:
            return f"may write registers that {self.in_flight} products still read"
        return "uses no tensor cores" if self.instruction == "none" else None


def tiles(products: str) -> Iterator[tuple[int, str, bool, Tile]]:
    """Every entry of the tables: architecture, kernel, whether for the second derivative, tile."""
    maps, projections, precision = PRODUCTS[products]
    for architecture in SHARED_BYTES:
        table = TABLES[precision]
        for (kernel, second), entries in table.tiles.items():
            for tile in entries:
                yield architecture, kernel, second, tile
        if precision == "tf32":
            for second, kernels_of_form in ((False, GRAM), (True, GRAM_SECOND)):
                most = most_channels(second, maps, projections)
                for kernel, table in kernels_of_form.items():
                    yield from ((architecture, kernel, second, tile) for tile in table if tile.channels <= most)


def is_gram(kernel: str) -> bool:
    return kernel.startswith("gram")


def layouts_of(kernel: str) -> list[str]:
    """Of :data:`LAYOUTS`; maps that are channels_last do not take the Gram form."""
    return [layout for layout, (last, _, _) in LAYOUTS.items() if not (last and is_gram(kernel))]


def resources(
    architecture: int, kernel: str, second: bool, tile: Tile, products: str = "tf32", layout: str = "NCHW even"
) -> Resources:
    """Compile one kernel from scratch and read what it takes."""
    maps, projections, precision = PRODUCTS[products]
    channels_last, even, flat = LAYOUTS[layout]
    vector = 16 // maps.itemsize if even else 1
    dot = maps if maps == projections and precision == "tf32" else torch.float32
    results = gradient_dtype(maps)
    constants = {
        "SECOND": second,
        **dict.fromkeys(("S_TYPE", "T_TYPE", "MAP_TYPE"), TYPES[maps]),
        "D_TYPE": TYPES[results],
        **dict.fromkeys(("B_TYPE", "W_TYPE"), TYPES[projections]),
        "DOT_TYPE": TYPES[dot],
        "E_TYPE": tl.bfloat16 if dot == torch.bfloat16 else tl.float32,
        "PRECISION": precision,
        "ROUND": precision == "tf32",
        **dict.fromkeys(("S_AXIS", "T_AXIS", "D_AXIS"), int(channels_last)),
        "S_VECTOR": vector if channels_last else 1,
        **dict.fromkeys(("T_VECTOR", "VECTOR"), vector),
        "D_VECTOR": 16 // results.itemsize if even else 1,
        "FLAT": flat,
        "INDEX": tl.int32,
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.columns,
        "TILE_CHANNELS": tile.channels,
        "CHANNEL_VECTOR": 4 if even else 1,
        "STEP": tile.step,
    }
    function = KERNELS[kernel]
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    pointers = {"table": "*i64", "items": "*i32"}
    signature = {name: pointers.get(name, "constexpr") for name in function.arg_names}
    position = {name: (i,) for i, name in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        signature,
        {position[name]: value for name, value in constants.items()},
        {position[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = compiled.asm["ptx"]
    instruction = next((name for name in ("tcgen05", "wgmma", "mma") if f"{name}." in ptx), "none")
    registers, stack, local = _usage(compiled.asm["cubin"])
    return Resources(
        *(triton.__version__, architecture, kernel, 2 if second else 1, *tile, products, layout),
        *(registers, stack, local, compiled.metadata.shared, instruction, in_flight(ptx)),
    )


def in_flight(ptx: str) -> int:
    """How many wgmma with a factor in registers are still in flight at a branch, behind which that may be written anew.

    What goes wrong then: _plus_product in l2t_fast/ops/triton/kernels.py.
    """
    of_registers = re.compile(r"wgmma\.mma_async.*\}, *\{")
    branch, waits_for_all = re.compile(r"\$L__BB|(@!?%p\d+\s+)?bra\b|ret;"), re.compile(r"wgmma\.wait_group\S*\s+0;")
    begun = left = 0
    for line in map(str.strip, ptx.splitlines()):
        if of_registers.match(line):
            begun += 1
        elif waits_for_all.match(line):
            begun = 0
        elif branch.match(line):
            left, begun = left + begun, 0
    return left


def _usage(machine_code: bytes) -> tuple[int, int, int]:
    """Registers, and bytes of stack and local memory, a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [tool_of_triton("cuobjdump"), "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    if found is None:
        raise RuntimeError(f"cuobjdump told no resources: {told}")
    return int(found[1]), int(found[2]), int(found[3])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=list(PRODUCTS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--architectures", nargs="+", type=int, choices=SHARED_BYTES, default=list(SHARED_BYTES))
    parser.add_argument("--output", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # from scratch
        for products in arguments.products:
            for architecture, kernel, second, tile in tiles(products):
                if architecture not in arguments.architectures or kernel not in arguments.kernels:
                    continue
                for layout in (layout for layout in layouts_of(kernel) if layout in arguments.layouts):
                    found = resources(architecture, kernel, second, tile, products, layout)
                    rows.append(found)
                    facts = " ".join(f"{value!s:>5}" for value in list(asdict(found).values())[:10])
                    taken = f"{found.registers:>3} registers {found.shared / 1024:>6.1f} KiB {found.instruction:<5}"
                    print(f"{facts} {products:<8} {layout:<20} {taken} {found.problem or ''}", flush=True)
    if arguments.output and rows:
        append([asdict(row) for row in rows], arguments.output)
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
