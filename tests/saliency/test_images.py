import numpy as np
import torch
from sklearn.datasets import load_digits

from l2t_fast.data import DataConfig, load_data
from l2t_fast.saliency.images import choose_images, pixels, read_images


def test_one_of_each_class_then_another_and_the_same_each_time():
    labels = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    chosen = choose_images(labels, 5, seed=3)
    assert chosen == choose_images(labels, 5, seed=3) == choose_images(labels, 9, seed=3)[:5]
    assert {labels[i] for i in chosen[:3]} == {0, 1, 2} and len(set(chosen)) == 5
    assert choose_images(labels, 5, seed=4) != chosen
    assert sorted(choose_images(labels, 100, seed=0)) == list(range(9))


def test_pixels_are_those_of_the_data_set_again():
    data = load_data(DataConfig(classes=[4, 7]))
    x, y = read_images(data, [5, 0, 9])
    batch = next(iter(data.test))
    assert torch.equal(x, batch[0][[5, 0, 9]]) and torch.equal(y, batch[1][[5, 0, 9]])
    shown = pixels(data, x)
    assert shown.shape == (3, 8, 8, 1) and shown.dtype == np.uint8
    levels = shown.astype(float) / 255 * 16
    np.testing.assert_allclose(levels, levels.round(), atol=0.05)
    known = {image.tobytes() for image in load_digits().images}
    assert all(image.tobytes() in known for image in levels.round()[..., 0])
