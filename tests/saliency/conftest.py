from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig
from l2t_fast.data import DataConfig
from l2t_fast.models import build_model
from l2t_fast.transfer import TrainingProgress, run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on digits without its page: two seeds of two methods. Tests must not write into it."""
    out = tmp_path_factory.mktemp("saliency") / "compare"
    out.mkdir()
    (out / "config.yaml").write_text(yaml.safe_dump({"methods": ["scratch", "l2t-ww"], "seeds": [0, 1]}))
    torch.manual_seed(7)
    checkpoint = out / "resnet8.pt"
    torch.save({"model": build_model("resnet8", 5, in_channels=1).state_dict()}, checkpoint)
    for method in ("scratch", "l2t-ww"):
        for seed in (0, 1):
            config = TrainConfig(
                method=method,
                seed=seed,
                source=SourceConfig("resnet8", str(checkpoint), num_classes=5),
                target=TargetConfig("vgg5bn"),
                data=DataConfig(classes=[3, 5, 6], per_class=8, batch_size=8),
                lookahead_steps=0,
                epochs=1,
                device="cpu",
                out=str(out / "runs" / f"{method}-seed{seed}"),
            )
            run(config, progress=TrainingProgress(Console(quiet=True), epoch_lines=False))
    return out
