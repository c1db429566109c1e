"""Runs several methods over several seeds, from the same source and on the same images, and gathers the results."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from l2t_fast.config import CompareConfig, TrainConfig, TransferOptions, write_config
from l2t_fast.errors import L2TFastError
from l2t_fast.report import build_report
from l2t_fast.transfer.methods import METHODS, find_method
from l2t_fast.transfer.pairs import SCHEMES
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import makes_source, pretrained_source, run_once
from l2t_fast.transfer.run_folder import check_same_config, write_text, writing

RESULTS = ("method", "seed", "validation_accuracy", "test_accuracy", "best_epoch", "seconds")


def compare(config: CompareConfig, progress: TrainingProgress | None = None) -> Path:
    """Do the runs that are not done yet, write results.csv, plots and report.html, and return the page's path.

    A run that was interrupted continues from its last checkpoint, so the same call may be repeated until it ends;
    methods and seeds may be added to a comparison later.

    Raises:
        L2TFastError: as `l2t_fast.transfer.run`, or the folder holds a comparison with other settings.
    """
    config.check()
    methods = {entry: parse_method(entry) for entry in config.methods}
    out = Path(config.out)
    saved = out / "config.yaml"
    if saved.exists():
        check_same_config(saved, config, may_change=("methods", "seeds"))
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_config(config, saved)
    pretrains = makes_source(config, [name for name, _ in methods.values()])
    total = len(methods) * len(config.seeds) + pretrains
    with progress or TrainingProgress(epoch_lines=False, runs=total) as shown:
        source = pretrained_source(config, out / "source", shown) if pretrains else config.source
        results: list[dict[str, Any]] = []
        for seed in config.seeds:
            for label, (method, pairs) in methods.items():
                options = {item.name: getattr(config, item.name) for item in dataclasses.fields(TransferOptions)}
                options |= {"source": source, "pairs": pairs or config.pairs}
                folder = out / "runs" / f"{label}-seed{seed}"
                training = TrainConfig(**options, method=method, label=label, seed=seed, out=str(folder))
                results.append(run_once(training, f"{label} seed {seed}", shown))
                _write_results(results, out)
    return build_report(out)


def parse_method(entry: str) -> tuple[str, str | None]:
    """(method, matching scheme or None) of METHOD or METHOD-SCHEME, for example fm-single.

    Raises:
        L2TFastError: no such method, or one that matches no feature maps with a scheme.
    """
    for scheme in SCHEMES:
        name = entry.removesuffix(f"-{scheme}")
        if name != entry and name in METHODS:
            if METHODS[name].default_pairs is None:
                raise L2TFastError(f"{entry}: {name} matches no feature maps, so it takes no pairs; write {name}")
            return name, scheme
    return find_method(entry).name, None


def _write_results(results: list[dict[str, Any]], out: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, RESULTS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    with writing(out / "results.csv"):
        write_text(text.getvalue(), out / "results.csv")
