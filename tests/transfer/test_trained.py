"""The network of a run as others use it: `load_trained`, and `l2t-fast predict`."""

import csv
import errno
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from l2t_fast.cli import main
from l2t_fast.config import TargetConfig
from l2t_fast.data import DataConfig, register_dataset
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.predict import find_images, predict
from l2t_fast.transfer import Trainer, load_trained, run

COLOURS = {"blue": (20, 40, 200), "red: warm": (220, 30, 30), "green, light": (90, 230, 90)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of three colours and several sizes, in train and test."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for part, number in (("train", 8), ("test", 5)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(number):
                noise = draw.integers(-60, 60, (int(draw.integers(12, 30)), int(draw.integers(12, 30)), 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture
def trained(photographs, make_config, quiet):
    """Trains on the photographs; keyword arguments replace fields."""

    def train(**changes):
        data = {"dataset": "imagefolder", "data_dir": str(photographs), "classes": None, "per_class": None}
        data |= {"image_size": 8, "batch_size": 12, **changes.pop("data", {})}
        config = make_config(method="scratch", data=data, **changes)
        return config.folder(), run(config, progress=quiet)

    return train


def rows(shown):
    return list(csv.DictReader(io.StringIO(shown)))


@pytest.mark.parametrize("data", [{}, {"augment": "random_resized_crop", "normalization": "dataset"}])
def test_it_answers_as_the_run_did_on_its_test_images(trained, photographs, capsys, data):
    """The right classes are as many as result.json says, and in the order of paths."""
    folder, result = trained(data=data, epochs=4)
    capsys.readouterr()
    assert main(["predict", str(folder), str(photographs / "test"), "--batch_size", "4"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["image"] for row in found] == find_images(photographs / "test") and len(found) == 15
    right = [row["class"] == row["image"].split("/")[-2] for row in found]
    assert np.mean(right) == pytest.approx(result["test_accuracy"]) and np.mean(right) > 1 / 3


def test_logits_are_those_of_the_trainers_network(make_config, quiet, tmp_path):
    trainer = Trainer(make_config(method="l2t-ww"), quiet)
    trainer.fit()  # leaves the best network in place
    network = load_trained(tmp_path / "run")
    assert not network.training and network.class_names == ["5", "6", "7"]
    assert (network.in_channels, network.image_size, network.resize_to) == (1, 8, 8)
    normalised, _ = next(iter(trainer.data.test))
    x = normalised * network.std + network.mean
    with torch.no_grad():
        torch.testing.assert_close(network(x), trainer.target.eval()(normalised)[0], rtol=1e-5, atol=1e-5)
        assert network.network(x)[1] == []


@pytest.mark.parametrize("model", ["vgg5bn", "torchvision:squeezenet1_1"])
def test_it_can_be_exported(trained, photographs, model):
    size = 8 if model == "vgg5bn" else 32
    folder, _ = trained(target=TargetConfig(model), data={"image_size": size}, epochs=1)
    network = load_trained(folder)
    x = torch.stack([network.read_image(path) for path in find_images(photographs / "test" / "blue")])
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("images")},)).module()
    for batch in (x, x[:1]):
        torch.testing.assert_close(exported(batch), network(batch), rtol=0, atol=0)


def test_grey_images_of_a_file(make_config, quiet, tmp_path):
    """Those of 8 bits keep their values, and colours become grey as PIL makes them."""
    run(make_config(method="scratch"), progress=quiet)
    network = load_trained(tmp_path / "run")
    pixels = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    wanted = torch.from_numpy(pixels).unsqueeze(0) / 255
    torch.testing.assert_close(network.read_image(tmp_path / "grey.png"), wanted, rtol=0, atol=0)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert network.read_image(tmp_path / "red.png").unique().mul(255).tolist() == [76]


def test_channels_that_no_image_file_has(registries, make_config, quiet, tmp_path):
    images, labels = torch.arange(40 * 128, dtype=torch.uint8).view(40, 2, 8, 8), np.repeat([0, 1], 20)
    register_dataset("own", lambda: RawData(Pool(images, labels, "own"), None, None, "ab", 2), in_folder=False)
    run(make_config(method="scratch", data=vars(DataConfig("own", batch_size=16))), progress=quiet)
    network = load_trained(tmp_path / "run")
    assert network.class_names == ["a", "b"] and network(images / 255).shape == (40, 2)
    with pytest.raises(L2TFastError, match="takes images of 2 channels, image files are read with 1 or 3"):
        network.read_image(tmp_path / "a.png")


def test_the_most_probable_classes(trained, photographs):
    folder, _ = trained(epochs=1)
    images = find_images(photographs / "test" / "blue")
    (top,) = predict(folder, images[:1], top=2)
    (every,) = predict(folder, images[0], top=10)
    assert top.classes == every.classes[:2] and len(every.classes) == 3
    probabilities = [probability for _, probability in every.classes]
    assert sum(probabilities) == pytest.approx(1) and probabilities == sorted(probabilities, reverse=True)
    assert {name for name, _ in every.classes} == set(COLOURS)


def test_a_file_that_is_no_image_stops_no_other(trained, photographs, tmp_path, capsys):
    folder, _ = trained(epochs=1)
    good = find_images(photographs / "test" / "blue")[:2]
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    capsys.readouterr()
    assert main(["predict", str(folder), good[0], str(bad), good[1], "--top=1"]) == 2
    shown = capsys.readouterr()
    assert [row["image"] for row in rows(shown.out)] == good
    assert f"error: the image {bad} cannot be read" in shown.err
    with pytest.raises(L2TFastError, match=r"missing\.png cannot be read: No such file or directory$"):
        load_trained(folder).read_image(tmp_path / "missing.png")
    assert main(["predict", str(folder), str(bad)]) == 2  # a batch without any
    assert rows(capsys.readouterr().out) == []


def test_standard_error_may_be_closed(trained, photographs, capsys, monkeypatch):
    folder, _ = trained(epochs=1)
    capsys.readouterr()
    monkeypatch.setattr("sys.stderr", None)
    assert main(["predict", str(folder), str(photographs / "test" / "blue")]) == 0
    assert len(rows(capsys.readouterr().out)) == 5


def test_names_that_break_lines(trained, photographs, tmp_path, capsys):
    folder, _ = trained(epochs=1)
    images = [str(tmp_path / name) for name in ('a "b", c.png', "a\nb.png", "a\rb.png")]
    for path in images:
        shutil.copy(photographs / "test" / "blue" / "0.png", path)
    capsys.readouterr()
    assert main(["predict", str(folder), *images]) == 0
    shown = capsys.readouterr().out
    assert [row["image"] for row in csv.DictReader(io.StringIO(shown, newline=""))] == images


@pytest.mark.parametrize("locale", [{"PYTHONUTF8": "1"}, {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_names_that_are_no_text_stay_apart(trained, photographs, tmp_path, locale):
    """In a file, the bytes of a name are those of the image's."""
    folder, _ = trained(epochs=1)
    names = [b"\xfe.png", b"\xff.png", "é.png".encode(), "è.png".encode()]
    for name in names:
        shutil.copy(photographs / "test" / "blue" / "0.png", os.path.join(os.fsencode(tmp_path), name))
    command = [
        sys.executable,
        "-m",
        "l2t_fast.cli",
        "predict",
        folder,
        *(os.fsencode(tmp_path) + b"/" + n for n in names),
    ]
    done = subprocess.run(command, env=os.environ | locale, check=True, capture_output=True)
    shown = [line.split(b",")[0].rpartition(b"/")[2] for line in done.stdout.splitlines()[1:]]
    assert shown[:2] == names[:2]
    assert shown[2:] == (names[2:] if "PYTHONIOENCODING" not in locale else [b"\\xe9.png", b"\\xe8.png"])


def test_what_is_no_file_is_not_waited_for(trained, photographs, tmp_path):
    folder, _ = trained(epochs=1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    shutil.copy(photographs / "test" / "blue" / "0.png", tmp_path)
    image, link, pipe = predict(folder, [tmp_path])
    assert image.problem is None
    assert "link.png cannot be read: No such file or directory" in link.problem
    assert pipe.problem.endswith("pipe.png is a folder, a pipe or a device, it must be a file")


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("elsewhere/a.png", "images/b/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    images = tmp_path / "images"
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "again").symlink_to(tmp_path / "elsewhere")
    (images / "b" / "round").symlink_to(images)
    assert find_images(images) == [str(images / "again" / "a.png"), str(images / "b" / "c.png")]


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(L2TFastError, match=r"the folder .* cannot be read: Permission denied"):
        find_images(tmp_path)


def test_what_is_found_below_a_folder(tmp_path):
    for name in ("b.PNG", "a/c.jpeg", "a/note.txt", ".hidden/d.png", "a/.e.png", "__MACOSX/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [str(tmp_path / "a/c.jpeg"), str(tmp_path / "b.PNG")]
    assert find_images(tmp_path / "a/note.txt") == [str(tmp_path / "a/note.txt")]  # its name is no reason
    with pytest.raises(L2TFastError, match=r"there is no image .*nothing"):
        find_images(tmp_path / "nothing")
    with pytest.raises(L2TFastError, match=r"the path of an image is empty, it must be a file or a folder"):
        find_images("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(L2TFastError, match=r"holds no image \(.jpg, "):
        find_images(tmp_path / "empty")


def test_folders_that_are_no_run(tmp_path, make_config, quiet):
    with pytest.raises(L2TFastError, match=r"is not the folder of a run: it holds no config\.yaml"):
        load_trained(tmp_path)
    (tmp_path / "comparison" / "runs").mkdir(parents=True)
    with pytest.raises(L2TFastError, match=r"is a comparison: name one of its runs, which are the folders in .*/runs"):
        load_trained(tmp_path / "comparison")
    run(make_config(method="scratch"), progress=quiet)
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    whole = torch.load(best, weights_only=True)
    for key, value in (
        ("class_names", ["5", "6"]),
        ("class_names", ["5", "6", 7]),
        ("image_sizes", [8]),
        ("image_sizes", [8, 7]),
        ("image_sizes", [8, 10**9]),
        ("image_sizes", [8.0, 8.0]),
        ("normalization", None),
        ("num_classes", 4),
    ):
        torch.save(whole | {key: value}, best)
        with pytest.raises(L2TFastError, match=r"best\.pt does not say which classes and images it is for"):
            load_trained(tmp_path / "run")
    best.unlink()
    with pytest.raises(L2TFastError, match="has no checkpoint yet, which the first epoch ends with"):
        load_trained(tmp_path / "run")


@pytest.mark.parametrize("option", ["top", "batch_size"])
def test_numbers_that_are_none(tmp_path, option):
    with pytest.raises(L2TFastError, match=f"{option} is 0, it must be at least 1"):
        predict(tmp_path, [], **{option: 0})
