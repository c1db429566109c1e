"""The results table for the terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.table import Table
from rich.text import Text

from l2t_fast.report.folder import read_comparison
from l2t_fast.report.sweep import rank_levels
from l2t_fast.report.wording import DASH, interval, percent


def results_table(compare_dir: Path) -> Table:
    """Test accuracy of each method in a compare folder (or a single run's folder), best mean first.

    Columns: N, training images a class, where there are several; method; mean, sample standard deviation and 95 % t
    interval of the test accuracy over seeds; number of seeds; median seconds of a run.

    Raises:
        L2TFastError: the folder does not exist or holds no run.
    """
    levels = rank_levels(read_comparison(compare_dir))
    # Everything but long names fits into a terminal of 80 columns, where rich would leave a name no room at all.
    swept = "; N: training images a class" if len(levels) > 1 else ""
    table = Table(
        title="Test accuracy at the best validation accuracy",
        caption=f"sd: over seeds; seconds: median of a run{swept}",
    )
    if len(levels) > 1:
        table.add_column("N", justify="right", no_wrap=True)
    table.add_column("method", min_width=12, overflow="fold")
    for name in ("mean", "sd", "95 % interval", "seeds", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for level, results in levels.items():
        for result in results:
            test = result.test
            seeds = str(test.n) if not result.unfinished else f"{test.n} of {test.n + result.unfinished}"
            seconds = f"{result.seconds:.1f}" if math.isfinite(result.seconds) else DASH
            # Text, not str: rich would take square brackets in a name for markup.
            row = [Text(result.label), percent(test.mean), percent(test.spread), interval(test), seeds, seconds]
            if len(levels) > 1:
                row.insert(0, "all" if level is None else str(level))
            table.add_row(*row)
        table.add_section()
    return table
