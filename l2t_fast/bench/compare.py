"""Which figures of one set of rows are worse than in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from l2t_fast.bench.rows import KEY, OK, Row, read_rows
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
    key the newest counts. More than ``threshold`` times as much is a regression, and so is a provider that was right
    and is wrong now, or runs out of memory. Time that only looks longer is none: the quicker fifth of the calls (p20)
    must also be slower than before.
    """
    old = newest_by_key(_compared(before))
    changes = []
    for key, row in newest_by_key(_compared(after)).items():
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


def newest_by_key(rows: Iterable[Row]) -> dict[tuple[object, ...], Row]:
    """The newest of the rows with one :meth:`Row.key`, by key; files may be put together in any order."""
    return {row.key(): row for row in sorted(rows, key=lambda row: row.run)}


def not_measured_again(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """Rows with a figure before whose provider takes no part after, though others on the same work do."""
    again, works = {row.key() for row in after}, {_work(row) for row in after}
    old = newest_by_key(row for row in _compared(before) if row.status == OK)
    return [row for key, row in old.items() if key not in again and _work(row) in works]


def other_work(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """What was measured before and by nobody after, as "workload mode", each once."""
    works = {_work(row) for row in after}
    left = [row for row in _compared(before) if row.status == OK and _work(row) not in works]
    return list(dict.fromkeys(f"{row.workload} {row.mode}" for row in left))


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Rows without those of what the machine can do, and of a step's parts."""
    return [row for row in rows if row.mode != "peak" and not row.part]


def _work(row: Row) -> tuple[object, ...]:
    return dataclasses.replace(row, provider="").key()


def why_nothing_in_common(before: Sequence[Row], after: Sequence[Row]) -> str:
    """What keeps every row of one set from being compared with one of the other."""
    before, after = _compared(before), _compared(after)
    for side, rows in (("before", before), ("after", after)):
        if not rows:
            return f"there are no rows {side}"
    if {row.key() for row in before} & {row.key() for row in after}:
        return "what both measured had no figure before"
    for name in KEY:
        old, new = ({str(getattr(row, name)) for row in rows} for rows in (before, after))
        if not old & new:
            return f"{name} is {', '.join(sorted(old))} before and {', '.join(sorted(new))} after"
    return f"no row before agrees with one after in all of {', '.join(KEY)}"


def rows_of(name: str) -> list[Row]:
    """The rows of a file, or with FILE@COMMIT those in it that were measured with a commit (or a prefix of one).

    A commit is none of its own changes: those are COMMIT-dirty.

    Raises:
        L2TFastError: there is no such file, or no row of the commit in it, or of several.
    """
    path, at, commit = name.rpartition("@")
    if not at or Path(name).is_file():  # a folder or a file may have an @ in its name
        path, commit = name, ""
    rows = read_rows(Path(path))
    if commit:
        found = [row for row in rows if row.commit is not None and _same_commit(row.commit, commit)]
        if not found:
            known = ", ".join(dict.fromkeys(row.commit or "none" for row in rows)) or "no rows"
            raise L2TFastError(f"{path} holds no row of commit {commit}, it has {known}")
        commits = sorted({row.commit for row in found}, key=lambda commit: (len(commit), commit))
        if not all(_same_commit(commits[0], other) for other in commits):
            raise L2TFastError(f"{path} holds rows of several commits {commit}: {', '.join(commits)}, name one of them")
        return found
    return rows


def _same_commit(one: str, other: str) -> bool:
    """Whether one is the other or its beginning, both of them with changes or both without."""
    hashes = [name.removesuffix("-dirty") for name in (one, other)]
    same = hashes[0].startswith(hashes[1]) or hashes[1].startswith(hashes[0])
    return same and one.endswith("-dirty") == other.endswith("-dirty")
