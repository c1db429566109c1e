"""Figures from rows, in the style of the training report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from l2t_fast.bench.groups import LABELS, Curve, Group, conditions_line, curves, label
from l2t_fast.bench.rows import LOSS_MODE_NAMES, OUT_OF_MEMORY
from l2t_fast.report.figure import Plot, drawing, save_plot
from l2t_fast.report.style import DASHES, LIGHT, MARKERS, LineStyle

WIDE = 5.9
"""Inches; what a column of the page shows without scrolling."""

AXIS_NAMES = {"pairs": "pairs", "batch": "batch size", "resolution": "largest target map, pixels", "threads": "threads"}

# Baselines grey and warm, ours cold and strong; markers differ too.
_STYLES = {
    "naive": LineStyle(LIGHT["m0"], "X", DASHES[0]),
    "eager": LineStyle(LIGHT["m0"], "o", DASHES[1]),
    "eager_low_precision": LineStyle(LIGHT["m5"], "<", DASHES[2]),
    "compile": LineStyle(LIGHT["m3"], "s", DASHES[4]),
    "torchopt": LineStyle(LIGHT["m5"], "v", DASHES[2]),
    "torchopt_fused": LineStyle(LIGHT["m3"], "v", DASHES[5]),
    "higher": LineStyle(LIGHT["m4"], "<", DASHES[0]),
    "double_backward": LineStyle(LIGHT["m7"], "P", DASHES[4]),
    "finite_difference": LineStyle(LIGHT["m2"], "^", DASHES[5]),
    "exact": LineStyle(LIGHT["m1"], "D", DASHES[3]),
    "exact_kept": LineStyle(LIGHT["m6"], "X", DASHES[4]),
    "exact_bfloat16": LineStyle(LIGHT["m4"], "P", DASHES[1]),
    "cpu": LineStyle(LIGHT["m1"], "D", DASHES[3]),
    "triton": LineStyle(LIGHT["m2"], "^", DASHES[3]),
    "cuda": LineStyle(LIGHT["m6"], "P", DASHES[3]),
}


# A step's phases in the order they run in, each in a colour of its own, and what is done in a phase by a hatch.
_PART_COLORS = {
    "data": LIGHT["s4"],
    "source network": LIGHT["m6"],
    "weight networks": LIGHT["m4"],
    "all steps": LIGHT["m3"],
    "real step": LIGHT["m2"],
    "look-ahead": LIGHT["m1"],
    "second order": LIGHT["m5"],
    "SGD and Adam": LIGHT["s3"],
    "rest": LIGHT["m0"],
}
_PART_HATCHES = {"target forward": "", "matching loss": "xxxx", "backward": "///"}


def style(provider: str) -> LineStyle:
    return _STYLES.get(provider, LineStyle(LIGHT["ink"], MARKERS[0], DASHES[3]))


def draw(groups: Sequence[Group], images: Path) -> list[Plot]:
    """Write ``bench_*.png`` into ``images`` and give the figures back; those without rows are left out.

    Each has the machine with the most rows alone: figures of several in one picture would be compared.
    """
    whole = [g for g in groups if g.first.sweep is None]
    plots = []
    loss = _of_one_machine([g for g in whole if g.first.mode in LOSS_MODE_NAMES and g.first.mode != "forward"])
    plain = [g for g in loss if (g.first.dtype, g.first.layout) == ("float32", "NCHW")]
    steps, hypergradients = (_of_one_machine(_of(whole, mode)) for mode in ("step", "hypergradient"))
    time, memory = ("median_ms", "milliseconds a call"), ("peak_mib", "peak memory, MiB")
    for name, title, chosen, (column, axis), text in (
        ("bench_loss_time", "Time of the matching loss", plain, time, _loss_name),
        ("bench_loss_memory", "Peak memory of the matching loss", plain, memory, _loss_name),
        ("bench_features_time", "Time by dtype and layout", _varied(loss), time, _feature_name),
        ("bench_step_time", "Time of a training step", steps, time, _setup_name),
        ("bench_step_memory", "Peak memory of a training step", steps, memory, _setup_name),
        ("bench_hypergradient_time", "Time of a hypergradient", hypergradients, time, _setup_name),
        ("bench_hypergradient_memory", "Memory of a hypergradient", hypergradients, memory, _setup_name),
    ):
        if any(getattr(row, column) for group in chosen for row in group.rows):
            plots.append(_dots(chosen, column, axis, text, images, name, title))
    plots += _parts(steps, images)
    plots += _scaling(_of_one_machine([g for g in groups if g.first.sweep is not None], threads=False), images)
    return plots


def _of_one_machine(groups: Sequence[Group], *, threads: bool = True) -> list[Group]:
    """Those of the machine that has most of them, or of several the newest; of it those with most threads, and with a
    cold or a warm cache, as most are."""

    def machine(group: Group) -> tuple[str, str]:
        return group.first.device, group.first.capability

    counts = Counter(map(machine, groups))
    newest = {machine(group): group.first.run for group in sorted(groups, key=lambda group: group.first.run)}
    best = max(counts, key=lambda name: (counts[name], newest[name]), default=None)
    chosen = [group for group in groups if machine(group) == best]
    if threads:  # which a sweep may be over
        most = max((group.first.threads for group in chosen), default=0)
        chosen = [group for group in chosen if group.first.threads == most]
    flags = Counter(group.first.flags for group in chosen).most_common(1)
    return [group for group in chosen if group.first.flags == flags[0][0]]


def _of(groups: Sequence[Group], mode: str) -> list[Group]:
    return [g for g in groups if g.first.mode == mode]


def _varied(groups: Sequence[Group]) -> list[Group]:
    """Groups of the pieces of work that were measured for more than one dtype or layout."""

    def piece(group: Group) -> tuple:
        return group.first.workload, group.first.batch, group.first.mode

    pieces = [piece(group) for group in groups]
    return [g for g in groups if pieces.count(piece(g)) > 1]


def _loss_name(group: Group) -> str:
    first = group.first
    work = LOSS_MODE_NAMES[first.mode].replace(", Hess", ",\nHess")
    return f"{first.workload}, B={first.batch}\n{work}"


def _feature_name(group: Group) -> str:
    return f"{_loss_name(group)}\n{group.first.dtype}, {group.first.layout}"


def _setup_name(group: Group) -> str:
    return f"{group.first.workload}, B={group.first.batch}"


def _dots(
    groups: Sequence[Group],
    column: str,
    axis: str,
    text: Callable[[Group], str],
    images: Path,
    name: str,
    title: str,
) -> Plot:
    """One line a group, one mark a provider, on a logarithmic axis; whiskers from p20 to p80 for times."""
    names = [text(group) for group in groups]
    lines = max(label.count("\n") + 1 for label in names)
    with drawing(WIDE, 1.9 + len(groups) * (0.25 + 0.17 * lines)) as figure:
        axes = figure.add_subplot()
        shown: dict[str, object] = {}
        for y, group in enumerate(groups):
            for row in group.rows:
                value = getattr(row, column)
                if not value:
                    continue
                mark = style(row.provider)
                if column == "median_ms":
                    axes.plot([row.p20_ms, row.p80_ms], [y, y], color=mark.color, linewidth=1.4, alpha=0.7)
                shown[row.provider] = axes.plot(
                    value, y, linestyle="none", marker=mark.marker, markersize=7, color=mark.color
                )[0]
            exhausted = [label(row.provider) for row in group.rows if row.status == OUT_OF_MEMORY]
            if exhausted:
                axes.text(
                    *(0.99, y, f"out of memory: {', '.join(exhausted)}"),
                    **{"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom", "color": LIGHT["muted"]},
                )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(_locator(low, high))
        axes.xaxis.set_minor_locator(NullLocator())
        _plain_numbers(axes, "x")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(f"{axis}\n({_machine(groups)})")
        order = [provider for provider in LABELS if provider in shown]
        figure.legend(
            [shown[provider] for provider in order], [label(p) for p in order], loc="outside upper left", ncols=2
        )
        return save_plot(figure, images, name, title, _caption(groups))


def _machine(groups: Sequence[Group]) -> str:
    first, threads = groups[0].first, sorted({group.first.threads for group in groups})
    return f"{first.device},\n{first.capability}, threads: {', '.join(map(str, threads))}"


def _locator(low: float, high: float) -> LogLocator:
    """Few numbers on an axis from ``low`` to ``high``, but three of them."""
    for subs in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        locator = LogLocator(subs=subs)
        if sum(low <= tick <= high for tick in locator.tick_values(low, high)) >= 3:
            break
    return locator


def _parts(groups: Sequence[Group], images: Path) -> list[Plot]:
    """Stacked bars: where a step's time goes."""
    bars = [
        (
            f"{_setup_name(group)}\n{label(provider)}",
            {r.part: r.median_ms for r in group.parts if r.provider == provider},
        )
        for group in groups
        for provider in dict.fromkeys(row.provider for row in group.parts)
    ]
    if not bars:
        return []
    parts = sorted({part for _, values in bars for part in values}, key=_place)
    with drawing(WIDE, 2.8 + 0.55 * len(bars)) as figure:
        axes = figure.add_subplot()
        left = [0.0] * len(bars)
        for part in parts:
            widths = [values.get(part, 0.0) for _, values in bars]
            phase, _, kind = part.partition(": ")
            axes.barh(
                *(range(len(bars)), widths),
                **{"left": left, "color": _PART_COLORS.get(phase, LIGHT["m0"]), "label": part, "height": 0.62},
                **{"edgecolor": LIGHT["paper"], "hatch": _PART_HATCHES.get(kind, "")},
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlabel(f"milliseconds\n({_machine(groups)})")
        figure.legend(loc="outside upper left", ncols=2)
        caption = "Parts exclude each other and add up to the step. " + _caption(groups)
        return [save_plot(figure, images, "bench_step_parts", "Where a step's time goes", caption)]


def _place(part: str) -> tuple[int, int, str]:
    """Where a part stands among the others: by its phase, then by what is done in it; unknown ones come last."""
    phase, _, kind = part.partition(": ")
    phases, kinds = list(_PART_COLORS), list(_PART_HATCHES)
    return (
        phases.index(phase) if phase in phases else len(phases),
        kinds.index(kind) if kind in kinds else len(kinds),
        part,
    )


def _scaling(groups: Sequence[Group], images: Path) -> list[Plot]:
    """One figure an axis: time against size, with the fitted exponent and the sizes where memory ran out."""
    plots = []
    for axis, words in AXIS_NAMES.items():
        used = [group for group in groups if group.first.sweep == axis]
        panels: dict[tuple[str, str], list[Curve]] = {}
        for curve in curves(used):
            panels.setdefault((curve.workload, curve.mode), []).append(curve)
        if not panels:
            continue
        with drawing(max(WIDE, 3.8 * len(panels)), 4.3) as figure:
            for i, ((workload, mode), drawn) in enumerate(panels.items(), start=1):
                axes = figure.add_subplot(1, len(panels), i)
                _curves(axes, drawn)
                axes.set_title(f"{workload}: {LOSS_MODE_NAMES[mode]}")
                axes.set_xlabel(f"{words}\n({_machine(used)})")
                axes.set_ylabel("milliseconds a call" if i == 1 else "")
            caption = f"Legend: exponent k of time ~ size^k, fitted to the logarithms. {_caption(used)}"
            plots.append(save_plot(figure, images, f"bench_scaling_{axis}", f"Cost against {words}", caption))
    return plots


def _curves(axes: Axes, drawn: Sequence[Curve]) -> None:
    for curve in drawn:
        mark, fit = style(curve.provider), curve.exponent()
        text = label(curve.provider) + (f", k = {fit[0]:.2f}" if fit else "")
        if curve.exhausted_at is not None:
            axes.axvline(curve.exhausted_at, color=mark.color, linestyle=mark.dashes, linewidth=1)
            text += f", out of memory at {curve.exhausted_at}"
        line = {"color": mark.color, "marker": mark.marker, "linestyle": mark.dashes, "label": text}
        axes.plot(curve.sizes, curve.milliseconds, **line)
    timed = any(curve.milliseconds for curve in drawn)  # else memory ran out everywhere
    axes.set_xscale("log", base=2)
    if timed:
        axes.set_yscale("log")
    _plain_numbers(axes, "x")
    _plain_numbers(axes, "y")
    sizes = sorted({s for c in drawn for s in (*c.sizes, *([c.exhausted_at] if c.exhausted_at else ()))})
    axes.set_xticks(sizes)
    axes.minorticks_off()
    axes.legend(loc="upper left")
    if not timed:
        axes.set_yticks([])
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend


def _plain_numbers(axes: Axes, which: str) -> None:
    formatter = FuncFormatter(lambda value, _: f"{value:,.10g}")
    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(formatter)


def _caption(groups: Sequence[Group]) -> str:
    return conditions_line(groups) + "."
