"""Real photographs through the whole path: files, loader, normalisation, published network."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2t_fast.data import DataConfig, load_data
from l2t_fast.models import build_model, load_weights

DATA = os.environ.get("L2T_FAST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="L2T_FAST_DATA is not set: it names the folder with real images")


def test_a_published_network_recognises_cifar10_files(tmp_path):
    spec = importlib.util.spec_from_file_location("unpack", Path(DATA) / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels, names = unpack.load(Path(DATA) / "cifar10" / "test.npz")
    for part, first, last in (("train", 50, 55), ("test", 0, 50)):
        for label, name in enumerate(names):
            (tmp_path / part / name).mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[first:last]:
                Image.fromarray(images[i]).save(tmp_path / part / name / f"{i:05d}.png")
    bundle = load_data(DataConfig("imagefolder", str(tmp_path)))
    assert bundle.class_names == sorted(names) == names

    network = build_model("resnet20", 10).eval()
    load_weights(network, next((Path(DATA) / "weights").glob("cifar10_resnet20-*")))
    with torch.no_grad():
        right = sum(int((network(x)[0].argmax(1) == y).sum()) for x, y in bundle.test)
    assert abs(right - 457) <= 1  # of 500; 91.73 % of all 10,000 test images
