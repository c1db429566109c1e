"""A small run in processes of its own, and what is left of it to compare."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from l2t_fast.config import PretrainConfig, SourceConfig, TargetConfig, TrainConfig
from l2t_fast.data import DataConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import TrainingProgress, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.run_folder import RunFolder, read_rows
from tests.kill.writes import Call, Point, watch

#: More than any of these runs takes, on a loaded machine.
PATIENCE = 300.0


def configuration(folder: Path) -> TrainConfig:
    """L2T-ww on a few digits, from a source that is trained first: a second or two."""
    digits = {"dataset": "digits", "per_class": 6, "batch_size": 8}
    return TrainConfig(
        method="l2t-ww",
        source=SourceConfig("resnet8"),
        pretrain=PretrainConfig(data=DataConfig(**digits, classes=[0, 1]), epochs=1, lr=0.05),
        target=TargetConfig("vgg5bn"),
        data=DataConfig(**digits, classes=[5, 6], augment="crop"),
        epochs=2,
        lr=0.05,
        meta_lr=1e-2,
        device="cpu",
        threads=1,
        out=str(folder),
    )


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a forked process; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a run took longer than {PATIENCE:.0f} s")


def train(folder: Path) -> None:
    """Run, or continue, in this process."""
    run(configuration(folder), resume=True, progress=TrainingProgress(Console(quiet=True), epoch_lines=False))


def calls_of_a_run(folder: Path, notes: Path) -> list[Call]:
    """Train in a child, undisturbed; what it did to its files."""

    def work() -> None:
        calls: list[Call] = []
        watch(folder, calls)
        train(folder)
        notes.write_text(json.dumps(calls))

    expect(wait(in_child(work)), 0)
    return [Call(*call) for call in json.loads(notes.read_text())]


def train_killed_at(folder: Path, point: Point) -> None:
    """Train in a child that dies at `point`."""

    def work() -> None:
        watch(folder, [], point)
        train(folder)

    expect(wait(in_child(work)), -signal.SIGKILL)


def train_on_a_full_disk(folder: Path, point: Point) -> None:
    """Train in a child whose disk is full from `point` on: one sentence says so, and what was saved stays."""

    def work() -> None:
        watch(folder, [], point)
        try:
            train(folder)
        except L2TFastError as error:
            assert "No space left on device" in str(error), error
        else:
            # Only the log's last line may be lost, once the result is there.
            assert RunFolder(folder).result.exists()

    expect(wait(in_child(work)), 0)


def train_killed_after(folder: Path, seconds: float) -> bool:
    """Train in a child that is killed after some time; whether it was still running."""
    child = in_child(lambda: train(folder))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            expect(os.waitstatus_to_exitcode(status), 0)
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    code = wait(child)
    if code != 0:
        expect(code, -signal.SIGKILL)
    return code != 0


def resume(folder: Path) -> None:
    """Continue to the end in a child that nobody disturbs. Random numbers drawn before must not matter."""

    def work() -> None:
        random.seed(folder.name)
        torch.rand(3)
        train(folder)

    expect(wait(in_child(work)), 0)


def expect(code: int, wanted: int) -> None:
    """Raise if a process ended otherwise."""
    if code != wanted:
        raise AssertionError(f"a run ended with {code}, not {wanted}")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves behind, but times: name -> tensor, array or text."""
    found: dict[str, Any] = {}
    for files in (RunFolder(folder), RunFolder(folder / "source")):
        name = files.path.name if files.path != folder else "run"
        for path in (files.last, files.best):
            _flatten(load_checkpoint(path), f"{name} {path.name}", found)
        for path in (files.metrics, files.pair_weights):
            if path.exists():
                rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(path)]
                found[f"{name} {path.name}"] = repr(rows)
        result = files.read_result()
        found[f"{name} result.json"] = repr({key: value for key, value in result.items() if key != "seconds"})
        if files.channel_weights.exists():
            with np.load(files.channel_weights, allow_pickle=False) as arrays:
                _flatten({key: torch.from_numpy(value) for key, value in arrays.items()}, f"{name} channels", found)
        left = [path.name for path in files.path.rglob("*.tmp")]
        found[f"{name} files left behind"] = repr(left)
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The names under which two outcomes differ, in any bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return [key for key in sorted(found.keys() | wanted.keys()) if not same(found.get(key), wanted.get(key))]


def _flatten(tree: Any, name: str, found: dict[str, Any]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "seconds":
                _flatten(value, f"{name} {key}", found)
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            _flatten(value, f"{name} {i}", found)
    else:
        found[name] = tree
