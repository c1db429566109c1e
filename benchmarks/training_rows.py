"""A finished run as a row of the files in `docs/results`: with which settings, where, what came out."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

from l2t_fast.config import TrainConfig
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run_folder import METRICS, RunFolder, read_rows
from l2t_fast.transfer.trainer import Trainer


def trained(
    training: TrainConfig, progress: TrainingProgress, *, commit: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Do a run, and return its row; arguments as of `training_row`."""
    trainer = Trainer(training, progress)
    result = trainer.fit()
    images = {
        "validation_images": len(trainer.data.validation.dataset),
        "test_images": len(trainer.data.test.dataset),
    }
    return training_row(training, result, images, commit=commit, more=more)


def training_row(
    training: TrainConfig,
    result: Mapping[str, Any],
    images: Mapping[str, int],
    *,
    commit: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row of a run.

    Args:
        training: its configuration.
        result: what its result.json holds.
        images: how many there are, as validation_images and test_images.
        commit: of the code; None takes the one in the run's folder, which knows none outside a checkout.
        more: columns that come after the method.
    """
    folder = RunFolder(training.folder())
    facts = json.loads(folder.environment.read_text(encoding="utf-8"))
    data = training.data
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or facts["commit"],
        "device": facts["device_name"],
        "threads": facts["threads"],
        "torch": facts["torch"],
        "python": facts["python"],
        "method": training.method,
        **(more or {}),
        "pairs": len(result["pairs"]),
        "source": "+".join(source.model for source in training.named_sources().values()),
        "target": training.target.model,
        "dataset": data.dataset,
        "classes": "all" if data.classes is None else " ".join(str(c) for c in data.classes),
        "per_class": data.per_class,
        **images,
        "batch_size": data.batch_size,
        "augment": data.augment,
        "epochs": training.epochs,
        "updates": int(read_rows(folder.metrics, METRICS)[-1]["step"]),
        "lr": training.lr,
        "beta": training.beta,
        "lwf_weight": training.lwf_weight,
        "at_weight": training.at_weight,
        "lookahead_steps": training.lookahead_steps,
        "meta_lr": training.meta_lr,
        "lambda_start": training.lambda_start,
        "seed": training.seed,
        "best_epoch": result["best_epoch"],
        "validation_accuracy": result["validation_accuracy"],
        "test_accuracy": result["test_accuracy"],
        "seconds": round(result["seconds"], 1),
    }
