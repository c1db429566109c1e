"""Under which conditions the runs were made: a list for the page and one sentence for the captions.

A value is taken from what each run recorded, not from what the comparison was asked for. Where runs differ, all values
are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2t_fast.report.folder import Comparison, Run, lookup
from l2t_fast.report.style import method_label
from l2t_fast.report.wording import percent


@dataclass(frozen=True)
class Conditions:
    rows: list[tuple[str, str]]
    sentence: str


def conditions_of(comparison: Comparison) -> Conditions:
    """What the runs of ``comparison`` have in common, and where they differ."""
    runs = comparison.runs
    config = {
        path: _collect(comparison, path)
        for path in (
            *(
                "data.dataset",
                "data.classes",
                "data.per_class",
                "data.validation_share",
                "data.image_size",
                "data.augment",
            ),
            *("data.batch_size", "source.model", "source.layers", "source.checkpoint", "target.model", "target.layers"),
            *(
                "epochs",
                "lr",
                "momentum",
                "weight_decay",
                "beta",
                "lookahead_steps",
                "hypergradient",
                "meta_lr",
                "pairs",
            ),
        )
    }
    machine = {
        "device": _environment(runs, "device_name", "device"),
        "backend": _environment(runs, "backend"),
        "torch": _environment(runs, "torch", "pytorch"),
        "python": _environment(runs, "python"),
        "version": _environment(runs, "l2t_fast", "l2t-fast", "version"),
        "commit": _environment(runs, "commit", "git_commit"),
    }
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    per_class = config["data.per_class"]
    rows = [
        ("Data set", _join(config["data.dataset"], _prefixed("classes ", config["data.classes"]))),
        ("Training images", f"{per_class} a class" if per_class else "all" if config["data.dataset"] else ""),
        ("Held out for validation", _share(config["data.validation_share"])),
        (
            "Images",
            _join(_prefixed("side ", config["data.image_size"]), _prefixed("augmentation ", config["data.augment"])),
        ),
        ("Source network", _join(config["source.model"], _source_origin(comparison, config["source.checkpoint"]))),
        ("Source layers", config["source.layers"]),
        ("Target network", config["target.model"]),
        ("Target layers", config["target.layers"]),
        ("Pairs", config["pairs"] or _recorded_pairs(runs)),
        ("Epochs", config["epochs"]),
        ("Batch size", config["data.batch_size"]),
        ("SGD", _join(*(_prefixed(f"{k.replace('_', ' ')} ", config[k]) for k in ("lr", "momentum", "weight_decay")))),
        (
            "Transfer",
            _join(
                _prefixed("β ", config["beta"]),
                _prefixed("T = ", config["lookahead_steps"]),
                _prefixed("hypergradient ", config["hypergradient"]),
                _prefixed("meta lr ", config["meta_lr"]),
            ),
        ),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Device", _join(machine["device"], _prefixed("backend ", machine["backend"]))),
        (
            "Versions",
            _join(
                _prefixed("l2t-fast ", machine["version"]),
                _prefixed("PyTorch ", machine["torch"]),
                _prefixed("Python ", machine["python"]),
            ),
        ),
        ("Commit", machine["commit"]),
    ]
    sentence = _join(
        config["data.dataset"],
        _prefixed("classes ", config["data.classes"]),
        f"{per_class} training images a class" if per_class else "",
        f"{config['epochs']} epochs" if config["epochs"] else "",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "",
        machine["device"],
        _prefixed("PyTorch ", machine["torch"]),
        _prefixed("commit ", machine["commit"][:12]),
    )
    return Conditions([row for row in rows if row[1]], f"Conditions: {sentence}." if sentence else "")


def _collect(comparison: Comparison, path: str) -> str:
    """The values of all runs at ``path`` of their configs, or the comparison's own where no run kept a config."""
    values = [_show(lookup(run.config, path)) for run in comparison.runs if run.config]
    return _distinct(values or [_show(lookup(comparison.config, path))])


def _environment(runs: list[Run], *keys: str) -> str:
    return _distinct([_show(first_value(run.environment, *keys)) for run in runs])


def first_value(tree: Any, *keys: str) -> Any:
    """The first value that is not None under any of ``keys`` in nested mappings, outer levels first; else None."""
    level = [tree]
    while level:
        mappings = [node for node in level if isinstance(node, dict)]
        found = [node[key] for node in mappings for key in keys if node.get(key) is not None]
        if found:
            return found[0]
        level = [value for node in mappings for value in node.values()]
    return None


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


def _prefixed(prefix: str, value: str) -> str:
    return f"{prefix}{value}" if value else ""


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _share(value: str) -> str:
    try:
        return f"{100 * float(value):g} % of the training images"
    except ValueError:
        return value


def _source_origin(comparison: Comparison, checkpoint: str) -> str:
    if comparison.source is None:
        return f"from {Path(checkpoint).name}" if checkpoint else ""
    pretrain = {
        key: _show(lookup(comparison.config, f"pretrain.{key}")) for key in ("data.dataset", "data.classes", "epochs")
    }
    accuracy = comparison.source.test_accuracy
    return _join(
        "pretrained here",
        _prefixed("on ", pretrain["data.dataset"]),
        _prefixed("classes ", pretrain["data.classes"]),
        f"{pretrain['epochs']} epochs" if pretrain["epochs"] else "",
        f"its own test accuracy {percent(accuracy)}" if math.isfinite(accuracy) else "",
    )


def _recorded_pairs(runs: list[Run]) -> str:
    """Number of pairs by method, where methods chose them themselves."""
    counts = {method_label(run.method): run.pairs for run in runs if run.pairs}
    return _join(*(f"{name}: {count}" for name, count in counts.items()))
