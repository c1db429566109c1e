"""Values of the data options that cannot be right."""

import pytest

from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "mnist"}, "data.dataset is 'mnist', it must be one of digits, letters, cifar10"),
        ({"augment": "flip"}, "data.augment is 'flip', it must be one of none, crop"),
        ({"validation_share": 0.0}, "data.validation_share is 0.0, it must be above 0 and below 1"),
        ({"validation_share": 1.0}, "data.validation_share is 1.0, it must be above 0 and below 1"),
        ({"validation_share": float("nan")}, "data.validation_share is nan"),
        ({"test_share": -0.1}, "data.test_share is -0.1"),
        ({"per_class": 0}, "data.per_class is 0, it must be at least 1"),
        ({"per_class": -5}, "data.per_class is -5"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"workers": -1}, "data.workers is -1"),
        ({"seed": -1}, "data.seed is -1"),
        ({"classes": []}, "data.classes is [], it must name at least two"),
        ({"classes": [3]}, "data.classes is [3], it must name at least two"),
        ({"classes": [1, 2, 1]}, "each must stand there once"),
        ({"classes": [1, 10]}, "classes names 10, but digits has the classes 0 to 9"),
        ({"classes": [-1, 2]}, "classes names -1"),
        ({"per_class": 1000}, "class '0' of digits has 128 images to train on, fewer than per_class = 1000"),
        (
            {"normalization": "none"},
            "data.normalization is 'none', it must be imagenet, dataset or [[mean ...], [std ...]]",
        ),
        ({"normalization": "imagenet"}, "normalization has 3 numbers a row, but the images of digits have 1 channel"),
        ({"normalization": [[0.5]]}, "it must be [[mean ...], [std ...]]"),
        ({"normalization": [[0.5], [0.0]]}, "every std above 0"),
        ({"normalization": [[0.5], [float("inf")]]}, "it must be [[mean ...], [std ...]]"),
        ({"normalization": [[0.5, 0.5], [1.0]]}, "it must be [[mean ...], [std ...]]"),
        ({"dataset": "imagefolder"}, "data.dataset imagefolder needs data.data_dir"),
        ({"dataset": "cifar10"}, "data.dataset cifar10 needs data.data_dir"),
        ({"dataset": "imagefolder", "data_dir": ""}, "data.data_dir is empty, it must be a path, or null"),
        ({"splits": ""}, "data.splits is empty, it must be a path, or null"),
    ],
)
def test_wrong_values_are_named(options, sentence):
    with pytest.raises(L2TFastError) as error:
        load_data(DataConfig(**options))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
