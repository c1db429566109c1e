"""Kill training before every change of its files, in the middle of every write, and at random moments; fill its disk.

After each the run is continued, and must leave the very bits that an undisturbed run leaves.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has used a GPU cannot be forked

import torch

from tests.kill import runs
from tests.kill.writes import Point


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--moments", type=int, default=100, help="kills at random moments")
    parser.add_argument(
        "--points",
        type=int,
        help="points in the writing, killed at or full from there, chosen at random (default: all)",
    )
    parser.add_argument("--seed", type=int, help="of what is random (default: the clock's)")
    options = parser.parse_args()
    seed = int(time.time()) % 10**9 if options.seed is None else options.seed
    rng = random.Random(seed)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        # PyTorch compiles some derivatives when they are first needed: once here, and not in every child.
        runs.train(base / "warm")
        began = time.monotonic()
        calls = runs.calls_of_a_run(base / "whole", base / "calls.json")
        seconds = time.monotonic() - began
        wanted = runs.outcome(base / "whole")
        points = [
            Point(i + 1, cut)
            for i, call in enumerate(calls)
            for cut in (False, True)
            if not cut or call.name == "write"
        ]
        points += [Point(i + 1, full=True) for i, call in enumerate(calls) if call.name != "unlink"]
        if options.points is not None:
            points = rng.sample(points, min(options.points, len(points)))
        print(
            f"a run changes its files {len(calls)} times; {len(points)} points, {options.moments} moments, seed {seed}",
            flush=True,
        )
        failed = 0
        for point in points:
            call = calls[point.number - 1]
            when = "full disk from" if point.full else "in the middle of" if point.cut else "before"
            what = f"{when} {call.name} of {call.path} (number {point.number})"
            harm = runs.train_on_a_full_disk if point.full else runs.train_killed_at
            failed += not _holds(
                base / "run", lambda folder, at=point, do=harm: do(folder, at), wanted, lambda text=what: text
            )
        late = 0
        for _ in range(options.moments):
            moments: list[str] = []

            def kill(folder: Path, moments: list[str] = moments) -> None:
                nonlocal late
                while True:
                    after = [rng.uniform(0, seconds) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
                    moments[:] = [f"{moment:.2f} s" for moment in after]
                    if any([runs.train_killed_after(folder, moment) for moment in after]):
                        return
                    late += 1  # the run was over before: draw again
                    shutil.rmtree(folder)

            failed += not _holds(base / "run", kill, wanted, lambda at=moments: f"killed after {', '.join(at)}")
    total = len(points) + options.moments
    print(
        f"{total - failed} passed, {failed} failed; {late} moments came after the end and were drawn again; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


def _holds(folder: Path, kill: Callable[[Path], None], wanted: dict[str, Any], what: Callable[[], str]) -> bool:
    """Kill, continue, compare; says what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        kill(folder)
        runs.resume(folder)
        different = runs.differences(runs.outcome(folder), wanted)
        problem = f"differs in {', '.join(different[:5])}" if different else None
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        print(f"{what()}: {problem}", flush=True)
    return problem is None


if __name__ == "__main__":
    sys.exit(main())
