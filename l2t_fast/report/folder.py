"""Read run folders and compare folders, however incomplete: half a comparison must still give a report.

What cannot be read becomes a sentence in ``Run.problems`` and an empty value, never an exception; only a folder without
any run raises.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from l2t_fast.errors import L2TFastError
from l2t_fast.files import read_arrays
from l2t_fast.yaml_files import parse_yaml

Pair = tuple[str, str]
"""(source layer name, target layer name)."""

RUN_FILES = ("result.json", "metrics.csv", "config.yaml", "failure.json")
LARGEST = 1e30
"""Beyond any loss or weight."""
RUN_NAME = re.compile(r"^(?P<method>.+?)(-n(?P<per_class>\d+))?-seed(?P<seed>\d+)$")


@dataclass
class Run:
    """One training run. Accuracies are fractions, NaN where the run recorded none; times are seconds."""

    name: str
    method: str
    seed: int | None
    per_class: int | None = None
    """N, training images a class; None where it is all of them, or not on record."""
    finished: bool = False
    failure: str = ""
    """Why the run stopped without a result, where it did."""
    test_accuracy: float = math.nan
    validation_accuracy: float = math.nan
    validation_images: int | None = None
    test_images: int | None = None
    best_epoch: int | None = None
    seconds: float = math.nan
    pairs: int | None = None
    """Number of layer pairs that were matched."""
    planned_epochs: int | None = None
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    """Column name -> float64 array (epochs,), in the order of the epochs, one row an epoch."""
    pair_weights: dict[Pair, dict[int, float]] = field(default_factory=dict)
    """lambda of each pair: epoch -> mean over that epoch's images; 0 is before the first step."""
    channel_weights: dict[Pair, np.ndarray] = field(default_factory=dict)
    """w of each pair, (C_m,), mean over the validation set."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    last_log_lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def has_test_accuracy(self) -> bool:
        return self.finished and math.isfinite(self.test_accuracy)

    @property
    def epochs_recorded(self) -> int:
        return len(self.metrics.get("epoch", ()))

    @property
    def sources(self) -> list[str]:
        """Names of the sources, where there are several; their layers are called NAME/LAYER."""
        named = self.config.get("sources")
        return [str(name) for name in named] if isinstance(named, dict) and len(named) > 1 else []

    def pair_weights_at_best(self) -> dict[Pair, float]:
        """lambda of each pair at the best-validation epoch, or at the last where the best one is not on record."""
        chosen = {}
        for pair, by_epoch in self.pair_weights.items():
            epoch = self.best_epoch if self.best_epoch in by_epoch else max(by_epoch)
            chosen[pair] = by_epoch[epoch]
        return chosen


@dataclass
class Comparison:
    """All runs below one folder, with the source network's run where it was trained here."""

    path: Path
    runs: list[Run]
    source: Run | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Method names in the order of the comparison's config, then in order of appearance."""
        wanted = self.config.get("methods")
        found = list(dict.fromkeys(run.method for run in self.runs))
        order = [str(name) for name in wanted] if isinstance(wanted, list) else []
        return sorted(found, key=lambda name: order.index(name) if name in order else len(order))

    @property
    def levels(self) -> list[int | None]:
        """The numbers of training images a class that there are runs with, ascending, None (all images) last."""
        return sorted({run.per_class for run in self.runs}, key=lambda n: math.inf if n is None else n)

    def at(self, per_class: int | None) -> Comparison:
        """The part of the comparison with that number of training images a class."""
        return replace(self, runs=[run for run in self.runs if run.per_class == per_class])

    def runs_of(self, method: str) -> list[Run]:
        return [run for run in self.runs if run.method == method]


def read_comparison(path: Path) -> Comparison:
    """Read a compare folder (``runs/<method>[-n<N>]-seed<k>/``, ``source/``, ``config.yaml``) or a single run folder.

    Raises:
        L2TFastError: the folder does not exist or holds no run.
    """
    path = Path(path)
    if not path.is_dir():
        raise L2TFastError(
            f"no report can be made of {path}: it is not a folder; give the folder of a comparison or of a run."
        )
    problems: list[str] = []
    config_text, config = _read_yaml(path / "config.yaml", problems)
    runs_dir = path / "runs"
    if runs_dir.is_dir():
        runs = [read_run(child) for child in sorted(runs_dir.iterdir()) if _looks_like_run(child)]
        runs += _runs_only_in_table(path / "results.csv", runs, problems)
    elif _looks_like_run(path):
        runs, problems = [read_run(path)], []
    else:
        runs = _runs_only_in_table(path / "results.csv", [], problems)
    if not isinstance(config.get("per_class"), list):
        for run in runs:
            if not run.config and run.per_class is None:
                run.per_class = _integer(lookup(config, "data.per_class"))
    if not runs:
        raise L2TFastError(
            f"no report can be made of {path}: it holds neither runs/<method>-seed<k>/ nor the files of a single run "
            f"({', '.join(RUN_FILES)})."
        )
    runs.sort(key=lambda run: (run.method, run.per_class or math.inf, -1 if run.seed is None else run.seed, run.name))
    source_dir = path / "source"
    source = read_run(source_dir) if _looks_like_run(source_dir) else None
    return Comparison(path, runs, source, config, config_text, problems)


def read_run(path: Path) -> Run:
    """Read one run folder; whatever is missing or damaged is left empty and named in ``problems``."""
    problems: list[str] = []
    config_text, config = _read_yaml(path / "config.yaml", problems)
    result = _read_json(path / "result.json", problems)
    failure = {} if result else _read_json(path / "failure.json", problems)
    named = RUN_NAME.match(path.name)
    method = result.get("method") or config.get("label") or config.get("method") or failure.get("method")
    seed = _integer(result.get("seed", config.get("seed")))
    per_class = _integer(lookup(config, "data.per_class") if config else failure.get("per_class"))
    if named:
        seed = int(named["seed"]) if seed is None else seed
        per_class = _integer(named["per_class"]) if per_class is None else per_class
    metrics = _read_metrics(path / "metrics.csv", problems)
    run = Run(
        name=path.name,
        method=str(method or (named["method"] if named else path.name)),
        seed=seed,
        per_class=per_class,
        finished=bool(result),
        failure=str(failure.get("problem", "")),
        test_accuracy=_number(result.get("test_accuracy")),
        validation_accuracy=_number(result.get("validation_accuracy")),
        validation_images=_integer(result.get("validation_images")),
        test_images=_integer(result.get("test_images")),
        best_epoch=_integer(result.get("best_epoch")),
        seconds=_number(result.get("seconds")),
        pairs=len(result["pairs"]) if isinstance(result.get("pairs"), list) else _integer(result.get("pairs")),
        planned_epochs=_integer(config.get("epochs")),
        metrics=metrics,
        pair_weights=_read_pair_weights(path / "pair_weights.csv", problems),
        channel_weights=_read_channel_weights(path / "channel_weights.npz", problems),
        config=config,
        environment=_read_json(path / "environment.json", problems),
        config_text=config_text,
        problems=problems,
    )
    if run.finished and not math.isfinite(run.test_accuracy):
        problems.append("result.json holds no finite test accuracy")
    if run.finished and not metrics:
        problems.append("metrics.csv is missing or empty, so the run has no curve")
    if not run.finished:
        run.last_log_lines = _last_lines(path / "log.txt", 6)
    return run


def lookup(tree: Any, path: str) -> Any:
    """The value at a dotted ``path`` in nested mappings, None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _looks_like_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in RUN_FILES)


def _read_text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} could not be read ({error.strerror})")
        return None


def _read_yaml(path: Path, problems: list[str]) -> tuple[str, dict[str, Any]]:
    text = _read_text(path, problems)
    if text is None:
        return "", {}
    try:
        tree = parse_yaml(text, path.name)
    except L2TFastError:
        problems.append(f"{path.name} is not valid YAML")
        return text, {}
    return text, tree if isinstance(tree, dict) else {}


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _read_text(path, problems)
    if text is None:
        return {}
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is not valid JSON")
        return {}
    return tree if isinstance(tree, dict) else {}


def _rows(path: Path, problems: list[str]) -> Iterator[dict[str, str]]:
    """Complete rows of a CSV file: a run that was killed may have left half a line at the end."""
    text = _read_text(path, problems)
    if text is None:
        return
    try:
        for row in csv.DictReader(text.replace("\0", "").splitlines()):
            if None not in row and None not in row.values():
                yield row
    except csv.Error:
        problems.append(f"{path.name} is not valid CSV")


def _read_metrics(path: Path, problems: list[str]) -> dict[str, np.ndarray]:
    by_epoch: dict[int, dict[str, float]] = {}
    for row in _rows(path, problems):
        epoch = _integer(row.get("epoch"))
        if epoch is not None:  # a later row of the same epoch comes from a resumed run and replaces the earlier one
            by_epoch[epoch] = {name: _number(value) for name, value in row.items()}
    if not by_epoch:
        return {}
    ordered = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    return {name: np.array([row.get(name, math.nan) for row in ordered]) for name in ordered[-1]}


def _read_pair_weights(path: Path, problems: list[str]) -> dict[Pair, dict[int, float]]:
    curves: dict[Pair, dict[int, float]] = {}
    for row in _rows(path, problems):
        epoch = _integer(row.get("epoch"))
        if epoch is not None and row.get("source_layer") and row.get("target_layer"):
            curves.setdefault((row["source_layer"], row["target_layer"]), {})[epoch] = _number(row.get("mean"))
    return curves


def _read_channel_weights(path: Path, problems: list[str]) -> dict[Pair, np.ndarray]:
    weights: dict[Pair, np.ndarray] = {}
    if not path.is_file():
        return weights
    try:
        arrays = read_arrays(path)
    except L2TFastError:
        problems.append(f"{path.name} could not be read")
        return weights
    for key, values in arrays.items():
        source, arrow, target = key.partition("->")
        if arrow and values.ndim == 1 and values.size and np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float64)
            weights[source, target] = np.where(np.abs(values) < LARGEST, values, np.nan)
    return weights


def _runs_only_in_table(path: Path, runs: list[Run], problems: list[str]) -> list[Run]:
    """Runs of results.csv whose folder is not there any more: they have a result but no curves."""
    known = {(run.method, run.per_class, run.seed) for run in runs}
    extra = []
    for row in _rows(path, problems):
        method, per_class, seed = row.get("method"), _integer(row.get("per_class")), _integer(row.get("seed"))
        if method and (method, per_class, seed) not in known:
            run = Run(
                name=f"{method}{f'-n{per_class}' if per_class else ''}-seed{seed}",
                method=method,
                seed=seed,
                per_class=per_class,
                finished=row.get("state") != "failed",
                failure=row.get("problem") or "",
                test_accuracy=_number(row.get("test_accuracy")),
                validation_accuracy=_number(row.get("validation_accuracy")),
                best_epoch=_integer(row.get("best_epoch")),
                seconds=_number(row.get("seconds")),
                problems=["only its row in results.csv is left, so the run has no curve"],
            )
            extra.append(run)
    return extra


def _last_lines(path: Path, count: int) -> list[str]:
    text = _read_text(path, [])
    return text.splitlines()[-count:] if text else []


def _number(value: Any) -> float:
    """NaN for what is no number that a run writes; figures have no room for infinity and its neighbours."""
    if isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if abs(number) < LARGEST else math.nan


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if abs(number) < 1 << 53 else None
