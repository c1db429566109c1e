"""Data sets of somebody's own: what their functions return."""

import numpy as np
import pytest
import torch
from PIL import Image

from l2t_fast.data import DataConfig, load_data, register_dataset
from l2t_fast.data.images import FileImages
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError

LABELS = np.repeat(np.arange(2), 20)
BYTES = torch.arange(40 * 16, dtype=torch.uint8).view(40, 1, 4, 4)


@pytest.fixture
def own(registries):
    """The configuration of a data set that is the RawData given."""

    def register(raw):
        register_dataset("own", lambda: raw, in_folder=False)
        return DataConfig("own", batch_size=16)

    return register


def raw(images=BYTES, labels=LABELS, names=("a", "b"), in_channels=1, **more):
    return RawData(Pool(images, labels, "own images"), None, None, names, in_channels, **more)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "the function of the data set own must return RawData, not NoneType"),
        (raw(names=[]), "the data set own names no class"),
        (
            raw(BYTES / 255),
            r"images of own images are torch\.float32 \(40, 1, 4, 4\), they must be torch\.uint8 \(N, 1,",
        ),
        (raw(BYTES[:, 0]), r"are torch\.uint8 \(40, 4, 4\), they must be"),
        (raw(in_channels=3), r"they must be torch\.uint8 \(N, 3, H, W\): its in_channels is 3"),
        (raw(BYTES.numpy()), "must be a tensor of bytes or FileImages, not ndarray"),
        (raw(FileImages(["a.png"] * 40)), "are read as RGB, but its in_channels is 1: grey ones are FileImages"),
        (raw(labels=LABELS.tolist()), r"labels of own images must be whole numbers in a NumPy array \(N,\)"),
        (raw(labels=LABELS / 1), "must be whole numbers"),
        (raw(labels=LABELS[:, None]), "must be whole numbers"),
        (raw(labels=LABELS[:30]), "own images has 40 images, but 30 labels"),
        (raw(labels=LABELS + 1), "labels of own images go from 1 to 2, but for its 2 classes they must be 0 to 1"),
    ],
)
def test_what_is_no_data_set(own, wrong, told):
    with pytest.raises(L2TFastError, match=told):
        load_data(own(wrong))


def test_names_and_statistics_become_plain_values(own):
    """Those of NumPy would be left in checkpoints, which hold nothing else."""
    statistics = np.full(1, 0.5, np.float32), np.full(1, 0.25, np.float32)
    for names in (np.array(["4", "9"]), [4, 9]):
        found = load_data(own(raw(names=names, statistics=statistics)))
        assert (found.class_names, found.mean, found.std) == (["4", "9"], (0.5,), (0.25,))
        assert {type(value) for value in (*found.class_names, *found.mean, *found.std)} == {str, float}


def test_grey_images_in_files(own, tmp_path):
    for i, pixels in enumerate(BYTES):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / f"{i:02}.png")
    files = FileImages([str(path) for path in sorted(tmp_path.iterdir())], mode="L")
    wanted = next(iter(load_data(own(raw())).train))
    torch.testing.assert_close(next(iter(load_data(own(raw(files))).train)), wanted, rtol=0, atol=0)
