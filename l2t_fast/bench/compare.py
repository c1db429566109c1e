"""Which figures of one set of rows are worse than in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from l2t_fast.bench.rows import OK, Row, read_rows
from l2t_fast.errors import L2TFastError


@dataclass(frozen=True)
class Change:
    """One figure in both sets of rows.

    Attributes:
        what: "time", "memory" or "status"
        ratio: after / before; infinite where there was a figure and is none any more
        regressed: whether the ratio is beyond what is allowed
    """

    row: Row
    what: str
    before: float | str
    after: float | str
    ratio: float
    regressed: bool


def compare(before: Sequence[Row], after: Sequence[Row], threshold: float) -> list[Change]:
    """Changes of time and memory by the ratio of medians and peaks, worst first.

    Rows are matched by :meth:`Row.key`, that is on the same device with the same threads and flags; of several with one
    key the last counts. More than ``threshold`` times as much is a regression, and so is a provider that was right and
    is wrong now, or runs out of memory. Time that only looks longer is none: the quicker fifth of the calls (p20) must
    also be slower than before.
    """
    old = {row.key(): row for row in before if row.mode != "peak" and not row.part}
    changes = []
    for key, row in {row.key(): row for row in after}.items():
        previous = old.get(key)
        if previous is None or previous.status != OK:
            continue
        if row.status != OK:
            changes.append(Change(row, "status", previous.status, row.status, float("inf"), True))
            continue
        for what, column in (("time", "median_ms"), ("memory", "peak_mib")):
            a, b = getattr(previous, column), getattr(row, column)
            if a and b:
                ratio = b / a
                slower = what == "memory" or row.p20_ms > previous.p20_ms
                changes.append(Change(row, what, a, b, ratio, ratio > threshold and slower))
    return sorted(changes, key=lambda change: -change.ratio)


def rows_of(name: str) -> list[Row]:
    """The rows of a file, or with FILE@COMMIT those in it that were measured with a commit (or a prefix of one).

    Raises:
        L2TFastError: there is no such file, or no row of the commit in it.
    """
    path, at, commit = name.rpartition("@")
    if not at or Path(name).is_file():  # a folder or a file may have an @ in its name
        path, commit = name, ""
    rows = read_rows(Path(path))
    if commit:
        found = [row for row in rows if (row.commit or "").startswith(commit)]
        if not found:
            known = ", ".join(dict.fromkeys(row.commit or "none" for row in rows))
            raise L2TFastError(f"{path} holds no row of commit {commit}, it has {known}")
        return found
    return rows
