"""Folders of images: layouts, sizes, memory or files, worker processes, and everything that can be wrong with them."""

import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from l2t_fast.data import DataConfig, load_data
from l2t_fast.data.loader import ImageBatches
from l2t_fast.errors import L2TFastError, one_sentence, worker_killed
from l2t_fast.models import IMAGENET_MEAN, IMAGENET_STD

RAW = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
USUAL = {"train": {"bird": 10, "cat": 12}, "test": {"bird": 4, "cat": 3}}


def config(folder, **changes):
    return DataConfig(**{"dataset": "imagefolder", "data_dir": str(folder), "batch_size": 4} | changes)


def sizes(bundle):
    return [len(loader.dataset) for loader in (bundle.train, bundle.validation, bundle.test)]


def images_of(loader):
    return torch.cat([x for x, _ in loader])


def bytes_of(loader):
    return {image.tobytes() for image in (images_of(loader) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()}


def files_in(folder):
    return {np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png")}


def test_train_and_test_folders(make_folder):
    folder = make_folder(USUAL)
    bundle = load_data(config(folder, normalization=RAW))
    assert sizes(bundle) == [20, 2, 7]
    assert bundle.class_names == ["bird", "cat"]
    assert (bundle.in_channels, bundle.image_size) == (3, 8)
    assert bytes_of(bundle.test) == files_in(folder / "test")
    assert bytes_of(bundle.train) | bytes_of(bundle.validation) == files_in(folder / "train")
    assert not bytes_of(bundle.train) & bytes_of(bundle.validation)


def test_a_validation_folder_is_taken_as_it_is(make_folder):
    folder = make_folder(USUAL | {"val": {"bird": 3, "cat": 2}})
    bundle = load_data(config(folder, normalization=RAW))
    assert sizes(bundle) == [22, 5, 7]
    assert bytes_of(bundle.validation) == files_in(folder / "val")


def test_one_folder_of_classes_is_divided(make_folder):
    folder = make_folder({".": {"bird": 20, "cat": 10}})
    bundle = load_data(config(folder, normalization=RAW, test_share=0.2, validation_share=0.25))
    assert sizes(bundle) == [18, 6, 6]  # 20 - 4 - 4 and 10 - 2 - 2
    parts = [bytes_of(loader) for loader in (bundle.train, bundle.validation, bundle.test)]
    assert set.union(*parts) == files_in(folder) and sum(map(len, parts)) == 30


def test_classes_may_be_called_like_a_part(make_folder):
    assert load_data(config(make_folder({".": {"Valid": 4, "invalid": 4}}))).class_names == ["Valid", "invalid"]


def test_labels_follow_the_folders_and_the_chosen_classes(make_folder):
    folder = make_folder({"train": {"a": 4, "b": 4, "c": 4}, "test": {"a": 1, "b": 2, "c": 3}})
    bundle = load_data(config(folder, classes=[2, 0], normalization=RAW))
    assert bundle.class_names == ["c", "a"]
    assert bundle.test.dataset.labels.bincount().tolist() == [3, 1]
    of_c = {i.tobytes() for x, y in bundle.test for i in (x[y == 0] * 255).byte().permute(0, 2, 3, 1).numpy()}
    assert of_c == files_in(folder / "test" / "c")


def test_colour_images_are_normalised_as_published_weights_expect(make_folder):
    folder = make_folder(USUAL)
    raw = images_of(load_data(config(folder, normalization=RAW)).test)
    bundle = load_data(config(folder))
    assert (bundle.mean, bundle.std) == (IMAGENET_MEAN, IMAGENET_STD)
    expected = (raw - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(images_of(bundle.test), expected)


@pytest.mark.parametrize("cache", [True, False])
def test_the_data_sets_own_statistics_are_those_of_its_training_images(make_folder, cache):
    bundle = load_data(config(make_folder(USUAL), normalization="dataset", cache=cache))
    images = images_of(bundle.train)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), unbiased=False), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "random_resized_crop"])
def test_memory_files_and_worker_processes_give_the_same_images(make_folder, augment):
    folder = make_folder(USUAL, size=(20, 24))
    epochs = []
    for changes in ({"cache": True}, {"cache": False}, {"cache": False, "workers": 2}):
        bundle = load_data(config(folder, augment=augment, image_size=16, **changes))
        passes = []
        for epoch in (0, 1):
            bundle.set_epoch(epoch)
            passes += [*bundle.train, *bundle.test]
        epochs.append(passes)
    for other in epochs[1:]:
        for (x, y), (u, v) in zip(epochs[0], other, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_images_of_many_sizes_are_resized_and_their_centre_taken(tmp_path):
    # Left and right thirds red, the middle blue: after a resize of the height to 8 the centre 8x8 of 24 is all blue.
    for part in ("train", "test"):
        for name in ("a", "b"):
            for i, scale in enumerate((1, 2, 3)):
                picture = np.zeros((8 * scale, 24 * scale, 3), dtype=np.uint8)
                picture[:, :, 0] = 255
                picture[:, 8 * scale : 16 * scale] = (0, 0, 255)
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(tmp_path / part / name / f"{i}.png")
    bundle = load_data(config(tmp_path, image_size=8, normalization=RAW))
    for x in images_of(bundle.test):
        assert x[2, :, 1:-1].min() > 0.95 and x[0, :, 1:-1].max() < 0.05


def test_random_resized_crop_is_224_by_default_and_tests_see_the_centre(make_folder):
    bundle = load_data(config(make_folder(USUAL, size=(40, 30)), augment="random_resized_crop"))
    assert bundle.image_size == 224
    assert next(iter(bundle.train))[0].shape[1:] == next(iter(bundle.test))[0].shape[1:] == (3, 224, 224)


def test_with_resized_crops_tests_see_what_torchvision_s_usual_transforms_leave(tmp_path):
    numbers = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(10):  # of rows and columns that differ, so that another resize or crop is another picture
                small = numbers.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(small).resize((400, 300)).save(tmp_path / part / name / f"{i}.png")
    bundle = load_data(config(tmp_path, image_size=224, augment="random_resized_crop", normalization=RAW))
    usual = v2.Compose([v2.PILToTensor(), v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    files = sorted((tmp_path / "test").glob("*/*.png"))
    wanted = torch.stack([usual(Image.open(file)) for file in files])
    assert ((images_of(bundle.test) * 255).round() - wanted.float()).abs().max() <= 1


@pytest.mark.parametrize(("limit", "kept"), [(10**6, True), (10**4, False)])
def test_images_of_very_different_sizes_are_kept_if_all_of_them_are_few(make_folder, monkeypatch, limit, kept):
    folder = make_folder(USUAL)  # the first is of 8x8 pixels, and 20 of that size are 3,840 bytes
    for name in ("one.png", "other.png"):  # one of which may be held out
        Image.new("RGB", (100, 100)).save(folder / "train" / "cat" / name)
    monkeypatch.setattr("l2t_fast.data.bundle.CACHE_LIMIT", limit)
    images = load_data(config(folder, augment="random_resized_crop", image_size=8)).train.dataset.images
    assert isinstance(images, list) == kept


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_any_colour_mode_become_rgb(make_folder, mode):
    folder = make_folder(USUAL)
    path = folder / "test" / "cat" / ("900.tif" if mode == "CMYK" else "900.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    images = images_of(load_data(config(folder, normalization=RAW)).test)
    assert any(torch.equal(x, torch.ones(3, 8, 8)) for x in images)


def test_other_files_beside_the_images_do_not_matter(make_folder):
    folder = make_folder(USUAL)
    (folder / "README.txt").write_text("hello")
    (folder / "train" / "labels.csv").write_text("hello")
    (folder / "train" / "cat" / "notes.txt").write_text("hello")
    assert sizes(load_data(config(folder))) == [20, 2, 7]


def test_hidden_folders_and_files_are_no_classes_and_no_images(make_folder):
    """As file managers and archives leave them."""
    folder = make_folder(USUAL)
    for name in (".thumbnails", "__MACOSX"):
        shutil.copytree(folder / "train" / "cat", folder / "train" / name)
        shutil.copytree(folder / "train" / "cat", folder / "train" / "bird" / name)
    (folder / "train" / "cat" / "._000.png").write_bytes(b"Mac OS X")
    bundle = load_data(config(folder))
    assert bundle.class_names == ["bird", "cat"] and sizes(bundle) == [20, 2, 7]


def damage(folder):
    path = folder / "train" / "cat" / "005.png"
    path.write_bytes(path.read_bytes()[:60])
    return "005.png cannot be read"


def replace_by_text(folder):
    (folder / "test" / "bird" / "001.png").write_text("no image")
    return "001.png cannot be read: it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"


def deep_image(folder):
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(folder / "train" / "cat" / "005.png")
    return "005.png has more than 8 bits a channel (mode I;16)"


def empty_class(folder):
    shutil.rmtree(folder / "train" / "cat")
    (folder / "train" / "cat").mkdir()
    return "class 'cat' of {folder}/train has no image"


def empty_test_class(folder):
    shutil.rmtree(folder / "test" / "cat")
    (folder / "test" / "cat").mkdir()
    return "class 'cat' of {folder}/test has no image"


def missing_test_class(folder):
    shutil.rmtree(folder / "test" / "cat")
    return "the class 'cat' is in train but not in test"


def additional_test_class(folder):
    (folder / "test" / "dog").mkdir()
    return "the class 'dog' is in test but not in train"


def no_test(folder):
    shutil.rmtree(folder / "test")
    return "has train but no test beside it"


def parts_in_capitals(folder):
    for name in ("train", "test"):
        (folder / name).rename(folder / name.capitalize())
    return "{folder} has a folder 'Train', which is the name of no part: parts are called train, test and"


def parts_of_other_names(folder):
    for name in ("train", "test"):
        (folder / name).rename(folder / f"{name}ing_set")
    return "{folder} has a folder 'training_set', which is the name of no part"


def validation_of_another_name(folder):
    shutil.copytree(folder / "test", folder / "valid")
    return "{folder} has a folder 'valid', which is the name of no part: parts are called train, test and, if there is"


def no_classes(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return "the folder {folder} holds no folders: it must hold one folder of images a class"


def too_deep(folder):
    for name in ("train", "test"):
        shutil.rmtree(folder / name)
    Image.new("RGB", (8, 8)).save(folder / "000.png")
    return "the folder {folder} holds images and no folders, name the one above it: it must hold one folder"


def no_folder(folder):
    shutil.rmtree(folder)
    return "there is no folder {folder}"


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("x")
    return "there is no folder {folder}"


def other_size(folder):
    Image.new("RGB", (9, 9)).save(folder / "train" / "cat" / "005.png")
    return "005.png is 9x9, not 8x8 as those before it: set image_size"


def not_square(folder):
    Image.new("RGB", (7, 8)).save(folder / "train" / "bird" / "000.png")
    return "is 7x8, not square: set image_size"


def single_image(folder):
    for path in sorted((folder / "train" / "cat").iterdir())[1:]:
        path.unlink()
    return "class 'cat' of {folder}/train has 1 image, it needs at least one to train on and one for validation"


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "harm",
    [
        damage,
        replace_by_text,
        deep_image,
        empty_class,
        empty_test_class,
        missing_test_class,
        additional_test_class,
        no_test,
        parts_in_capitals,
        parts_of_other_names,
        validation_of_another_name,
        no_classes,
        too_deep,
        no_folder,
        a_file,
        other_size,
        not_square,
        single_image,
    ],
)
def test_bad_folders_are_named_in_one_sentence(make_folder, harm, cache):
    folder = make_folder(USUAL)
    sentence = harm(folder).format(folder=folder)
    size = 8 if harm in (damage, replace_by_text, deep_image) else None
    with pytest.raises(L2TFastError) as error:
        bundle = load_data(config(folder, cache=cache, image_size=size, validation_share=0.2))
        for loader in (bundle.train, bundle.validation, bundle.test):
            list(loader)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_named_from_a_worker_process_too(make_folder):
    folder = make_folder(USUAL)
    damage(folder)
    bundle = load_data(config(folder, cache=False, workers=1, image_size=8))
    with pytest.raises(L2TFastError, match=r"^the image .*005\.png cannot be read: [^\n]*$"):
        list(bundle.train), list(bundle.validation)


def test_too_little_shared_memory_for_a_batch_is_told_by_a_worker_process(make_folder):
    bundle = load_data(config(make_folder(USUAL), cache=False, workers=1, image_size=64))
    bundle.train.timeout = 30  # seconds, after which a batch that never comes ends this test
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full /dev/shm, which is 64 MB in a container that asks for no more: a file there cannot grow.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(L2TFastError, match=r"cannot hand over a batch of [^\n]*: enlarge /dev/shm \("):
            list(bundle.train)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_worker_process_that_is_killed_is_told_in_a_sentence(make_folder, monkeypatch):
    """As the system does it where memory ran out. The command would show a traceback that tells nobody what to do."""
    bundle = load_data(config(make_folder(USUAL), cache=False, workers=1, image_size=64))
    monkeypatch.setattr(ImageBatches, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError) as raised:
        list(bundle.train)
    assert worker_killed(raised.value)
    assert one_sentence(raised.value).startswith("a process that reads images was killed")


def test_too_few_images_for_per_class(make_folder):
    folder = make_folder(USUAL)
    with pytest.raises(
        L2TFastError, match=r"class 'bird' of .*train has 9 images to train on, fewer than per_class = 10"
    ):
        load_data(config(folder, per_class=10))


def test_a_folder_with_one_class(make_folder):
    folder = make_folder({"train": {"cat": 5}, "test": {"cat": 5}})
    with pytest.raises(L2TFastError, match="has only the class 'cat', at least two are needed"):
        load_data(config(folder))


def test_hostile_names_are_escaped(make_folder):
    name = "cat\n\x1b[2J\u202eno"
    folder = make_folder({"train": {name: 5, "dog": 5}, "test": {name: 2, "dog": 2}})
    assert load_data(config(folder)).class_names == ["cat\\n\\x1b[2J\\u202eno", "dog"]
    path = folder / "train" / name / "evil\r\n\x07.png"
    path.write_text("no image")
    with pytest.raises(L2TFastError) as error:
        load_data(config(folder, image_size=8))
    assert "evil\\r\\n\\x07.png" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("link", ["..", ".", "../../train/bird"])
def test_links_that_lead_in_circles(make_folder, link):
    """Followed, two of them would make 2^40 folders."""
    folder = make_folder(USUAL)
    (folder / "train" / "cat" / "more").symlink_to(link)
    (folder / "train" / "bird" / "more").symlink_to("..")
    with pytest.raises(L2TFastError, match="once more, by a link: remove one of them"):
        load_data(config(folder))


def test_a_class_may_be_a_link(make_folder, tmp_path):
    folder = make_folder(USUAL)
    (folder / "train" / "cat").rename(tmp_path / "elsewhere")
    (folder / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert "cat" in load_data(config(folder)).class_names


def test_a_pipe_is_not_waited_for(make_folder):
    folder = make_folder(USUAL)
    os.mkfifo(folder / "train" / "cat" / "a.png")
    with pytest.raises(L2TFastError, match=r"a\.png is a pipe, a device or a link to nothing"):
        load_data(config(folder))


def test_a_file_name_that_is_no_utf8_is_escaped(make_folder):
    folder = make_folder(USUAL)
    with open(os.fsencode(folder / "train" / "cat") + b"/\xff\xfe.png", "wb") as file:
        file.write(b"no image")
    with pytest.raises(L2TFastError) as error:
        load_data(config(folder, image_size=8))
    assert str(error.value).isprintable() and "\\udcff" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(make_folder):
    folder = make_folder(USUAL)
    (folder / "train").chmod(0)
    try:
        with pytest.raises(L2TFastError, match="cannot be read: Permission denied"):
            load_data(config(folder))
    finally:
        (folder / "train").chmod(0o755)
