"""The files of ``l2t-fast saliency``: images, and for each run the maps that say what its network looks at."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from l2t_fast.errors import L2TFastError
from l2t_fast.files import read_arrays, write_together

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
        maps: name of a kind of map -> uint8 (images, height, width), 255 where the map of an image is brightest
        per_class: training images a class; None is all, or not known
    """

    method: str
    run: str
    seed: int
    predicted: list[int]
    probability: list[float]
    maps: dict[str, np.ndarray]
    per_class: int | None = None


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
        """Write ``saliency.npz`` and ``saliency.json``; where the second is there, the first belongs to it.

        Raises:
            L2TFastError: the folder cannot be written; the maps that it held are as they were.
        """
        arrays = {"images": self.images}
        content = {key: value for key, value in self.__dict__.items() if key not in ("images", "runs")}
        content["runs"] = []
        for number, run in enumerate(self.runs):
            arrays |= {f"{number}/{kind}": map for kind, map in run.maps.items()}
            content["runs"].append({**asdict(run), "maps": list(run.maps)})
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=1) + "\n"
            write_together({folder / "saliency.npz": packed.getbuffer(), folder / "saliency.json": text.encode()})
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
            arrays = read_arrays(folder / "saliency.npz")
            runs = [
                Looked(**{**run, "maps": {kind: arrays[f"{number}/{kind}"] for kind in run["maps"]}})
                for number, run in enumerate(content.pop("runs"))
            ]
            maps = cls(**content, images=arrays["images"], runs=runs)
            maps._check()
            return maps
        except (L2TFastError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise L2TFastError(
                f"{folder} holds damaged saliency maps ({error}): delete its saliency.json and make them again, "
                "or name another folder with --out"
            ) from error

    def _check(self) -> None:
        """Raise ValueError where the parts, which come from files, do not fit together."""
        count, classes = len(self.images), len(self.class_names)
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
            raise ValueError(f"its images are {self.images.dtype} {shape}")
        if not isinstance(self.test_set, dict) or not _whole([self.seed], 1) or not _whole(self.indices, count):
            raise ValueError("its images are not said to be of a test set")
        if not isinstance(self.class_names, list) or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("its class_names are not a list of names")
        for name, labels in {"labels": self.labels, **{run.run: run.predicted for run in self.runs}}.items():
            if not _whole(labels, count) or not all(0 <= label < classes for label in labels):
                raise ValueError(f"{name}: not one of {classes} classes an image")
        for run in self.runs:
            known = isinstance(run.method, str) and isinstance(run.run, str) and _whole([run.seed], 1)
            known = known and (run.per_class is None or _whole([run.per_class], 1))
            sure = isinstance(run.probability, list) and len(run.probability) == count
            if not known or not sure or not all(isinstance(p, int | float) for p in run.probability):
                raise ValueError(f"{run.run}: no method, seed and probabilities of {count} images")
            for kind, found in run.maps.items():
                if found.dtype != np.uint8 or found.ndim != 3 or len(found) != count or 0 in found.shape:
                    raise ValueError(f"{run.run}: {kind} is {found.dtype} {found.shape}")


def _whole(numbers: object, count: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == count
        and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    )
