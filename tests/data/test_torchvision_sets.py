"""CIFAR and STL-10 in the files that torchvision reads, made small."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError

RAW = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Three batches of ten images a class; returns the folder and the test images (N, 3, 32, 32) with their labels."""
    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        labels = rng.permutation(np.repeat(np.arange(10), 10)).tolist()
        parts[name] = {"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8), "labels": labels}
    parts["batches.meta"] = {"label_names": [f"class{i}" for i in range(10)]}
    for name, content in parts.items():
        (base / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, md5(base / n)] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(base / "test_batch")]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(base / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    test = parts["test_batch"]
    return tmp_path, test["data"].reshape(100, 3, 32, 32), test["labels"]


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Five training and three test images a class; returns the folder and the test images (N, 3, 96, 96)."""
    base = tmp_path / datasets.STL10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    lists = {}
    for part, count in (("train", 50), ("test", 30)):
        # The files hold columns first, and labels from 1.
        images = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (base / f"{part}_X.bin").write_bytes(images.tobytes())
        (base / f"{part}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
        lists[part] = [[name, md5(base / name)] for name in (f"{part}_X.bin", f"{part}_y.bin")]
    (base / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    monkeypatch.setattr(datasets.STL10, "train_list", lists["train"])
    monkeypatch.setattr(datasets.STL10, "test_list", lists["test"])
    return tmp_path, images.transpose(0, 1, 3, 2)


def test_cifar10_comes_as_it_is_stored(cifar10):
    folder, images, labels = cifar10
    bundle = load_data(DataConfig("cifar10", str(folder), validation_share=0.2, normalization=RAW))
    assert [len(part.dataset) for part in (bundle.train, bundle.validation, bundle.test)] == [160, 40, 100]
    assert bundle.class_names[3] == "class3" and bundle.image_size == 32
    x, y = next(iter(bundle.test))
    assert y.tolist() == labels
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(images))


def test_classes_and_images_a_class_of_cifar10(cifar10):
    bundle = load_data(DataConfig("cifar10", str(cifar10[0]), classes=[9, 0, 4], per_class=7, augment="crop_flip"))
    assert bundle.class_names == ["class9", "class0", "class4"]
    assert bundle.train.dataset.labels.bincount().tolist() == [7, 7, 7]
    assert bundle.test.dataset.labels.bincount().tolist() == [10, 10, 10]


def test_stl10_comes_as_it_is_stored(stl10):
    folder, images = stl10
    bundle = load_data(DataConfig("stl10", str(folder), normalization=RAW, batch_size=30))
    assert bundle.image_size == 96 and bundle.num_classes == 10
    x, y = next(iter(bundle.test))
    assert y.tolist() == [i % 10 for i in range(30)]
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(images.copy()))


@pytest.mark.parametrize("cache", [None, False])
def test_stl10_can_be_resized(stl10, cache):
    folder, images = stl10
    bundle = load_data(DataConfig("stl10", str(folder), image_size=32, normalization=RAW, cache=cache, batch_size=30))
    x, _ = next(iter(bundle.test))
    expected = [Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR) for i in images.transpose(0, 2, 3, 1)]
    difference = (x.permute(0, 2, 3, 1) * 255).round() - torch.from_numpy(np.stack(expected)).float()
    assert difference.abs().max() <= 1


def test_resized_crops_of_images_in_memory(stl10):
    bundle = load_data(DataConfig("stl10", str(stl10[0]), image_size=64, augment="random_resized_crop", batch_size=8))
    shapes = {tuple(x.shape[1:]) for part in (bundle.train, bundle.validation, bundle.test) for x, _ in part}
    assert shapes == {(3, 64, 64)}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_a_data_set_that_is_not_there_is_not_fetched_silently(tmp_path, name, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *a, **k: pytest.fail("it was downloaded"))
    with pytest.raises(
        L2TFastError, match=rf"^{name} cannot be read: .*nowhere has no folder .* set download to true$"
    ):
        load_data(DataConfig(name, str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("name", "length", "state"),
    [
        ("data_batch_2", 1000, "damaged or not whole"),
        ("test_batch", 0, "damaged or not whole"),
        ("batches.meta", None, "missing"),
    ],
)
def test_what_is_damaged_or_missing_is_named(cifar10, name, length, state):
    path = cifar10[0] / datasets.CIFAR10.base_folder / name
    content = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(content[:length])
    with pytest.raises(L2TFastError, match=rf"^cifar10 cannot be read: .*{name} is {state}: unpack cifar-10-python"):
        load_data(DataConfig("cifar10", str(cifar10[0])))


def test_the_folder_itself_and_an_archive_that_is_still_packed(cifar10):
    folder = cifar10[0] / datasets.CIFAR10.base_folder
    with pytest.raises(L2TFastError, match=r"name the folder above .*cifar-10-batches-py, which holds"):
        load_data(DataConfig("cifar10", str(folder)))
    folder.rename(folder.with_name("elsewhere"))
    (cifar10[0] / datasets.CIFAR10.filename).touch()
    with pytest.raises(L2TFastError, match=r"unpack cifar-10-python\.tar\.gz in .*, or set download to true"):
        load_data(DataConfig("cifar10", str(cifar10[0])))


def test_images_in_torchvision_s_files_are_no_folder_of_classes(cifar10):
    """The configuration for CIFAR-10 takes folders unless it is told otherwise."""
    said = "holds cifar10 as torchvision stores it, not one folder of images a class: set dataset to cifar10$"
    with pytest.raises(L2TFastError, match=said):
        load_data(DataConfig("imagefolder", str(cifar10[0])))


def test_a_download_that_fails_is_named(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(datasets.CIFAR100, "download", fail)
    with pytest.raises(L2TFastError, match=r"cifar100 could not be downloaded into .*: no route to host$"):
        load_data(DataConfig("cifar100", str(tmp_path), download=True))
