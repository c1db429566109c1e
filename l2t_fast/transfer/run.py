"""One run from a configuration: the source made if none is given, then the training."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig, TransferOptions
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.distributed.group import ALONE, Group, PeerError
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held
from l2t_fast.models import Checkpoint, read_checkpoint
from l2t_fast.transfer.methods import find_method
from l2t_fast.transfer.process import own_process
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.same_options import check_same_on_ranks
from l2t_fast.transfer.trainer import Trainer


@own_process()
def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: TrainingProgress | None = None,
    group: Group = ALONE,
    load: Callable[[DataConfig], DataBundle] = load_data,
) -> dict[str, Any]:
    """Train as `config` says and return what result.json holds. Several threads' runs wait for each other.

    Args:
        config: what to run; without `source.checkpoint` a source is pretrained first, in the run's folder ``source``,
            but not before the run was set up with the untrained one.
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
    check_same_on_ranks(config, group, resume=resume)
    images: DataBundle | None = None
    if makes_source(config, [config.method]):
        pretraining = Pretraining(config, config.folder() / "source", progress, group)
        config = dataclasses.replace(config, source=pretraining.source)
        if not pretraining.finished:
            # Set up with the source as it is now, and the folder looked at, so that a mistake is told before the source
            # is trained. The networks are made anew then, from the same seed; the images, which may be many, are kept.
            images = Trainer(config, progress, group=group, load=load, untrained=pretraining.weights()).data
            folder = RunFolder(config.folder())
            with held(folder.path) if group.leads else contextlib.nullcontext():
                if group.leads:
                    folder.check(config, resume=resume)
                group.wait()
                if folder.result.exists():  # somebody has removed the source, which nobody needs any more
                    progress.message(f"{folder.path} is finished already")
                    return folder.read_result()
                pretraining.finish()
    read = load if images is None else lambda _: images
    return Trainer(config, progress, resume=resume, group=group, load=read).fit()


def run_once(
    config: TrainConfig,
    label: str,
    progress: TrainingProgress,
    load: Callable[[DataConfig], DataBundle] = load_data,
) -> dict[str, Any]:
    """The result of a run: read if it is finished, continued if it was interrupted, else made."""
    result = _finished_before(config, label, progress)
    if result is None:
        result = run(config, resume=True, progress=progress, load=load)
        _tell(result, label, progress)
    return result


def _finished_before(config: TrainConfig, label: str, progress: TrainingProgress) -> dict[str, Any] | None:
    folder = RunFolder(config.folder())
    if not folder.result.exists():
        return None
    folder.check_same(config)
    progress.message(f"{label}: done before, skipped ({folder.path})")
    progress.skip()
    return folder.read_result()


def _tell(result: dict[str, Any], label: str, progress: TrainingProgress) -> None:
    progress.message(
        f"{label}: test {result['test_accuracy']:.2%}, validation {result['validation_accuracy']:.2%} "
        f"(epoch {result['best_epoch']}), {result['seconds']:.1f} s"
    )


def makes_source(options: TransferOptions, methods: list[str]) -> bool:
    """Whether a source must be pretrained before `methods` can run."""
    wanted = any(find_method(name).needs_source for name in methods)
    return wanted and options.sources is None and options.source.checkpoint is None and options.pretrain.epochs > 0


class Pretraining:
    """The training of the source on `pretrain.data`: set up here, done by `finish`, or found done in its folder.

    Between the two, whatever the source is wanted for can be set up with its weights as they are.

    Args:
        options: of the run or the comparison that wants the source.
        folder: of the source's own run.
        progress, group: as `run` takes them.

    Attributes:
        source: `options.source` with the checkpoint that there is, or will be.

    Raises:
        L2TFastError: a mistake in the keys of the source or below pretrain, or the folder holds another run.
    """

    def __init__(
        self, options: TransferOptions, folder: Path, progress: TrainingProgress, group: Group = ALONE
    ) -> None:
        options.data.check()  # before other images are read
        pretrain = options.pretrain
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
        self._label = f"source {options.source.model}"
        self._progress = progress
        self._trainer: Trainer | None = None
        with _naming_pretrain():
            if _finished_before(training, self._label, progress) is None:
                self._trainer = Trainer(training, progress, resume=True, group=group)
        best = RunFolder(folder).best
        if self._trainer is not None:
            num_classes = self._trainer.data.num_classes
        else:
            try:
                num_classes = read_checkpoint(best).num_classes
            except L2TFastError as error:
                raise L2TFastError(f"{error}, or remove {folder} to have the source pretrained again") from error
        self.source = dataclasses.replace(options.source, checkpoint=str(best), num_classes=num_classes)

    @property
    def finished(self) -> bool:
        """Whether the source is trained, and its checkpoint there."""
        return self._trainer is None

    def weights(self) -> Checkpoint | None:
        """The weights that the source begins with, for a `Trainer` that is only set up; None if it is finished."""
        return None if self._trainer is None else self._trainer.weights()

    def finish(self) -> SourceConfig:
        """Train the source if that was not done yet; returns `source`."""
        if self._trainer is not None:
            with _naming_pretrain():
                result = self._trainer.fit()
            _tell(result, self._label, self._progress)
            self._trainer = None  # others need its memory
        return self.source


@contextlib.contextmanager
def _naming_pretrain() -> Iterator[None]:
    """Say of mistakes where their keys stand."""
    try:
        yield
    except PeerError:
        raise
    except L2TFastError as error:
        raise L2TFastError(f"pretraining the source, whose keys stand below pretrain: {error}") from error
