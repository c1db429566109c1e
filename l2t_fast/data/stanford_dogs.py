"""Stanford Dogs: images.tar and lists.tar, unpacked side by side."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from l2t_fast.data.listed import ListedImages, find_root, listed_data
from l2t_fast.data.raw import RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

NEEDED = ("Images", "train_list.mat", "test_list.mat")


def read_stanford_dogs(folder: Path) -> RawData:
    """``file_list`` of each .mat file holds WNID-BREED/FILE; a class is called after its breed."""
    root = find_root(folder, NEEDED)
    parts = []
    for part, name in (("train", NEEDED[1]), ("test", NEEDED[2])):
        images = ListedImages(root / "Images", f"{root} {part}")
        for path in _file_list(root / name):
            images.add(path, path.split("/")[0], root / name)
        parts.append(images)
    keys = parts[0].class_keys | parts[1].class_keys
    return listed_data(*parts, {key: key.partition("-")[2].replace("_", " ") or key for key in keys})


def _file_list(path: Path) -> list[str]:
    try:
        cells = loadmat(path, variable_names=["file_list"], squeeze_me=True)["file_list"]
    except OSError as error:
        raise L2TFastError(f"the list {printable(path)} cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise L2TFastError(f"{printable(path)} has no variable file_list") from error
    except Exception as error:
        # A damaged file makes scipy raise nearly anything.
        raise L2TFastError(f"{printable(path)} is damaged or no MATLAB file: copy it again") from error
    names = np.atleast_1d(cells).ravel().tolist()
    if not all(isinstance(name, str) for name in names):
        raise L2TFastError(f"file_list of {printable(path)} holds something else than names of files")
    return names
