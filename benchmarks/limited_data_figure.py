"""The figure of accuracy against images a class, from the recorded rows of `docs/results`.

    python -m benchmarks.limited_data_figure --rows docs/results/cifar10_limited.csv --images docs/images

It draws what the tables of docs/results.md with some 800 updates have, at the papers' weights of what is added, of
the methods that were run at more than one N: means over the seeds that all of these have at an N.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

from l2t_fast.report.plots_sweep import accuracy_against_images
from l2t_fast.report.statistics import summarise
from l2t_fast.report.style import method_label
from l2t_fast.report.verdict import MethodResult

SETTINGS = {
    "batch_size": "32",
    "lr": "0.02",
    "beta": "0.5",
    "lwf_weight": "1.0",
    "at_weight": "1000.0",
    "meta_lr": "0.0001",
    "lambda_start": "random",
}
"""Of the rows that are drawn, beside 750 updates and more."""
SCHEMES = {"1": "-single", "3": "-one-to-one", "15": "-all-to-all"}
"""Number of pairs -> what FM is called in a comparison."""
CHOICE_SEED = "7"
"""Its runs chose lr and beta, so they are no results."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=Path, required=True, help="CSV file of finished runs")
    parser.add_argument("--images", type=Path, required=True, help="folder for accuracy_against_images.png")
    options = parser.parse_args(arguments)
    with options.rows.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if is_drawn(row)]
    levels = results(rows)
    accuracy_against_images(levels, options.images, "")
    for level, methods in levels.items():
        for result in methods:
            seeds = f"{result.test.n} seed{'s' if result.test.n > 1 else ''}"
            print(f"N = {level}, {result.label}: {100 * result.test.mean:.2f} % ({seeds})")


def is_drawn(row: dict[str, str]) -> bool:
    """Whether a row belongs to the figure."""
    same = all(row[name] == value for name, value in SETTINGS.items())
    return same and int(row["updates"]) >= 750 and row["seed"] != CHOICE_SEED


def results(rows: list[dict[str, str]]) -> dict[int, list[MethodResult]]:
    """N, ascending -> the results there, of methods that have one at two N or more."""
    runs: dict[str, dict[int, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        method = row["method"] + (SCHEMES[row["pairs"]] if row["method"] == "fm" else "")
        runs[method][int(row["per_class"])].append(row)
    runs = {method: numbers for method, numbers in runs.items() if len(numbers) > 1}
    levels: dict[int, list[MethodResult]] = {}
    for level in sorted({level for numbers in runs.values() for level in numbers}):
        here = {method: numbers[level] for method, numbers in runs.items() if level in numbers}
        # A seed draws images and network, which weigh more than some methods: others' would be compared with it.
        shared = set.intersection(*({row["seed"] for row in found} for found in here.values()))
        made = []
        for method, found in here.items():
            found = [row for row in found if row["seed"] in shared]
            accuracies = [[float(row[f"{of}_accuracy"]) for row in found] for of in ("test", "validation")]
            test, validation = map(summarise, accuracies)
            made.append(MethodResult(method, method_label(method), [], 0, test, validation, math.nan))
        levels[level] = sorted(made, key=lambda result: -result.test.mean)
    return levels


if __name__ == "__main__":
    main()
