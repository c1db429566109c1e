"""The files of one run: where they lie, and how they are written."""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import l2t_fast
from l2t_fast.config import TrainConfig, write_config
from l2t_fast.environment import describe_environment
from l2t_fast.errors import L2TFastError
from l2t_fast.files import InUseError, held, opened_itself, why_not_writable, write_text, write_whole
from l2t_fast.transfer.same_options import check_same_run

METRICS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_cross_entropy",
    "train_matching",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
)
#: What result.json holds for its readers: name -> type.
RESULT: dict[str, Any] = {
    "method": str,
    "seed": int,
    "best_epoch": int,
    "validation_accuracy": int | float,
    "test_accuracy": int | float,
    "epochs": int,
    "seconds": int | float,
}
PAIR_WEIGHTS = ("epoch", "source_layer", "target_layer", "mean", "std")


class RunFolder:
    """Paths of a run, and its text files. All accuracies in them are fractions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.log_file = path / "log.txt"
        self.metrics = path / "metrics.csv"
        self.pair_weights = path / "pair_weights.csv"
        self.channel_weights = path / "channel_weights.npz"
        self.result = path / "result.json"
        self.failure = path / "failure.json"
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"
        self.tensorboard = path / "tensorboard"
        self._of_training = (self.metrics, self.pair_weights, self.channel_weights, self.log_file)

    def open(self, config: TrainConfig, device: torch.device, *, resume: bool) -> None:
        """Make the folder for a new run, or check that it holds the run to continue.

        Raises:
            L2TFastError: as `check`.
        """
        self.check(config, resume=resume)
        with self._written():
            if not self.holds_run():
                self._begin(config, device)

    def check(self, config: TrainConfig, *, resume: bool) -> None:
        """Look whether a run can begin or go on in the folder, and write nothing.

        Raises:
            L2TFastError: another run or somebody's own files are there, its configuration differs, or the folder cannot
                be written.
        """
        with self._written():
            if self.path.exists() and (reason := why_not_writable(self.path)) is not None:
                raise OSError(reason, os.strerror(reason))
            if not self.holds_run():
                self._check_free()
            elif resume:
                self.check_same(config)
            else:
                raise L2TFastError(
                    f"{self.path} already holds a run: continue it with --resume, or name another folder with --out"
                )

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise L2TFastError(f"the run folder {self.path} cannot be written: {error.strerror or error}") from error

    def holds_run(self) -> bool:
        """Whether there is a run to continue, or a finished one."""
        return self.last.exists() or self.result.exists()

    def _check_free(self) -> None:
        own = (self.config, self.environment, *self._of_training)
        # A run begins with its folder of checkpoints, and one that could not begin has left its failure: without
        # either, files of these names are somebody's own.
        of_run = self.last.parent.is_dir() or self.failure.exists()
        foreign = None if of_run else next((path.name for path in own if path.exists()), None)
        if foreign is not None:
            raise L2TFastError(
                f"{self.path} holds no run, but a {foreign} that one would replace: name another folder with --out"
            )
        if self.best.exists():  # last.pt is written before it: somebody has removed that one
            raise L2TFastError(
                f"{self.best.parent} holds a {self.best.name} but no {self.last.name} to continue from: put "
                f"{self.last.name} back, or name another folder with --out"
            )

    def _begin(self, config: TrainConfig, device: torch.device) -> None:
        self.last.parent.mkdir(parents=True, exist_ok=True)
        for stale in self._of_training:
            stale.unlink(missing_ok=True)
        write_config(config, self.config)
        write_json(environment(device), self.environment)

    def check_same(self, config: TrainConfig) -> None:
        """Raise L2TFastError if the folder's configuration differs from `config`, naming the first key that does."""
        check_same_run(self.config, config)

    def log(self, text: str) -> None:
        """Add a line, with the time in UTC, to log.txt."""
        with writing(self.log_file), open(self.log_file, "a", encoding="utf-8", opener=opened_itself) as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append an epoch to metrics.csv."""
        _append(self.metrics, METRICS, [row])

    def add_pair_weights(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append an epoch's lambdas to pair_weights.csv; epoch 0 is before the first step."""
        _append(self.pair_weights, PAIR_WEIGHTS, rows)

    def forget_after(self, epoch: int) -> None:
        """Drop rows of epochs that no checkpoint holds: they will be trained again."""
        for path, fields in ((self.metrics, METRICS), (self.pair_weights, PAIR_WEIGHTS)):
            if path.exists():
                text = io.StringIO()
                writer = csv.DictWriter(text, fields, lineterminator="\n", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(row for row in read_rows(path, fields) if _epoch(row) <= epoch)
                with writing(path):
                    write_text(text.getvalue(), path)

    def write_channel_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Write one array (C_m,) a pair, by "source layer->target layer"."""
        buffer = io.BytesIO()
        np.savez(buffer, **weights)
        with writing(self.channel_weights):
            write_whole(buffer.getbuffer(), self.channel_weights)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, the last file of a run: a run that has it is finished."""
        with writing(self.result):
            write_json(result, self.result)

    def write_failure(self, failure: Mapping[str, Any], traceback: str) -> None:
        """Write failure.json, which says why a run has no result, and the traceback to log.txt.

        Where another process has the folder, the run that it makes there has not failed, and nothing is written.
        """
        with contextlib.suppress(InUseError), held(self.path):
            with writing(self.failure):
                write_json(failure, self.failure)
            self.log(traceback)

    def read_result(self) -> dict[str, Any]:
        """What result.json holds."""
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except OSError as error:
            raise L2TFastError(f"{self.result} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise L2TFastError(f"{self.result} is damaged: it is no JSON ({error}); remove it to run again") from error
        for name, kind in RESULT.items():
            found = result.get(name) if isinstance(result, dict) else None
            # A comparison that is also wrong of NaN, and of integers that no float holds.
            unheard_of = isinstance(found, int | float) and not -(1 << 53) < found < 1 << 53
            if not isinstance(found, kind) or isinstance(found, bool) or unheard_of:
                raise L2TFastError(f"{self.result} is damaged: its {name} is {found!r:.100}; remove it to run again")
        return result


def is_comparison(path: Path) -> bool:
    """Whether a folder holds the runs of a comparison."""
    return (path / "runs").is_dir()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one sentence."""
    try:
        yield
    except OSError as error:
        raise L2TFastError(f"{path} could not be written: {error.strerror or error}") from error


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: versions, commit, device, backend; `details` has the rest."""
    details = describe_environment(device)
    backend, reason = l2t_fast.explain_backend(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else details["machine"]["processor"]
    return {
        "l2t_fast": details["l2t_fast"]["version"],
        "commit": details["l2t_fast"]["commit"],
        "python": details["versions"]["python"],
        "torch": details["versions"]["torch"],
        "torchvision": details["versions"]["torchvision"],
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "backend": backend,
        "backend_reason": reason,
        "details": details,
    }


def read_rows(path: Path, fields: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; a line that was cut short is left out.

    Raises:
        L2TFastError: the file cannot be read, or has a header without one of `fields`.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = [row for row in reader if None not in row and None not in row.values()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise L2TFastError(f"{path} cannot be read: {error}") from error
    missing = [name for name in fields if name not in header]
    if rows and missing:
        raise L2TFastError(f"{path} lacks the column {missing[0]}: put the file back as it was, or remove it")
    return rows


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON so that the file is whole or as it was."""
    write_text(json.dumps(content, indent=2) + "\n", path)


def _append(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    new = not path.exists()
    with writing(path), open(path, "a", newline="", encoding="utf-8", opener=opened_itself) as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({name: _text(row[name]) for name in fields} for row in rows)
        # On the disk before the checkpoint of the epoch is: after a power cut no epoch lacks its row.
        file.flush()
        os.fsync(file.fileno())


def _text(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value


def _epoch(row: Mapping[str, str]) -> float:
    return int(row["epoch"]) if row["epoch"].isdecimal() and len(row["epoch"]) < 10 else math.inf
