"""Divisions of a data set as the authors publish them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from l2t_fast.data import DataConfig, load_data
from l2t_fast.data.datasets import read_dataset
from l2t_fast.data.split_files import read_split
from l2t_fast.errors import L2TFastError

LABELS = [0] * 6 + [1] * 6 + [2] * 6
CLASSES = [2, 0]


@pytest.fixture
def folder(make_folder):
    return make_folder({"train": {"a": 6, "b": 6, "c": 6}, "test": {"a": 2, "b": 2, "c": 2}})


@pytest.fixture
def split(tmp_path):
    """Write a split of ``folder``: classes c and a; keyword arguments replace what a part's file holds."""

    def write(**changes):
        parts = {"train": [12, 13, 14, 0, 1, 17], "val": [15, 3], "test": [4, 5, 1]}
        for part, indices in parts.items():
            torch.save(changes.get(part, (CLASSES, indices)), tmp_path / f"mine-{part}")
        return str(tmp_path / "mine")

    return write


def config(folder, splits, **options):
    return DataConfig("imagefolder", str(folder), splits=splits, normalization=[[0.0] * 3, [1.0] * 3], **options)


def test_images_are_divided_as_the_files_say(folder, split):
    given = config(folder, split())
    bundle = load_data(given)
    assert bundle.class_names == ["c", "a"]
    raw = read_dataset(given.dataset, given.data_dir)
    for loader, pool, indices in (
        (bundle.train, raw.train, [0, 1, 12, 13, 14, 17]),
        (bundle.validation, raw.train, [3, 15]),
        (bundle.test, raw.test, [1, 4, 5]),
    ):
        expected = {pool.images[i].numpy().tobytes() for i in indices}
        batches = (loader.dataset[0, np.arange(len(loader.dataset))],)
        found = {image.numpy().tobytes() for x, _ in batches for image in (x * 255).round().byte()}
        assert found == expected
        labels = [CLASSES.index(pool.labels[i]) for i in indices]
        assert loader.dataset.labels.tolist() == labels


def test_the_seed_chooses_only_among_the_training_images(folder, split):
    chosen = []
    for seed in (0, 1, 2, 3):
        bundle = load_data(config(folder, split(), per_class=1, seed=seed))
        assert bundle.validation.dataset.labels.tolist() == [1, 0] and len(bundle.train.dataset) == 2
        chosen.append(bundle.train.dataset.images.numpy().tobytes())
    assert len(set(chosen)) > 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val": (CLASSES, [15, 12])}, "image 12 is in both .*mine-train and .*mine-val"),
        ({"val": ([0, 2], [15])}, "name different classes"),
        ({"train": (CLASSES, [12, 13])}, "train has no image of class 0 of .*train, which is one of its classes"),
        ({"train": (CLASSES, [12, 18])}, "train counts up to image 18, but .* has 18 images"),
        ({"train": (CLASSES, [12, 7])}, "image 7 of train is of class 1 in .* not among the classes of the split"),
        ({"test": (CLASSES, [4, 4])}, "mine-test names an image twice"),
        ({"test": (CLASSES, [])}, r"does not hold \(classes, indices\)"),
        ({"test": (CLASSES, [-1])}, r"does not hold \(classes, indices\)"),
        ({"test": (CLASSES, [1.5])}, r"does not hold \(classes, indices\)"),
        ({"test": (CLASSES, [True])}, r"does not hold \(classes, indices\)"),
        ({"test": (CLASSES, [10**30])}, r"does not hold \(classes, indices\)"),
        ({"test": {"a": 1}}, r"does not hold \(classes, indices\)"),
        ({"test": CLASSES}, r"does not hold \(classes, indices\)"),
        ({part: ([2, 7], [12]) for part in ("train", "test")} | {"val": ([2, 7], [13])}, "classes names 7"),
        ({part: ([2, 2], [12]) for part in ("train", "test")} | {"val": ([2, 2], [13])}, "names a class twice"),
    ],
)
def test_files_that_do_not_fit(folder, split, changes, said):
    with pytest.raises(L2TFastError, match=said):
        load_data(config(folder, split(**changes)))


def test_no_code_in_a_split_file_runs(folder, split, tmp_path):
    prefix = split()

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for content in (pickle.dumps(Hostile()), b"", b"\x80\x02garbage"):
        (tmp_path / "mine-val").write_bytes(content)
        with pytest.raises(L2TFastError, match=r"mine-val is damaged, or holds more than numbers"):
            load_data(config(folder, prefix))
    torch.save((CLASSES, [Hostile()]), tmp_path / "mine-val")
    with pytest.raises(L2TFastError, match=r"mine-val is damaged, or holds more than numbers"):
        load_data(config(folder, prefix))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "mine-val").unlink()
    with pytest.raises(L2TFastError, match=r"there is no split file .*mine-val: splits must be what the files begin"):
        load_data(config(folder, prefix))


def test_options_and_data_that_do_not_go_together(folder, split, make_folder):
    with pytest.raises(L2TFastError, match=r"data\.splits says which classes there are: leave data\.classes out"):
        load_data(config(folder, split(), classes=[0, 1]))
    with pytest.raises(L2TFastError, match="but digits has no test images"):
        load_data(DataConfig(splits=split()))
    make_folder({"val": {"a": 1, "b": 1, "c": 1}})
    with pytest.raises(L2TFastError, match="has validation images of its own"):
        load_data(config(folder, split()))


@pytest.mark.skipif("L2T_FAST_DATA" not in os.environ, reason="L2T_FAST_DATA names no folder with the split files")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cifar100", (100, 45000, 5000, 10000)),
        ("stl10", (10, 4500, 500, 8000)),
        ("cub200", (200, 4994, 1000, 5794)),
        ("dog", (120, 10800, 1200, 8580)),
    ],
)
def test_the_authors_files(name, sizes):
    split = read_split(str(Path(os.environ["L2T_FAST_DATA"]) / "weights" / "l2tww_split" / name))
    assert (len(split.classes), len(split.train), len(split.validation), len(split.test)) == sizes
    known = np.concatenate([split.train, split.validation])
    assert np.array_equal(np.sort(known), np.arange(len(known)))
    if name == "dog":
        # 100 training images a breed, class by class: 10 of each are held out, so the order is that of ImageFolder.
        assert np.bincount(split.validation // 100).tolist() == [10] * 120
