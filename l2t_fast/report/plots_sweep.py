"""Accuracy against the number of training images a class, as in the paper's figure on limited data."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from l2t_fast.report.figure import Plot, drawing, percent_axis, save_plot, short, spread_apart
from l2t_fast.report.style import LineStyle, method_styles
from l2t_fast.report.sweep import Levels
from l2t_fast.report.verdict import MethodResult
from l2t_fast.report.wording import percent

WIDTH = 7.6
"""Inches: the lines need room to be told apart, and their names stand beside them."""
LABEL_WIDTH = 0.09
"""What a number below the axis takes of its length."""


def accuracy_against_images(levels: Levels, plots_dir: Path, conditions: str) -> Plot | None:
    """Test accuracy over N, one line a method, its name at its end. None with results at fewer than two N."""
    by_method: dict[str, dict[int, MethodResult]] = {}
    for level, results in levels.items():
        for result in results:
            if level is not None and result.test.n:
                by_method.setdefault(result.method, {})[level] = result
    numbers = sorted({level for results in by_method.values() for level in results})
    if len(numbers) < 2:
        return None
    styles = method_styles(sorted(by_method))
    steps = np.diff(np.log(numbers))
    # Bars of several methods at one N would cover each other: they stand side by side, within a third of a step.
    shifts = np.exp(np.linspace(-1, 1, len(by_method)) * 0.17 * steps.min()) if len(by_method) > 1 else [1.0]
    counts = [result.test.n for results in by_method.values() for result in results.values() if result.test.n > 1]
    # An interval from two seeds is nine standard deviations to either side: bars of that length hide every line.
    intervals = bool(counts) and statistics.median(counts) > 2
    ends: list[tuple[MethodResult, float, float]] = []
    with drawing(WIDTH, max(3.6, 1.6 + 0.3 * len(by_method))) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for shift, (method, results) in zip(shifts, by_method.items(), strict=True):
            style = styles[method]
            where = sorted(results)
            tests = [results[level].test for level in where]
            mean = np.array([test.mean for test in tests])
            half = np.array([(test.high - test.mean if intervals else test.spread) for test in tests])
            half[[test.n < 2 for test in tests]] = 0
            # What leaves 0 to 100 % is cut there.
            bars = np.stack([np.minimum(half, mean), np.minimum(half, 1 - mean)])
            axes.plot(
                *(where, mean),
                **{"color": style.color, "marker": style.marker, "linestyle": style.dashes},
                **{"markersize": 5, "linewidth": 1.6},
            )
            several = half > 0
            axes.errorbar(
                *((np.array(where) * shift)[several], mean[several]),
                **{"yerr": bars[:, several], "fmt": "none", "ecolor": style.color, "elinewidth": 1, "capsize": 2},
            )
            ends.append((results[where[-1]], float(where[-1]), float(mean[-1])))
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
        named = _apart(numbers)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}" if number in named else ""))
        axes.set(xlabel="training images a class, N (logarithmic)", ylabel="test accuracy")
        percent_axis(axes)
        _name_lines(axes, ends, styles)
        lowest = axes.get_ylim()[0]
        caption = (
            "Mean test accuracy over seeds, of the models with the best validation accuracy; the figure beside each "
            "line is its value at its largest N."
        )
        if counts:
            bar = "95 % Student t interval of the mean" if intervals else "one standard deviation over seeds"
            caption += f" Bar: {bar}, cut at 0 and 100 %, beside its N."
        caption += " The vertical axis does not start at zero." if lowest > 0 else ""
        title = "Test accuracy against training images"
        plot = save_plot(figure, plots_dir, "accuracy_against_images", title, f"{caption} {conditions}")
    return replace(plot, across=True)


def _apart(numbers: list[int]) -> set[int]:
    """Those of rising numbers that can be written below a logarithmic axis; the last one is."""
    named = [numbers[-1]]
    gap = LABEL_WIDTH * math.log(numbers[-1] / numbers[0])
    for number in reversed(numbers[:-1]):
        if math.log(named[-1] / number) >= gap:
            named.append(number)
    return set(named)


def _name_lines(axes: Axes, ends: list[tuple[MethodResult, float, float]], styles: dict[str, LineStyle]) -> None:
    """Names to the right of the axes, spread apart, each with a thin line to the end of its own."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.19 / (axes.figure.get_figheight() - 0.9)
    places = spread_apart([mean for _, _, mean in ends], gap, low, high)
    right = axes.get_xlim()[1]
    for (result, x, mean), place in zip(ends, places, strict=True):
        color = styles[result.method].color
        axes.annotate(
            f"{short(result.label, 20)} {percent(mean)}",
            xy=(x, mean),
            xytext=(1.06, place),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.5,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    axes.set_xlim(right=right)
