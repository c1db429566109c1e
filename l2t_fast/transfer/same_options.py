"""Whether a run goes on with the options it was begun with: in its folder, in a checkpoint, on all ranks."""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2t_fast.config import TrainConfig, TransferOptions, config_tree
from l2t_fast.distributed.group import Group
from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user
from l2t_fast.text import printable
from l2t_fast.transfer.methods import find_method
from l2t_fast.yaml_files import read_yaml

#: From a run's folder, the source that was pretrained for it, or for the comparison that it is part of.
_OWN_SOURCES = ("source/checkpoints/best.pt", "../../source/checkpoints/best.pt")
#: How keys end whose value is a path.
_PATHS = (".checkpoint", ".data_dir", ".splits")
#: What ranks may have of their own: where things lie on their machine, and how it reads and computes.
_OF_A_MACHINE = ("out", "device", "threads", "data.data_dir", "data.splits", "data.workers", "data.cache")


def _may_change(config: TrainConfig) -> list[str]:
    """The keys and groups of keys that a run may go on with other values of."""
    keys = ["out", "device", "threads", "data.workers", "data.cache", "source_plan", "source_memory"]
    if not find_method(config.method).needs_source:
        keys += ["source", "sources", "pretrain"]  # they may come with another method of a comparison
    return keys


def _counts(key: str, may_change: Sequence[str]) -> bool:
    return key not in may_change and key.partition(".")[0] not in may_change


def decisive_options(config: TrainConfig) -> dict[str, Any]:
    """The keys that a run cannot go on with other values of, wherever its files and images lie; they tell checkpoints.

    As JSON has them: lists for tuples.
    """
    flat, may_change = json.loads(json.dumps(_flatten(config_tree(config)))), _may_change(config)
    return {key: value for key, value in flat.items() if _counts(key, may_change) and not key.endswith(_PATHS)}


def other_option(saved: object, own: Mapping[str, Any]) -> str | None:
    """A clause that names the first of a checkpoint's `decisive_options` that is not this run's, or None.

    Without any, the checkpoint is from before they were kept.
    """
    if saved is None:
        return None
    if not isinstance(saved, Mapping):
        return "its options are no table"
    known = _with_defaults({str(key): value for key, value in saved.items()}, own, decisive_options(TrainConfig()))
    key = next(iter(_differing(known, own)), None)
    if key is None:
        return None
    return f"it is of a run with {printable(key)}: {printable(reprlib.repr(known.get(key)))}, here it is {own.get(key)}"


def _with_defaults(saved: Mapping[str, Any], asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`saved`, and what it lacks: a key that came with a later version, whose default is what was done before."""
    return {**saved, **{key: defaults[key] for key in asked.keys() - saved.keys() if key in defaults}}


def _differing(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(saved.keys() | asked.keys()) if saved.get(key) != asked.get(key)]


def read_saved(path: Path) -> Mapping[str, Any]:
    """The keys of the config.yaml that `write_config` left in a folder.

    Raises:
        L2TFastError: it cannot be read, or is not as it was written.
    """
    unknown = "it is not known what this folder holds"
    try:
        tree = read_yaml(path)
    except L2TFastError as error:
        raise L2TFastError(f"{unknown}: {error}") from error
    if not isinstance(tree, Mapping):
        raise L2TFastError(f"{unknown}: {path} is no table of keys")
    if "out" not in tree:  # the last one, of every version: what else is missing would be taken for its default
        raise L2TFastError(f"{unknown}: {path} is cut short, put it back as it was, or name another folder with --out")
    return tree


def check_same_run(path: Path, config: TrainConfig) -> None:
    """Raise L2TFastError if the run whose YAML file is `path` cannot go on with `config`, naming the first such key."""
    check_same_config(path, config, may_change=_may_change(config))


def check_same_config(path: Path, config: TransferOptions, *, may_change: Sequence[str]) -> None:
    """Raise L2TFastError if the YAML file `path` and `config` differ in a key that is not in `may_change`.

    There may be groups of keys in it too ("source"). A checkpoint and the images are the same under another path to
    them, and a source that was pretrained for the run where the run's folder was moved.
    """
    asked = _flatten(config_tree(config))
    saved = _with_defaults(_flatten(read_saved(path)), asked, _flatten(config_tree(type(config)())))
    for key in _differing(saved, asked):
        if _counts(key, may_change) and not (key.endswith(_PATHS) and _same_place(key, saved, asked)):
            raise L2TFastError(
                f"{path.parent} was made with {key}: {saved.get(key)}, but now {key} is {asked.get(key)}: "
                "ask for the same, or name another folder with --out"
            )


def check_same_on_ranks(config: TransferOptions, group: Group, *, resume: bool) -> None:
    """Raise L2TFastError, the same on all ranks, if one was started with other options: a collective operation.

    Most of these make no rank's tensors differ in size, nor the ranks' networks: all ranks would train on what one
    asked for in one part and another in another.
    """
    own = {"resume": resume, **_flatten(config_tree(config))}
    first, *others = (json.loads(data) for data in group.collect(json.dumps(own).encode(), everyone=True))
    for rank, other in enumerate(others, start=1):
        for key in sorted(first.keys() | other.keys()):
            here, there = first.get(key), other.get(key)
            both_files = key.endswith(".checkpoint") and None not in (here, there)
            if here != there and key not in _OF_A_MACHINE and not both_files:
                raise L2TFastError(
                    f"{key} is {here} on rank 0, but {there} on rank {rank}: start all ranks with the same options"
                )


def _same_path(one: Any, other: Any) -> bool:
    paths = [expand_user(path).resolve() for path in (one, other) if isinstance(path, str)]
    return len(paths) == 2 and paths[0] == paths[1]


def _same_place(key: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    if key == "source.checkpoint" and (place := _own_source(saved)) is not None and place == _own_source(asked):
        return True
    return _same_path(saved.get(key), asked.get(key))


def _own_source(flat: Mapping[str, Any]) -> str | None:
    """Where, from a run's folder, the source lies that was pretrained for it; None if its source is another."""
    checkpoint, out = flat.get("source.checkpoint"), flat.get("out")
    if not isinstance(checkpoint, str) or not isinstance(out, str | None):
        return None
    folder = TrainConfig(method=flat.get("method"), seed=flat.get("seed"), out=out).folder()
    place = os.path.relpath(checkpoint, folder) if checkpoint else ""
    return place if place in _OWN_SOURCES else None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"seed": 0}} becomes {"data.seed": 0}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
