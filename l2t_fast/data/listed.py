"""What the data sets share that name their images in lists: text files, and paths that stay inside the data set."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from l2t_fast.data.images import FileImages
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable


class ListedImages:
    """Images of one part, gathered from lists.

    Args:
        folder: where all paths start; one that leads out of it is refused.
        where: what messages call this part.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder
        self.where = where
        self._found: dict[str, tuple[str, str]] = {}

    def add(self, path: str, class_key: str, listed_in: Path) -> None:
        """Note the image at ``path``, with forward slashes, of the class ``class_key``."""
        parts = PurePosixPath(path)
        if not path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
            raise L2TFastError(
                f"{printable(listed_in)} names the image {printable(path)!r}, which must be a path inside "
                f"{printable(self.folder)}"
            )
        path = str(parts)  # as others spell it, a//b or a/./b
        if path in self._found:
            raise L2TFastError(f"{printable(listed_in)} names the image {printable(path)} twice")
        full = self.folder / parts
        if not full.is_file():
            raise L2TFastError(
                f"{printable(listed_in)} names the image {printable(path)}, which is not in {printable(self.folder)}"
            )
        self._found[path] = str(full), class_key

    def pool(self, numbers: dict[str, int]) -> Pool:
        """The images by class number and then by path, the order of torchvision's ImageFolder, which published splits
        count in."""
        ordered = sorted(self._found.items(), key=lambda item: (numbers[item[1][1]], item[0]))
        labels = np.array([numbers[key] for _, (_, key) in ordered], dtype=np.int64)
        return Pool(FileImages([full for _, (full, _) in ordered]), labels, printable(self.where))

    @property
    def files(self) -> set[str]:
        return {full for full, _ in self._found.values()}

    @property
    def class_keys(self) -> set[str]:
        return {key for _, key in self._found.values()}


def listed_data(train: ListedImages, test: ListedImages, names: dict[str, str] | None = None) -> RawData:
    """A data set of two lists; classes are numbered in the order of their keys, and called ``names[key]``."""
    both = train.files & test.files
    if both:
        raise L2TFastError(
            f"the image {printable(min(both))} is in the lists of both {printable(train.where)} and "
            f"{printable(test.where)}: test images must not be trained on"
        )
    keys = sorted(train.class_keys | test.class_keys)
    if not keys:
        raise L2TFastError(f"the lists of {printable(train.where)} name no image")
    numbers = {key: number for number, key in enumerate(keys)}
    shown = [printable((names or {}).get(key, key)) for key in keys]
    return RawData(train.pool(numbers), None, test.pool(numbers), shown)


def find_root(folder: Path, needed: Sequence[str], inner: str | None = None) -> Path:
    """``folder``, or ``inner`` in it, whichever holds the files and folders ``needed``.

    Raises ``L2TFastError`` with the first that is missing.
    """
    candidates = [folder] if inner is None else [folder, folder / inner]
    for root in candidates:
        if all((root / name).exists() for name in needed):
            return root
    if not folder.is_dir():
        raise L2TFastError(f"there is no folder {printable(folder)}: data_dir must hold {', '.join(needed)}")
    # Of a folder that is nearly right, say what is missing.
    root = max(candidates, key=lambda root: sum((root / name).exists() for name in needed))
    missing = next(name for name in needed if not (root / name).exists())
    raise L2TFastError(f"{printable(root)} has no {missing}: data_dir must hold {', '.join(needed)}")


def read_lines(path: Path) -> list[str]:
    """The lines of a list, without those that are empty. Bytes that are no UTF-8 stay as they are in a file name."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise L2TFastError(f"the list {printable(path)} cannot be read: {error.strerror}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_columns(path: Path, separator: str | None = None) -> dict[str, str]:
    """Lines of a key and a value, such as ``17 some/path.jpg``; a value may hold blanks."""
    columns: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        key, *value = line.split(separator, 1)
        if not value or key in columns:
            wrong = "has no second column" if not value else f"says {printable(key)!r} again"
            raise L2TFastError(f"line {number} of {printable(path)} {wrong}: {printable(line)!r}")
        columns[key] = value[0]
    return columns


def check_known(keys: Iterable[str], known: dict[str, str], path: Path, other: Path) -> None:
    """``L2TFastError`` for the first key of ``path`` that ``other`` lacks."""
    for key in keys:
        if key not in known:
            raise L2TFastError(f"{printable(path)} has {printable(key)!r}, which is not in {printable(other)}")
