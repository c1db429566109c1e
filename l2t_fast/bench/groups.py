"""Rows as reports need them: the newest alternating run of each piece of work, providers by name, and fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from l2t_fast.bench.rows import OK, OUT_OF_MEMORY, Row

#: Name in rows -> name in tables and figures, in their order.
LABELS = {
    "naive": "published loop",
    "eager": "plain PyTorch",
    "eager_low_precision": "plain PyTorch, bfloat16 throughout",
    "compile": "torch.compile",
    "torchopt": "TorchOpt",
    "torchopt_fused": "TorchOpt over our loss",
    "higher": "higher",
    "double_backward": "l2t_fast, nested autograd",
    "finite_difference": "l2t_fast, finite difference",
    "exact": "l2t_fast, exact",
    "exact_kept": "l2t_fast, exact, graphs kept",
    "exact_bfloat16": "l2t_fast, exact, bfloat16",
    "exact_graph": "l2t_fast, exact, CUDA graph",
    "exact_kept_graph": "l2t_fast, exact, graphs kept, CUDA graph",
    "exact_bfloat16_graph": "l2t_fast, exact, bfloat16, CUDA graph",
    "cpu": "l2t_fast, CPU",
    "triton": "l2t_fast, Triton",
    "cuda": "l2t_fast, CUDA",
}

#: What figures are held against.
BASELINES = ("eager", "naive")

#: Of the matching loss, ours first to last choice.
BACKENDS = ("cuda", "triton", "cpu")


def label(provider: str) -> str:
    return LABELS.get(provider, provider)


def place(provider: str) -> int:
    """Where it comes in tables; one that has no label comes last."""
    return [*LABELS, provider].index(provider)


@dataclass(frozen=True)
class Group:
    """Rows of providers that took turns, and the parts of a step that were measured with them."""

    rows: tuple[Row, ...]
    parts: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """A row for what all have in common."""
        return self.rows[0]

    def row(self, provider: str) -> Row | None:
        return next((row for row in self.rows if row.provider == provider), None)

    def ours(self) -> Row | None:
        """The fastest backend of ours that has a time, for the matching loss."""
        timed = [row for row in self.rows if row.provider in BACKENDS and row.median_ms]
        return min(timed, key=lambda row: row.median_ms, default=None)

    def ratio(self, slower: str, faster: Row | None) -> float | None:
        """How many times the median of ``faster`` the median of ``slower`` is."""
        row = self.row(slower)
        return row.median_ms / faster.median_ms if row and faster and row.median_ms and faster.median_ms else None


def newest(rows: Iterable[Row]) -> list[Group]:
    """The last run of each piece of work, in the order in which the pieces first appear.

    A run of some providers alone, without the baseline that an earlier one has, does not take that one's place.
    """
    runs: dict[tuple, dict[str, list[Row]]] = {}
    for row in rows:
        work = (*machine_key(row), row.workload, row.batch, row.pairs, row.dtype, row.layout, row.mode)
        runs.setdefault((*work, row.sweep, row.size), {}).setdefault(row.run, []).append(row)
    groups = []
    for by_run in runs.values():
        in_time = [by_run[run] for run in sorted(by_run)]
        with_baseline = [run for run in in_time if any(row.provider in BASELINES for row in run)]
        last = (with_baseline or in_time)[-1]
        whole = sorted((row for row in last if row.part is None), key=lambda row: place(row.provider))
        if whole:
            groups.append(Group(tuple(whole), tuple(row for row in last if row.part is not None and row.status == OK)))
    return groups


@dataclass(frozen=True)
class Curve:
    """Medians of one provider along an axis, and the size at which its memory ran out, if it did."""

    axis: str
    workload: str
    mode: str
    provider: str
    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]
    exhausted_at: int | None

    def exponent(self) -> tuple[float, float] | None:
        """(k, R squared) of time ~ size^k, fitted to the logarithms; None with fewer than three sizes."""
        if len(self.sizes) < 3:
            return None
        x, y = [math.log(size) for size in self.sizes], [math.log(ms) for ms in self.milliseconds]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        spread = sum((a - mean_x) ** 2 for a in x)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
        residual = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
        total = sum((b - mean_y) ** 2 for b in y)
        return slope, 1.0 if total == 0 else 1 - residual / total


#: Columns that rows of one curve have in common, but for the one that it is drawn along.
_OF_A_CURVE = ("dtype", "layout", "batch", "threads", "flags")


def curves(groups: Sequence[Group]) -> list[Curve]:
    """All scaling curves among the groups; where one workload has several, its name says which."""
    found: dict[tuple[str, str, str, str, tuple], list[Row]] = {}
    for group in groups:
        for row in group.rows:
            if row.sweep is not None:
                fixed = tuple(None if name == row.sweep else getattr(row, name) for name in _OF_A_CURVE)
                found.setdefault((row.sweep, row.workload, row.mode, row.provider, fixed), []).append(row)
    made = []
    for (axis, workload, mode, provider, fixed), rows in found.items():
        others = [key[-1] for key in found if key[:2] == (axis, workload)]
        for name, value, *values in zip(_OF_A_CURVE, fixed, *others, strict=True):
            if len(set(values)) > 1:
                workload += {"batch": f", B={value}", "threads": f", threads: {value}"}.get(name, f", {value}")
        rows = sorted(rows, key=lambda row: row.size)
        timed = [row for row in rows if row.status == OK and row.median_ms]
        exhausted = [row.size for row in rows if row.status == OUT_OF_MEMORY]
        if timed or exhausted:
            points = tuple(row.size for row in timed), tuple(row.median_ms for row in timed)
            made.append(Curve(axis, workload, mode, provider, *points, min(exhausted, default=None)))
    return made


def machine_key(row: Row) -> tuple[str, str, int, str]:
    """Rows with the same key may stand in one table. Processors of one name may have other instructions."""
    return row.device, row.capability, row.threads, row.flags


def conditions_line(groups: Sequence[Group]) -> str:
    """Where, with what and when rows were measured, in one sentence; of those without a figure only if all are."""
    rows = [row for group in groups for row in group.rows]
    rows = [row for row in rows if row.status == OK] or rows

    def several(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))

    days = sorted({row.run[:10] for row in rows})
    repeats = several(row.repeats for row in rows)
    return (
        f"{several(row.device for row in rows)}, {several(row.capability for row in rows)}, "
        f"threads: {several(row.threads for row in rows)}; PyTorch {several(row.torch for row in rows)}, "
        f"Python {several(row.python for row in rows)}; commit {several(row.commit or row.version for row in rows)}; "
        f"{several(row.flags for row in rows)}; {repeats and f'medians of {repeats} calls in turns; '}"
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}"
    )
