"""Finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from l2t_fast.config import TrainConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.report.folder import read_comparison
from l2t_fast.transfer.run_folder import RunFolder, is_comparison
from l2t_fast.transfer.trained import saved_config


class FinishedRun(NamedTuple):
    """A run folder with a result, and the configuration that it was made with."""

    folder: RunFolder
    config: TrainConfig

    @property
    def method(self) -> str:
        return self.config.label or self.config.method


def find_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """The runs in `paths`, run folders or comparisons, each once; of a comparison one run a method.

    That is the finished run with the most training images a class and, of those, the lowest seed.

    Raises:
        L2TFastError: a path holds neither, or a run that is not finished.
    """
    found: list[FinishedRun] = []
    for path in paths:
        if is_comparison(path):
            runs = [_read(child) for child in sorted((path / "runs").iterdir()) if RunFolder(child).result.exists()]
            if not runs:
                raise L2TFastError(f"no run of {path} is finished yet")
            best = {run.method: run for run in sorted(runs, key=_preference)}
            found += [best[method] for method in read_comparison(path).methods if method in best]
        elif RunFolder(path).result.exists():
            found.append(_read(path))
        else:
            raise L2TFastError(f"{path} is neither the folder of a finished run (result.json) nor a comparison (runs/)")
    return list({run.folder.path.resolve(): run for run in found}.values())


def _read(path: Path) -> FinishedRun:
    folder = RunFolder(path)
    return FinishedRun(folder, saved_config(folder))


def _preference(run: FinishedRun) -> tuple[float, int]:
    """The last is taken."""
    number = run.config.data.per_class
    return float("inf") if number is None else number, -run.config.seed
