"""A small transfer: random ResNet-8 as the source, a few digits, VGG-5 as the target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig
from l2t_fast.data import DataConfig
from l2t_fast.models import build_model
from l2t_fast.transfer import TrainingProgress


@pytest.fixture(scope="session")
def source_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-8 for 8x8 digits with 5 classes; what it learned does not matter here."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("source") / "resnet8.pt"
    torch.save({"model": build_model("resnet8", 5, in_channels=1).state_dict()}, path)
    return path


@pytest.fixture
def make_config(source_checkpoint: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a run that takes a fraction of a second; keyword arguments replace fields."""

    def make(**changes: Any) -> TrainConfig:
        data = {"dataset": "digits", "classes": [5, 6, 7], "per_class": 12, "batch_size": 16}
        fields: dict[str, Any] = {
            "source": SourceConfig("resnet8", str(source_checkpoint), num_classes=5),
            "target": TargetConfig("vgg5bn"),
            "data": DataConfig(**data | changes.pop("data", {})),
            "epochs": 2,
            "lr": 0.05,
            "meta_lr": 1e-2,
            "device": "cpu",
            "out": str(tmp_path / "run"),
        }
        return TrainConfig(**fields | changes)

    return make


@pytest.fixture
def quiet() -> TrainingProgress:
    """Shows nothing."""
    return TrainingProgress(Console(quiet=True), epoch_lines=False)
