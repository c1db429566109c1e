"""Caltech-UCSD Birds-200-2011, as CUB_200_2011.tgz unpacks."""

from pathlib import Path

from l2t_fast.data.listed import ListedImages, check_known, find_root, listed_data, read_columns
from l2t_fast.data.raw import RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

NEEDED = ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt")


def read_cub200(folder: Path) -> RawData:
    """The three lists say path, class and part of each image by its number; a class is called as its folder is."""
    root = find_root(folder, NEEDED, inner="CUB_200_2011")
    paths, labels, in_train = (read_columns(root / name) for name in NEEDED[1:])
    parts = {"1": ListedImages(root / "images", f"{root} train"), "0": ListedImages(root / "images", f"{root} test")}
    names: dict[str, str] = {}
    for name, column in zip(NEEDED[2:], (labels, in_train), strict=True):
        check_known(paths, column, root / NEEDED[1], root / name)
    for number, path in paths.items():
        if in_train[number] not in parts or not labels[number].isdecimal():
            wrong, value = (NEEDED[2], labels) if in_train[number] in parts else (NEEDED[3], in_train)
            raise L2TFastError(
                f"{printable(root / wrong)} says {printable(value[number])!r} of image {printable(number)}: it must be "
                f"{'the number of a class' if value is labels else '1 (train) or 0 (test)'}"
            )
        key = labels[number].zfill(6)  # numbers in the order of text
        parts[in_train[number]].add(path, key, root / NEEDED[1])
        names.setdefault(key, path.split("/")[0].partition(".")[2].replace("_", " ") or path.split("/")[0])
    return listed_data(parts["1"], parts["0"], names)
