"""The letters drawn from fonts: what they show, and that they are the same whenever they are drawn."""

import numpy as np
import pytest
import torch

from l2t_fast.data import DataConfig, load_data
from l2t_fast.data.digits import FACTOR, LEVELS
from l2t_fast.data.letters import COPIES, FONTS, read_letters
from l2t_fast.errors import L2TFastError


@pytest.fixture(scope="module")
def letters():
    return read_letters()


def test_every_letter_of_every_font_is_there(letters):
    images, labels = letters.train.images, letters.train.labels
    assert images.shape == (len(labels), 1, 8, 8) and images.dtype == torch.uint8
    assert len(labels) == len(FONTS) * 52 * COPIES == 3536
    assert np.bincount(labels).tolist() == [len(FONTS) * 2 * COPIES] * 26
    assert letters.class_names == list("abcdefghijklmnopqrstuvwxyz")


def test_no_two_images_are_the_same_and_none_is_empty(letters):
    flat = letters.train.images.flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)
    assert (flat.max(1).values > 0).all()


def test_pixels_are_counted_and_letters_fill_the_image_as_digits_do(letters):
    images = letters.train.images[:, 0]
    assert (images % FACTOR == 0).all() and images.max() == LEVELS * FACTOR
    assert (images.amax(2)[:, [0, -1]] > 0).float().mean() > 0.95  # the first and the last row
    columns = images.float().sum(1)
    middle = (columns * torch.arange(8)).sum(1) / columns.sum(1)
    assert abs(middle.mean() - 3.5) < 0.25


def test_an_l_is_thin_and_an_m_is_wide(letters):
    """So the labels are those of the drawings."""
    width = (letters.train.images[:, 0].amax(1) > 0).sum(1).float()
    of = {name: width[torch.from_numpy(letters.train.labels == i)].mean() for i, name in enumerate(letters.class_names)}
    assert of["i"] < of["t"] < of["m"] and of["j"] < of["o"] < of["w"]


def test_drawn_again_they_are_the_same(letters):
    again = read_letters()
    assert torch.equal(again.train.images, letters.train.images)
    assert np.array_equal(again.train.labels, letters.train.labels)


def test_they_are_divided_and_normalised_like_any_images():
    bundle = load_data(DataConfig(dataset="letters", validation_share=0.1, test_share=0.25))
    parts = (bundle.train, bundle.validation, bundle.test)
    assert [int(part.dataset.labels.bincount().unique()) for part in parts] == [92, 10, 34]
    assert (bundle.num_classes, bundle.in_channels, bundle.image_size) == (26, 1, 8)
    pixels = torch.cat([x for part in parts for x, _ in part])
    # Fonts and their drawing may change a little from release to release.
    assert abs(pixels.mean()) < 0.05 and abs(pixels.std() - 1) < 0.05


def test_a_font_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(L2TFastError, match=r"^the letters need the font .*DejaVuSans\.ttf, which comes with"):
        read_letters()
