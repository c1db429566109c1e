"""One run from a configuration: the source made if none is given, then the training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig, TransferOptions
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.distributed.group import ALONE, Group, PeerError
from l2t_fast.errors import L2TFastError
from l2t_fast.models import read_checkpoint
from l2t_fast.transfer.methods import find_method
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.trainer import Trainer


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: TrainingProgress | None = None,
    group: Group = ALONE,
    load: Callable[[DataConfig], DataBundle] = load_data,
) -> dict[str, Any]:
    """Train as `config` says and return what result.json holds.

    Args:
        config: what to run; without `source.checkpoint` a source is pretrained first, in the run's folder ``source``.
        resume: continue the run that `config.folder()` holds, from the start if it has no checkpoint yet.
        progress: where to show how it goes; None shows bars on a terminal, and lines elsewhere.
        group: the ranks that train together; all of them make the same call.
        load: as `Trainer` takes it.

    Raises:
        L2TFastError: a mistake in the configuration, a file or the data; a loss that is not finite; a full disk.
    """
    if progress is None:
        with TrainingProgress(None if group.leads else Console(quiet=True)) as progress:
            return run(config, resume=resume, progress=progress, group=group, load=load)
    config.check()
    if makes_source(config, [config.method]):
        config = dataclasses.replace(
            config, source=pretrained_source(config, config.folder() / "source", progress, group)
        )
    return Trainer(config, progress, resume=resume, group=group, load=load).fit()


def run_once(
    config: TrainConfig,
    label: str,
    progress: TrainingProgress,
    group: Group = ALONE,
    load: Callable[[DataConfig], DataBundle] = load_data,
) -> dict[str, Any]:
    """The result of a run: read if it is finished, continued if it was interrupted, else made."""
    folder = RunFolder(config.folder())
    if folder.result.exists():
        folder.check_same(config)
        progress.message(f"{label}: done before, skipped ({folder.path})")
        progress.skip()
        return folder.read_result()
    result = run(config, resume=True, progress=progress, group=group, load=load)
    progress.message(
        f"{label}: test {result['test_accuracy']:.2%}, validation {result['validation_accuracy']:.2%} "
        f"(epoch {result['best_epoch']}), {result['seconds']:.1f} s"
    )
    return result


def makes_source(options: TransferOptions, methods: list[str]) -> bool:
    """Whether a source must be pretrained before `methods` can run."""
    wanted = any(find_method(name).needs_source for name in methods)
    return wanted and options.sources is None and options.source.checkpoint is None and options.pretrain.epochs > 0


def pretrained_source(
    options: TransferOptions, folder: Path, progress: TrainingProgress, group: Group = ALONE
) -> SourceConfig:
    """Train the source on `pretrain.data`, or find it trained in `folder`; returns where its weights are."""
    options.data.check()  # a mistake in it is told before a source is trained for it
    pretrain = options.pretrain
    files = RunFolder(folder)
    training = TrainConfig(
        method="scratch",
        seed=pretrain.seed,
        out=str(folder),
        target=TargetConfig(options.source.model, options.source.layers),
        data=pretrain.data,
        epochs=pretrain.epochs,
        lr=pretrain.lr,
        momentum=options.momentum,
        weight_decay=pretrain.weight_decay,
        nesterov=options.nesterov,
        device=options.device,
        threads=options.threads,
    )
    try:
        run_once(training, f"source {options.source.model}", progress, group)
    except PeerError:
        raise
    except L2TFastError as error:
        raise L2TFastError(f"pretraining the source, whose keys stand below pretrain: {error}") from error
    num_classes = read_checkpoint(files.best).num_classes
    return dataclasses.replace(options.source, checkpoint=str(files.best), num_classes=num_classes)
