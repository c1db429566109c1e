"""A comparison over several numbers N of training images a class: who is ahead where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from l2t_fast.report.folder import Comparison
from l2t_fast.report.statistics import Summary
from l2t_fast.report.verdict import MethodResult, Verdict, judge, rank_methods
from l2t_fast.report.wording import level_name, percent

Levels = Mapping[int | None, list[MethodResult]]
"""N, ascending, None for all images -> the results there, best first."""


@dataclass(frozen=True)
class SweepRow:
    """One method: test accuracy at each N, None where it has no run."""

    label: str
    cells: list[Summary | None]
    best: list[bool]
    """Whether no method has a higher mean at that N."""


_SEVERAL = "several methods"  # what stands for those that share the highest mean at an N


def rank_levels(comparison: Comparison) -> dict[int | None, list[MethodResult]]:
    """``rank_methods`` at each N."""
    return {level: rank_methods(comparison.at(level)) for level in comparison.levels}


def sweep_rows(levels: Levels) -> list[SweepRow]:
    """The overview, in the order of the results at the smallest N; methods without a run there come last."""
    labels = dict.fromkeys(result.label for results in levels.values() for result in results)
    rows = []
    for label in labels:
        cells, best = [], []
        for results in levels.values():
            cell = next((result.test for result in results if result.label == label), None)
            cells.append(cell)
            best.append(cell is not None and cell.n > 0 and cell.mean == results[0].test.mean)
        rows.append(SweepRow(label, cells, best))
    return rows


def judge_sweep(levels: Levels) -> Verdict:
    """At how many N which method has the highest mean and is clearly ahead; below it ``judge``'s sentence for each."""
    with_results = {level: results for level, results in levels.items() if results and results[0].test.n}
    verdicts = {level: judge(results) for level, results in with_results.items()}
    details = [f"{level_name(level)}: {verdict.headline}" for level, verdict in verdicts.items()]
    if not with_results:
        return Verdict("No run has a test accuracy yet, so there is nothing to compare.")
    first: dict[str, list[int | None]] = {}
    for level, results in with_results.items():
        best = [result.label for result in results if result.test.n and result.test.mean == results[0].test.mean]
        first.setdefault(best[0] if len(best) == 1 else _SEVERAL, []).append(level)
    compared = [result for results in levels.values() for result in results]
    if len({result.label for result in compared if result.test.n}) == 1:
        reached = ", ".join(
            f"{percent(results[0].test.mean)} at {level_name(level)}" for level, results in with_results.items()
        )
        alone = len({result.label for result in compared}) == 1
        other = "there is no other method" if alone else "there is no other method with a result yet"
        return Verdict(f"{next(iter(first))} reaches {reached}; {other} to compare it with.")
    leader = max(first, key=lambda label: (label != _SEVERAL, len(first[label])))
    numbers = f"{len(with_results)} numbers N of training images a class"
    if leader == _SEVERAL:
        return Verdict(f"No method alone has the highest mean test accuracy at any of the {numbers}.", details)
    clear = [level for level in first[leader] if verdicts[level].clear]
    ahead = f"it is clearly ahead at {_names(clear)}" if clear else "it is clearly ahead at none of them"
    others = [f"{label} at {_names(where)}" for label, where in first.items() if label != leader]
    rest = f" The highest elsewhere: {'; '.join(others)}." if others else ""
    every = "every one of the " if len(first[leader]) == len(with_results) else f"{len(first[leader])} of the "
    return Verdict(
        f"{leader} has the highest mean test accuracy at {every}{numbers}"
        f"{'' if not others else f' ({_names(first[leader])})'}; {ahead}.{rest}",
        details,
        len(clear) == len(with_results),
    )


def _names(levels: list[int | None]) -> str:
    numbers = [str(level) for level in levels if level is not None]
    return " and ".join(([f"N = {', '.join(numbers)}"] if numbers else []) + ["all images"] * (None in levels))
