"""Which function reads which data set."""

from collections.abc import Callable
from pathlib import Path

from l2t_fast.data.cub200 import read_cub200
from l2t_fast.data.digits import read_digits
from l2t_fast.data.image_folder import read_image_folder
from l2t_fast.data.letters import read_letters
from l2t_fast.data.mit67 import read_mit67
from l2t_fast.data.raw import RawData
from l2t_fast.data.stanford40 import read_stanford40
from l2t_fast.data.stanford_dogs import read_stanford_dogs
from l2t_fast.data.tiny_imagenet import read_tiny_imagenet
from l2t_fast.data.torchvision_sets import KINDS, read_torchvision
from l2t_fast.files import expand_user
from l2t_fast.plugins import check_entry, register

# Those that come with installed packages.
IN_PACKAGES: dict[str, Callable[[], RawData]] = {"digits": read_digits, "letters": read_letters}

# Those that a folder of image files holds, in the layout in which they are distributed.
IN_FOLDERS: dict[str, Callable[[Path], RawData]] = {
    "cub200": read_cub200,
    "mit67": read_mit67,
    "stanford40": read_stanford40,
    "stanford_dogs": read_stanford_dogs,
    "tinyimagenet": read_tiny_imagenet,
    "imagefolder": read_image_folder,
}


def dataset_names() -> list[str]:
    """What ``data.dataset`` can be."""
    return [*IN_PACKAGES, *KINDS, *IN_FOLDERS]


def register_dataset(
    name: str, read: Callable[[Path], RawData] | Callable[[], RawData], *, in_folder: bool = True
) -> None:
    """From now on ``data.dataset`` can be ``name``: ``read(folder)`` gives its images, with ``data.data_dir``.

    With ``in_folder=False`` they are in no folder that is named, and ``read`` is called with nothing.

    Registered again, as when a notebook's cell runs again, the later function counts. Raises ``ValueError`` if another
    data set has the name, and ``TypeError`` if ``name`` is no text or ``read`` no function.
    """
    check_entry("register_dataset", name, read)
    known, others = (IN_FOLDERS, IN_PACKAGES) if in_folder else (IN_PACKAGES, IN_FOLDERS)
    if name in others or name in KINDS:
        raise ValueError(f"there is a data set {name!r} already: rename one")
    register("data set", name, read, known)


def read_dataset(name: str, data_dir: str | None, *, download: bool = False) -> RawData:
    """Read a data set. Raises ``L2TFastError`` if it is not where it should be."""
    if name in IN_PACKAGES:
        return IN_PACKAGES[name]()
    folder = expand_user(data_dir)
    if name in IN_FOLDERS:
        return IN_FOLDERS[name](folder)
    return read_torchvision(name, folder, download)
