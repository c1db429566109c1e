"""The sentence at the top of the page: what won, by how much, and whether that can be told from chance.

The rules, in order:

1. Only finished runs with a finite test accuracy count. Methods are ranked by their mean test accuracy over seeds.
2. A method is *clearly ahead* if it and every other method have a 95 % t interval (two seeds or more) and its interval
   overlaps none of the others.
3. Otherwise no method is clearly ahead, and the sentence says which intervals overlap or are missing.

Rule 2 is stricter than a test of the difference of two means. So the differences seed by seed from the next best
method and from scratch stand beside it: methods share a seed's images, which are most of what seeds differ by.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from l2t_fast.report.folder import Comparison, Run
from l2t_fast.report.statistics import Summary, paired_difference, summarise
from l2t_fast.report.style import method_label
from l2t_fast.report.wording import interval, percent, points


@dataclass(frozen=True)
class MethodResult:
    """One row of the results table."""

    method: str
    label: str
    runs: list[Run]
    """The finished runs with a test accuracy."""
    unfinished: int
    """Runs without one."""
    test: Summary
    validation: Summary
    seconds: float
    """Median over the finished runs, NaN without any."""

    @property
    def by_seed(self) -> dict[int, float]:
        return {run.seed: run.test_accuracy for run in self.runs if run.seed is not None}


@dataclass(frozen=True)
class Verdict:
    headline: str
    details: list[str] = field(default_factory=list)
    clear: bool = False
    """Whether the first of ``rank_methods`` is clearly ahead."""


def rank_methods(comparison: Comparison) -> list[MethodResult]:
    """One result a method, best mean test accuracy first, methods without any result last."""
    results = []
    for method in comparison.methods:
        runs = comparison.runs_of(method)
        done = [run for run in runs if run.has_test_accuracy]
        seconds = [run.seconds for run in done if math.isfinite(run.seconds)]
        results.append(
            MethodResult(
                method=method,
                label=method_label(method),
                runs=done,
                unfinished=len(runs) - len(done),
                test=summarise(run.test_accuracy for run in done),
                validation=summarise(run.validation_accuracy for run in done),
                seconds=statistics.median(seconds) if seconds else math.nan,
            )
        )
    return sorted(results, key=lambda result: (result.test.n == 0, -result.test.mean if result.test.n else 0.0))


def judge(results: list[MethodResult]) -> Verdict:
    """Apply the rules above to ``rank_methods``' results."""
    ranked = [result for result in results if result.test.n]
    if not ranked:
        return Verdict("No run has a test accuracy yet, so there is nothing to compare.")
    best = ranked[0]
    if len(ranked) == 1:
        only = "it is the only method here" if len(results) == 1 else "no other method has a result yet"
        return Verdict(f"{best.label} reaches {_with_interval(best)}; {only}, so there is nothing to compare it with.")

    second, others = ranked[1], ranked[1:]
    gap = best.test.mean - second.test.mean
    if points(gap) == points(0):
        link = "and"
        lead = (
            f"{best.label} and {second.label} have practically the same mean test accuracy, {percent(best.test.mean)}"
        )
    else:
        link = "but"
        lead = (
            f"{best.label} has the highest mean test accuracy, {percent(best.test.mean)}, "
            f"{points(gap)} points above {second.label} ({percent(second.test.mean)})"
        )
    unknown = [result for result in ranked if not result.test.has_interval]
    if not best.test.has_interval:
        who = "every method" if len(unknown) == len(ranked) else _names(unknown)
        return Verdict(
            f"No method is clearly ahead: {lead}, {link} {who} ran with one seed, so chance cannot be excluded."
        )

    overlapping = [r for r in others if r.test.has_interval and best.test.overlaps(r.test)]
    separate = [r for r in others if r.test.has_interval and not best.test.overlaps(r.test)]
    details = []
    clear = not overlapping and not unknown
    if clear:
        headline = (
            f"{best.label} is clearly ahead: {percent(best.test.mean)} mean test accuracy, {points(gap)} points above "
            f"{second.label} ({percent(second.test.mean)}), and its 95 % interval overlaps no other."
        )
    else:
        reasons = []
        if overlapping:
            reasons.append(f"the 95 % interval of {best.label} overlaps {_that_of(overlapping)}")
        if unknown:
            reasons.append(
                f"{_names(unknown)} ran with one seed and {'has' if len(unknown) == 1 else 'have'} no interval"
            )
        headline = f"No method is clearly ahead: {lead}, {link} {', and '.join(reasons)}."
        if separate:
            details.append(f"{best.label} is clearly above {_names(separate)}: those intervals do not overlap.")
    # What was gained over the next best, and by transferring at all.
    for other in [second, *(result for result in others[1:] if result.method == "scratch")]:
        details += _seed_by_seed(best, other)
    return Verdict(headline, details, clear)


def _seed_by_seed(best: MethodResult, other: MethodResult) -> list[str]:
    """The difference of two methods over the seeds that both have, in a sentence if there are two of them."""
    difference = paired_difference(best.by_seed, other.by_seed)
    if not difference.has_interval:
        return []
    both = f"{best.label} minus {other.label} is {points(difference.mean, sign=True)} points"
    if difference.high - difference.low < 1e-9:
        # So few images or seeds that an interval of no width says nothing about other seeds.
        return [f"{both} with each of {difference.n} seeds, so their spread is not known."]
    zero = "includes" if difference.low <= 0 <= difference.high else "excludes"
    return [
        f"Seed by seed, {both} (95 % interval {points(difference.low, sign=True)} to "
        f"{points(difference.high, sign=True)}, {difference.n} seeds), which {zero} zero."
    ]


def _with_interval(result: MethodResult) -> str:
    test = result.test
    if not test.has_interval:
        return f"{percent(test.mean)} test accuracy (one seed, so without an interval)"
    return f"{percent(test.mean)} mean test accuracy (95 % interval {interval(test)}, {test.n} seeds)"


def _names(results: list[MethodResult]) -> str:
    labels = [result.label for result in results]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _that_of(results: list[MethodResult]) -> str:
    return f"{'that' if len(results) == 1 else 'those'} of {_names(results)}"
