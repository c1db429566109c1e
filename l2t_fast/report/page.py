"""Build the HTML page of a comparison: one file with its figures inside, no script and no request to anywhere."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from l2t_fast.errors import L2TFastError
from l2t_fast.files import write_whole
from l2t_fast.report import plots_accuracy, plots_saliency, plots_sweep, plots_weights
from l2t_fast.report.conditions import conditions_of
from l2t_fast.report.figure import Plot
from l2t_fast.report.folder import Comparison, Run, read_comparison
from l2t_fast.report.sources import SourceRow, of_source, source_names, source_rows
from l2t_fast.report.style import DARK, LIGHT, method_label
from l2t_fast.report.sweep import Levels, judge_sweep, rank_levels, sweep_rows
from l2t_fast.report.templates import templates
from l2t_fast.report.verdict import MethodResult, judge
from l2t_fast.report.wording import duration, interval, level_name, method_notes, number, percent

Figures = list[tuple[Plot, Markup]]
"""Each with its SVG, which matplotlib wrote with all text escaped."""


@dataclass(frozen=True)
class Part:
    """What the page shows of the runs with one number of training images a class."""

    id: str
    name: str
    results: list[MethodResult]
    notes: list[str]
    """What the verdict on them adds to its first sentence."""
    figures: Figures
    sources: list[SourceRow]
    """Which of several sources helped; empty for a single one."""


def build_report(compare_dir: Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` into a compare folder, or into the folder of a single run.

    Incomplete folders give a page that says what is missing; it can be built again at any time.

    Args:
        compare_dir: folder as ``l2t-fast compare`` or ``l2t-fast train`` writes it.

    Returns:
        Path of ``report.html``, self-contained.

    Raises:
        L2TFastError: the folder does not exist, holds no run, or cannot be written to.
    """
    comparison = read_comparison(compare_dir)
    try:
        page = render_page(comparison)
        path = comparison.path / "report.html"
        write_whole(_text(page), path)
    except OSError as error:
        raise L2TFastError(
            f"the report could not be written into {comparison.path}: {error.strerror or error}."
        ) from error
    return path


def _text(page: str) -> bytes:
    """In UTF-8, without what no text holds: files may bring control characters, and halves of characters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page).encode("utf-8")


def render_page(comparison: Comparison) -> str:
    """The page's HTML; writes the PNG figures on the way."""
    levels = rank_levels(comparison)
    conditions = conditions_of(comparison)
    sweep = len(levels) > 1
    verdict = judge_sweep(levels) if sweep else judge(next(iter(levels.values())))
    environment = templates()
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "duration": duration,
        "number": number,
        "method_label": method_label,
    }
    saliency_figures = _saliency_figures(comparison, conditions.sentence)  # may add to the problems
    return environment.get_template("page.html").render(
        title=_title(comparison),
        verdict=verdict,
        warnings=_warnings(comparison, levels),
        conditions=conditions.rows,
        notes=method_notes(comparison.methods),
        level_names=[level_name(level) for level in levels],
        sweep_rows=sweep_rows(levels) if sweep else [],
        sweep_figures=_sweep_figures(comparison, levels, conditions.sentence),
        saliency_figures=saliency_figures,
        parts=[_part(comparison, level, results, sweep) for level, results in levels.items()],
        comparison=comparison,
        configs=_configs(comparison),
        environments=_environments(comparison),
        status=run_status,
        light=LIGHT,
        dark=DARK,
    )


def run_status(run: Run) -> str:
    """What became of a run, in a word or two."""
    if run.has_test_accuracy:
        return "finished"
    if run.finished:
        return "finished without a test accuracy"
    if run.failure:
        return "failed"
    planned = f" of {run.planned_epochs}" if run.planned_epochs else ""
    return f"not finished: {run.epochs_recorded}{planned} epochs"


def _title(comparison: Comparison) -> str:
    names = [method_label(method) for method in comparison.methods]
    if len(comparison.runs) == 1:
        return f"Run of {names[0]}"
    return f"Comparison of {', '.join(names)}" if len(names) <= 4 else f"Comparison of {len(names)} methods"


def _part(comparison: Comparison, level: int | None, results: list[MethodResult], sweep: bool) -> Part:
    """In a sweep, its figures lie in a folder of their own."""
    folder = ("all" if level is None else f"n{level}") if sweep else ""
    at_level = comparison.at(level)
    plots = _plots(at_level, results, comparison.path / "plots" / folder, conditions_of(at_level).sentence)
    return Part(
        id=f"{folder}-" if folder else "",
        name=level_name(level),
        results=results,
        notes=judge(results).details,
        figures=_figures(plots),
        sources=source_rows(at_level),
    )


def _sweep_figures(comparison: Comparison, levels: Levels, conditions: str) -> Figures:
    return _figures([plots_sweep.accuracy_against_images(levels, comparison.path / "plots", conditions)])


def _saliency_figures(comparison: Comparison, conditions: str) -> Figures:
    try:
        return _figures([plots_saliency.saliency_plot(comparison.path, comparison.path / "plots", conditions)])
    except L2TFastError as error:
        comparison.problems.append(str(error))
        return []


def _figures(plots: list[Plot | None]) -> Figures:
    return [(plot, Markup(plot.svg)) for plot in plots if plot is not None]


def _plots(comparison: Comparison, results: list[MethodResult], plots_dir: Path, conditions: str) -> list[Plot | None]:
    plots = [
        plots_accuracy.accuracy_results(results, plots_dir, conditions),
        plots_accuracy.accuracy_curves(comparison, plots_dir, conditions),
    ]
    for method in comparison.methods:
        runs = comparison.runs_of(method)
        plots.append(plots_weights.pair_weight_heat_map(method, runs, plots_dir, conditions))
        plots.append(plots_weights.source_weight_curves(method, runs, plots_dir, conditions))
        for source in source_names(runs) or [""]:  # each of several sources has figures of its own
            part = [of_source(run, source) for run in runs] if source else runs
            plots.append(plots_weights.pair_weight_curves(method, part, plots_dir, conditions, source))
            plots.append(plots_weights.channel_weight_curves(method, part, plots_dir, conditions, source))
    return plots


def _warnings(comparison: Comparison, levels: Levels) -> list[str]:
    """What a reader must know before believing the table."""
    warnings = list(comparison.problems)
    missing = [run for run in comparison.runs if not run.has_test_accuracy]
    if missing:
        listed = "; ".join(f"{run.name} ({run_status(run)}{f': {run.failure}' * bool(run.failure)})" for run in missing)
        verbs = ("has", "is") if len(missing) == 1 else ("have", "are")
        warnings.append(
            f"{len(missing)} of {len(comparison.runs)} runs {verbs[0]} no result and {verbs[1]} left out of the "
            f"table: {listed}."
        )
    asked = [comparison.config.get(key) for key in ("methods", "seeds", "per_class")]
    if isinstance(asked[0], list) and isinstance(asked[1], list):
        wanted = math.prod(len(values) for values in asked if isinstance(values, list))
        absent = wanted - len(comparison.runs)
        if absent > 0:
            warnings.append(f"{absent} of the {wanted} runs that the comparison asks for have not started.")
    counts = {result.test.n for results in levels.values() for result in results}
    if len(counts) > 1:
        warnings.append("The methods have different numbers of finished seeds; compare their means with care.")
    return warnings


def _configs(comparison: Comparison) -> list[tuple[str, str]]:
    """(name, YAML text): the comparison's config, and those of runs where there is none."""
    if comparison.config_text:
        return [("config.yaml", comparison.config_text)]
    return [(f"{run.name}/config.yaml", run.config_text) for run in comparison.runs if run.config_text]


def _environments(comparison: Comparison) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """The different environments the runs recorded: (names of the runs, (dotted key, value) rows)."""
    groups: list[tuple[list[str], list[tuple[str, str]]]] = []
    for run in comparison.runs:
        rows = _flat(run.environment)
        same = [names for names, known in groups if known == rows]
        if same:
            same[0].append(run.name)
        elif rows:
            groups.append(([run.name], rows))
    return groups


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]
    return rows
