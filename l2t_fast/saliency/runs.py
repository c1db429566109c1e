"""Finished runs, and the networks that they trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from l2t_fast.config import TrainConfig
from l2t_fast.data import DataBundle
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model, load_weights
from l2t_fast.parsing import read_config
from l2t_fast.report.folder import read_comparison
from l2t_fast.transfer.run_folder import RunFolder, read_saved


class FinishedRun(NamedTuple):
    """A run folder with a result, and the configuration that it was made with."""

    folder: RunFolder
    config: TrainConfig

    @property
    def method(self) -> str:
        return self.config.label or self.config.method


def is_comparison(path: Path) -> bool:
    return (path / "runs").is_dir()


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


def load_target(run: FinishedRun, data: DataBundle) -> nn.Module:
    """The run's best target, for its images, in eval mode, on the CPU.

    Raises:
        L2TFastError: its checkpoint is missing, damaged, of another network or not finite.
    """
    target = run.config.target
    network = build_model(target.model, data.num_classes, in_channels=data.in_channels, layers=target.layers)
    load_weights(network, run.folder.best)
    return network.eval()


def _read(path: Path) -> FinishedRun:
    folder = RunFolder(path)
    read_saved(folder.config)  # says if a part of it is missing
    return FinishedRun(folder, read_config(folder.config, TrainConfig))


def _preference(run: FinishedRun) -> tuple[float, int]:
    """The last is taken."""
    number = run.config.data.per_class
    return float("inf") if number is None else number, -run.config.seed
