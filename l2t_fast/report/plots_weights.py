"""What was learned: lambda of each layer pair, over training and in the end, and how unequal channel weights became."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from l2t_fast.layer_names import split_source_layer
from l2t_fast.report.figure import NARROW, Plot, drawing, save_plot, short
from l2t_fast.report.folder import Pair, Run
from l2t_fast.report.sources import source_names, source_of, source_sums
from l2t_fast.report.statistics import mean_and_spread
from l2t_fast.report.style import LIGHT, layer_style, method_label, split_method


def pair_weight_heat_map(method: str, runs: list[Run], plots_dir: Path, conditions: str) -> Plot | None:
    """lambda of each pair, source layers down, target layers across. None where no run has pair weights."""
    used = _with_pair_weights(runs)
    if not used:
        return None
    per_run = [run.pair_weights_at_best() for run in used]
    sources, targets = _layers([pair for weights in per_run for pair in weights])
    values = np.array([[[weights.get((s, t), math.nan) for t in targets] for s in sources] for weights in per_run])
    mean, spread = mean_and_spread(values)
    largest = float(np.nanmax(mean)) if np.isfinite(mean).any() else 1.0
    scale = matplotlib.colors.Normalize(0, max(largest, 1.0))  # where lambda starts: all that is far below looks so
    colors = matplotlib.colormaps["YlGnBu"]
    width = max(NARROW, 1.45 + 0.62 * len(targets))
    known = {pair for weights in per_run for pair in weights}
    names = source_names(used)
    with drawing(width + (0.9 if names else 0), 1.15 + 0.62 * len(sources)) as figure:
        axes = figure.subplots()
        axes.grid(visible=False)
        for row, source in enumerate(sources):
            for column, target in enumerate(targets):
                value = mean[row, column]
                corner = (column - 0.5, row - 0.5)
                if not math.isfinite(value):
                    axes.add_patch(
                        Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=LIGHT["grid"], linewidth=0)
                    )
                    if (source, target) in known:
                        axes.text(column, row, "no number", ha="center", va="center", fontsize=8)
                    continue
                face = colors(scale(value))
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=LIGHT["paper"], linewidth=1.5))
                # Not quite white: the theme's white becomes the page's colour, but cells look the same in both themes.
                ink = "#fefefe" if _luminance(face) < 0.18 else "#010101"
                shift = 0.1 if len(per_run) > 1 else 0
                axes.text(column, row - shift, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=10.5)
                if len(per_run) > 1:
                    axes.text(
                        column,
                        row + 0.24,
                        f"±{spread[row, column]:.2f}",
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize=7.5,
                    )
        axes.set(xlim=(-0.5, len(targets) - 0.5), ylim=(len(sources) - 0.5, -0.5))
        below = [short(name, 18) for name in targets]
        letters = 13 * (width - 1.45) / len(below)  # that fit side by side below a column
        turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, below)) > letters else {}
        axes.set_xticks(range(len(targets)), below, **turn)
        axes.set_yticks(range(len(sources)), [short(_plain_layer(name, names), 18) for name in sources])
        axes.tick_params(length=0, colors=LIGHT["ink"])
        axes.set(xlabel="target layer", ylabel="source layer")
        axes.spines[:].set_visible(False)
        if names:
            _mark_sources(axes, sources, names, np.nansum(mean, axis=1))
        over = f"mean over {len(per_run)} seeds, ± one standard deviation" if len(per_run) > 1 else "one run"
        missing = " Hatched: not a pair of this run." if len(known) < len(sources) * len(targets) else ""
        if names:
            missing += " Σ is the sum over the pairs of a source."
        caption = (
            f"λ of each layer pair for {method_label(method)}, mean over the images of the best-validation epoch; "
            f"{over}.{_range_of_lambda(method)} Darker is larger, from 0 to "
            f"{scale.vmax:.2f}.{missing}{_all_off(largest)} {_distance_from_start(used)} {conditions}"
        )
        name = f"pair_weights_{_file_name(method)}"
        return save_plot(figure, plots_dir, name, f"Where: λ of each pair ({method_label(method)})", caption)


def source_weight_curves(method: str, runs: list[Run], plots_dir: Path, conditions: str) -> Plot | None:
    """The sum of lambda over each source's pairs, over the epochs. None where there is one source, or no lambda."""
    used = _with_pair_weights(runs)
    names = source_names(used)
    if not names:
        return None
    per_run = [source_sums(run) for run in used]
    with drawing(NARROW, 2.9) as figure:
        axes = figure.subplots()
        for index, name in enumerate(names):
            curves = [sums[name] for sums in per_run if name in sums]
            epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
            if not epochs:
                continue
            mean, spread = mean_and_spread(np.array([[curve[epoch] for epoch in epochs] for curve in curves]))
            style = layer_style(index)
            marker = {"marker": style.marker, "markersize": 4} if len(epochs) == 1 else {}
            axes.plot(
                epochs, mean, color=style.color, linestyle=style.dashes, linewidth=1.8, label=short(name, 24), **marker
            )
            if len(curves) > 1:
                axes.fill_between(epochs, mean - spread, mean + spread, color=style.color, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch", ylabel="Σ λ")
        figure.legend(loc="outside upper center", ncols=2, title="source").get_title().set_fontsize(9)
        band = ", shaded: one standard deviation over seeds" if len(used) > 1 else ""
        counts = {
            name: len({pair for run in used for pair in run.pair_weights if source_of(pair, names) == name})
            for name in names
        }
        caption = (
            f"Which source {method_label(method)} learned from: λ summed over the pairs of each source, mean over "
            f"{_seeds(len(used))}{band}. Pairs: {', '.join(f'{name} {count}' for name, count in counts.items())}. "
            "λ weighs a squared distance of feature maps, so sources whose values differ in size do not compare by it "
            f"alone (unit_rms makes them alike). {conditions}"
        )
        name = f"source_weights_{_file_name(method)}"
        return save_plot(figure, plots_dir, name, f"Which source: Σ λ over training ({method_label(method)})", caption)


def pair_weight_curves(method: str, runs: list[Run], plots_dir: Path, conditions: str, origin: str = "") -> Plot | None:
    """lambda of each pair over the epochs: one panel a target layer, one line a source layer, mean over seeds.

    `origin` is the source that `runs` were cut down to, of several.
    """
    used = _with_pair_weights(runs)
    if not used:
        return None
    sources, targets = _layers([pair for run in used for pair in run.pair_weights])
    curves: dict[Pair, tuple[list[int], np.ndarray]] = {}
    for pair in {pair for run in used for pair in run.pair_weights}:
        having = [run.pair_weights[pair] for run in used if pair in run.pair_weights]
        epochs = sorted(set.intersection(*(set(by_epoch) for by_epoch in having)))
        if epochs:
            mean, _ = mean_and_spread(np.array([[by_epoch[epoch] for epoch in epochs] for by_epoch in having]))
            curves[pair] = (epochs, mean)
    with drawing(*_panel_size(len(targets))) as figure:
        panels = _panels(figure, targets, sources)
        for column, target in enumerate(targets):
            for row, source in enumerate(sources):
                if (source, target) in curves:
                    epochs, mean = curves[source, target]
                    style = layer_style(row)
                    marker = {"marker": style.marker, "markersize": 4} if len(epochs) == 1 else {}
                    panels[column].plot(
                        epochs, mean, color=style.color, linestyle=style.dashes, linewidth=1.6, **marker
                    )
        top = max((float(np.nanmax(mean)) for _, mean in curves.values() if np.isfinite(mean).any()), default=1.0)
        panels[0].set_ylim(0, max(1.1 * top, 1.2))
        panels[0].xaxis.get_major_locator().set_params(integer=True)
        figure.supxlabel("epoch", fontsize=10, color=LIGHT["muted"])
        figure.supylabel("λ", fontsize=10, color=LIGHT["muted"])
        caption = (
            f"λ of each pair for {_label(method, origin)} over training: mean over the images of an epoch (at 0: those "
            f"of the first batch, before its step), then over "
            f"{_seeds(len(used))}. One panel for each target layer, one line for each source layer. {conditions}"
        )
        name = f"pair_weights_over_epochs_{_file_name(method)}{_suffix(origin)}"
        return save_plot(figure, plots_dir, name, f"λ over training ({_label(method, origin)})", caption)


def channel_weight_curves(
    method: str, runs: list[Run], plots_dir: Path, conditions: str, origin: str = ""
) -> Plot | None:
    """Sorted channel weights times C: one panel a target layer, one line a source layer, mean over seeds.

    `origin` is the source that `runs` were cut down to, of several.
    """
    used = [run for run in runs if run.finished and run.channel_weights] or [run for run in runs if run.channel_weights]
    if not used:
        return None
    sources, targets = _layers([pair for run in used for pair in run.channel_weights])
    lowest, highest, shares = 1.0, 1.0, []
    with drawing(*_panel_size(len(targets))) as figure:
        panels = _panels(figure, targets, sources)
        for column, target in enumerate(targets):
            panels[column].axhline(1, color=LIGHT["muted"], linewidth=0.9)
            for row, source in enumerate(sources):
                weights = [
                    run.channel_weights[source, target] for run in used if (source, target) in run.channel_weights
                ]
                weights = [w for w in weights if w.size == weights[0].size and np.isfinite(w).all()]
                if not weights:
                    continue
                # Sorted within a run, then averaged: the same channel need not be the largest in every run.
                relative = np.mean([np.sort(w * w.size)[::-1] for w in weights], axis=0)
                style = layer_style(row)
                rank = (np.arange(relative.size) + 0.5) / relative.size
                marker = {"marker": style.marker, "markersize": 4} if relative.size == 1 else {}
                panels[column].plot(rank, relative, color=style.color, linestyle=style.dashes, linewidth=1.6, **marker)
                lowest, highest = min(lowest, float(relative.min())), max(highest, float(relative.max()))
                shares += [effective_share(w) for w in weights]
        if not shares:
            return None
        # Never tighter than +-20 %: weights that stayed uniform must look it.
        panels[0].set_ylim(min(lowest - 0.05 * (highest - lowest), 0.8), max(highest + 0.05 * (highest - lowest), 1.2))
        panels[0].set_xlim(0, 1)
        panels[0].set_xticks([0, 0.5, 1], ["largest", "", "smallest"])
        for panel in panels:
            for label, side in zip(panel.get_xticklabels(), ("left", "center", "right"), strict=False):
                label.set_horizontalalignment(side)
        figure.supxlabel("source channels, sorted by weight", fontsize=10, color=LIGHT["muted"])
        figure.supylabel("weight \N{MULTIPLICATION SIGN} C (uniform = 1)", fontsize=10, color=LIGHT["muted"])
        caption = (
            f"Channel weights w of each pair for {_label(method, origin)} as multiples of the uniform weight 1/C, "
            f"sorted, mean over {_seeds(len(used))} (validation set, best model). The horizontal line at 1 is uniform. "
            f"Over all pairs they reach from {lowest:.2f} to {highest:.2f} times uniform, and the effective share of "
            f"channels (exp of the entropy, over C) is "
            f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %. {_in_words(lowest, highest)} {conditions}"
        )
        name = f"channel_weights_{_file_name(method)}{_suffix(origin)}"
        return save_plot(figure, plots_dir, name, f"What: channel weights ({_label(method, origin)})", caption)


def effective_share(weights: np.ndarray) -> float:
    """exp(entropy) / C of weights (C,) that sum to 1: 1 where all are equal, 1/C where one has everything."""
    positive = weights[weights > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()) / weights.size)


def _mark_sources(axes: Axes, layers: list[str], names: list[str], sums: np.ndarray) -> None:
    """A line between the rows of two sources, and at the right of each its name and the sum of its row sums (rows,)."""
    marks = []
    for name in names:
        rows = [row for row, layer in enumerate(layers) if source_of((layer, ""), names) == name]
        if rows:
            marks.append((np.mean(rows), f"{short(name, 14)}\nΣ {sums[rows].sum():.2f}"))
            if rows[0]:
                axes.axhline(rows[0] - 0.5, color=LIGHT["ink"], linewidth=1.4)
    right = axes.twinx()
    right.grid(visible=False)
    right.set_ylim(axes.get_ylim())
    right.set_yticks([place for place, _ in marks], [label for _, label in marks], fontsize=8.5)
    right.tick_params(length=0, colors=LIGHT["ink"])
    right.spines[:].set_visible(False)


def _plain_layer(layer: str, names: list[str]) -> str:
    """The layer without its source's name, which stands elsewhere."""
    return split_source_layer(layer)[1] if source_of((layer, ""), names) else layer


def _label(method: str, origin: str) -> str:
    return f"{method_label(method)}, source {origin}" if origin else method_label(method)


def _suffix(origin: str) -> str:
    return f"_{_file_name(origin)}" if origin else ""


def _range_of_lambda(method: str) -> str:
    """What is known of the weights beforehand: of a method that somebody has added, nothing."""
    if split_method(method)[0] == "l2t-ww":
        return " λ lies between 0 (the pair is not used) and 6, and starts around 1."
    return ""


def _all_off(largest: float) -> str:
    if largest < 0.1:
        return " All pairs are practically switched off: by then these runs train nearly as without a source."
    return ""


def _distance_from_start(runs: list[Run]) -> str:
    """How far lambda moved from what is first on record, against how different the pairs were by then.

    The initial weights of g are random, so pairs differ before anything is learned. Where lambda moved by less than
    half of that (mean absolute change against the standard deviation over a run's pairs), the sentence says so.
    """
    changes: list[float] = []
    spreads: list[float] = []
    from_start = all(0 in by_epoch for run in runs for by_epoch in run.pair_weights.values())
    since, at = (
        ("From before the first step", "before that step")
        if from_start
        else ("From the first epoch", "in the first epoch")
    )
    for run in runs:
        first = {pair: by_epoch[min(by_epoch)] for pair, by_epoch in run.pair_weights.items()}
        changes += [abs(value - first[pair]) for pair, value in run.pair_weights_at_best().items()]
        spreads.append(float(np.std(list(first.values()), ddof=1)) if len(first) > 1 else math.nan)
    finite = [change for change in changes if math.isfinite(change)]
    spread = float(np.mean(spreads))
    if not finite or not math.isfinite(spread):
        return ""
    sentence = (
        f"{since} to the best epoch λ changed by {np.mean(finite):.2f} in the mean and {max(finite):.2f} at "
        f"most; {at} the pairs of a run differed by {spread:.2f} (standard deviation)."
    )
    if np.mean(finite) < spread / 2:
        sentence += " So the differences between pairs come mostly from random initial weights, not from learning."
    return sentence


def _in_words(lowest: float, highest: float) -> str:
    farthest = max(highest - 1, 1 - lowest)
    if farthest < 0.05:
        return "They stayed practically uniform: no mean weight is more than 5 % away from it."
    return ""


def _with_pair_weights(runs: list[Run]) -> list[Run]:
    having = [run for run in runs if any(run.pair_weights.values())]
    return [run for run in having if run.finished] or having


def _layers(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    """Source and target layer names in their networks' order, as far as the order of the pairs shows it."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    targets: list[str] = []
    for source in sources:
        # Each source layer lists its targets in order, but perhaps not all: a new one goes before the next one known.
        place = len(targets)
        for target in reversed([t for s, t in pairs if s == source]):
            if target not in targets:
                targets.insert(place, target)
            place = targets.index(target)
    return sources, targets


def _panel_size(count: int) -> tuple[float, float]:
    columns = min(count, 2)
    return NARROW, 1.15 + 1.45 * math.ceil(count / columns)


def _panels(figure: Figure, targets: list[str], sources: list[str]) -> list[Axes]:
    """One panel a target layer, all with the same axes, and one legend of the source layers."""
    columns = min(len(targets), 2)
    rows = math.ceil(len(targets) / columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    flat = list(grid.flat)
    for panel, target in zip(flat, targets, strict=False):
        panel.set_title(f"→ {short(target, 24)}", fontsize=9.5)
    for panel in flat[len(targets) :]:
        panel.set_axis_off()
        grid[-2][-1].tick_params(labelbottom=True)
    handles = []
    for index, source in enumerate(sources):
        style = layer_style(index)
        label = short(source, 18)
        handles.append(Line2D([], [], color=style.color, linestyle=style.dashes, linewidth=1.8, label=label))
    longest = max(len(handle.get_label()) for handle in handles)
    per_row = 4 if longest <= 8 else 3 if longest <= 12 else 2
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=min(per_row, len(handles)), title="source layer"
    )
    legend.get_title().set_fontsize(9)
    return flat[: len(targets)]


def _luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _seeds(count: int) -> str:
    return "one run" if count == 1 else f"{count} seeds"


def _file_name(method: str) -> str:
    """``method`` with only letters, digits and ``+-_`` left, so that no method's name can leave the plots folder."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "+-_") else "_" for c in method)[:60]
