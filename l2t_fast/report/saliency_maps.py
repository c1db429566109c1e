"""The files of ``l2t-fast saliency``: images, and for each run the maps that say what its network looks at."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from l2t_fast.errors import L2TFastError

FOLDER = "saliency"
"""In the folder of a comparison."""


@dataclass(frozen=True)
class Looked:
    """What one run's network answered for the images, and where it looked.

    Attributes:
        method: as results call it
        run: name of the run's folder
        seed: of the run
        predicted: (images,) class that the network finds most probable
        probability: (images,) probability that it gives to the true class, in 0 ... 1
        maps: name of a kind of map -> uint8 (images, height, width), 255 where the map of an image is largest
    """

    method: str
    run: str
    seed: int
    predicted: list[int]
    probability: list[float]
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class SaliencyMaps:
    """Maps of several runs for the same test images.

    Attributes:
        test_set: the settings that say which images the test set holds
        seed: that the images were chosen with
        indices: (images,) of the images in the test set
        labels: (images,) their classes
        class_names: in the order of the labels
        images: uint8 (images, height, width, 1 or 3)
        runs: what each run's network looks at
    """

    test_set: dict[str, object]
    seed: int
    indices: list[int]
    labels: list[int]
    class_names: list[str]
    images: np.ndarray
    runs: list[Looked]

    def write(self, folder: Path) -> None:
        """Write ``saliency.json`` and ``saliency.npz``, the latter first.

        Raises:
            L2TFastError: the folder cannot be written.
        """
        arrays = {"images": self.images}
        content = {key: value for key, value in self.__dict__.items() if key not in ("images", "runs")}
        content["runs"] = []
        for number, run in enumerate(self.runs):
            arrays |= {f"{number}/{kind}": map for kind, map in run.maps.items()}
            content["runs"].append({**asdict(run), "maps": list(run.maps)})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / "saliency.tmp.npz"
            np.savez_compressed(temporary, **arrays)
            os.replace(temporary, folder / "saliency.npz")
            (folder / "saliency.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise L2TFastError(f"{folder} could not be written: {error.strerror or error}") from error

    @classmethod
    def read(cls, folder: Path) -> SaliencyMaps | None:
        """What `write` left in ``folder``; None if there is nothing.

        Raises:
            L2TFastError: a file is damaged.
        """
        if not (folder / "saliency.json").is_file():
            return None
        try:
            content = json.loads((folder / "saliency.json").read_text(encoding="utf-8"))
            with np.load(folder / "saliency.npz", allow_pickle=False) as arrays:
                runs = [
                    Looked(**{**run, "maps": {kind: arrays[f"{number}/{kind}"] for kind in run["maps"]}})
                    for number, run in enumerate(content.pop("runs"))
                ]
                return cls(**content, images=arrays["images"], runs=runs)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise L2TFastError(
                f"{folder} holds damaged saliency maps ({error}): delete it and make them again"
            ) from error
