"""Images in memory and images in files, behind one interface: ``len`` and ``images[i]`` -> uint8 (C, H, W)."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

# PIL goes by what a file holds, not by its name, and for some kinds it starts another program (EPS: Ghostscript).
KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# PIL's modes of more than 8 bits a channel, which a conversion to RGB would clip to white.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class Images(Protocol):
    """A sequence of images, uint8 (C, H, W) each, not all of one size perhaps."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


class FileImages:
    """Image files, decoded when asked for, to RGB or another mode of PIL's."""

    def __init__(self, paths: Sequence[str], mode: str = "RGB"):
        self.paths = paths
        self.mode = mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Raises ``L2TFastError``, naming the file, if it cannot be decoded."""
        path = self.paths[index]
        try:
            with Image.open(path, formats=KINDS) as image:
                if image.mode in DEEP_MODES:
                    raise L2TFastError(
                        f"the image {printable(path)} has more than 8 bits a channel (mode {image.mode}): convert it"
                    )
                return transforms.pil_to_tensor(image.convert(self.mode))
        except L2TFastError:
            raise
        except UnidentifiedImageError as error:
            raise L2TFastError(
                f"the image {printable(path)} cannot be read: it is none of {', '.join(KINDS)}"
            ) from error
        except Exception as error:
            # A damaged file makes PIL raise nearly anything: OSError, SyntaxError, ValueError, DecompressionBombError.
            reason = printable(getattr(error, "strerror", None) or str(error)).replace(repr(path), "it")
            raise L2TFastError(f"the image {printable(path)} cannot be read: {reason}") from error

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, without decoding the pixels."""
        try:
            with Image.open(self.paths[index], formats=KINDS) as image:
                return image.height, image.width
        except Exception:
            return tuple(self[index].shape[1:])  # names the file in its error


class Fitted:
    """The images at one size: the shorter side resized to ``resize_to``, then the centre ``size`` x ``size``."""

    def __init__(self, images: Images | Tensor | list[Tensor], size: int, resize_to: int):
        self.images = images
        self.size = size
        self.resize_to = resize_to

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return fit(self.images[index], self.size, self.resize_to)


def fit(images: Tensor, size: int, resize_to: int) -> Tensor:
    """(..., C, H, W) -> (..., C, size, size), as ``Fitted`` says; bilinear with antialias."""
    if min(images.shape[-2:]) != resize_to:
        images = transforms.resize(images, [resize_to], antialias=True)
    return images if images.shape[-2:] == (size, size) else transforms.center_crop(images, [size, size])


def read_all(images: Images) -> list[Tensor]:
    """Every image, decoded by several threads (decoders release the interpreter's lock)."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(images.__getitem__, range(len(images))))


def check_one_size(images: FileImages) -> int:
    """The height and width that all the images share; ``L2TFastError`` if they are not square or not of one size."""
    wanted = None
    for index in range(len(images)):
        height, width = images.size(index)
        if height != width or wanted not in (None, height):
            shown = printable(images.paths[index])
            others = "not square" if wanted is None else f"not {wanted}x{wanted} as those before it"
            raise L2TFastError(f"the image {shown} is {width}x{height}, {others}: set image_size to resize them all")
        wanted = height
    return wanted
