"""CUB-200, MIT67, Stanford40, Stanford Dogs and TinyImageNet, small, in the layouts they are distributed in."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from l2t_fast.data import DataConfig, load_data
from l2t_fast.data.datasets import read_dataset
from l2t_fast.errors import L2TFastError
from tests.data.conftest import write_image

RAW = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def write_cub200(root):
    """Two classes of 6 + 2 images, numbered as the real lists are: class by class, train and test mixed."""
    lines = {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for label, bird in enumerate(("002.Laysan_Albatross", "010.Red_winged_Blackbird"), start=1):
        for i in range(8):
            number += 1
            name = f"{bird}/{bird[4:]}_{99 - i:04d}_{number}.jpg"
            write_image(root / "images" / name, number)
            lines["images"].append(f"{number} {name}")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {0 if i in (2, 5) else 1}")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    return ["Laysan Albatross", "Red winged Blackbird"], {"train": root / "images", "test": root / "images"}


def write_mit67(root):
    lists = {"TrainImages.txt": [], "TestImages.txt": []}
    for scene in ("bakery", "airport_inside"):
        for i in range(9):
            write_image(root / "Images" / scene / f"room {i}_gif.jpg", i)
            if i < 8:  # most images stand in no list
                lists["TrainImages.txt" if i < 6 else "TestImages.txt"].append(f"{scene}/room {i}_gif.jpg")
    for name, content in lists.items():
        (root / name).write_text("\r\n".join(content))  # no line break at the end, as in the real lists
    return ["airport_inside", "bakery"], {"train": root / "Images", "test": root / "Images"}


def write_stanford40(root):
    for action in ("riding_a_bike", "applauding"):
        names = [f"{action}_{i:03d}.jpg" for i in range(8)]
        for i, name in enumerate(names):
            write_image(root / "JPEGImages" / name, i + len(action))
        (root / "ImageSplits").mkdir(exist_ok=True)
        (root / "ImageSplits" / f"{action}_train.txt").write_text("\n".join(names[:6]) + "\n")
        (root / "ImageSplits" / f"{action}_test.txt").write_text("\n".join(names[6:]) + "\n")
    (root / "ImageSplits" / "train.txt").write_text("all of them\n")
    (root / "ImageSplits" / "actions.txt").write_text("action_name\tnumber\n")
    return ["applauding", "riding a bike"], {"train": root / "JPEGImages", "test": root / "JPEGImages"}


def write_stanford_dogs(root):
    files = {"train": [], "test": []}
    for breed in ("n02105412-kelpie", "n02085620-Chihuahua"):
        for i in range(8):
            name = f"{breed}/{breed.split('-')[0]}_{i}.jpg"
            write_image(root / "Images" / name, i + ord(breed[-1]))
            files["train" if i < 6 else "test"].append(name)
    for part, names in files.items():
        cells = np.empty((len(names), 1), dtype=object)
        cells[:, 0] = names
        savemat(root / f"{part}_list.mat", {"file_list": cells, "labels": np.ones((len(names), 1), dtype=np.uint8)})
    return ["Chihuahua", "kelpie"], {"train": root / "Images", "test": root / "Images"}


def write_tinyimagenet(root):
    wnids = ["n02124075", "n01443537"]
    for wnid in wnids:
        for i in range(6):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", i + int(wnid[-1]))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes\n")
    rows = []
    for i in range(4):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", 50 + i)
        rows.append(f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t32\t44\t62\n")
    write_image(root / "test" / "images" / "test_0.JPEG", 99)
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    words = "n02124075\tEgyptian cat\nn01443537\tgoldfish, Carassius auratus\nn00001740\tentity\n"
    (root / "words.txt").write_text(words)
    return ["goldfish", "Egyptian cat"], {"train": root / "train", "test": root / "val" / "images"}


SETS = {
    "cub200": write_cub200,
    "mit67": write_mit67,
    "stanford40": write_stanford40,
    "stanford_dogs": write_stanford_dogs,
    "tinyimagenet": write_tinyimagenet,
}


@pytest.fixture
def written(tmp_path):
    """``written(name)`` writes a small set and returns (DataConfig of it, class names, folder of each part)."""

    def write(name, **options):
        root = tmp_path / name
        root.mkdir()
        names, folders = SETS[name](root)
        config = DataConfig(name, str(root), batch_size=4, validation_share=0.2, normalization=RAW, **options)
        return config, names, folders

    return write


@pytest.mark.parametrize("name", SETS)
def test_layout_as_distributed(written, name):
    config, names, folders = written(name)
    bundle = load_data(config)
    assert bundle.class_names == names
    parts = {"train": bundle.train, "validation": bundle.validation, "test": bundle.test}
    sizes = {part: loader.dataset.labels.bincount().tolist() for part, loader in parts.items()}
    assert sizes == {"train": [5, 5], "validation": [1, 1], "test": [2, 2]}
    raw = read_dataset(config.dataset, config.data_dir)
    for part, pool in (("train", raw.train), ("test", raw.test)):
        for path, label in zip(pool.images.paths, pool.labels, strict=True):
            assert path.startswith(str(folders[part]))
            key = names[label].split(" ")[0] if name != "tinyimagenet" else ("n01443537", "n02124075")[label]
            if not (name == "tinyimagenet" and part == "test"):
                assert key in path
        # In the order of torchvision's ImageFolder, which published splits count in.
        assert list(zip(pool.labels, pool.images.paths, strict=True)) == sorted(
            zip(pool.labels, pool.images.paths, strict=True)
        )
    x, y = next(iter(bundle.test))
    expected = np.asarray(Image.open(raw.test.images.paths[0]).convert("RGB"))
    assert (x[0] * 255).round().byte().permute(1, 2, 0).numpy().tolist() == expected.tolist() and y[0] == 0


def test_tinyimagenet_takes_the_labels_of_the_annotations(written):
    config, _, _ = written("tinyimagenet")
    pool = read_dataset(config.dataset, config.data_dir).test
    labels = {path.rsplit("/", 1)[1]: int(label) for path, label in zip(pool.images.paths, pool.labels, strict=True)}
    assert labels == {"val_0.JPEG": 1, "val_1.JPEG": 0, "val_2.JPEG": 1, "val_3.JPEG": 0}


@pytest.mark.parametrize(("name", "inner"), [("cub200", "CUB_200_2011"), ("tinyimagenet", "tiny-imagenet-200")])
def test_the_folder_that_the_archive_makes_is_found(tmp_path, name, inner):
    root = tmp_path / inner
    root.mkdir()
    SETS[name](root)
    config = DataConfig(name, str(tmp_path), validation_share=0.2)
    assert len(load_data(config).test.dataset) == 4


def test_images_of_many_sizes_at_224_pixels(tmp_path):
    write_mit67(tmp_path)
    write_image(tmp_path / "Images" / "bakery" / "room 0_gif.jpg", 0, size=(300, 260))
    config = DataConfig("mit67", str(tmp_path), augment="random_resized_crop", validation_share=0.2, batch_size=4)
    x, _ = next(iter(load_data(config).train))
    assert x.shape == (4, 3, 224, 224) and bool(torch.isfinite(x).all())


MISSING = {
    "cub200": ("train_test_split.txt", "has no train_test_split.txt: data_dir must hold images, images.txt"),
    "mit67": ("TestImages.txt", "has no TestImages.txt: data_dir must hold Images, TrainImages.txt, TestImages.txt"),
    "stanford40": ("ImageSplits/applauding_test.txt", ""),
    "stanford_dogs": ("train_list.mat", "has no train_list.mat"),
    "tinyimagenet": ("wnids.txt", "has no wnids.txt"),
}


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named(written, tmp_path, name):
    config, _, _ = written(name)
    gone, said = MISSING[name]
    (tmp_path / name / gone).unlink()
    with pytest.raises(L2TFastError, match=said or "class 'applauding' of .* test has no image"):
        load_data(config)
    nowhere = DataConfig(name, str(tmp_path / "nowhere"))
    with pytest.raises(L2TFastError, match=r"there is no folder .*nowhere: data_dir must hold"):
        load_data(nowhere)


HOSTILE = ["../../secret.png", "/etc/passwd", "bakery/../../../secret.png", "bakery/<b>\x1b[31m.jpg", "bakery/a\0b.jpg"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_out_of_the_folder_or_of_strange_characters_is_refused_and_shown_safely(written, tmp_path, path):
    config, _, _ = written("mit67")
    write_image(tmp_path / "secret.png", 0)
    with open(tmp_path / "mit67" / "TrainImages.txt", "a") as file:
        file.write(f"\n{path}\n")
    with pytest.raises(L2TFastError, match=r"names the image .*(must be a path inside|which is not in)") as error:
        load_data(config)
    assert str(error.value).isprintable()


def test_hostile_lists_of_the_other_sets(written, tmp_path):
    config, _, _ = written("stanford_dogs")
    savemat(tmp_path / "stanford_dogs" / "test_list.mat", {"file_list": np.array([["../x.jpg"]], dtype=object)})
    with pytest.raises(L2TFastError, match="must be a path inside"):
        load_data(config)
    for content, said in ((b"no MATLAB file", "is damaged or no MATLAB file"), (b"", "is damaged or no MATLAB file")):
        (tmp_path / "stanford_dogs" / "test_list.mat").write_bytes(content)
        with pytest.raises(L2TFastError, match=said):
            load_data(config)
    for value, said in (({"files": [1]}, "has no variable file_list"), ({"file_list": [1, 2]}, "something else")):
        savemat(tmp_path / "stanford_dogs" / "test_list.mat", value)
        with pytest.raises(L2TFastError, match=said):
            load_data(config)
    config, _, _ = written("tinyimagenet")
    (tmp_path / "tinyimagenet" / "wnids.txt").write_text("../../up\nn02124075\n")
    with pytest.raises(L2TFastError, match=r"names the class '../../up', which has no folder"):
        load_data(config)


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("cub200", "images.txt", "1", "line 1 of .*images.txt has no second column: '1'"),
        ("cub200", "images.txt", "1 a.jpg\n1 b.jpg", "line 2 of .*images.txt says '1' again"),
        ("cub200", "train_test_split.txt", "1 1", r"images.txt has '2', which is not in .*train_test_split.txt"),
        ("cub200", "train_test_split.txt", "\n".join(f"{i} 7" for i in range(1, 17)), r"it must be 1 \(train\) or 0"),
        (
            "cub200",
            "image_class_labels.txt",
            "\n".join(f"{i} x" for i in range(1, 17)),
            "must be the number of a class",
        ),
        ("mit67", "TrainImages.txt", "bakery", "where CLASS/FILE must stand"),
        ("mit67", "TrainImages.txt", "bakery/room 1_gif.jpg\nbakery/room 1_gif.jpg", "twice"),
        ("mit67", "TrainImages.txt", "bakery/room 7_gif.jpg", "test images must not be trained on"),
        ("mit67", "TrainImages.txt", "", "class 'airport_inside' of .* train has no image"),
        (
            "tinyimagenet",
            "val/val_annotations.txt",
            "val_0.JPEG\tn0\t1\t2\t3\t4",
            "has 'n0', which is not in .*wnids.txt",
        ),
        ("stanford40", "ImageSplits/applauding_train.txt", "gone.jpg", "gone.jpg, which is not in .*JPEGImages"),
    ],
)
def test_lists_that_are_wrong(written, tmp_path, name, file, content, said):
    config, _, _ = written(name)
    (tmp_path / name / file).write_text(content)
    with pytest.raises(L2TFastError, match=said):
        load_data(config)


def test_names_of_bytes_that_are_no_utf8(written, tmp_path):
    config, _, _ = written("mit67")
    name = b"bakery/caf\xe9.jpg"
    write_image(tmp_path / "new.jpg", 5)
    (tmp_path / "new.jpg").rename(
        (tmp_path / "mit67" / "Images").as_posix() + "/" + name.decode(errors="surrogateescape")
    )
    with open(tmp_path / "mit67" / "TrainImages.txt", "ab") as file:
        file.write(b"\n" + name)
    assert len(load_data(config).train.dataset) == 11
