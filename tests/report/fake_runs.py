"""Run and compare folders as the trainer writes them, made of random numbers, for tests of the report alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import yaml

SOURCE_LAYERS = ["stage1", "stage2", "stage3"]
TARGET_LAYERS = ["pool1", "pool2", "pool3"]
CHANNELS = {"stage1": 16, "stage2": 32, "stage3": 64}
ENVIRONMENT = {
    "l2t_fast": "0.1.0",
    "commit": "0123456789ab+changes",
    "python": "3.11.2",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "platform": "Linux-6.1",
    "device": "cpu",
    "device_name": "x86_64",
    "threads": 2,
    "backend": "cpu",
    "backend_reason": "every tensor is on the CPU",
}
FINAL_ACCURACY = {"scratch": 0.82, "fm": 0.86, "l2t-w": 0.87, "l2t-ww": 0.91}
METRICS = [
    *("epoch", "step", "lr", "train_loss", "train_cross_entropy", "train_matching", "train_accuracy"),
    *("validation_loss", "validation_accuracy", "seconds"),
]


def run_config(method: str = "fm", seed: int = 0, epochs: int = 20, **data: object) -> dict:
    return {
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "beta": 0.5,
        "lookahead_steps": 2,
        "hypergradient": "exact",
        "source": {"model": "resnet8", "checkpoint": None, "num_classes": 5, "layers": SOURCE_LAYERS},
        "target": {"model": "vgg5bn", "layers": TARGET_LAYERS},
        "data": {"dataset": "digits", "classes": [5, 6, 7, 8, 9], "per_class": 10, "batch_size": 16} | data,
    }


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def fake_run(
    folder: Path,
    method: str = "fm",
    seed: int = 0,
    epochs: int = 20,
    *,
    test_accuracy: float | None = None,
    finished: bool = True,
    config: dict | None = None,
    source_layers: list[str] = SOURCE_LAYERS,
    target_layers: list[str] = TARGET_LAYERS,
    pairs: list[tuple[str, str]] | None = None,
) -> Path:
    """Write one run folder; l2t methods get what they learn. An unfinished run stops half way, without a result."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng([seed, *method.encode()])
    (folder / "config.yaml").write_text(yaml.safe_dump(config or run_config(method, seed, epochs), sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "log.txt").write_text("".join(f"epoch {epoch} done\n" for epoch in range(1, epochs + 1)))
    final = test_accuracy if test_accuracy is not None else FINAL_ACCURACY.get(method, 0.8) + draw.normal(0, 0.015)
    recorded = range(1, (epochs if finished else max(1, epochs // 2)) + 1)
    rows = []
    for epoch in recorded:
        accuracy = 0.2 + (final - 0.2) * (1 - np.exp(-4 * epoch / epochs)) + draw.normal(0, 0.012)
        rows.append(
            [
                epoch,
                10 * epoch,
                0.1,
                1 - accuracy,
                0.9 - accuracy,
                0.1,
                accuracy + 0.05,
                1 - accuracy,
                min(accuracy, 1),
                1.5,
            ]
        )
    write_csv(folder / "metrics.csv", METRICS, rows)
    best = int(np.argmax([row[8] for row in rows])) + 1
    all_pairs = pairs or [(s, t) for s in source_layers for t in target_layers]
    if method.startswith("l2t-ww"):
        lines = []
        goals = np.random.default_rng(7).uniform(0.2, 2.2, len(all_pairs))
        for epoch in recorded:
            for (source, target), goal in zip(all_pairs, goals, strict=True):
                lines.append([epoch, source, target, 1 + (goal - 1) * epoch / epochs + draw.normal(0, 0.03), 0.1])
        write_csv(folder / "pair_weights.csv", ["epoch", "source_layer", "target_layer", "mean", "std"], lines)
    if method.startswith("l2t") and finished:
        weights = {}
        for source, target in all_pairs:
            logits = draw.normal(0, 0.4, CHANNELS.get(source, 16))
            weights[f"{source}->{target}"] = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        np.savez(folder / "channel_weights.npz", **weights)
    if finished:
        result = {
            "method": method,
            "seed": seed,
            "pairs": [f"{s}->{t}" for s, t in all_pairs] if method != "scratch" else [],
            "best_epoch": best,
            "validation_accuracy": rows[best - 1][8],
            "test_accuracy": final,
            "epochs": epochs,
            "seconds": 20.0 + 10 * method.startswith("l2t") + seed,
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def fake_comparison(
    folder: Path,
    methods: tuple[str, ...] = ("scratch", "fm", "l2t-ww"),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 20,
    *,
    accuracies: dict[str, list[float]] | None = None,
    per_class: tuple[int, ...] | None = None,
) -> Path:
    """Write a compare folder; ``accuracies`` fixes the test accuracies, one a seed, at the smallest of ``per_class``;
    they rise by 0.05 from one number to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    config = run_config(epochs=epochs)
    del config["method"], config["seed"]
    config |= {
        "methods": list(methods),
        "seeds": list(seeds),
        "per_class": list(per_class) if per_class else None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    source = run_config("scratch", 0, 30, classes=[0, 1, 2, 3, 4])
    fake_run(folder / "source", "scratch", 0, epochs, test_accuracy=0.985, config=source)
    for method in methods:
        for index, seed in enumerate(seeds):
            for step, number in enumerate(per_class or (None,)):
                accuracy = accuracies[method][index] + 0.05 * step if accuracies else None
                name = f"{method}-seed{seed}" if number is None else f"{method}-n{number}-seed{seed}"
                own = None if number is None else run_config(method, seed, epochs, per_class=number)
                fake_run(folder / "runs" / name, method, seed, epochs, test_accuracy=accuracy, config=own)
    return folder
