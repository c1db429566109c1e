"""Accuracy figures: curves over the epochs, and the result of each seed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from l2t_fast.report.figure import NARROW, Plot, drawing, percent_axis, save_plot, short, spread_apart
from l2t_fast.report.folder import Comparison, Run
from l2t_fast.report.statistics import mean_and_spread
from l2t_fast.report.style import LIGHT, method_label, method_styles
from l2t_fast.report.verdict import MethodResult
from l2t_fast.report.wording import percent

LABEL_HEIGHT = 0.21
"""Inches from one label beside a line to the next."""
MOST_BANDS = 5
"""Methods whose spread is drawn as a band: more bands than this hide one another, and the table has the numbers."""


def accuracy_curves(comparison: Comparison, plots_dir: Path, conditions: str) -> Plot | None:
    """Validation accuracy over epochs: mean over seeds, band of one standard deviation. None where no run has one."""
    styles = method_styles(comparison.methods)
    ends: list[tuple[str, float]] = []
    any_band = any_partial = False
    bands = len(comparison.methods) <= MOST_BANDS
    height = max(3.3, 0.7 + LABEL_HEIGHT * len(comparison.methods))
    with drawing(NARROW, height) as figure:
        axes = figure.subplots()
        for method in comparison.methods:
            runs, partial = _runs_with_curve(comparison.runs_of(method))
            if not runs:
                continue
            epochs, mean, spread = _mean_curve(runs)
            if not np.isfinite(mean).any():
                continue
            style = styles[method]
            single = {"marker": style.marker, "markersize": 5} if len(epochs) == 1 else {}
            width = 1.8 if bands else 1.5
            axes.plot(epochs, mean, color=style.color, linestyle=style.dashes, linewidth=width, **single)
            if bands and len(runs) > 1:
                any_band = True
                axes.fill_between(epochs, mean - spread, mean + spread, color=style.color, alpha=0.13, linewidth=0)
            any_partial |= partial
            shown = mean[np.isfinite(mean)]
            ends.append((method, float(shown[-1])))
        if not ends:
            return None
        axes.set(xlabel="epoch", ylabel="validation accuracy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        percent_axis(axes)
        low, high = axes.get_ylim()
        gap = LABEL_HEIGHT / (height - 0.7) * (high - low)
        places = spread_apart([value for _, value in ends], gap, low, high)
        for (method, value), place in zip(ends, places, strict=True):
            style = styles[method]
            dashes = style.dashes
            if isinstance(dashes, tuple):  # shorter ones, so that the sample has several of them
                dashes = (0, [0.5 * length for length in dashes[1]])
            sample = {"color": style.color, "linestyle": dashes, "transform": axes.get_yaxis_transform()}
            axes.plot([1.03, 1.12], [place, place], linewidth=1.5, clip_on=False, **sample)
            axes.annotate(
                f"{short(method_label(method, narrow=True), 18)} {percent(value)}",
                (1.15, place),
                xycoords=("axes fraction", "data"),
                color=style.color,
                fontsize=9.5,
                va="center",
                annotation_clip=False,
            )
        axes.set_ylim(low, high)
        caption = (
            "Validation accuracy after each epoch, mean over seeds; the figure beside each line is its last value."
        )
        if any_band:
            caption += " Band: one standard deviation over seeds to either side."
        if any_partial:
            caption += (
                " Where runs have different lengths, the line ends with the shortest; unfinished runs are drawn only "
                "where a method has no finished one."
            )
        return save_plot(
            figure, plots_dir, "accuracy_curves", "Validation accuracy over epochs", f"{caption} {conditions}"
        )


def accuracy_results(results: list[MethodResult], plots_dir: Path, conditions: str) -> Plot | None:
    """Test accuracy: one dot a seed, mean and 95 % interval a method, the best on top. None without a finished run."""
    rows = [result for result in results if result.test.n]
    if not rows:
        return None
    styles = method_styles([result.method for result in results])
    with drawing(NARROW, 0.95 + 0.52 * len(rows)) as figure:
        axes = figure.subplots()
        for row, result in enumerate(rows):
            style, test = styles[result.method], result.test
            values = [run.test_accuracy for run in result.runs]
            # Dots above the line, interval on it: equal results of two seeds stay visible as two dots.
            heights = row - 0.17 - 0.07 * (np.arange(len(values)) % 3)
            axes.scatter(
                values, heights, s=26, color=style.color, marker=style.marker, alpha=0.75, linewidths=0, zorder=3
            )
            if test.has_interval:
                axes.plot(
                    [max(test.low, 0), min(test.high, 1)], [row + 0.12] * 2, color=style.color, linewidth=2.2, zorder=2
                )
            axes.plot([test.mean] * 2, [row, row + 0.24], color=style.color, linewidth=2.2, zorder=2)
            axes.annotate(
                percent(test.mean),
                (1.02, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9.5,
                color=style.color,
                annotation_clip=False,
            )
        labels = [f"{short(method_label(result.method, narrow=True), 18)} (n={result.test.n})" for result in rows]
        axes.set_yticks(range(len(rows)), labels, color=LIGHT["ink"])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.55)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("test accuracy")
        percent_axis(axes, "x")
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.01), min(high, 1.01))
        caption = (
            "Test accuracy of the model with the best validation accuracy. Dots: one a seed. Tick: mean over seeds."
        )
        if any(result.test.has_interval for result in rows):
            caption += " Bar: 95 % Student t interval of the mean (n seeds), cut at 0 and 100 %."
        caption += " The axis does not start at zero." if low > 0 else ""
        return save_plot(figure, plots_dir, "results", "Test accuracy", f"{caption} {conditions}")


def _runs_with_curve(runs: list[Run]) -> tuple[list[Run], bool]:
    """The finished runs that recorded a curve, or all that did if none finished; whether some were left out or cut."""
    curved = [run for run in runs if np.isfinite(run.metrics.get("validation_accuracy", np.array([math.nan]))).any()]
    chosen = [run for run in curved if run.finished] or curved
    lengths = {run.epochs_recorded for run in chosen}
    return chosen, len(chosen) < len(curved) or len(lengths) > 1 or any(not run.finished for run in chosen)


def _mean_curve(runs: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that all runs have, mean and standard deviation (n - 1) over the runs with a finite value there."""
    shared = sorted(set.intersection(*({int(epoch) for epoch in run.metrics["epoch"]} for run in runs)))
    curves = np.stack([run.metrics["validation_accuracy"][np.isin(run.metrics["epoch"], shared)] for run in runs])
    return np.array(shared), *mean_and_spread(curves)  # an epoch where no run has a number stays a gap
