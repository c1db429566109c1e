"""Which function reads which data set."""

from collections.abc import Callable
from pathlib import Path

from l2t_fast.data.config import DataConfig
from l2t_fast.data.cub200 import read_cub200
from l2t_fast.data.digits import read_digits
from l2t_fast.data.image_folder import read_image_folder
from l2t_fast.data.letters import read_letters
from l2t_fast.data.mit67 import read_mit67
from l2t_fast.data.raw import RawData
from l2t_fast.data.stanford40 import read_stanford40
from l2t_fast.data.stanford_dogs import read_stanford_dogs
from l2t_fast.data.tiny_imagenet import read_tiny_imagenet
from l2t_fast.data.torchvision_sets import read_torchvision
from l2t_fast.files import expand_user

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


def read_dataset(config: DataConfig) -> RawData:
    """Read the data set that ``config`` names. Raises ``L2TFastError`` if it is not where it should be."""
    if config.dataset in IN_PACKAGES:
        return IN_PACKAGES[config.dataset]()
    folder = expand_user(config.data_dir)
    if config.dataset in IN_FOLDERS:
        return IN_FOLDERS[config.dataset](folder)
    return read_torchvision(config, folder)
