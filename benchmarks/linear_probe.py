"""What a linear classifier makes of a source's own maps: how much there is to transfer.

    python -m benchmarks.linear_probe --output docs/results/linear_probe.csv --config configs/cifar10_limited.yaml \
        --data.data_dir DIR --source.checkpoint FILE

Every map of the sources is averaged over its pixels; logistic regression learns the training images' labels from it,
with the regularisation that does best on the validation images. Other options are those of `l2t-fast train`.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.csv_rows import append
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.config import TrainConfig
from l2t_fast.data import load_data
from l2t_fast.parsing import add_config_options, new_parser, parse, to_config
from l2t_fast.transfer.source import FrozenSources, load_sources

#: Inverse strengths of the regularisation to choose from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def main(arguments: list[str] | None = None) -> None:
    own = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    own.add_argument("--output", type=Path, required=True, help="CSV file that rows are appended to")
    options, rest = own.parse_known_args(arguments)
    parser = new_parser()
    add_config_options(parser, TrainConfig)
    config = to_config(parse(parser, rest), TrainConfig)
    config.check()
    began = now()
    for found in probe(config):
        row = {
            "run": began,
            **conditions(torch.device("cpu")),
            "source": "+".join(source.model for source in config.named_sources().values()),
            "dataset": config.data.dataset,
            "per_class": config.data.per_class,
            "seed": config.seed,
            **found,
        }
        append([row], options.output)
        print(f"{found['map']}: validation {found['validation_accuracy']:.2%}, test {found['test_accuracy']:.2%}")


def probe(config: TrainConfig) -> Iterable[dict[str, Any]]:
    """For each map: the strength chosen, and the accuracies."""
    data = load_data(dataclasses.replace(config.data, seed=config.data.seed + config.seed, augment="none"))
    sources = load_sources(config.named_sources(), data)
    parts = [pooled(sources, part) for part in (data.train, data.validation, data.test)]
    labels = [y for _, y in parts]
    for m, name in enumerate(sources.feature_names):
        train, validation, test = (maps[m] for maps, _ in parts)
        fitted = {}
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            fitted[strength] = model.fit(train, labels[0])
        best = max(fitted, key=lambda strength: fitted[strength].score(validation, labels[1]))
        yield {
            "map": name,
            "channels": train.shape[1],
            "training_images": len(labels[0]),
            "validation_images": len(labels[1]),
            "test_images": len(labels[2]),
            "strength": best,
            "validation_accuracy": fitted[best].score(validation, labels[1]),
            "test_accuracy": fitted[best].score(test, labels[2]),
        }


def pooled(sources: FrozenSources, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Each map's mean over its pixels, (images, channels), and the labels."""
    found = [([m.mean((2, 3)) for m in sources(x).features], y) for x, y in batches]
    maps = [torch.cat(of_map).numpy() for of_map in zip(*(maps for maps, _ in found), strict=True)]
    return maps, torch.cat([y for _, y in found]).numpy()


if __name__ == "__main__":
    main()
