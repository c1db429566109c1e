"""Which of several sources helped: the runs source by source, and lambda summed over the pairs of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from l2t_fast.layer_names import split_source_layer
from l2t_fast.report.folder import Comparison, Pair, Run
from l2t_fast.report.statistics import Summary, summarise
from l2t_fast.report.style import method_label


@dataclass(frozen=True)
class SourceRow:
    """One method's lambda of one source, at the best-validation epoch of each run."""

    label: str
    """Of the method."""
    source: str
    pairs: int
    total: Summary
    """Sum over the pairs, over seeds."""
    share: float
    """The mean sum as a fraction of that of all sources."""
    mean: float
    """A pair's lambda in the mean: a source with more layers has the larger sum without being of more use."""


def source_names(runs: list[Run]) -> list[str]:
    """The sources of `runs`, in the order of their configuration; empty where a run has a single one."""
    return list(dict.fromkeys(name for run in runs for name in run.sources))


def source_of(pair: Pair, names: list[str]) -> str:
    """The one of several sources that a pair's map is of, "" for a run with a single source."""
    source, _ = split_source_layer(pair[0])
    return source if source in names else ""


def of_source(run: Run, source: str) -> Run:
    """What `run` learned about the layers of one of its sources, which lose the source's name."""

    def part(weights: dict) -> dict:
        return {
            (split_source_layer(pair[0])[1], pair[1]): value
            for pair, value in weights.items()
            if source_of(pair, run.sources) == source
        }

    return replace(run, pair_weights=part(run.pair_weights), channel_weights=part(run.channel_weights))


def source_sums(run: Run) -> dict[str, dict[int, float]]:
    """Per source: epoch -> sum of lambda over its pairs."""
    sums: dict[str, dict[int, float]] = {}
    for pair, by_epoch in run.pair_weights.items():
        curve = sums.setdefault(source_of(pair, run.sources), {})
        for epoch, value in by_epoch.items():
            curve[epoch] = curve.get(epoch, 0.0) + value
    return sums


def source_rows(comparison: Comparison) -> list[SourceRow]:
    """A row for every method that learned lambda, and each of its sources; none where there is a single source."""
    rows = []
    for method in comparison.methods:
        runs = [run for run in comparison.runs_of(method) if run.sources and run.pair_weights]
        runs = [run for run in runs if run.finished] or runs
        for source in source_names(runs):
            values = [_values(run, source) for run in runs]
            pairs = max(len(own) for own, _ in values)
            total = summarise([sum(own) for own, _ in values])
            whole = summarise([of_all for _, of_all in values]).mean
            share = total.mean / whole if whole else math.nan
            mean = total.mean / pairs if pairs else math.nan
            rows.append(SourceRow(method_label(method), source, pairs, total, share, mean))
    return rows


def _values(run: Run, source: str) -> tuple[list[float], float]:
    """lambda of each pair of `source`, and the sum over all pairs."""
    weights = run.pair_weights_at_best()
    own = [value for pair, value in weights.items() if source_of(pair, run.sources) == source]
    return own, sum(weights.values())
