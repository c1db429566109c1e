"""Train for a long time and fail if the process grows: `python -m tests.soak --minutes 60`.

What grows is read from /proc, every ten seconds: the memory that is the process's own (resident, less what files
share), open files and threads. After a warm-up of a fifth of the time, a straight line is laid through the memory; it
must not rise by more than `ALLOWED_MIB` from there to the end, less three standard errors of the line.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from l2t_fast.transfer import TrainingProgress, run
from tests.kill.runs import configuration

SECONDS_BETWEEN_READINGS = 10
#: MiB that the process may take on after the warm-up: the allocators' pools breathe by about one.
ALLOWED_MIB = 4.0


class Over(Exception):
    """The time is over."""


class Reading(TrainingProgress):
    """Reads the process's size while training, and ends it in time."""

    def __init__(self, minutes: float) -> None:
        super().__init__(Console(quiet=True), epoch_lines=False)
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes
        self.readings: list[tuple[float, float, int, int]] = []
        self.steps = 0

    def batch(self, done: int, total: int) -> None:
        self.steps += 1
        now = time.monotonic()
        if not self.readings or now - self.began - self.readings[-1][0] >= SECONDS_BETWEEN_READINGS:
            self.readings.append((now - self.began, *_size()))
            if len(self.readings) % 6 == 0:
                minute, mib, files, threads = self.readings[-1]
                print(f"  {minute / 60:.1f} min, {self.steps} steps: {mib:.1f} MiB, {files} files, {threads} threads")
                sys.stdout.flush()
        if now > self.end:
            raise Over


def _size() -> tuple[float, int, int]:
    """MiB of the process's own resident memory, open files, threads."""
    resident, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
    own = (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return own, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress = Reading(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder) / "run")
        config.epochs = 1_000_000
        with contextlib.suppress(Over):
            run(config, progress=progress)
    settled = [reading for reading in progress.readings if reading[0] > 12 * options.minutes]
    seconds, mib, files, threads = (np.array(column) for column in zip(*settled, strict=True))
    (slope, _), covariance = np.polyfit(seconds, mib, 1, cov=True)
    rise, doubt = slope * (seconds[-1] - seconds[0]), 3 * covariance[0, 0] ** 0.5 * (seconds[-1] - seconds[0])
    grows = rise - doubt > ALLOWED_MIB or files[-1] > files[0] or threads[-1] > threads[0]
    print(
        f"{progress.steps} steps in {options.minutes:g} min; after the warm-up the memory went from {mib[0]:.1f} to "
        f"{mib[-1]:.1f} MiB, a rise of {rise:.2f} +- {doubt:.2f} MiB; files {files[0]} to {files[-1]}, threads "
        f"{threads[0]} to {threads[-1]}"
    )
    print("0 passed, 1 failed: it grows" if grows else "1 passed, 0 failed")
    return 1 if grows else 0


if __name__ == "__main__":
    sys.exit(main())
