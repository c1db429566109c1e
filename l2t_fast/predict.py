"""What a trained network says of image files."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from l2t_fast.data.image_folder import is_hidden
from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user
from l2t_fast.text import printable
from l2t_fast.transfer.device import choose_device
from l2t_fast.transfer.trained import TrainedNetwork, load_trained


class Prediction(NamedTuple):
    """Of one image file.

    Attributes:
        image: its path
        classes: (name, probability) of the most probable ones, those first
        problem: a sentence that says why it could not be read, else None
    """

    image: str
    classes: Sequence[tuple[str, float]] = ()
    problem: str | None = None


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 1,
    device: str = "auto",
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """The classes of images, in the order in which they are named; those of a folder by their paths.

    Args:
        run: the folder of a run, whose best model is asked.
        images: files, or folders in which images are looked for at any depth; one alone too.
        top: how many classes of each image, the most probable ones.
        device: as for training.
        batch_size: images that go through the network together.

    Raises:
        L2TFastError: as `load_trained`; a path is missing, or a folder holds no image.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise L2TFastError(f"{name} is {value}, it must be at least 1")
    given = [images] if isinstance(images, str | Path) else images
    paths = [path for one in given for path in find_images(one)]
    where = choose_device(device)
    return _predictions(load_trained(run).to(where), paths, top, batch_size, where)


def find_images(path: str | Path) -> list[str]:
    """The file itself, or all images below a folder, sorted, with those of folders that links lead to, once each.

    Raises ``L2TFastError`` if there is none, or a folder cannot be read.
    """
    if path == "":  # a variable of the shell that is not set: the folder one is in is named .
        raise L2TFastError("the path of an image is empty, it must be a file or a folder, . for the one you are in")
    path = expand_user(path)
    if not path.is_dir():
        if not os.path.lexists(path):
            raise L2TFastError(f"there is no image {printable(path)}")
        return [str(path)]  # a pipe or a link to nothing is told where it is read
    found, seen = [], set()
    for folder, below, names in os.walk(path, followlinks=True, onerror=_cannot_be_read):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_hidden(name))
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)
        ]
    if not found:
        raise L2TFastError(f"the folder {printable(path)} holds no image ({', '.join(IMG_EXTENSIONS)})")
    return sorted(found)


def _cannot_be_read(error: OSError) -> None:
    raise L2TFastError(f"the folder {printable(error.filename)} cannot be read: {error.strerror}") from error


def _predictions(
    network: TrainedNetwork, paths: Sequence[str], top: int, batch_size: int, device: torch.device
) -> Iterator[Prediction]:
    def read(path: str) -> Tensor | L2TFastError:
        try:
            return network.read_image(path)
        except L2TFastError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            read_ones = list(pool.map(read, batch))
            whole = [image for image in read_ones if isinstance(image, Tensor)]
            answers = iter(_most_probable(network, torch.stack(whole).to(device), top) if whole else ())
            for path, image in zip(batch, read_ones, strict=True):
                if isinstance(image, L2TFastError):
                    yield Prediction(path, problem=str(image))
                else:
                    yield Prediction(path, next(answers))


@torch.inference_mode()
def _most_probable(network: TrainedNetwork, x: Tensor, top: int) -> list[list[tuple[str, float]]]:
    probabilities, classes = network(x).double().softmax(1).topk(min(top, len(network.class_names)))
    return [
        [(network.class_names[number], probability) for number, probability in zip(*row, strict=True)]
        for row in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]
