"""Any folder of images, one folder a class."""

import os
import re
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from l2t_fast.data.images import FileImages
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.data.torchvision_sets import stored_in
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

# What people call the folder of a part, in any case.
PART_NAMES = {
    part: re.compile(rf"({names})([ _-]?(set|data|images))?", re.IGNORECASE)
    for part, names in {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}.items()
}


def read_image_folder(folder: Path) -> RawData:
    """``train``, ``test`` and perhaps ``val`` with one folder a class, or the folders of the classes alone."""
    if not folder.is_dir():
        raise L2TFastError(f"there is no folder {printable(folder)}: data_dir must hold images in one folder a class")
    _check_part_names(folder)
    if not (folder / "train").is_dir():
        if stored := stored_in(folder):
            raise L2TFastError(
                f"{printable(folder)} holds {' and '.join(stored)} as torchvision stores it, not one folder of images "
                f"a class: set dataset to {' or '.join(stored)}"
            )
        pool, names = _folder_of_classes(folder)
        return RawData(pool, None, None, [printable(name) for name in names])
    if not (folder / "test").is_dir():
        raise L2TFastError(f"{printable(folder)} has train but no test beside it: both must hold one folder a class")
    parts = ["train", "test"] + (["val"] if (folder / "val").is_dir() else [])
    pools, classes = {}, {}
    for part in parts:
        pools[part], classes[part] = _folder_of_classes(folder / part)
    for part in parts[1:]:
        _check_same_classes(folder, "train", classes["train"], part, classes[part])
    return RawData(pools["train"], pools.get("val"), pools["test"], [printable(name) for name in classes["train"]])


def _check_part_names(folder: Path) -> None:
    """Refuse parts of other names: they would be taken for classes, or validation images not be looked at."""
    names = [entry.name for entry in _entries(folder) if entry.is_dir()]
    found = {part: sorted(filter(pattern.fullmatch, names)) for part, pattern in PART_NAMES.items()}
    if not found["train"] or not (found["val"] or found["test"]):  # a class may have such a name
        return
    for part, called in found.items():
        if called and part not in called:
            raise L2TFastError(
                f"{printable(folder)} has a folder {printable(called[0])!r}, which is the name of no part: parts are "
                f"called train, test and, if there is one, val, so call it {part}"
            )


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except OSError as error:
        raise L2TFastError(f"the folder {printable(folder)} cannot be read: {error.strerror}") from error


def _folder_of_classes(folder: Path) -> tuple[Pool, list[str]]:
    entries = _entries(folder)
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        images = any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries)
        found = "holds images and no folders, name the one above it" if images else "holds no folders"
        raise L2TFastError(f"the folder {printable(folder)} {found}: it must hold one folder of images a class")
    _check_entries(folder)
    numbers = {name: number for number, name in enumerate(names)}

    def is_image(path: str) -> bool:
        inside = os.path.relpath(path, folder)
        return path.lower().endswith(IMG_EXTENSIONS) and not any(map(is_hidden, inside.split(os.sep)))

    samples = make_dataset(str(folder), numbers, is_valid_file=is_image, allow_empty=True)
    paths = [path for path, _ in samples]
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return Pool(FileImages(paths), labels, printable(folder)), names


def is_hidden(name: str) -> bool:
    """Whether file managers or archives left it there: thumbnails, a macOS archive's second copy of every name."""
    return name.startswith(".") or name == "__MACOSX"


def _check_entries(folder: Path) -> None:
    """Refuse links that lead to one folder twice, which may go round for ever, and images that are pipes or devices.

    Links to folders elsewhere are followed: a class may lie on another disk.
    """
    seen: dict[str, str] = {}
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in seen:
            raise L2TFastError(
                f"the folder {printable(path)} is {printable(seen[real])} once more, by a link: remove one of them"
            )
        seen[real] = path
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            raise L2TFastError(f"the folder {printable(path)} cannot be read: {error.strerror}") from error
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                waiting.append(entry.path)
            elif entry.name.lower().endswith(IMG_EXTENSIONS) and not entry.is_file():
                raise L2TFastError(
                    f"the image {printable(entry.path)} is a pipe, a device or a link to nothing, it must be a file"
                )


def _check_same_classes(folder: Path, first: str, names: list[str], second: str, others: list[str]) -> None:
    for here, there, ours, theirs in ((first, second, names, others), (second, first, others, names)):
        for name in ours:
            if name not in theirs:
                raise L2TFastError(
                    f"{printable(folder)}: the class {printable(name)!r} is in {here} but not in {there}, "
                    "both must have the same classes"
                )
