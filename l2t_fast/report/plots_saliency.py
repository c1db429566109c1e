"""What the networks look at: each image beside the maps of every run, as one mosaic."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from PIL import Image

from l2t_fast.errors import L2TFastError
from l2t_fast.report.figure import NARROW, Plot, drawing, save_plot, short
from l2t_fast.report.saliency_maps import FOLDER, Looked, SaliencyMaps
from l2t_fast.report.style import LIGHT, method_label, method_styles

CELL = 112
"""Pixels of a cell's side in the mosaic."""
GAP = 6
TEXT = 42
"""Pixels above the cells of an image, for the answers of the networks, in two lines."""
MOST, FEWEST = 16, 5
"""Characters of a name above a cell: as many as fit."""
_NUMBER = re.compile(r"^(n\d{8}-|\d{3}\.)(?=.)")
"""What ImageNet's and CUB's folders have before a class's name."""
LEFT = 38
"""Pixels on the left, for the names of the rows."""
INCHES = 1.1
"""Width of a column."""
MOST_LINES = 150
"""Lines of cells in a figure: matplotlib draws no picture of 65,536 pixels or more."""
COLORS = matplotlib.colormaps["inferno"]


def saliency_figure(maps: SaliencyMaps, folder: Path) -> Path:
    """Draw ``maps`` as ``saliency.png`` in ``folder`` and return its path.

    Raises:
        L2TFastError: the folder cannot be written.
    """
    try:
        _draw(maps, folder, "")
    except OSError as error:
        raise L2TFastError(f"{folder / 'saliency.png'} could not be written: {error.strerror or error}") from error
    return folder / "saliency.png"


def saliency_plot(comparison: Path, plots_dir: Path, conditions: str) -> Plot | None:
    """The figure of the maps that ``l2t-fast saliency`` left in a comparison. None where it left none.

    Raises:
        L2TFastError: its files are damaged, or hold more than a figure can show.
    """
    maps = SaliencyMaps.read(comparison / FOLDER)
    return None if maps is None else _draw(maps, plots_dir, conditions)


def check_height(images: int, kinds: int) -> None:
    """Raise L2TFastError if a figure of so many images, each with `kinds` maps, would be too high to draw."""
    if images * kinds > MOST_LINES:
        raise L2TFastError(
            f"{images} images with {kinds} kind{'s' * (kinds > 1)} of maps each are too many for a figure, which shows "
            f"{MOST_LINES} lines: ask for {max(1, MOST_LINES // kinds)} images or fewer"
        )


def _draw(maps: SaliencyMaps, folder: Path, conditions: str) -> Plot:
    """One row of cells an image and kind of map, one column a run; the image itself stands on the left."""
    kinds = list(dict.fromkeys(kind for run in maps.runs for kind in run.maps))
    check_height(len(maps.images), len(kinds))
    columns = 1 + len(maps.runs)
    block = TEXT + len(kinds) * (CELL + GAP)
    mosaic = np.zeros((len(maps.images) * block, columns * (CELL + GAP) - GAP, 4), np.uint8)

    def put(picture: np.ndarray, image: int, line: int, column: int) -> None:
        top, left = image * block + TEXT + line * (CELL + GAP), column * (CELL + GAP)
        mosaic[top : top + CELL, left : left + CELL] = np.dstack([picture, np.full((CELL, CELL), 255, np.uint8)])

    for image, picture in enumerate(maps.images):
        shown = _fitted(np.broadcast_to(picture, (*picture.shape[:2], 3)))
        put(shown, image, 0, 0)
        for column, run in enumerate(maps.runs, 1):
            for line, kind in enumerate(kinds):
                if kind in run.maps:
                    values = _fitted(run.maps[kind][image]).astype(float) / 255
                    heat = COLORS(values)[..., :3]
                    put(_bytes(heat if kind == "saliency" else _over(shown, heat, values)), image, line, column)

    methods = [run.method for run in maps.runs]
    several = {name: len({getattr(run, name) for run in maps.runs}) > 1 for name in ("per_class", "seed")}

    def header(run: Looked, limit: int) -> str:
        lines = method_label(run.method, narrow=True).replace(" (", "\n(").split("\n")
        lines = [short(line, limit) for line in lines]
        lines += [f"N = {run.per_class or 'all'}"] if several["per_class"] else []
        lines += [f"seed {run.seed}"] if several["seed"] else []
        return "\n".join(lines)

    styles = method_styles(methods)
    top = 28 + 18 * max(header(run, MOST).count("\n") for run in maps.runs)
    width, height = LEFT + mosaic.shape[1] + GAP, mosaic.shape[0] + top
    inch = width / max(NARROW, INCHES * columns)  # pixels of the mosaic
    with drawing(width / inch, height / inch) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        # Not resampled: text, which is placed in the mosaic's pixels, stays where it belongs.
        axes.imshow(mosaic, extent=(0, mosaic.shape[1], mosaic.shape[0], 0), interpolation="none", aspect="auto")
        axes.set(xlim=(-LEFT, mosaic.shape[1] + GAP), ylim=(mosaic.shape[0], -top))

        def write(text: Callable[[int], str], x: float, y: float, **looks: object) -> None:
            """With names cut to as many characters as a column has room for."""
            drawn = axes.text(x, y, "", **{"fontsize": 9.5, "va": "bottom", "ha": "center"} | looks)
            room = (CELL + GAP) / inch * figure.dpi
            # Without one to measure with, matplotlib makes one of the whole figure's size at every call.
            measure = RendererAgg(1, 1, figure.dpi)
            for limit in range(MOST, FEWEST - 1, -1):
                drawn.set_text(text(limit))
                if drawn.get_window_extent(measure).width <= room:
                    break

        middles = [column * (CELL + GAP) + CELL / 2 for column in range(columns)]
        for middle, run in zip(middles[1:], maps.runs, strict=True):
            write(partial(header, run), middle, -4, color=styles[run.method].color, fontweight="bold")
        for image, label in enumerate(maps.labels):
            base = image * block + TEXT - 5
            write(partial(_class, maps, label), middles[0], base)
            for middle, run in zip(middles[1:], maps.runs, strict=True):
                write(
                    partial(_answer, maps, run, image),
                    middle,
                    base,
                    color=LIGHT["ink" if run.predicted[image] == label else "m3"],
                )
            for line, kind in enumerate(kinds):
                centre = image * block + TEXT + line * (CELL + GAP) + CELL / 2
                words = "\n".join(short(word, 18) for word in kind.split(" ", 1))
                write(
                    lambda _, words=words: words,
                    -5,
                    centre,
                    fontsize=8,
                    rotation=90,
                    ha="right",
                    va="center",
                    color=LIGHT["muted"],
                )
        title = "Saliency" + (" and Grad-CAM" if len(kinds) > 1 else "")
        plot = save_plot(figure, folder, "saliency", title, f"{_caption(maps, kinds)} {conditions}")
        return replace(plot, across=True)


def _answer(maps: SaliencyMaps, run: Looked, image: int, limit: int) -> str:
    """The probability of the true class; before it, what the network takes the image for instead."""
    probability = f"{100 * run.probability[image]:.0f}\N{NO-BREAK SPACE}%"
    if run.predicted[image] == maps.labels[image]:
        return f"\N{CHECK MARK} {probability}"
    return f"\N{BALLOT X} {_class(maps, run.predicted[image], limit)}\n({probability})"


def _class(maps: SaliencyMaps, label: int, limit: int) -> str:
    return short(_NUMBER.sub("", maps.class_names[label]), limit)


def _caption(maps: SaliencyMaps, kinds: list[str]) -> str:
    seeds = sorted({run.seed for run in maps.runs})
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    numbers = sorted({run.per_class for run in maps.runs if run.per_class is not None})
    if numbers:
        which += f" and {', '.join(map(str, numbers))} training images a class"
    text = (
        f"{len(maps.images)} test images, drawn with seed {maps.seed}, the same for every method (runs with {which}). "
        "Above each map: the probability of the true class; where the network takes the image for something else, that "
        "and the probability in brackets. saliency: how strongly a pixel moves the output for the true class (the "
        "largest absolute derivative of its channels)."
    )
    if len(kinds) > 1:
        layer = " of the target's last feature map" if "Grad-CAM" in kinds else " of the feature map named beside it"
        text += (
            f" Grad-CAM: which pixels{layer} speak for the true class, laid over the image in grey; where nothing is "
            "laid over it, none does."
        )
    return text + " Each map has a scale of its own, so brightness cannot be compared between maps."


def _fitted(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) at a cell's size; small images keep their pixels, large ones are averaged."""
    smaller = min(picture.shape[:2]) < CELL
    filter = Image.Resampling.NEAREST if smaller else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((CELL, CELL), filter))


def _over(picture: np.ndarray, heat: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Heat colours (in 0 ... 1) laid over the picture in grey, the more the larger the value."""
    grey = picture.astype(float).mean(axis=2, keepdims=True) / 255
    share = 0.75 * values[..., None]
    return (1 - share) * grey + share * heat


def _bytes(colors: np.ndarray) -> np.ndarray:
    return np.rint(255 * colors).astype(np.uint8)
