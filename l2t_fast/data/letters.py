"""Letters as 8x8 grey images, drawn from the fonts that come with matplotlib: they need no download.

They are made as scikit-learn's digits were: a black and white image of 32x32 pixels that the character fills, whose
blocks of 4x4 pixels are counted. So they are a source for the digits, of which they show none.
"""

import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from l2t_fast.data.digits import FACTOR, LEVELS
from l2t_fast.data.raw import Pool, RawData
from l2t_fast.errors import L2TFastError

# Upright and slanted, light and bold, with serifs and without, of one width and of several.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
COPIES = 4  # of each letter of a font, no two alike
POINTS, CANVAS = 40, 80  # a letter, and the square it is turned in: with room for the widest
SIDE, BLOCK = 32, 4
# Of all images.
STATISTICS = ((0.3693,), (0.3875,))


def read_letters() -> RawData:
    """3,536 grey images, 8x8, of 26 classes, each a capital and its small letter, without a test set of their own."""
    chance = np.random.default_rng(0)
    images, labels = [], []
    for name in FONTS:
        font = _font(name)
        for letter in string.ascii_letters:
            drawn = Image.new("L", (CANVAS, CANVAS))
            ImageDraw.Draw(drawn).text((CANVAS / 2, CANVAS / 2), letter, fill=255, font=font, anchor="mm")
            for _ in range(COPIES):
                images.append(_counted(_distorted(drawn, chance)))
                labels.append(string.ascii_lowercase.index(letter.lower()))
    return RawData(
        train=Pool(torch.from_numpy(np.stack(images)).unsqueeze(1), np.array(labels), "letters"),
        validation=None,
        test=None,
        class_names=list(string.ascii_lowercase),
        in_channels=1,
        full_scale=float(LEVELS * FACTOR),
        statistics=STATISTICS,
    )


def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    if not path.is_file():  # Pillow would look for one of this name among the system's
        raise L2TFastError(f"the letters need the font {path}, which comes with matplotlib 3.11: install that or newer")
    # Pillow's other layout is there on some systems only, and puts letters elsewhere: 5 % of the pixels differ.
    return ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC)


def _distorted(drawn: Image.Image, chance: np.random.Generator) -> Image.Image:
    """The letter turned, slanted, stretched and drawn with a broader pen, each at random, cut out of its canvas."""
    angle, slant, stretch = chance.uniform(-0.25, 0.25), chance.uniform(-0.4, 0.4), chance.uniform(0.7, 1.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[stretch, slant], [0, 1]])
    centre = np.full(2, CANVAS / 2)
    rows = np.column_stack([matrix, centre - matrix @ centre])
    moved = drawn.transform(drawn.size, Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BILINEAR)
    moved = moved.filter(ImageFilter.MaxFilter(2 * int(chance.integers(0, 3)) + 1))
    return moved.crop(moved.getbbox())


def _counted(letter: Image.Image) -> np.ndarray:
    """As high as the image, in the middle of it, black or white, and then the pixels of every block counted."""
    width = min(SIDE, max(BLOCK, round(letter.width * SIDE / letter.height)))
    pixels = np.zeros((SIDE, SIDE), bool)
    left = (SIDE - width) // 2
    pixels[:, left : left + width] = np.asarray(letter.resize((width, SIDE), Image.Resampling.BOX)) > 127
    blocks = pixels.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
    return (blocks.sum((1, 3)) * FACTOR).astype(np.uint8)
