"""Measures the matching loss: its modes and providers on one case, and along one axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.engine import Contender, Protocol, measure
from l2t_fast.bench.errors import largest_error
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS, Loss, why_not
from l2t_fast.bench.roofline import Peaks
from l2t_fast.bench.rows import OUT_OF_MEMORY, UNSUPPORTED, Row
from l2t_fast.bench.timing import Run
from l2t_fast.bench.truth import truth
from l2t_fast.bench.work import work_of
from l2t_fast.bench.workloads import Case, Tensors, Workload, resized

AXES = ("pairs", "batch", "resolution", "threads")

#: Largest relative error of any result. float32: plain PyTorch's sums over a batch's pixels are off by 2e-5. bfloat16:
#: five times the rounding of results that are bfloat16 themselves. TF32 keeps 10 bits of each factor.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "TF32": 5e-3}


class _LossContender(Contender):
    def __init__(self, provider: str, mode: str, tensors: Tensors, expected: list[Tensor], reason: str | None) -> None:
        self.why_not = reason
        self._provider, self._mode, self._tensors, self._expected = provider, LOSS_MODES[mode], tensors, expected
        self._loss: Loss | None = None

    def start(self) -> None:
        self._loss = LOSS_PROVIDERS[self._provider].make()
        self._call()

    def error(self) -> float:
        results = self._call()
        self.results_bytes = sum(result.nbytes for result in results)
        return largest_error(results, self._expected)

    def _call(self) -> list[Tensor]:
        return self._mode(self._loss, self._tensors)

    @property
    def run(self) -> Run:
        return Run(self._call)


def measure_loss(
    case: Case, modes: Sequence[str], providers: Sequence[str], protocol: Protocol, peaks: Peaks | None
) -> Iterator[list[Row]]:
    """The rows of one alternating run after the other, one run a mode; without ``peaks`` no roofline."""
    device = protocol.device
    tensors = case.tensors(device)
    expected = truth(tensors, max(modes, key=list(LOSS_MODES).index))
    inputs = len(tensors.inputs())
    counts = {"forward": 1, "forward_backward": 1 + inputs, "second_order": 1 + 2 * inputs}
    for mode in modes:
        began = now()
        torch.compiler.reset()  # else torch.compile remembers other sizes, and compiles for any size
        protocol.progress(f"{case.workload.name}, batch {case.batch}, {case.dtype}, {case.layout}, {mode}:")
        contenders = {
            name: _LossContender(name, mode, tensors, expected[: counts[mode]], why_not(name, mode, case.dtype, device))
            for name in providers
        }
        found = measure(contenders, tolerance(case, device), protocol)
        rows = []
        for name in providers:
            columns = found[name]
            work = None if columns["status"] == UNSUPPORTED else work_of(case, mode, name)
            if work is not None:
                columns |= {"flop": work.single + work.double, "bytes": work.bytes}
                if peaks is not None and "median_ms" in columns:
                    columns["floor_ms"] = 1e3 * peaks.floor(work.single, work.double, work.bytes)
            rows.append(
                Row(
                    run=began,
                    **conditions(device),
                    flags=protocol.flags,
                    workload=case.workload.name,
                    batch=case.batch,
                    pairs=len(case.workload.pairs),
                    dtype=case.dtype,
                    layout=case.layout,
                    mode=mode,
                    provider=name,
                    **columns,
                )
            )
        yield rows


def sweep_loss(
    workload: Workload,
    axis: str,
    sizes: Sequence[int],
    modes: Sequence[str],
    providers: Sequence[str],
    protocol: Protocol,
    *,
    batch: int | None = None,
    dtype: str = "float32",
    layout: str = "NCHW",
) -> Iterator[list[Row]]:
    """As :func:`measure_loss`, along one of ``AXES``; rows name the axis and the size.

    A provider that has run out of memory at some size is not tried at larger ones, except for threads.
    """
    exhausted: set[tuple[str, str]] = set()
    threads = torch.get_num_threads()
    try:
        for size in sizes if axis == "threads" else sorted(sizes):
            if axis == "threads":
                torch.set_num_threads(size)
            grown = resized(workload, axis, size) if axis in ("pairs", "resolution") else workload
            case = grown.case(protocol.device, batch=size if axis == "batch" else batch, dtype=dtype, layout=layout)
            for mode in modes:
                left = [name for name in providers if (mode, name) not in exhausted]
                for rows in measure_loss(case, [mode], left, protocol, None):
                    yield [dataclasses.replace(row, sweep=axis, size=size) for row in rows]
                    if axis != "threads":
                        exhausted |= {(mode, row.provider) for row in rows if row.status == OUT_OF_MEMORY}
    finally:
        torch.set_num_threads(threads)


def tolerance(case: Case, device: torch.device) -> float:
    """What the largest relative error of a case may be."""
    if case.dtype == "float32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return TOLERANCES["TF32"]
    return TOLERANCES[case.dtype]
