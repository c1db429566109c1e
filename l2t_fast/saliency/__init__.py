"""What the networks of finished runs look at, on the same test images: saliency and Grad-CAM by captum.

captum is optional: ``pip install 'l2t_fast[saliency]'``.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from l2t_fast.config import check_seed
from l2t_fast.data import load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user, held
from l2t_fast.report import build_report
from l2t_fast.report.plots_saliency import check_height, saliency_figure
from l2t_fast.report.saliency_maps import FOLDER, Looked, SaliencyMaps
from l2t_fast.saliency.images import choose_images, pixels, read_images, test_set
from l2t_fast.saliency.runs import FinishedRun, find_runs
from l2t_fast.transfer.device import choose_device
from l2t_fast.transfer.run_folder import is_comparison
from l2t_fast.transfer.trained import trained_target

__all__ = ["explain_runs"]

#: Feature maps that Grad-CAM is made of: none, each target's last, or all that could be matched.
MAPS = ("none", "last", "all")
#: Of a saliency map, this percentile becomes the brightest: single pixels are far above all others.
BRIGHTEST = 99


def explain_runs(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    images: int = 6,
    seed: int = 0,
    maps: str = "last",
    device: str = "auto",
) -> Path:
    """Compute the maps of runs, write them, draw them, and return the file to look at.

    Args:
        paths: folders of finished runs, or of a comparison, which gives one run a method; one folder may stand alone.
        out: where ``saliency.json``, ``saliency.npz`` and ``saliency.png`` go; None takes ``saliency`` in the one
            comparison that is named, whose page then shows the figure too. Images that were chosen there before are
            taken again.
        images: number of test images.
        seed: that chooses them.
        maps: "last" or "all" feature maps of the target for Grad-CAM, or "none".
        device: as for training.

    Raises:
        L2TFastError: captum is not installed; a folder is no finished run; the runs' test images differ, or differ
            from those in ``out``; there are too many for a figure; another process is in the folder.
    """
    from l2t_fast.saliency import attribution  # says in one sentence if captum is missing

    if images < 1:
        raise L2TFastError(f"images is {images}, it must be at least 1")
    check_seed("seed", seed)
    if maps not in MAPS:
        raise L2TFastError(f"maps is {maps!r}, it must be one of {', '.join(MAPS)}")
    paths = [expand_user(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    out = None if out is None else expand_user(out)
    comparison = paths[0] if len(paths) == 1 and is_comparison(paths[0]) else None
    runs = find_runs(paths)
    if out is None and comparison is None:
        raise L2TFastError(
            "--out is needed: without it the maps go into the comparison, and this is not one comparison"
        )
    folder = comparison / FOLDER if out is None else out
    if folder.exists() and not folder.is_dir():
        raise L2TFastError(f"{folder} is no folder, name another one with --out")
    _check_same_test_set(runs)
    data = load_data(dataclasses.replace(runs[0].config.data, cache=False, download=False))
    indices = choose_images(data.test.dataset.labels.tolist(), images, seed)
    check_height(len(indices), 1 if maps == "none" else 2)  # all: at least
    x, y = read_images(data, indices)
    shown = pixels(data, x)
    _check_same_images(shown, folder)
    where = choose_device(device)
    result = SaliencyMaps(
        test_set=test_set(runs[0].config.data),
        seed=seed,
        indices=indices,
        labels=y.tolist(),
        class_names=data.class_names,
        images=shown,
        runs=[_look(run, indices, maps, where, attribution) for run in runs],
    )
    check_height(len(indices), len({kind for run in result.runs for kind in run.maps}))
    with held(comparison if out is None else out):  # `l2t-fast compare` may be about to make the same page
        _check_same_images(shown, folder)  # another process may have made some meanwhile
        result.write(folder)
        return saliency_figure(result, folder) if out is not None else build_report(comparison)


def _look(run: FinishedRun, indices: Sequence[int], maps: str, device: torch.device, attribution) -> Looked:
    """What a run's network looks at; its images are normalised as in the run."""
    config = run.config.data
    data = load_data(dataclasses.replace(config, seed=config.seed + run.config.seed, cache=False, download=False))
    network = trained_target(run.config, run.folder.best, data.num_classes, data.in_channels).to(device)
    x, y = (part.to(device) for part in read_images(data, indices))
    names = list(network.feature_names)
    layers = {"none": [], "last": names[-1:], "all": names}[maps]
    attribution.check_layers(network, layers, x)
    found = {"saliency": _bytes(attribution.saliency(network, x, y), BRIGHTEST)}
    for layer in layers:
        kind = "Grad-CAM" if maps == "last" else f"Grad-CAM {layer}"
        found[kind] = _bytes(attribution.grad_cam(network, layer, x, y), 100)
    predicted, probability = _answers(network, x, y)
    number = run.config.data.per_class
    return Looked(run.method, run.folder.path.name, run.config.seed, predicted, probability, found, number)


@torch.no_grad()
def _answers(network: nn.Module, x: Tensor, y: Tensor) -> tuple[list[int], list[float]]:
    """Per image the most probable class, and the probability of the true one."""
    probabilities = network(x)[0].softmax(1)
    of_truth = probabilities.gather(1, y.unsqueeze(1)).squeeze(1)
    return probabilities.argmax(1).tolist(), [round(value, 6) for value in of_truth.tolist()]


def _bytes(maps: Tensor, percentile: float) -> np.ndarray:
    """Maps (B, H, W) of at least 0 as bytes, each image's `percentile` at 255; a map of zeros stays so."""
    values = maps.double().cpu().numpy()
    top = np.percentile(values, percentile, axis=(1, 2), keepdims=True)
    scaled = np.divide(values, top, out=np.zeros_like(values), where=top > 0)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def _check_same_test_set(runs: Sequence[FinishedRun]) -> None:
    first = test_set(runs[0].config.data)
    for run in runs[1:]:
        for name, value in test_set(run.config.data).items():
            if value != first[name]:
                raise L2TFastError(
                    f"{run.folder.path} and {runs[0].folder.path} have other test images: data.{name} is {value} and "
                    f"{first[name]}; only runs with the same can be compared"
                )


def _check_same_images(images: np.ndarray, folder: Path) -> None:
    """Raise L2TFastError if `folder` holds maps of other images."""
    before = SaliencyMaps.read(folder)
    if before is not None and not np.array_equal(before.images, images):
        raise L2TFastError(
            f"{folder} holds maps of {len(before.indices)} images drawn with seed {before.seed}, and these are others: "
            "ask for those, or name another folder with --out"
        )
