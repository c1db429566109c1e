"""Under which conditions the runs were made: a list for the page and one sentence for the captions.

A value is taken from what each run recorded, not from what the comparison was asked for. Where runs differ, all values
are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2t_fast.config import PUBLISHED
from l2t_fast.report.folder import Comparison, Run, lookup
from l2t_fast.report.style import method_label, split_method
from l2t_fast.report.wording import percent

VERSIONS = {"l2t_fast": "l2t-fast", "torch": "PyTorch", "torchvision": "torchvision", "python": "Python"}


@dataclass(frozen=True)
class Conditions:
    rows: list[tuple[str, str]]
    """(name, value) for the page's list, without those that are not known."""
    sentence: str
    """The most important of them, for captions; empty where none is known."""


def conditions_of(comparison: Comparison) -> Conditions:
    """What the runs of ``comparison`` have in common, and where they differ."""
    runs = comparison.runs

    def config(path: str, before: str = "", after: str = "") -> str:
        value = _of_configs(comparison, path)
        return f"{before}{value}{after}" if value else ""

    def machine(key: str, before: str = "", after: str = "") -> str:
        value = _distinct([_show(run.environment.get(key)) for run in runs])
        return f"{before}{value}{after}" if value else ""

    numbers = ", ".join(str(level) for level in comparison.levels if level is not None)
    images = f"{numbers} a class" if numbers and None not in comparison.levels else config("data.dataset", "all of ")
    device = _distinct([_device(run.environment) for run in runs])
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    seed_list = ", ".join(map(str, seeds))
    shown = {split_method(method)[0] for method in comparison.methods}
    rows = [
        ("Data set", _join(config("data.dataset"), config("data.classes", "classes "))),
        ("Training images", images),
        ("Held out for validation", _share(config("data.validation_share"))),
        ("Evaluated on", _evaluated(runs)),
        ("Images", _join(config("data.image_size", "side "), config("data.augment", "augmentation "))),
        ("Source networks", _several_sources(comparison)),
        (
            "Source network",
            _join(config("source.model"), _source_origin(comparison), config("source.image_size", "side ")),
        ),
        ("Source layers", config("source.layers")),
        ("Target network", config("target.model")),
        ("Target layers", config("target.layers")),
        ("Pairs", _recorded_pairs(runs) or config("pairs")),
        ("Epochs", config("epochs")),
        ("Batch size", config("data.batch_size")),
        ("SGD", _join(config("lr", "lr "), config("momentum", "momentum "), config("weight_decay", "weight decay "))),
        (
            "Transfer",
            _join(
                config("beta", "β "),
                config("lookahead_steps", "T = "),
                config("hypergradient", "hypergradient "),
                config("meta_lr", "meta lr "),
                config("lambda_start", "λ starts ") if "l2t-ww" in shown else "",
                config("lwf_weight", "LwF weight ") if shown & {"lwf", "lwf-at"} else "",
                config("at_weight", "AT weight ") if shown & {"at", "lwf-at"} else "",
            ),
        ),
        ("Seeds", seed_list),
        ("Device", _join(device, machine("threads", after=" threads"), machine("backend", "backend "))),
        ("Versions", _join(*(machine(key, f"{name} ") for key, name in VERSIONS.items()))),
        ("Commit", machine("commit")),
    ]
    told = [
        config("data.dataset"),
        config("data.classes", "classes "),
        f"training images a class: {numbers}" if numbers else "",
        config("epochs", after=" epochs"),
        f"{'seeds' if len(seeds) > 1 else 'seed'} {seed_list}" if seeds else "",
        device,
        machine("torch", "PyTorch "),
        machine("commit", "commit "),
    ]
    sentence = "; ".join(filter(None, told))
    return Conditions([row for row in rows if row[1]], f"Conditions: {sentence}." if sentence else "")


def _of_configs(comparison: Comparison, path: str) -> str:
    """The values at ``path`` of the runs' configs, or the comparison's own where no run kept a config."""
    values = [_show(lookup(run.config, path)) for run in comparison.runs if run.config]
    return _distinct(values or [_show(lookup(comparison.config, path))])


def _evaluated(runs: list[Run]) -> str:
    """``174 validation images, 145 test images``: how coarse an accuracy is."""
    validation = _distinct([_show(run.validation_images) for run in runs])
    test = _distinct([_show(run.test_images) for run in runs])
    return _join(validation and f"{validation} validation images", test and f"{test} test images")


def _device(environment: dict[str, Any]) -> str:
    """``cuda:0 (NVIDIA H100)``."""
    device, name = _show(environment.get("device")), _show(environment.get("device_name"))
    return f"{device} ({name})" if device and name else device or name


def _distinct(values: list[str]) -> str:
    kinds = list(dict.fromkeys(value for value in values if value))
    return kinds[0] if len(kinds) == 1 else f"differs between runs: {'; '.join(kinds)}" if kinds else ""


def _show(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        if len(value) > 2 and all(isinstance(v, int) for v in value) and value == list(range(value[0], value[-1] + 1)):
            return f"{value[0]} to {value[-1]}"
        return ", ".join(str(item) for item in value)
    return str(value)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _share(value: str) -> str:
    try:
        return f"{100 * float(value):g} % of each class's images for training, before any are chosen from the rest"
    except ValueError:
        return value


def _source_origin(comparison: Comparison) -> str:
    """Where the source's weights come from: trained beside the runs, or a checkpoint."""
    source = comparison.source
    if source is None:
        return _weights(_of_configs(comparison, "source.checkpoint"))
    dataset, classes, epochs = (_show(lookup(source.config, key)) for key in ("data.dataset", "data.classes", "epochs"))
    return _join(
        f"pretrained here on {dataset}" if dataset else "pretrained here",
        f"classes {classes}" if classes else "",
        f"{epochs} epochs" if epochs else "",
        f"its own test accuracy {percent(source.test_accuracy)}" if math.isfinite(source.test_accuracy) else "",
    )


def _several_sources(comparison: Comparison) -> str:
    """Each of several sources: its network, its weights, the size of its images."""

    def told(config: dict[str, Any]) -> str:
        named = config.get("sources")
        if not isinstance(named, dict):
            return ""
        return "; ".join(
            f"{name}: "
            + _join(
                _show(lookup(source, "model")),
                _weights(_show(lookup(source, "checkpoint"))),
                f"side {_show(size)}" if (size := lookup(source, "image_size")) else "",
                "unit rms" if lookup(source, "unit_rms") else "",
            )
            for name, source in named.items()
        )

    configs = [run.config for run in comparison.runs if run.config] or [comparison.config]
    return _distinct([told(config) for config in configs])


def _weights(checkpoint: str) -> str:
    if checkpoint == PUBLISHED:
        return "published weights"
    path = Path(checkpoint)
    if path.parent.name == "checkpoints" and path.parent.parent.name:  # of a run: all of them are called best.pt
        path = path.parent.parent
    return f"from {path.name}" if checkpoint else ""


def _recorded_pairs(runs: list[Run]) -> str:
    """Number of pairs that each method matched."""
    counts = {method_label(run.method): run.pairs for run in runs if run.pairs}
    return _join(*(f"{name}: {count}" for name, count in counts.items()))
