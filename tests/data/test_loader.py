"""Order and augmentation are functions of (seed, epoch); nothing else moves them, and they move nothing else."""

import pytest
import torch

from l2t_fast.data import DataConfig, load_data


def batches(bundle, epoch):
    bundle.set_epoch(epoch)
    return list(bundle.train)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def config(**changes):
    return DataConfig(**{"per_class": 10, "augment": "crop_flip", "batch_size": 16} | changes)


def test_an_epoch_is_the_same_in_a_fresh_process_that_starts_there():
    first = load_data(config())
    epochs = [batches(first, epoch) for epoch in range(3)]
    torch.manual_seed(123)  # PyTorch's generator is elsewhere in a resumed run
    resumed = load_data(config())
    assert same(batches(resumed, 2), epochs[2])
    assert same(batches(resumed, 1), epochs[1])


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "random_resized_crop"])
def test_reading_the_data_leaves_pytorchs_generator_alone(augment):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    bundle = load_data(config(augment=augment, image_size=8))
    for loader in (bundle.train, bundle.validation, bundle.test):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    bundle, other = load_data(config()), load_data(config(seed=1))
    labels = [torch.cat([y for _, y in batches(b, e)]).tolist() for b, e in ((bundle, 0), (bundle, 1), (other, 0))]
    assert labels[0] != labels[1] and labels[0] != labels[2]
    plain = load_data(config(augment="none"))
    # Same order as with augmentation, so image by image the difference is the augmentation alone.
    x, y = batches(bundle, 0)[0]
    u, v = batches(plain, 0)[0]
    assert torch.equal(y, v) and not torch.equal(x, u)


def test_every_training_image_comes_once_an_epoch():
    bundle = load_data(config(augment="none"))
    images = bundle.train.dataset.images
    x = torch.cat([x for x, _ in batches(bundle, 4)])
    counts = ((x * bundle.std[0] + bundle.mean[0]) * 240).round().to(torch.uint8)
    assert sorted(i.numpy().tobytes() for i in counts) == sorted(i.numpy().tobytes() for i in images)


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(20, 8, [8, 8, 4]), (20, 20, [20]), (20, 64, [20]), (20, 19, [19]), (20, 1, [1] * 20), (2, 1, [1, 1])],
)
def test_a_last_training_batch_of_one_image_is_left_out(images, batch_size, sizes):
    bundle = load_data(config(classes=[0, 1], per_class=images // 2, batch_size=batch_size))
    assert [len(y) for _, y in batches(bundle, 0)] == sizes
    assert len(bundle.train) == len(sizes)


def test_validation_and_test_keep_every_image_in_one_order():
    bundle = load_data(config(classes=[0, 1], batch_size=5))
    for loader in (bundle.validation, bundle.test):
        first, second = list(loader), list(loader)
        assert same(first, second)
        assert sum(len(y) for _, y in first) == len(loader.dataset)
        assert len(first) == len(loader)


@pytest.mark.parametrize("augment", ["none", "crop_flip", "random_resized_crop"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_batches_made_on_the_device_are_those_made_on_the_cpu(augment, device):
    wanted, found = (load_data(config(augment=augment, image_size=8)) for _ in range(2))
    found.to(torch.device(device))
    for x, y in batches(found, 1):
        assert x.device.type == y.device.type == device
    # torchvision resizes bytes on a GPU in float and rounds: one level of 255 off at most, 16 levels are a pixel of 1.
    bound = 0 if augment != "random_resized_crop" or device == "cpu" else 2 / (255 * 0.376)
    for (x, y), (u, v) in zip(batches(found, 1), batches(wanted, 1), strict=True):
        assert (x.cpu() - u).abs().max() <= bound and torch.equal(y.cpu(), v)
    assert "training images" in found.describe()


def test_batches_are_pinned_for_a_gpu_alone(monkeypatch):
    """A run on the CPU takes no memory of a GPU that is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bundle = load_data(config())
    loaders = bundle.train, bundle.validation, bundle.test
    assert not any(loader.pin_memory for loader in loaders)
    for device, wanted in (("cuda", True), ("cpu", False), ("cuda", True)):
        bundle.feed(torch.device(device))
        assert all(loader.pin_memory == wanted for loader in loaders)
    bundle.to(torch.device("meta"))  # whose batches are on a device already
    bundle.feed(torch.device("cuda"))
    assert not any(loader.pin_memory for loader in loaders)


def test_images_of_a_device_stay_there_through_augmentation():
    bundle = load_data(config())
    bundle.to(torch.device("meta"))
    x, y = bundle.train.dataset[0, torch.arange(16).numpy()]
    assert x.device.type == y.device.type == "meta" and x.shape == (16, 1, 8, 8)
