"""Whether the ways to compute a step of L2T-ww lead to the same accuracy: the embedded digits, a few seeds each.

    python -m benchmarks.step_variants --output docs/results/step_variants.csv

Every way trains from the same source, on the same images and from the same weights seed by seed, so that the
difference to "exact" is a paired one. "exact, plain PyTorch's loss" changes nothing but how the matching loss rounds:
what it differs by is what rounding alone does to a run.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.csv_rows import append
from benchmarks.training_rows import trained
from l2t_fast.bench.conditions import code_commit
from l2t_fast.config import CompareConfig, SourceConfig, TrainConfig, TransferOptions, embedded_config
from l2t_fast.parsing import read_config
from l2t_fast.report.statistics import paired_difference, summarise
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import Pretraining

#: What each way sets; all else is the embedded configuration's.
VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, plain PyTorch's loss": {"backend": "reference"},
    "exact, graphs kept": {"keep_graphs": True},
    "finite_difference": {"hypergradient": "finite_difference"},
    "double_backward": {"hypergradient": "double_backward"},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"channels_last": True},
    "accumulation 2": {"accumulation": 2},
}
METHOD = "l2t-ww"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV file that rows are appended to")
    parser.add_argument("--runs", type=Path, default=Path("runs/step_variants"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    options = parser.parse_args()
    config = read_config(embedded_config(), CompareConfig)
    config.device = "cpu"
    commit = code_commit()  # of what runs, whatever is edited meanwhile
    rows: list[dict[str, Any]] = []
    with TrainingProgress(epoch_lines=False, runs=options.seeds * len(VARIANTS) + 1) as progress:
        source = Pretraining(config, options.runs / "source", progress).finish()
        for seed in range(options.seeds):
            for variant in VARIANTS:
                rows.append(train(config, source, variant, seed, options.runs, commit, progress))
                append(rows[-1:], options.output)
    print(table(rows))


def train(
    config: TransferOptions,
    source: SourceConfig,
    variant: str,
    seed: int,
    runs: Path,
    commit: str | None,
    progress: TrainingProgress,
) -> dict[str, Any]:
    """One run as a row: with which settings, what came out."""
    common = {item.name: getattr(config, item.name) for item in dataclasses.fields(TransferOptions)}
    changed = common | {"source": source} | VARIANTS[variant]
    out = runs / f"{variant.replace(' ', '-').replace(',', '')}-seed{seed}"
    training = TrainConfig(**changed, method=METHOD, label=variant, seed=seed, out=str(out))
    return trained(training, progress, commit=commit, more={"variant": variant})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation a way, and its paired difference to "exact" with the 95 % interval."""
    accuracy: dict[str, dict[int, float]] = {}
    validation: dict[str, list[float]] = {}
    for row in rows:
        accuracy.setdefault(row["variant"], {})[row["seed"]] = row["test_accuracy"]
        validation.setdefault(row["variant"], []).append(row["validation_accuracy"])
    lines = [
        "| step | seeds | test accuracy | sd | minus exact, 95 % interval | validation |",
        "|---|---|---|---|---|---|",
    ]
    for variant, found in accuracy.items():
        summary = summarise(found.values())
        difference = paired_difference(found, accuracy["exact"])
        interval = f"{difference.mean:+.1%} ({difference.low:+.1%} to {difference.high:+.1%})"
        lines.append(
            f"| {variant} | {summary.n} | {summary.mean:.1%} | {summary.spread:.1%} "
            f"| {interval if variant != 'exact' else ''} | {summarise(validation[variant]).mean:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
