"""What a person sees while training: bars on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from l2t_fast.text import printable

#: Seconds between updates of the bar within an epoch, so that drawing stays far below the cost of a step.
_INTERVAL = 0.2


class TrainingProgress:
    """Shows runs, one after the other, between ``with`` and its end.

    Args:
        console: where to write; None takes standard output, as text in a notebook too.
        epoch_lines: without a terminal, one line an epoch; False leaves only messages.
        runs: number of runs to come, for a bar over them; None for a single run.
    """

    def __init__(self, console: Console | None = None, *, epoch_lines: bool = True, runs: int | None = None) -> None:
        self.console = console or Console(force_terminal=_draws_bars(), force_jupyter=False)
        self._epoch_lines = epoch_lines
        self._bars: Progress | None = None
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
        self._all = self._bars.add_task("runs", total=runs, note="") if self._bars and runs else None
        self._epochs: Any = None
        self._batches: Any = None
        self._drawn = 0.0

    def __enter__(self) -> "TrainingProgress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def message(self, text: str) -> None:
        """Print one line, above the bars if there are any."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, epochs: int, done: int = 0) -> None:
        """A run begins, or continues after `done` epochs."""
        if self._bars:
            self._epochs = self._bars.add_task(label, total=epochs, completed=done, note="")
            self._batches = self._bars.add_task("  batches", total=None, note="")

    def batch(self, done: int, total: int) -> None:
        """`done` of the epoch's `total` batches are trained."""
        if self._bars and (now := time.monotonic()) - self._drawn > _INTERVAL:
            self._bars.update(self._batches, completed=done, total=total)
            self._drawn = now

    def epoch(self, row: Mapping[str, Any], epochs: int, best: Mapping[str, Any]) -> None:
        """An epoch is done: its metrics, as in metrics.csv, and the best one so far."""
        best_so_far = f"best {best['validation_accuracy']:.2%} (epoch {best['epoch']})"
        note = f"validation {row['validation_accuracy']:.2%}, {best_so_far}"
        if self._bars:
            self._bars.update(self._epochs, completed=row["epoch"], note=note)
        elif self._epoch_lines:
            self.message(
                f"epoch {row['epoch']}/{epochs}  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}  "
                f"train {row['train_accuracy']:.2%}  {note}  {row['seconds']:.1f} s"
            )

    def finish(self) -> None:
        """The run is over."""
        if self._bars:
            self._bars.remove_task(self._epochs)
            self._bars.remove_task(self._batches)
        self.skip()

    def skip(self) -> None:
        """A run of those to come needs nothing more."""
        if self._bars and self._all is not None:
            self._bars.advance(self._all)


def _draws_bars() -> bool:
    """Whether standard output is a terminal where lines can be drawn anew.

    FORCE_COLOR, which rich takes for one, stands in many a log; and what a notebook's ``!`` runs has a terminal whose
    every line stays.
    """
    isatty = getattr(sys.stdout, "isatty", None)  # none where it is closed, or a program's own that only writes
    return isatty is not None and isatty() and "JPY_PARENT_PID" not in os.environ
