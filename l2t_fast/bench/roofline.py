"""What this device can do, measured: the peaks that rows are held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.engine import Protocol
from l2t_fast.bench.rows import Row
from l2t_fast.bench.timing import Run, Times, alternate

#: Rows and columns of the square matrices; the size with the best rate counts. On a CPU they are small, so that some
#: calls meet no other process.
MATRICES = {"cpu": (768, 1024, 1536), "cuda": (4096, 8192)}
#: Bytes that are copied: far beyond any cache.
COPIED = {"cpu": 256 * 2**20, "cuda": 2**30}
REPEATS = 25


@dataclass(frozen=True)
class Peaks:
    """Per second: flop of matrix products with float32 sums and with float64, and bytes read plus written."""

    single: float
    double: float
    bytes: float

    def floor(self, single: float, double: float, moved: float) -> float:
        """Seconds that some flop and bytes take at least, arithmetic and traffic overlapping perfectly."""
        return max(single / self.single + double / self.double, moved / self.bytes)


def measure_peaks(protocol: Protocol, dtype: str) -> tuple[Peaks, list[Row]]:
    """The peaks for work on features of ``dtype``, and the rows that record them.

    A peak is the rate of the fastest fifth (p20) of some calls of ``torch.mm`` and ``Tensor.copy_`` into memory that is
    in use already, with as many threads as everything else. On a CPU all products have float32 operands, whatever the
    features' dtype; on a GPU they follow it, and PyTorch's TF32 setting of convolutions.
    """
    device, began = protocol.device, now()
    low_precision = device.type == "cuda" and dtype == "bfloat16"
    types = {"single": torch.bfloat16 if low_precision else torch.float32, "double": torch.float64}
    products = {
        (kind, size): _product(torch.randn(size, size, device=device, dtype=types[kind]))
        for kind in types
        for size in MATRICES[device.type]
    }
    source = torch.zeros(COPIED[device.type] // 8, dtype=torch.float32, device=device)
    destination = torch.empty_like(source)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        copy = Run(lambda: destination.copy_(source))
        runs = {**products, "copy": copy}
        for run in runs.values():
            run.call()
            run.call()
        times = alternate(runs, REPEATS, device, cold=False)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32

    def row(name: str, kind: str, taken: Times, **work: float) -> Row:
        return Row(
            run=began,
            **conditions(device),
            flags="warm cache",
            workload=name,
            batch=1,
            pairs=0,
            dtype=kind.removeprefix("torch."),
            layout="",
            mode="peak",
            provider="torch",
            repeats=REPEATS,
            median_ms=1e3 * taken.median,
            p20_ms=1e3 * taken.quantile(0.2),
            p80_ms=1e3 * taken.quantile(0.8),
            **work,
        )

    moved = float(2 * source.nbytes)
    rates, rows = {}, []
    for kind, dtype_of_kind in types.items():
        rate = {size: 2.0 * size**3 / times[kind, size].quantile(0.2) for size in MATRICES[device.type]}
        best = max(rate, key=rate.get)
        rates[kind] = rate[best]
        rows.append(row(f"product {best} x {best}", str(dtype_of_kind), times[kind, best], flop=2.0 * best**3))
    rows.append(row("copy", str(source.dtype), times["copy"], bytes=moved))
    return Peaks(rates["single"], rates["double"], moved / times["copy"].quantile(0.2)), rows


def _product(matrix: Tensor) -> Run:
    result = torch.empty_like(matrix)
    return Run(lambda: torch.mm(matrix, matrix, out=result))
