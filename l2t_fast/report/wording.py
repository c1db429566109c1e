"""Numbers as a person reads them. Accuracies come in as fractions, times as seconds; NaN becomes a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable

from l2t_fast.report.statistics import Summary
from l2t_fast.report.style import split_method

DASH = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"


METHOD_NOTES = {
    "scratch": "Scratch takes nothing.",
    "fine-tune": "Fine-tune starts from the source's weights, where the architectures agree.",
    "lwf": "LwF also learns to answer as the source does, through a head of its own.",
    "at": "AT has the target look where the source looks: it matches attention maps, the energy of a feature map at "
    "each pixel.",
    "lwf-at": "LwF+AT adds the terms of LwF and of AT.",
    "fm": "FM matches features, all its pairs of layers and all channels alike.",
    "l2t-w": "L2T-w learns what to transfer: a weight w for every channel.",
    "l2t-ww": "L2T-ww learns what and where to transfer: a weight w for every channel, and a weight λ for every pair "
    "of a source and a target layer.",
}
"""What a method takes from the source, in a sentence."""


def method_notes(methods: Iterable[str]) -> str:
    """The sentences about the methods that are compared, each once."""
    names = {split_method(method)[0] for method in methods}
    return " ".join(note for name, note in METHOD_NOTES.items() if name in names)


def percent(fraction: float) -> str:
    """``0.9125`` -> ``91.2 %``."""
    return f"{100 * fraction:.1f}{SPACE}%" if math.isfinite(fraction) else DASH


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of two accuracies in percentage points, without the unit: ``0.031`` -> ``3.1``."""
    number = round(100 * difference, 9)  # one difference is one figure, in whatever order it was computed
    return f"{number:+.1f}".replace("-", "\N{MINUS SIGN}") if sign else f"{number:.1f}"


def interval(accuracy: Summary) -> str:
    """``89.0 to 92.5 %``; cut at 0 and 100 %, which a t interval near either end would leave."""
    if not accuracy.has_interval:
        return DASH
    return f"{100 * max(accuracy.low, 0):.1f} to {percent(min(accuracy.high, 1))}"


def number(value: float) -> str:
    """``1.2345`` -> ``1.23``."""
    return f"{value:.2f}" if math.isfinite(value) else DASH


def level_name(per_class: int | None) -> str:
    """``50`` -> ``N = 50``, N being training images a class; None -> ``all images``."""
    return "all images" if per_class is None else f"N{SPACE}={SPACE}{per_class}"


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
