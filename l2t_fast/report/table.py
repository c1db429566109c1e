"""The results table for the terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.table import Table
from rich.text import Text

from l2t_fast.report.folder import read_comparison
from l2t_fast.report.verdict import rank_methods
from l2t_fast.report.wording import DASH, interval, percent


def results_table(compare_dir: Path) -> Table:
    """Test accuracy of each method in a compare folder (or a single run's folder), best mean first.

    Columns: method; mean, sample standard deviation and 95 % t interval of the test accuracy over seeds; number of
    seeds; median seconds of a run.

    Raises:
        L2TFastError: the folder does not exist or holds no run.
    """
    table = Table(title="Test accuracy at the best validation accuracy")
    table.add_column("method")
    for name in ("mean", "spread (sd)", "95 % interval", "seeds", "median seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in rank_methods(read_comparison(compare_dir)):
        test = result.test
        seeds = str(test.n) if not result.unfinished else f"{test.n} of {test.n + result.unfinished}"
        seconds = f"{result.seconds:.1f}" if math.isfinite(result.seconds) else DASH
        # Text, not str: rich would take square brackets in a name for markup.
        table.add_row(Text(result.label), percent(test.mean), percent(test.spread), interval(test), seeds, seconds)
    return table
