"""Means over seeds with their uncertainty. Units are those of the values; accuracies are fractions in [0, 1]."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """``n`` values: mean, sample standard deviation, and Student's t interval of the mean (NaN where n < 2)."""

    n: int
    mean: float
    spread: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return self.n >= 2

    def overlaps(self, other: Summary) -> bool:
        """Whether the two intervals share a point; both must have one."""
        return self.low <= other.high and other.low <= self.high


def summarise(values: Iterable[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and 95 % t interval of the finite ``values``."""
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    n = finite.size
    if n == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(finite.mean())
    if n == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    spread = float(finite.std(ddof=1))
    # Not stats.t.interval: it returns NaN where all values are equal, and the interval is then the mean itself.
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
    return Summary(n, mean, spread, mean - half, mean + half)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Summary:
    """Summary of ``first - second`` over the seeds that both have: seed -> accuracy."""
    return summarise(first[seed] - second[seed] for seed in first if seed in second)


def mean_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) over the first axis, without NaN entries; NaN and 0 where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=0), np.nan_to_num(np.nanstd(values, axis=0, ddof=1))
