"""Published divisions of a data set, in the format of the L2T-ww authors: PREFIX-train, PREFIX-val, PREFIX-test.

Each file is what ``torch.save((classes, indices))`` writes. ``classes`` are numbers of classes in the order of their
new labels; ``indices`` count images of the data set's training part (train and val) or of its test part (test), in the
order of torchvision, which for image files is by class and then by name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from l2t_fast.data.raw import Pool
from l2t_fast.errors import L2TFastError
from l2t_fast.files import check_archive, expand_user, is_archive
from l2t_fast.text import printable


@dataclass
class Split:
    """Indices (N,), int64, of each part, and the classes' numbers."""

    classes: list[int]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def read_split(prefix: str) -> Split:
    """The three files; no code in them runs.

    Raises:
        L2TFastError: a file is missing, damaged or holds something else; they name different classes; an image is
            there twice.
    """
    files = {part: expand_user(f"{prefix}-{part}") for part in ("train", "val", "test")}
    contents = {part: _read(path) for part, path in files.items()}
    classes = contents["train"][0]
    for part, (others, _) in contents.items():
        if others != classes:
            raise L2TFastError(f"{printable(files['train'])} and {printable(files[part])} name different classes")
    indices = {part: content[1] for part, content in contents.items()}
    both = np.intersect1d(indices["train"], indices["val"])
    if len(both):
        raise L2TFastError(
            f"image {both[0]} is in both {printable(files['train'])} and {printable(files['val'])}, so it would be "
            "trained on and validated with"
        )
    return Split(classes, indices["train"], indices["val"], indices["test"])


def check_part(indices: np.ndarray, pool: Pool, classes: list[int], name: str) -> None:
    """``L2TFastError`` if an index is beyond the images of ``pool`` or its class is not among ``classes``, or if one of
    these has no image to train on."""
    count = len(pool.labels)
    if indices.max() >= count:
        raise L2TFastError(f"splits: {name} counts up to image {indices.max()}, but {pool.where} has {count} images")
    strange = ~np.isin(pool.labels[indices], classes)
    if strange.any():
        index = indices[np.argmax(strange)]
        raise L2TFastError(
            f"splits: image {index} of {name} is of class {pool.labels[index]} in {pool.where}, which is not among the "
            "classes of the split: it was made for another data set, or for other files"
        )
    without = np.setdiff1d(classes, pool.labels[indices])
    if name == "train" and len(without):
        raise L2TFastError(
            f"splits: train has no image of class {without[0]} of {pool.where}, which is one of its classes"
        )


def _read(path: Path) -> tuple[list[int], np.ndarray]:
    shown = printable(path)
    if not path.is_file():
        raise L2TFastError(
            f"there is no split file {shown}: splits must be what the files begin with, before -train, -val and -test"
        )
    try:
        if is_archive(path):  # files of PyTorch before 1.6 are none
            check_archive(path)
        content = torch.load(path, weights_only=True)
    except Exception as error:
        # A damaged file makes torch.load raise nearly anything, and so does one that would run code.
        raise L2TFastError(
            f"the split file {shown} is damaged, or holds more than numbers, which is not loaded because it could run "
            "code"
        ) from error
    numbers = isinstance(content, tuple | list) and len(content) == 2 and all(_is_numbers(part) for part in content)
    if not numbers:
        raise L2TFastError(f"the split file {shown} does not hold (classes, indices), two lists of whole numbers")
    classes, indices = list(content[0]), np.array(content[1], dtype=np.int64)
    for what, values in (("a class", np.array(classes)), ("an image", indices)):
        if len(np.unique(values)) < len(values):
            raise L2TFastError(f"the split file {shown} names {what} twice")
    return classes, indices


def _is_numbers(values: object) -> bool:
    """A list of whole numbers from 0 on, at least one, small enough to count images."""
    return (
        isinstance(values, tuple | list) and len(values) > 0 and all(type(v) is int and 0 <= v < 2**62 for v in values)
    )
