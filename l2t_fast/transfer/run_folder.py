"""The files of one run: where they lie, and how they are written."""

import contextlib
import csv
import io
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import l2t_fast
from l2t_fast.config import TrainConfig, TransferOptions, config_tree, write_config
from l2t_fast.distributed.group import Group
from l2t_fast.environment import describe_environment
from l2t_fast.errors import L2TFastError
from l2t_fast.files import InUseError, expand_user, held, opened_itself, why_not_writable, write_text, write_whole
from l2t_fast.text import printable
from l2t_fast.transfer.methods import find_method
from l2t_fast.yaml_files import read_yaml

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
#: From a run's folder, the source that was pretrained for it, or for the comparison that it is part of.
_OWN_SOURCES = ("source/checkpoints/best.pt", "../../source/checkpoints/best.pt")
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
        check_same_config(self.config, config, may_change=_may_change(config))

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


def _may_change(config: TrainConfig) -> list[str]:
    """The keys and groups of keys that a run may go on with other values of."""
    keys = ["out", "device", "threads", "data.workers", "data.cache", "source_plan", "source_memory"]
    if not find_method(config.method).needs_source:
        keys += ["source", "sources", "pretrain"]  # they may come with another method of a comparison
    return keys


def _counts(key: str, may_change: Sequence[str]) -> bool:
    return key not in may_change and key.partition(".")[0] not in may_change


def decisive_options(config: TrainConfig) -> dict[str, Any]:
    """The keys that a run cannot go on with other values of, wherever its files and images lie; they tell checkpoints.

    As JSON has them: lists for tuples.
    """
    flat, may_change = json.loads(json.dumps(_flatten(config_tree(config)))), _may_change(config)
    return {key: value for key, value in flat.items() if _counts(key, may_change) and not key.endswith(_PATHS)}


def other_option(saved: object, own: Mapping[str, Any]) -> str | None:
    """A clause that names the first of a checkpoint's `decisive_options` that is not this run's, or None.

    Without any, the checkpoint is from before they were kept.
    """
    if saved is None:
        return None
    if not isinstance(saved, Mapping):
        return "its options are no table"
    known = _with_defaults({str(key): value for key, value in saved.items()}, own, decisive_options(TrainConfig()))
    key = next(iter(_differing(known, own)), None)
    if key is None:
        return None
    return f"it is of a run with {printable(key)}: {printable(reprlib.repr(known.get(key)))}, here it is {own.get(key)}"


def _with_defaults(saved: Mapping[str, Any], asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`saved`, and what it lacks: a key that came with a later version, whose default is what was done before."""
    return {**saved, **{key: defaults[key] for key in asked.keys() - saved.keys() if key in defaults}}


def _differing(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(saved.keys() | asked.keys()) if saved.get(key) != asked.get(key)]


def read_saved(path: Path) -> Mapping[str, Any]:
    """The keys of the config.yaml that `write_config` left in a folder.

    Raises:
        L2TFastError: it cannot be read, or is not as it was written.
    """
    unknown = "it is not known what this folder holds"
    try:
        tree = read_yaml(path)
    except L2TFastError as error:
        raise L2TFastError(f"{unknown}: {error}") from error
    if not isinstance(tree, Mapping):
        raise L2TFastError(f"{unknown}: {path} is no table of keys")
    if "out" not in tree:  # the last one, of every version: what else is missing would be taken for its default
        raise L2TFastError(f"{unknown}: {path} is cut short, put it back as it was, or name another folder with --out")
    return tree


def check_same_config(path: Path, config: TransferOptions, *, may_change: Sequence[str]) -> None:
    """Raise L2TFastError if the YAML file `path` and `config` differ in a key that is not in `may_change`.

    There may be groups of keys in it too ("source"). A checkpoint and the images are the same under another path to
    them, and a source that was pretrained for the run where the run's folder was moved.
    """
    asked = _flatten(config_tree(config))
    saved = _with_defaults(_flatten(read_saved(path)), asked, _flatten(config_tree(type(config)())))
    for key in _differing(saved, asked):
        if _counts(key, may_change) and not (key.endswith(_PATHS) and _same_place(key, saved, asked)):
            raise L2TFastError(
                f"{path.parent} was made with {key}: {saved.get(key)}, but now {key} is {asked.get(key)}: "
                "ask for the same, or name another folder with --out"
            )


#: How keys end whose value is a path.
_PATHS = (".checkpoint", ".data_dir", ".splits")
#: What ranks may have of their own: where things lie on their machine, and how it reads and computes.
_OF_A_MACHINE = ("out", "device", "threads", "data.data_dir", "data.splits", "data.workers", "data.cache")


def check_same_on_ranks(config: TransferOptions, group: Group, *, resume: bool) -> None:
    """Raise L2TFastError, the same on all ranks, if one was started with other options: a collective operation.

    Most of these make no rank's tensors differ in size, nor the ranks' networks: all ranks would train on what one
    asked for in one part and another in another.
    """
    own = {"resume": resume, **_flatten(config_tree(config))}
    first, *others = (json.loads(data) for data in group.collect(json.dumps(own).encode(), everyone=True))
    for rank, other in enumerate(others, start=1):
        for key in sorted(first.keys() | other.keys()):
            here, there = first.get(key), other.get(key)
            both_files = key.endswith(".checkpoint") and None not in (here, there)
            if here != there and key not in _OF_A_MACHINE and not both_files:
                raise L2TFastError(
                    f"{key} is {here} on rank 0, but {there} on rank {rank}: start all ranks with the same options"
                )


def _same_path(one: Any, other: Any) -> bool:
    paths = [expand_user(path).resolve() for path in (one, other) if isinstance(path, str)]
    return len(paths) == 2 and paths[0] == paths[1]


def _same_place(key: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    if key == "source.checkpoint" and (place := _own_source(saved)) is not None and place == _own_source(asked):
        return True
    return _same_path(saved.get(key), asked.get(key))


def _own_source(flat: Mapping[str, Any]) -> str | None:
    """Where, from a run's folder, the source lies that was pretrained for it; None if its source is another."""
    checkpoint, out = flat.get("source.checkpoint"), flat.get("out")
    if not isinstance(checkpoint, str) or not isinstance(out, str | None):
        return None
    folder = TrainConfig(method=flat.get("method"), seed=flat.get("seed"), out=out).folder()
    place = os.path.relpath(checkpoint, folder) if checkpoint else ""
    return place if place in _OWN_SOURCES else None


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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"seed": 0}} becomes {"data.seed": 0}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
