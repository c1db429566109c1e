"""Loading of published checkpoints, and of files that are none."""

import functools
import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from l2t_fast.errors import L2TFastError
from l2t_fast.models import IMAGENET_MEAN, IMAGENET_STD, build_model, from_state_dict, load_weights, read_checkpoint

DATA = os.environ.get("L2T_FAST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="L2T_FAST_DATA is not set: it names the folder with published weights")
IMAGES = 500


@functools.cache
def cifar10_test_images():
    """The first 50 test images of each class, normalised, and their labels."""
    spec = importlib.util.spec_from_file_location("unpack", Path(DATA) / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels, _ = unpack.load(Path(DATA) / "cifar10" / "test.npz")
    chosen = np.concatenate([np.flatnonzero(labels == c)[: IMAGES // 10] for c in range(10)])
    x = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (x - mean) / std, torch.from_numpy(labels[chosen])


def weights_file(beginning):
    return next((Path(DATA) / "weights").glob(beginning + "*"))


@needs_data
@pytest.mark.parametrize(("depth", "correct"), [(20, 457), (32, 462), (44, 465), (56, 460)])
def test_cifar10_checkpoints_give_their_accuracy(depth, correct):
    # Over all 10,000 test images they are right in 91.73 % (20), 92.63 % (32), 93.10 % (44) and 93.39 % (56). One
    # of the 500 images either way is left to rounding.
    network = build_model(f"resnet{depth}", 10).eval()
    load_weights(network, weights_file(f"cifar10_resnet{depth}-"))
    x, y = cifar10_test_images()
    with torch.no_grad():
        right = sum(int((network(a)[0].argmax(1) == b).sum()) for a, b in zip(x.split(100), y.split(100), strict=True))
    assert abs(right - correct) <= 1


@needs_data
def test_the_authors_source_network_loads():
    network = build_model("l2tww_resnet32", 200)
    load_weights(network, weights_file("l2tww_tinyimagenet200"))
    assert sum(p.numel() for p in network.parameters()) == 479_272
    saved = torch.load(weights_file("l2tww_tinyimagenet200"), map_location="cpu", weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[name]), name


@needs_data
def test_the_authors_source_network_tells_images_apart():
    # It was trained on other classes, so its features are asked: nearest class centre, 25 images a class each way.
    network = build_model("l2tww_resnet32", 200).eval()
    load_weights(network, weights_file("l2tww_tinyimagenet200"))
    x, y = cifar10_test_images()
    with torch.no_grad():
        features = torch.cat([network(a)[1][-1].mean((2, 3)) for a in x.split(100)])
    first = torch.arange(IMAGES) % 50 < 25
    centres = torch.stack([features[first & (y == c)].mean(0) for c in range(10)])
    nearest = torch.cdist(features[~first], centres).argmin(1)
    assert (nearest == y[~first]).float().mean() > 0.4  # chance is 0.1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("resnet8", 4)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "module.net.encoder."])
def test_wrapped_checkpoints_load(network, tmp_path, key, prefix):
    saved = {prefix + name: value.clone() for name, value in network.state_dict().items()}
    torch.save(saved if key is None else {"epoch": 3, key: saved}, tmp_path / "a.pt")
    other = build_model("resnet8", 4)
    load_weights(other, str(tmp_path / "a.pt"))
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_a_network_whose_names_begin_alike_keeps_them(tmp_path):
    network = nn.ModuleDict({"model": nn.Linear(2, 3)})
    torch.save(network.state_dict(), tmp_path / "a.pt")
    network["model"].weight.data.zero_()
    load_weights(network, tmp_path / "a.pt")
    assert network["model"].weight.abs().min() > 0


def test_extra_layers_of_the_authors_files_are_left_out(tmp_path):
    saved = build_model("vgg5bn", 4).state_dict()
    torch.save(saved | {"alphas.0": torch.zeros(3), "w1.bias": torch.zeros(16)}, tmp_path / "a.pt")
    other = build_model("vgg5bn", 4)
    load_weights(other, tmp_path / "a.pt")
    for name, value in saved.items():
        assert torch.equal(other.state_dict()[name], value)


def test_published_densenets_load(tmp_path):
    network = build_model("torchvision:densenet121", 4)
    old_names = {re.sub(r"(layer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old_names
    torch.save(old_names, tmp_path / "a.pt")
    other = build_model("torchvision:densenet121", 4)
    load_weights(other, tmp_path / "a.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_published_vision_transformers_load():
    torch.manual_seed(0)
    network, other = (VisionTransformer(32, 16, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=16) for _ in range(2))
    new_names = network.state_dict()
    old_names = {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in new_names.items()}
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in old_names
    load_weights(other, from_state_dict(old_names, "a.pt"))
    for name, value in new_names.items():
        assert torch.equal(other.state_dict()[name], value)


def test_networks_whose_names_have_a_version_load(tmp_path):
    network, other = (build_model("torchvision:mnasnet0_5", 4) for _ in range(2))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    load_weights(other, tmp_path / "a.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_a_file_older_than_the_batch_counter_loads(network):
    counted = build_model("resnet8", 4)
    counted.bn1.num_batches_tracked.fill_(3)
    weights = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_weights(counted, from_state_dict(weights, "a.pt"))
    assert torch.equal(counted.conv1.weight, network.conv1.weight)
    assert counted.bn1.num_batches_tracked == 3


class NotATensor:
    pass


def save_whole_model(network, path):
    torch.save(network, path)


def save_truncated(network, path):
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_renamed(network, path):
    state = network.state_dict()
    state["last.weight"] = state.pop("linear.weight")
    torch.save(state, path)


def save_other_classes(network, path):
    torch.save(build_model("resnet8", 7).state_dict(), path)


def save_nan(network, path):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["linear.bias"][2] = float("nan")
    torch.save(state, path)


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo run > /dev/null",)


def save_with_code(network, path):
    torch.save({"state_dict": network.state_dict(), "more": RunsCode()}, path)


def save_flipped(network, path):
    """One bit of a weight, as a bad copy leaves it."""
    torch.save(network.state_dict(), path)
    content = bytearray(path.read_bytes())
    content[content.index(network.linear.weight.detach().numpy().tobytes()) + 5] ^= 0x10
    path.write_bytes(content)


def save_as(kind):
    def save(network, path):
        state = network.state_dict()
        state["linear.weight"] = kind(state["linear.weight"])
        torch.save(state, path)

    return save


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (save_with_code, "could run code: save the state dict alone"),
        (save_flipped, "truncated or no PyTorch checkpoint"),
        (save_as(Tensor.to_sparse), "linear.weight as a sparse tensor where the network has floats"),
        (save_as(lambda w: w.to("meta")), "linear.weight as a tensor without numbers where the network has floats"),
        (save_as(lambda w: w.to(torch.complex64)), "linear.weight as complex numbers where the network has floats"),
        (save_as(lambda w: w.to(torch.int8)), "linear.weight as integers where the network has floats"),
        (lambda network, path: None, "there is no checkpoint file"),
        (lambda network, path: path.mkdir(), "not a checkpoint file but a folder"),
        (lambda network, path: path.write_bytes(b""), "is empty"),
        (lambda network, path: path.write_bytes(b"hello, this is text\n" * 50), "truncated or no PyTorch checkpoint"),
        (lambda network, path: path.write_bytes(pickle.dumps(NotATensor(), protocol=2)), "save the state dict alone"),
        (lambda network, path: torch.save([1, 2], path), "holds no weights"),
        (lambda network, path: torch.save({"state_dict": {}}, path), "holds no weights"),
        (lambda network, path: torch.save({"epoch": 3}, path), "holds no weights"),
        (save_truncated, "truncated or no PyTorch checkpoint"),
        (save_whole_model, "save the state dict alone"),
        (save_renamed, "it lacks linear.weight; it has last.weight, which the network does not"),
        (save_other_classes, "it has linear.weight (7, 64) where the network has (4, 64)"),
        (save_nan, "holds NaN or infinite values in linear.bias"),
    ],
)
def test_bad_checkpoints_are_named_and_change_nothing(network, tmp_path, save, sentence):
    path = tmp_path / "weights\n\x1b[31m.pt"
    save(network, path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(L2TFastError) as error:
        load_weights(network, path)
    message = str(error.value)
    assert sentence in message
    assert "weights\\n\\x1b[31m.pt" in message
    assert "\n" not in message and "\x1b" not in message
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_file_of_safetensors_is_not_called_truncated(network, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        L2TFastError, match=r"model\.safetensors needs the package safetensors\.torch, .*: pip install safetensors"
    ):
        load_weights(network, tmp_path / "model.safetensors")


def test_files_of_safetensors_are_read(network, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    weights = {name: torch.randn(v.shape).to(v.dtype) for name, v in network.state_dict().items()}
    safetensors.save_file({f"module.{name}": value for name, value in weights.items()}, path)
    load_weights(network, path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(L2TFastError, match="truncated or no PyTorch checkpoint"):
        load_weights(network, path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99, 0.9999])
def test_a_file_cut_anywhere_is_named(network, tmp_path, share):
    torch.save(network.state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(L2TFastError, match="truncated or no PyTorch checkpoint"):
        load_weights(network, tmp_path / "a.pt")


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    torch.save(build_model("vgg5bn", 4).state_dict(), tmp_path / "a.pt")
    with pytest.raises(L2TFastError, match=r"of another network.*it lacks conv1\.weight, .* and \d+ more"):
        load_weights(build_model("resnet8", 4), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        (None, None),
        ("imagenet", None),
        ([[0.1], ["much"]], None),
        ([[0.1], [0.0]], None),
        ([[float("nan")], [1.0]], None),
    ],
)
def test_what_a_checkpoint_tells_about_its_task(network, tmp_path, said, expected):
    torch.save({"model": network.state_dict(), "normalization": said}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert (checkpoint.num_classes, checkpoint.in_channels, checkpoint.normalization) == (4, 3, expected)


def test_a_number_of_classes_in_the_file_counts(network, tmp_path):
    torch.save({"model": network.state_dict(), "num_classes": 9}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").num_classes == 9
