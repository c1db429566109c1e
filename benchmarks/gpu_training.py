"""The limited-data run of `make gpu`: the embedded comparison in CUDA graphs, and L2T-ww in mixed precision beside it.

    python -m benchmarks.gpu_training rows.csv

One image a class, seed by seed. A row is written as soon as its run is finished, so that the rows of a process that is
stopped are not lost. Accuracies are what it is for: where others share the GPU, seconds tell nothing.
"""

import argparse
import dataclasses
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.csv_rows import append
from benchmarks.training_rows import trained
from l2t_fast.bench.conditions import code_commit
from l2t_fast.config import CompareConfig, SourceConfig, TrainConfig, embedded_config
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.compare import trainings
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import Pretraining
from l2t_fast.yaml_files import read_yaml

#: Methods that train in a precision, those that take longest first.
METHODS = {"float32": ["l2t-ww", "fm", "scratch"], "bfloat16": ["l2t-ww"]}


def embedded(**changes: Any) -> CompareConfig:
    """The embedded configuration, read without the packages that only the command line needs."""
    return dataclasses.replace(_made(CompareConfig, read_yaml(embedded_config())), **changes)


def _made(kind: type, tree: dict[str, Any]) -> Any:
    kinds = typing.get_type_hints(kind)
    return kind(**{k: _made(kinds[k], value) if isinstance(value, dict) else value for k, value in tree.items()})


def planned(config: CompareConfig, source: SourceConfig) -> list[TrainConfig]:
    """All runs, seed by seed."""
    runs = [
        dataclasses.replace(run, precision=precision, out=f"{config.out}/{precision}/{run.label}-seed{run.seed}")
        for precision, methods in METHODS.items()
        for run in trainings(dataclasses.replace(config, methods=methods), source)
    ]
    return sorted(runs, key=lambda run: run.seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="CSV file that rows are appended to")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, help="other than the configuration's")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU", file=sys.stderr)
        return 2
    print("training the source", flush=True)
    commit = code_commit()  # of what runs, whatever is edited meanwhile
    quiet = TrainingProgress(Console(quiet=True), epoch_lines=False)
    with tempfile.TemporaryDirectory(prefix="l2t_fast_") as folder, quiet as progress:
        config = embedded(device="cuda", cuda_graph=True, seeds=list(range(arguments.seeds)), out=folder)
        config.epochs = arguments.epochs or config.epochs
        source = Pretraining(config, Path(folder, "source"), progress).finish()
        print("the source is trained", flush=True)
        for training in planned(config, source):
            more = {"precision": training.precision, "cuda_graph": training.cuda_graph}
            row = trained(training, progress, commit=commit, more=more)
            append([row], arguments.rows)
            name = f"{training.label}, {training.precision}, seed {training.seed}"
            print(f"{name}: test {row['test_accuracy']:.2%}, {row['seconds']:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except L2TFastError as error:
        sys.exit(f"error: {error}")
