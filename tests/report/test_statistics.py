import math

import numpy as np
import pytest
from scipy import stats

from l2t_fast.report.statistics import paired_difference, summarise


def test_interval_is_students_t():
    values = [0.81, 0.86, 0.79, 0.84]
    summary = summarise(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.n, summary.mean) == (4, pytest.approx(0.825))
    assert summary.spread == pytest.approx(np.std(values, ddof=1))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = summarise([0.9])
    assert one.mean == 0.9 and not one.has_interval and math.isnan(one.low) and math.isnan(one.spread)
    none = summarise([math.nan, math.inf])
    assert none.n == 0 and math.isnan(none.mean)


def test_nan_is_left_out():
    assert summarise([0.5, math.nan, 0.7]) == summarise([0.5, 0.7])


def test_equal_values_have_an_interval_of_width_zero():
    summary = summarise([0.5, 0.5, 0.5])
    assert (summary.low, summary.high) == (0.5, 0.5)
    assert summary.overlaps(summarise([0.5, 0.5]))
    assert not summary.overlaps(summarise([0.6, 0.6]))


def test_paired_difference_takes_shared_seeds_only():
    difference = paired_difference({0: 0.9, 1: 0.8, 5: 0.1}, {0: 0.85, 1: 0.79, 7: 0.9})
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.03)
