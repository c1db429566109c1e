"""A measurement is a row of a CSV file; rows are only ever appended."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from l2t_fast.errors import L2TFastError
from l2t_fast.files import locked_end, why_not_writable, write_all

STATUSES = OK, WRONG, OUT_OF_MEMORY, UNSUPPORTED = "ok", "wrong", "out of memory", "unsupported"
#: The part of a step that comes before it, and is measured by itself.
DATA = "data"
#: Modes of the matching loss -> what tables call them. They alone are measured along a sweep.
LOSS_MODE_NAMES = {
    "forward": "loss",
    "forward_backward": "loss and gradient",
    "second_order": "loss, gradient, Hessian-vector product",
}


@dataclass(frozen=True)
class Row:
    """One provider on one workload; fields are columns, None is an empty cell.

    Attributes:
        run: when the providers of this row's alternating run began, UTC; rows with the same run, workload, layout,
            dtype and mode took turns, and only their times make ratios
        commit: of the sources, with "-dirty" if code that runs differs from it; None for an installed package
        native: commit that the native code was built from
        flags: what else decides a figure, such as "cold cache"
        pairs: number of (source map, target map) pairs
        sweep, size: what a scaling run varies ("pairs", "batch", "resolution", "threads") and its value
        part: of the step, in rows that divide one up
        status: ok | wrong | out of memory | unsupported; times are there with ok alone
        error: the largest relative error of a result (2-norm) against float64; tolerance: what it may be
        median_ms, p20_ms, p80_ms: of ``repeats`` calls
        first_call_ms: set-up and first call, compilation included; never part of the others
        peak_mib: what PyTorch's allocator handed out at its highest in one call
        process_mib: growth of the process's resident memory in one call; what is read is in l2t_fast.bench.memory
        results_mib: size of the results, which is part of peak_mib
        flop, bytes: what the provider's algorithm computes and must move
        floor_ms: the least time they take at this device's measured peaks
    """

    run: str
    version: str
    commit: str | None
    native: str | None
    device: str
    capability: str
    python: str
    torch: str
    threads: int
    flags: str
    workload: str
    batch: int
    pairs: int
    dtype: str
    layout: str
    mode: str
    provider: str
    sweep: str | None = None
    size: int | None = None
    part: str | None = None
    status: str = OK
    error: float | None = None
    tolerance: float | None = None
    repeats: int | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    first_call_ms: float | None = None
    peak_mib: float | None = None
    process_mib: float | None = None
    results_mib: float | None = None
    flop: float | None = None
    bytes: float | None = None
    floor_ms: float | None = None
    note: str | None = None

    @property
    def roofline_share(self) -> float | None:
        """The floor as a fraction of the measured median."""
        return None if self.floor_ms is None or not self.median_ms else self.floor_ms / self.median_ms

    def key(self) -> tuple[object, ...]:
        """What is measured, and where: equal for rows that two runs have in common."""
        return tuple(getattr(self, name) for name in KEY)


#: The columns of :meth:`Row.key`.
KEY = (
    "device", "capability", "threads", "flags",
    "workload", "batch", "pairs", "dtype", "layout", "mode", "provider", "sweep", "size", "part",
)  # fmt: skip

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_TYPES = {field.name: str(field.type).split(" | ")[0] for field in dataclasses.fields(Row)}
_PARSERS = {"str": str, "int": int, "float": float}


def check_output(path: Path) -> None:
    """Raise L2TFastError if rows cannot be appended to a file, of what can be known before they are measured."""
    try:
        if path.exists() and path.stat().st_size:
            _read(path)
        folder = next(parent for parent in path.parents if parent.exists())
        reason = why_not_writable(path if path.exists() else folder) if folder.is_dir() else errno.ENOTDIR
        if reason is not None:
            raise OSError(reason, os.strerror(reason))
    except OSError as error:
        raise L2TFastError(f"rows cannot be written to {path}: {error.strerror or error}") from error


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file, which is made if it is missing.

    Raises:
        L2TFastError: the file has other columns or ends inside a row, or it cannot be written. It is as it was then,
            and a new one is gone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked_end(path) as file:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if path.stat().st_size:
                _read(path)
            else:
                writer.writerow(COLUMNS)
            for row in rows:
                writer.writerow(_cell(getattr(row, name)) for name in COLUMNS)
            write_all(text.getvalue(), file)
    except OSError as error:
        raise L2TFastError(f"rows cannot be written to {path}: {error.strerror or error}") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file that :func:`append_rows` wrote, oldest first.

    Raises:
        L2TFastError: there is no such file, it has other columns or ends inside a row, or a row is none that
            :func:`append_rows` writes.
    """
    try:
        return [_row(path, line, cells) for line, cells in _read(path)]
    except OSError as error:
        raise L2TFastError(f"rows cannot be read from {path}: {error.strerror or error}") from error


def _read(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of each row below the header, and the line that they begin in; only of a file that ends with a row."""
    # A cell that was cut short can still be a number, so what no newline ends is not believed.
    whole, newline, cut = path.read_bytes().rpartition(b"\n")
    lines = whole.count(b"\n") + len(newline)
    try:
        reader = csv.reader(io.StringIO((whole + newline if newline else cut).decode(), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise L2TFastError(f"{path} is not text in UTF-8, so it holds no rows of `l2t-fast bench run`") from error
    begin, rows = 1, []
    try:
        _check_header(path, tuple(next(reader, ())))
        begin = reader.line_num + 1
        for cells in reader:
            if cells:  # not an empty line
                rows.append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:  # such as a quote that nothing closes
        raise L2TFastError(f"{path}, line {begin}: no whole row begins there ({error}), remove it") from error
    if cut:
        raise L2TFastError(f"{path} ends inside line {lines + 1}: remove that line, part of it may be missing")
    return rows


def _check_header(path: Path, found: tuple[str, ...]) -> None:
    if found == COLUMNS:
        return
    if not found:
        raise L2TFastError(f"{path} is empty, so it holds no rows of `l2t-fast bench run`")
    missing, unknown = [c for c in COLUMNS if c not in found], [c for c in found if c not in COLUMNS]
    differences = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(unknown)
    raise L2TFastError(
        f"{path} holds other columns than this version writes "
        f"(it {' and '.join(differences) or 'orders them otherwise'}), name another file"
    )


def _row(path: Path, line: int, cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise L2TFastError(f"{path}, line {line}: {len(cells)} cells are there, {len(COLUMNS)} are due")
    values = {}
    for name, cell in zip(COLUMNS, cells, strict=True):
        try:
            values[name] = None if cell == "" else _PARSERS[_TYPES[name]](cell)
        except ValueError as error:
            raise L2TFastError(f"{path}, line {line}: {name} is {cell!r}, a number is due there") from error
    row = Row(**values)
    if row.status not in STATUSES:
        raise L2TFastError(
            f"{path}, line {line}: status is {row.status or ''!r}, one of {', '.join(STATUSES)} is due there"
        )
    for name in ("run", "device", "workload", "mode", "provider"):  # a peak has no layout
        if getattr(row, name) is None:
            raise L2TFastError(f"{path}, line {line}: {name} is '', it must be there")
    if row.sweep is not None and row.mode not in LOSS_MODE_NAMES:
        modes = ", ".join(LOSS_MODE_NAMES)
        raise L2TFastError(f"{path}, line {line}: mode is {row.mode!r}, one of {modes} is due there in a sweep")
    due = ["threads", "batch", "pairs"] + ["size"] * (row.sweep is not None)
    if row.status == OK:
        # A part of a step has a median alone.
        due += ["median_ms"] if row.part else ["median_ms", "p20_ms", "p80_ms"]
        if row.mode == "peak" and row.bytes is None:
            due.append("flop")
    for name in due:
        value = getattr(row, name)
        # A peak has no pairs, and a part of a step may take no time.
        may_be_zero = name == "pairs" or (row.part is not None and name == "median_ms")
        if value is None or not (0 < value < math.inf or (may_be_zero and value == 0)):
            wanted = "a number" if value is None else "a number above 0"
            raise L2TFastError(f"{path}, line {line}: {name} is {_cell(value)!r}, {wanted} is due there")
    for name, kind in _TYPES.items():
        value = getattr(row, name)
        if kind != "str" and value is not None and not (0 <= value < math.inf or name == "error"):
            raise L2TFastError(f"{path}, line {line}: {name} is {_cell(value)!r}, a number of 0 or more is due there")
    return row


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
