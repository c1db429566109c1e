"""Folders of small images made for one test."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    """A random RGB image of ``size`` (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def make_folder(tmp_path):
    """``make_folder({"train": {"cat": 3}, "test": {"cat": 1}})`` writes that many images, and returns the folder."""

    def make(parts: dict[str, dict[str, int]], size: tuple[int, int] = (8, 8), suffix: str = ".png") -> Path:
        root = tmp_path / "images"
        seed = 0
        for part, classes in parts.items():
            for name, count in classes.items():
                (root / part / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    write_image(root / part / name / f"{i:03d}{suffix}", seed, size)
                    seed += 1
        return root

    return make
