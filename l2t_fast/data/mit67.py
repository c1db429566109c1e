"""MIT's 67 indoor scenes: indoorCVPR_09.tar beside the two lists of the paper's images."""

from pathlib import Path

from l2t_fast.data.listed import ListedImages, find_root, listed_data, read_lines
from l2t_fast.data.raw import RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

NEEDED = ("Images", "TrainImages.txt", "TestImages.txt")


def read_mit67(folder: Path) -> RawData:
    """The lists hold CLASS/FILE; images that no list names, which are most, are not used."""
    root = find_root(folder, NEEDED)
    parts = []
    for part, name in (("train", NEEDED[1]), ("test", NEEDED[2])):
        images = ListedImages(root / "Images", f"{root} {part}")
        for path in read_lines(root / name):
            key, slash, _ = path.partition("/")
            if not slash:
                raise L2TFastError(f"{printable(root / name)} has {printable(path)!r}, where CLASS/FILE must stand")
            images.add(path, key, root / name)
        parts.append(images)
    return listed_data(*parts)
