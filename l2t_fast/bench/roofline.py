"""What this device can do, measured: the peaks that rows are held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.engine import Protocol
from l2t_fast.bench.rows import Row
from l2t_fast.bench.timing import Run, alternate

#: Rows and columns of the square matrices: large enough for the library's best rate, small enough for a second.
MATRIX = {"cpu": 1536, "cuda": 8192}
#: Bytes that are copied: far beyond any cache.
COPIED = {"cpu": 256 * 2**20, "cuda": 2**30}
REPEATS = 9


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

    A peak is the rate of the fastest fifth (p20) of some calls of ``torch.mm`` and ``Tensor.copy_``, with as many
    threads as everything else. On a CPU all products have float32 operands, whatever the features' dtype; on a GPU
    they follow it, and PyTorch's TF32 setting of convolutions.
    """
    device = protocol.device
    size = MATRIX[device.type]
    low_precision = device.type == "cuda" and dtype == "bfloat16"
    operands = {
        "single": torch.randn(size, size, device=device, dtype=torch.bfloat16 if low_precision else torch.float32),
        "double": torch.randn(size, size, device=device, dtype=torch.float64),
    }
    source = torch.zeros(COPIED[device.type] // 8, dtype=torch.float32, device=device)
    destination = torch.empty_like(source)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        runs = {
            **{name: Run(lambda matrix=matrix: matrix @ matrix) for name, matrix in operands.items()},
            "copy": Run(lambda: destination.copy_(source)),
        }
        times = alternate(runs, REPEATS, device, cold=False)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    flop, moved = 2.0 * size**3, float(2 * source.nbytes)
    fastest = {name: taken.quantile(0.2) for name, taken in times.items()}
    rows = [
        Row(
            run=now(),
            **conditions(device),
            flags="warm cache",
            workload="copy" if name == "copy" else "matrix product",
            batch=1,
            pairs=0,
            dtype=str((source if name == "copy" else operands[name]).dtype).removeprefix("torch."),
            layout="",
            mode="peak",
            provider="torch",
            repeats=REPEATS,
            median_ms=1e3 * taken.median,
            p20_ms=1e3 * taken.quantile(0.2),
            p80_ms=1e3 * taken.quantile(0.8),
            flop=None if name == "copy" else flop,
            bytes=moved if name == "copy" else None,
        )
        for name, taken in times.items()
    ]
    peaks = Peaks(flop / fastest["single"], flop / fastest["double"], moved / fastest["copy"])
    return peaks, rows
