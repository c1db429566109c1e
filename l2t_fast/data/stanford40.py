"""Stanford 40 Actions: Stanford40_JPEGImages.zip and Stanford40_ImageSplits.zip, unpacked side by side."""

from pathlib import Path

from l2t_fast.data.listed import ListedImages, find_root, listed_data, read_lines
from l2t_fast.data.raw import RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

NEEDED = ("JPEGImages", "ImageSplits")


def read_stanford40(folder: Path) -> RawData:
    """ImageSplits/ACTION_train.txt and ACTION_test.txt name the images of each class."""
    root = find_root(folder, NEEDED)
    parts = []
    for part in ("train", "test"):
        images = ListedImages(root / "JPEGImages", f"{root} {part}")
        ending = f"_{part}.txt"
        lists = sorted((root / "ImageSplits").glob(f"*{ending}"))
        if not lists:
            raise L2TFastError(f"{printable(root / 'ImageSplits')} has no list ACTION{ending}")
        for path in lists:
            for name in read_lines(path):
                images.add(name, path.name.removesuffix(ending), path)
        parts.append(images)
    names = {key: key.replace("_", " ") for images in parts for key in images.class_keys}
    return listed_data(*parts, names)
