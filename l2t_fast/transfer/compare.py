"""Runs several methods over several seeds and numbers of images, from the same source and on the same images."""

import contextlib
import csv
import dataclasses
import io
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2t_fast.config import CompareConfig, SourceConfig, TrainConfig, TransferOptions, write_config
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.errors import L2TFastError, one_sentence, out_of_memory
from l2t_fast.files import held, why_not_writable, write_text
from l2t_fast.models import Checkpoint
from l2t_fast.report import build_report
from l2t_fast.transfer.method_entries import Entry, parse_method
from l2t_fast.transfer.process import own_process
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import Pretraining, makes_source, run_once
from l2t_fast.transfer.run_folder import RunFolder, read_rows, writing
from l2t_fast.transfer.same_options import check_same_config
from l2t_fast.transfer.trainer import Trainer
from l2t_fast.yaml_files import read_yaml

RESULTS = (
    "method",
    "per_class",
    "seed",
    "state",
    "validation_accuracy",
    "test_accuracy",
    "best_epoch",
    "seconds",
    "problem",
)
"""Columns of results.csv; per_class is empty where a run trains on all images, problem where it finished."""


class Outcome(NamedTuple):
    """The page of a comparison, and what went wrong: name of a run -> one sentence."""

    page: Path
    failures: dict[str, str]


@own_process()
def compare(config: CompareConfig, progress: TrainingProgress | None = None) -> Outcome:
    """Do the runs that are not done yet, write results.csv, plots and report.html.

    A run that was interrupted continues from its last checkpoint, so the same call may be repeated until it ends;
    methods, seeds and numbers of images may be added to a comparison later. A run that fails is written down as
    failed and does not stop the others; the next call tries it again. Several threads' runs wait for each other.

    Raises:
        L2TFastError: a mistake that is seen before the first run, as `l2t_fast.transfer.run` tells it, or the folder
            holds a comparison, or a finished run, with other settings, or another process is in it.
    """
    config.check()
    methods = [entry.method for entry in _different(config.methods)]
    out = config.folder()
    # Told now, and not when the source is trained.
    if out.exists() and (reason := why_not_writable(out)) is not None:
        raise L2TFastError(f"the folder {out} cannot be written: {os.strerror(reason)}")
    check_comparison(config)
    pretrains = makes_source(config, methods)
    total = len(methods) * len(config.seeds) * len(config.per_class or [None]) + pretrains
    with progress or TrainingProgress(epoch_lines=False, runs=total) as shown:
        pretraining = Pretraining(config, out / "source", shown) if pretrains else None
        source = config.source if pretraining is None else pretraining.source
        images = LastImages()
        check_finished(trainings(config, source))
        # With the source as it is now, so that a mistake is told before it is trained.
        _check_setups(config, source, shown, images, None if pretraining is None else pretraining.weights())
        with held(out):
            check_comparison(config)  # another process may have begun one meanwhile
            if pretraining is not None and not pretraining.finished:
                left = [t.method for t in trainings(config, source) if not RunFolder(t.folder()).result.exists()]
                if makes_source(config, left):
                    pretraining.finish()
                else:  # somebody has removed the source, which nobody needs any more
                    shown.skip()
            with writing(out):
                write_config(config, out / "config.yaml")
            rows: list[dict[str, Any]] = []
            for training in trainings(config, source):
                # A seed with all its methods and numbers of images comes before the next: a page made early shows all.
                if rows and rows[-1]["seed"] != training.seed:
                    _draw_meanwhile(out, shown)
                rows.append(_attempt(training, shown, images))
                _write_results(rows, out / "results.csv")
            failures = {row["run"]: row["problem"] for row in rows if row["state"] == "failed"}
            return Outcome(build_report(out), failures)


class LastImages:
    """The images of the run before: all methods at one N and seed share them, and decode them once."""

    def __init__(self) -> None:
        self._config: DataConfig | None = None
        self._bundle: DataBundle | None = None

    def load(self, config: DataConfig) -> DataBundle:
        """As `l2t_fast.data.load_data`."""
        if self._bundle is None or config != self._config:
            self._bundle = None  # before the others are read, so that memory holds one set only
            self._bundle, self._config = load_data(config), config
        return self._bundle


def _different(methods: Sequence[str]) -> list[Entry]:
    """What the entries say. Raises `L2TFastError` if two have one method, scheme and options."""
    entries = [parse_method(entry) for entry in methods]
    for i, entry in enumerate(entries):
        if entry in entries[:i]:
            same = methods[entries.index(entry)]
            raise L2TFastError(f"methods has {same} and {methods[i]}, which are the same: leave one out")
    return entries


def trainings(config: CompareConfig, source: SourceConfig) -> Iterator[TrainConfig]:
    """All runs, in order: seed by seed, within a seed from few images to many."""
    common = {item.name: getattr(config, item.name) for item in dataclasses.fields(TransferOptions)}
    for seed in config.seeds:
        for number in sorted(config.per_class) if config.per_class else [None]:
            data = config.data if number is None else dataclasses.replace(config.data, per_class=number)
            images = "" if number is None else f"-n{number}"
            for label in config.methods:
                entry = parse_method(label)
                options = common | {"source": source, "data": data, "pairs": entry.pairs or config.pairs}
                options |= entry.options
                folder = config.folder() / "runs" / f"{label}{images}-seed{seed}"
                yield TrainConfig(**options, method=entry.method, label=label, seed=seed, out=str(folder))


def check_comparison(config: CompareConfig) -> None:
    """Raise L2TFastError if the folder holds a comparison with other settings."""
    saved = config.folder() / "config.yaml"
    if saved.exists():
        check_same_config(saved, config, may_change=("out", "methods", "seeds", *_numbers_may_change(saved, config)))


def check_finished(runs: Iterable[TrainConfig]) -> None:
    """Nobody's finished run is made anew, or called failed, because it was made with other settings."""
    for training in runs:
        folder = RunFolder(training.folder())
        if folder.result.exists():
            folder.check_same(training)


def _check_setups(
    config: CompareConfig,
    source: SourceConfig,
    progress: TrainingProgress,
    images: LastImages,
    untrained: Checkpoint | None,
) -> None:
    """Set up one run a method, with the most images, so that a mistake is told now and not after hours."""
    largest = {training.label: training for training in trainings(config, source) if training.seed == config.seeds[0]}
    for training in largest.values():
        if not RunFolder(training.folder()).result.exists():
            Trainer(training, progress, load=images.load, untrained=untrained)


def _draw_meanwhile(out: Path, progress: TrainingProgress) -> None:
    """Make the page of the runs so far, which no other run waits for."""
    try:
        build_report(out)
    except Exception as error:
        progress.message(f"no page of the runs so far: {type(error).__name__}: {one_sentence(error)}")


def _attempt(training: TrainConfig, progress: TrainingProgress, images: LastImages) -> dict[str, Any]:
    """The row of results.csv of one run, whether it is read, made, or fails."""
    folder = RunFolder(training.folder())
    number = training.data.per_class
    row = {"run": folder.path.name, "method": training.label, "per_class": number, "seed": training.seed}
    swept = f" N={number}" if f"-n{number}-" in folder.path.name else ""
    try:
        result = run_once(training, f"{training.label}{swept} seed {training.seed}", progress, load=images.load)
    except Exception as error:
        # Whatever it is: hours of other runs must not depend on it.
        sentence = one_sentence(error)
        if not isinstance(error, L2TFastError | OSError) and not out_of_memory(error):
            sentence = f"{type(error).__name__}: {sentence}"
        row |= {"state": "failed", "problem": sentence}
        folder.write_failure(row, "".join(traceback.format_exception(error)))
        progress.message(f"{row['run']}: failed: {sentence}")
        return row
    with writing(folder.failure):
        folder.failure.unlink(missing_ok=True)
    return result | row | {"state": "finished"}


def _numbers_may_change(saved: Path, config: CompareConfig) -> tuple[str, ...]:
    """N may be added to a list of N, but a comparison without one has its runs in other folders."""
    try:
        before = read_yaml(saved)
    except L2TFastError:
        return ()  # check_same_config will say so
    is_list = isinstance(before, dict) and before.get("per_class") is not None
    return ("per_class",) if is_list and config.per_class is not None else ()


def _write_results(rows: list[dict[str, Any]], path: Path) -> None:
    """A row a run, seed by seed and from few images to many: those in the file, and what came of this call's."""
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    with contextlib.suppress(L2TFastError):  # there is none yet, or somebody else's: runs have their own results
        found = {_run_of(row): row for row in read_rows(path, RESULTS)}
    found |= {_run_of(row): row for row in rows}
    text = io.StringIO()
    writer = csv.DictWriter(text, RESULTS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    # Numbers as text: the longer is the larger.
    writer.writerows(found[run] for run in sorted(found, key=lambda run: [(len(text), text) for text in run[:2]]))
    with writing(path):
        write_text(text.getvalue(), path)


def _run_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells runs apart, as a file holds it: seed, number of images, method."""
    return tuple("" if row[name] is None else str(row[name]) for name in ("seed", "per_class", "method"))
