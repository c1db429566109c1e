"""The embedded digits: what comes out of the loaders, how they are divided, and what the seed decides."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from l2t_fast.data import DataConfig, load_data


def images_of(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def as_set(images):
    """Images as hashable values: which ones there are, whatever their order."""
    return {image.numpy().tobytes() for image in images}


def labels_by_image():
    """The raw bytes of each digit image (counts 0 ... 16) and its label."""
    bunch = load_digits()
    return {
        image.astype(np.uint8).tobytes(): int(label) for image, label in zip(bunch.images, bunch.target, strict=True)
    }


def counts_0_to_16(bundle, images):
    pixels = images[:, 0] * bundle.std[0] + bundle.mean[0]
    return (pixels * 16).round().numpy().astype(np.uint8)


def test_every_digit_is_in_exactly_one_part_with_its_label():
    bundle = load_data(DataConfig())
    truth = labels_by_image()
    seen = []
    for loader in (bundle.train, bundle.validation, bundle.test):
        images, labels = images_of(loader)
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.shape[1:] == (bundle.in_channels, bundle.image_size, bundle.image_size) == (1, 8, 8)
        for image, label in zip(counts_0_to_16(bundle, images), labels.tolist(), strict=True):
            assert truth[image.tobytes()] == label
            seen.append(image.tobytes())
    assert len(seen) == len(load_digits().target)
    assert set(seen) == set(truth)


def test_pixels_are_sixteenths_normalised_by_the_digits_own_statistics():
    bundle = load_data(DataConfig(normalization=[[0.0], [1.0]]))
    images, _ = images_of(bundle.test)
    assert images.min() == 0 and images.max() == 1
    torch.testing.assert_close(images * 16, (images * 16).round(), rtol=0, atol=1e-5)
    bundle = load_data(DataConfig())
    images = torch.cat([images_of(part)[0] for part in (bundle.train, bundle.validation, bundle.test)])
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3


def test_classes_are_relabelled_in_the_order_given():
    bundle = load_data(DataConfig(classes=[7, 2]))
    truth = labels_by_image()
    assert bundle.num_classes == 2 and bundle.class_names == ["7", "2"]
    images, labels = images_of(bundle.train)
    for image, label in zip(counts_0_to_16(bundle, images), labels.tolist(), strict=True):
        assert truth[image.tobytes()] == [7, 2][label]


@pytest.mark.parametrize("per_class", [1, 10, 100])
def test_per_class_gives_so_many_training_images_of_each_class(per_class):
    bundle = load_data(DataConfig(classes=[5, 6, 7, 8, 9], per_class=per_class, batch_size=7))
    labels = bundle.train.dataset.labels
    assert labels.bincount().tolist() == [per_class] * 5


def test_shares_are_held_out_of_every_class():
    everything = np.bincount(load_digits().target)
    bundle = load_data(DataConfig(validation_share=0.25, test_share=0.3))
    test = bundle.test.dataset.labels.bincount().numpy()
    validation = bundle.validation.dataset.labels.bincount().numpy()
    assert np.abs(test - 0.3 * everything).max() <= 0.5
    assert np.abs(validation - 0.25 * (everything - test)).max() <= 0.5


def test_a_share_too_small_for_one_image_still_holds_one_out():
    bundle = load_data(DataConfig(validation_share=0.0001, test_share=0.0001))
    assert bundle.validation.dataset.labels.bincount().tolist() == [1] * 10
    assert bundle.test.dataset.labels.bincount().tolist() == [1] * 10


def test_the_seed_chooses_the_images_but_never_the_test_set():
    parts = {seed: load_data(DataConfig(per_class=10, seed=seed)) for seed in (0, 1)}
    again = load_data(DataConfig(per_class=10, seed=1))
    assert as_set(images_of(parts[0].test)[0]) == as_set(images_of(parts[1].test)[0])
    assert as_set(images_of(parts[0].train)[0]) != as_set(images_of(parts[1].train)[0])
    assert as_set(images_of(parts[0].validation)[0]) != as_set(images_of(parts[1].validation)[0])
    for part in ("train", "validation"):
        assert torch.equal(images_of(getattr(parts[1], part))[0], images_of(getattr(again, part))[0])


def test_fewer_images_a_class_are_among_more_and_the_held_out_ones_stay():
    few, many = (load_data(DataConfig(per_class=n, seed=3)) for n in (10, 50))
    assert as_set(images_of(few.train)[0]) < as_set(images_of(many.train)[0])
    assert as_set(images_of(few.validation)[0]) == as_set(images_of(many.validation)[0])


def test_a_class_is_divided_the_same_way_whatever_other_classes_there_are():
    alone = load_data(DataConfig(classes=[3, 4], per_class=20))
    among = load_data(DataConfig(per_class=20))
    assert as_set(images_of(alone.train)[0]) < as_set(images_of(among.train)[0])
    assert as_set(images_of(alone.test)[0]) < as_set(images_of(among.test)[0])


def test_digits_can_be_enlarged():
    bundle = load_data(DataConfig(image_size=32, per_class=5, augment="crop_flip"))
    x, _ = next(iter(bundle.train))
    assert bundle.image_size == 32 and x.shape[1:] == (1, 32, 32)


def test_describe_says_what_there_is():
    line = load_data(DataConfig(classes=[5, 6, 7], per_class=10, augment="crop")).describe()
    assert line.startswith("digits: 3 classes, 1x8x8; 30 training images (10 a class), ")
    assert line.endswith("augment crop")
    assert "\n" not in line
