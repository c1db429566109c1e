"""Numbers as a person reads them. Accuracies come in as fractions, times as seconds; NaN becomes a dash."""

from __future__ import annotations

import math

from l2t_fast.report.statistics import Summary

DASH = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"


def percent(fraction: float) -> str:
    """``0.9125`` -> ``91.2 %``."""
    return f"{100 * fraction:.1f}{SPACE}%" if math.isfinite(fraction) else DASH


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of two accuracies in percentage points, without the unit: ``0.031`` -> ``3.1``."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}") if sign else f"{100 * difference:.1f}"


def interval(accuracy: Summary) -> str:
    """``89.0 to 92.5 %``; cut at 0 and 100 %, which a t interval near either end would leave."""
    if not accuracy.has_interval:
        return DASH
    return f"{100 * max(accuracy.low, 0):.1f} to {percent(min(accuracy.high, 1))}"


def duration(seconds: float) -> str:
    """``83.2`` -> ``1 min 23 s``."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"
