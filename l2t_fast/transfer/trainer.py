"""Trains a target network with one method, and leaves a run folder behind."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l2t_fast.config import TrainConfig
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.distributed.batch_norm import synchronize_batch_norm
from l2t_fast.distributed.group import ALONE, Group, PeerError
from l2t_fast.errors import L2TFastError, one_sentence
from l2t_fast.files import held
from l2t_fast.interrupts import kept_interrupts
from l2t_fast.models import Checkpoint, build_model, from_state_dict
from l2t_fast.transfer.device import check_backend, choose_device
from l2t_fast.transfer.event_file import EventFile
from l2t_fast.transfer.memory import largest_batch_that_fits
from l2t_fast.transfer.methods import Setup, find_method
from l2t_fast.transfer.network_check import check_network
from l2t_fast.transfer.pairs import pair_names, resolve_pairs
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.randomness import rank_seed, seed_everything
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.run_state import Reached, RunState
from l2t_fast.transfer.same_options import decisive_options
from l2t_fast.transfer.source import FrozenSources, config_key, load_sources
from l2t_fast.transfer.source_placing import Placement, UnplacedSources, place_sources
from l2t_fast.transfer.step import NotFiniteError, Step
from l2t_fast.transfer.step_graph import check_cuda_graph, set_lr


class Trainer:
    """One run: the paper's procedure for every batch, the best model on validation data, everything written down.

    Args:
        config: what to run.
        progress: where to show how it goes.
        resume: continue the run that `config.folder()` holds; without a checkpoint there it starts from the beginning.
        group: the ranks that train together, each with a part of every batch, so that a step is that of one process on
            the joined batch. Rank 0 writes the folder; all read it. Every rank calls the same methods.
        load: makes the images of their configuration; several runs may share them, one after the other.
        untrained: stands for the weights of a source that is not trained yet, where only the set-up is tried.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: TrainingProgress,
        *,
        resume: bool = False,
        group: Group = ALONE,
        load: Callable[[DataConfig], DataBundle] = load_data,
        untrained: Checkpoint | None = None,
    ) -> None:
        config.check()
        if config.threads is not None:
            torch.set_num_threads(config.threads)  # of the whole process: PyTorch knows no other scope
        method_class = find_method(config.method)
        if config.compile and group.size > 1:
            raise L2TFastError(f"compile is true, but {group.size} ranks train together: compiled networks train alone")
        self.config = config
        self.group = group
        self.device = choose_device(config.device, group)
        check_cuda_graph(config, self.device, group.size)
        check_backend(config.backend, self.device)
        self.progress = progress
        # A seed means other images too; data.seed chooses among several such series.
        self.data = load(dataclasses.replace(config.data, seed=config.data.seed + config.seed))
        if config.data.on_device:
            self.data.to(self.device)
        self.data.feed(self.device)
        self._check_same_images()
        self.data.take_part(group.rank, group.size)
        # The target is made first and the generators are seeded again in fit(), so that one seed gives every method the
        # same initial target and the same augmentation.
        seed_everything(config.seed)
        self.target = build_model(
            config.target.model,
            self.data.num_classes,
            in_channels=self.data.in_channels,
            layers=config.target.layers,
        ).to(self.device)
        self.source: FrozenSources | None = None
        unplaced: UnplacedSources | None = None
        self.pairs: list[tuple[int, int]] = []
        self.pair_layers: list[tuple[str, str]] = []
        if method_class.needs_source:
            if group.size > 1 and method_class.runs_source and config.may_share_sources():
                unplaced = UnplacedSources(config, self.data, self._check_source, untrained)
                self.source = unplaced.sources
            else:
                self.source = load_sources(config.named_sources(), self.data, untrained).to(self.device)
                for name, part in zip(config.named_sources(), self.source.parts, strict=True):
                    self._check_source(name, part)
            if method_class.default_pairs is not None:
                names = self.source.feature_names, list(self.target.feature_names)
                wanted = method_class.default_pairs if config.pairs is None else config.pairs
                self.pairs = resolve_pairs(wanted, *names, self.source.maps_per_source)
                self.pair_layers = [(names[0][m], names[1][n]) for m, n in self.pairs]
        size = self.data.image_size
        classes = self.data.num_classes
        check_network(config.target.model, self.target, self.data, size, "data.image_size", classes=classes)
        self.method = method_class(Setup(config, self.source, self.target, self.pairs, self.data.num_classes, group))
        self.method.to(self.device)
        self.placement = Placement()
        if unplaced is not None:
            self.placement = place_sources(
                unplaced, config, self.data, self.target, self.method, self.pairs, group, self.device
            )
        for trained in (self.target, self.method):
            synchronize_batch_norm(trained, group)
        sharing = self.placement.sharing
        self.step = Step(config, self.target, self.method, self.source, sharing, self.device, group)
        self.reached = Reached()
        self.folder = RunFolder(config.folder())
        # What a reader of the networks must know to use them, as a source or by themselves.
        task = {
            "num_classes": self.data.num_classes,
            "class_names": self.data.class_names,
            "normalization": [list(self.data.mean), list(self.data.std)],
            "image_sizes": [self.data.image_size, self.data.resize_to],
        }
        whole = self.placement.whole_state
        self.state = RunState(self.folder, self.step, whole, task, decisive_options(config), group)
        self._resume = resume

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch, test the best model, and return what result.json holds.

        Raises:
            L2TFastError: as `l2t_fast.transfer.run` tells it, or another process is in the run's folder.
        """
        with held(self.folder.path) if self.group.leads else contextlib.nullcontext():
            return self._fit()

    def _fit(self) -> dict[str, Any]:
        if self.group.leads:
            self.folder.open(self.config, self.device, resume=self._resume)
        self.group.wait()
        if self.folder.result.exists():
            self.progress.message(f"{self.folder.path} is finished already")
            return self.folder.read_result()
        # The same bits from run to run need deterministic algorithms of cuDNN.
        torch.backends.cudnn.deterministic = True
        seed_everything(self.config.seed)
        if self._resume and self.folder.last.exists():
            self.reached = self.state.restore(self.config.epochs)
        self._check_agreement()
        self._log(f"{self.describe()}; starts after epoch {self.reached.epoch}; {self.data.describe()}")
        if self.source is not None and self.source.scales:
            scales = ", ".join(f"{name} by {scale:.4g}" for name, scale in self.source.scales.items())
            self._log(f"unit_rms divides the source's maps: {scales}")
        if self.group.leads and self.group.size > 1 and self.step.runs_source:
            self._log(f"where the sources run: {self.placement.reason}")
        for note in self.method.notes:
            self._log(note)
        events = EventFile(self.folder.tensorboard, self.reached.epoch + 1) if self.group.leads else None
        self.progress.start(f"{self.config.method} seed {self.config.seed}", self.config.epochs, self.reached.epoch)
        try:
            self.group.steady = True
            self.group.ending = self._log_reason
            with kept_interrupts() as check_interrupt:
                while self.reached.epoch < self.config.epochs:
                    self._run_epoch(events, check_interrupt)
                result = self._conclude()
            self.group.ending = lambda reason: None  # the group outlives this trainer, and would keep it
        except (Exception, KeyboardInterrupt) as error:
            self._log_stop(error)
            raise
        finally:
            self.group.steady = False
            self.progress.finish()
        return result

    def weights(self) -> Checkpoint:
        """The target as it is now, as `read_checkpoint` gives it of a checkpoint."""
        return dataclasses.replace(
            from_state_dict(self.target.state_dict(), f"the {self.config.target.model} as it is"),
            num_classes=self.data.num_classes,
            normalization=(self.data.mean, self.data.std),
        )

    def describe(self) -> str:
        """The run in one line."""
        models = ", ".join(source.model for source in self.config.named_sources().values())
        source = f", source {models}" if self.source else ""
        pairs = f", pairs {', '.join(pair_names(self.pair_layers))}" if self.pairs else ""
        ranks = f", {self.group.size} ranks" if self.group.size > 1 else ""
        return f"{self.config.method}, seed {self.config.seed}, target {self.config.target.model}{source}{pairs}{ranks}"

    def train_batch(self, x: Tensor, y: Tensor, joined: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step on a batch: arguments as those of :class:`~l2t_fast.transfer.step.Step`.

        Returns:
            cross-entropy, sum of the method's terms, and number of correct predictions: scalars on the device, without
            gradients, of this rank's share of the joined batch.

        Raises:
            L2TFastError: the loss is not finite; no parameter was changed.
        """
        try:
            cross_entropy, loss, correct = self.step(x, y, joined)
        except NotFiniteError as problem:
            raise L2TFastError(f"{self._where()}, {problem}: {self._advice()}") from None
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise L2TFastError(
                f"{self._where()}, batch normalisation has a single pixel of a single image, {self._kept()}: set "
                f"data.batch_size (now {self.config.data.batch_size}) to at least twice accumulation (now "
                f"{self.config.accumulation}), or a larger data.image_size"
            ) from error
        self.reached.step += 1
        return cross_entropy, loss - cross_entropy, correct

    def _train_batch_or_advise(self, x: Tensor, y: Tensor, joined: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `train_batch`; a GPU whose memory is too small is told with the batch size that would fit."""
        try:
            return self.train_batch(x, y, joined)
        except torch.OutOfMemoryError as error:
            problem = error.with_traceback(None)  # whose frames hold the step's tensors
        self.step.optimizer.zero_grad(set_to_none=True)
        if self.group.size > 1:  # the other ranks are in the middle of the step
            raise problem
        size = largest_batch_that_fits(self.train_batch, x, y)
        fits = f"a step on {size} was tried and fits" if size else "not even a step on two fits"
        raise L2TFastError(
            f"the GPU has too little memory for a step on {len(y)} images ({fits}), {self._kept()}: lower "
            "data.batch_size, or set accumulation to send the batch through in pieces"
        ) from problem

    def _check_same_images(self) -> None:
        """Raise L2TFastError if a rank has read others than rank 0, which the labels of all of them tell."""
        parts = {"training": self.data.train, "validation": self.data.validation, "test": self.data.test}
        name = self.group.disagreement({part: loader.dataset.labels for part, loader in parts.items()})
        if name is not None:
            raise L2TFastError(
                f"the ranks do not read the same {name} images: data.data_dir and data.splits must hold the same files "
                "on every machine"
            )

    def _check_agreement(self) -> None:
        """Raise L2TFastError if the ranks do not hold the same, bit for bit, of the networks that all of them hold."""
        modules = {"target": self.target, "method": self.method}
        if self.placement.whole_state is not None:
            del modules["method"]
        if self.source is not None and self.placement.sharing is None:
            modules["source"] = self.source
        state = {f"{owner} {name}": t for owner, module in modules.items() for name, t in module.state_dict().items()}
        name = self.group.disagreement(state)
        if name is not None:
            # Most are of a method of somebody's own, whose optimizer steps on the gradients of a rank's images.
            own = name.startswith("method ") and bool(self.method.optimizers())
            joined = ", and after_step must join gradients by batch.part.group.sum_" if own else ""
            raise L2TFastError(
                f"after epoch {self.reached.epoch}, the ranks do not hold the same {name}: all of them must see the "
                f"same run folder and the same files, and run the same versions{joined}"
            )

    def _log(self, text: str) -> None:
        if self.group.leads:
            self.folder.log(text)

    def _check_source(self, name: str, source: nn.Module) -> None:
        config = self.config.named_sources()[name]
        side = config.image_size or self.data.image_size
        check_network(config.model, source, self.data, side, f"{config_key(name)}.image_size")

    def _run_epoch(self, events: EventFile | None, check_interrupt: Callable[[], None]) -> None:
        began = time.perf_counter()
        lr = cosine_lr(self.config.lr, self.reached.epoch, self.config.epochs)
        set_lr(self.step.optimizer, lr)
        self.data.set_epoch(self.reached.epoch)
        if self.group.size > 1:
            # Dropout on other images must not draw the same; by the epoch, so that a resumed run draws as one in a go.
            seed_everything(rank_seed(self.config.seed, self.reached.epoch, self.group.rank))
        self.target.train()
        self.method.start_epoch()
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        count = 0
        untrained = None  # lambda of the first batch, which was there before its step
        for i, (x, y) in enumerate(self.data.train):
            x, y = self.step.placed(x), y.to(self.device, non_blocking=True)
            joined = self.data.train.sampler.joined_images(i)
            cross_entropy, matching, correct = self._train_batch_or_advise(x, y, joined)
            if self.reached.step == 1:
                untrained = self.method.pair_weights()
            total += torch.stack([cross_entropy * joined, matching * joined, correct])
            count += joined
            self.progress.batch(i + 1, len(self.data.train))
            check_interrupt()
        self.group.sum_([total])
        cross_entropy, matching, accuracy = (total / count).tolist()
        validation_loss, validation_accuracy = self.step.evaluate(self.data.validation)
        # The last step of an epoch may have spoiled the weights: look before a checkpoint keeps them.
        spoiled = self.state.first_non_finite()
        if spoiled is not None or not math.isfinite(validation_loss):
            part = f"{spoiled} turned NaN or infinite" if spoiled else "the validation loss is not finite"
            raise L2TFastError(f"after epoch {self.reached.epoch + 1}, {part}: {self._advice()}")
        self.reached.epoch += 1
        self._check_agreement()
        self.reached.seconds += time.perf_counter() - began
        row = {
            "epoch": self.reached.epoch,
            "step": self.reached.step,
            "lr": lr,
            "train_loss": cross_entropy + matching,
            "train_cross_entropy": cross_entropy,
            "train_matching": matching,
            "train_accuracy": accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "seconds": time.perf_counter() - began,
        }
        pair_weights = self.method.pair_weights()
        improves = self.reached.improves(row)
        if improves:
            self.reached.best = {name: row[name] for name in self.reached.best}
        if events is not None:
            if untrained is not None:
                self._record_pair_weights(0, untrained, events)
                self._tell_of_dead_pairs(untrained)
            self._record(row, pair_weights, events)
        self._save(improves)
        self.progress.epoch(row, self.config.epochs, self.reached.best)

    def _save(self, improves: bool) -> None:
        self.state.save(self.reached, improves=improves)

    def _record(self, row: dict[str, Any], pair_weights: list[tuple[float, float]] | None, events: EventFile) -> None:
        self.folder.add_metrics(row)
        scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        events.add(scalars, self.reached.epoch)
        if pair_weights is not None:
            self._record_pair_weights(self.reached.epoch, pair_weights, events)

    def _record_pair_weights(self, epoch: int, pair_weights: list[tuple[float, float]], events: EventFile) -> None:
        rows = [
            {"epoch": epoch, "source_layer": source, "target_layer": target, "mean": mean, "std": std}
            for (source, target), (mean, std) in zip(self.pair_layers, pair_weights, strict=True)
        ]
        self.folder.add_pair_weights(rows)
        events.add({f"pair_weight/{e['source_layer']}->{e['target_layer']}": e["mean"] for e in rows}, epoch)

    def _tell_of_dead_pairs(self, untrained: list[tuple[float, float]]) -> None:
        """ReLU6 has no slope below 0: where lambda is 0 for all images, nothing is learned of it."""
        names = pair_names(self.pair_layers)
        dead = [name for name, (mean, std) in zip(names, untrained, strict=True) if mean == std == 0]
        if dead:
            self._log(
                f"lambda of {', '.join(dead)} begins at 0 for the whole first batch, where ReLU6 has no slope: it is "
                "not learned unless other images lift it; another seed begins elsewhere"
            )

    def _conclude(self) -> dict[str, Any]:
        """Test the best model, write what the method learned, and the result."""
        self.group.wait()  # until the last checkpoint is written
        self.state.take_best(self.reached.best["epoch"])
        _, test_accuracy = self.step.evaluate(self.data.test)
        self._write_channel_weights()
        result = {
            "method": self.config.label or self.config.method,
            "seed": self.config.seed,
            "pairs": pair_names(self.pair_layers),
            "best_epoch": self.reached.best["epoch"],
            "validation_accuracy": self.reached.best["validation_accuracy"],
            "test_accuracy": test_accuracy,
            "validation_images": len(self.data.validation.dataset),
            "test_images": len(self.data.test.dataset),
            "epochs": self.config.epochs,
            "seconds": self.reached.seconds,
        }
        if self.group.leads:
            self.folder.write_result(result)
        self._log(f"finished: test accuracy {test_accuracy:.2%} of the model of epoch {self.reached.best['epoch']}")
        return result

    @torch.no_grad()
    def _write_channel_weights(self) -> None:
        """Mean channel weights over the validation images, one array a pair."""
        if self.source is None or not self.method.runs_source:
            return
        sums: list[Tensor] | None = None
        count = 0
        for x, _ in self.data.validation:
            weights = self.step.channel_weights(self.step.placed(x))
            if weights is None:
                return
            batch = [w.double().sum(0) for w in weights]
            sums = batch if sums is None else [a + b for a, b in zip(sums, batch, strict=True)]
            count += len(x)
        if sums is None:
            return
        if self.placement.whole_state is not None:
            own = dict(zip(self.placement.sharing.pairs(self.pairs).chosen, sums, strict=True))
            widths = [self.source.feature_channels[m] for m, _ in self.pairs]
            sums = [own.get(p, torch.zeros(c, dtype=torch.float64, device=self.device)) for p, c in enumerate(widths)]
        self.group.sum_(sums)
        count = self.group.total(count)
        if self.group.leads:
            means = {
                name: (s / count).float().cpu().numpy()
                for name, s in zip(pair_names(self.pair_layers), sums, strict=True)
            }
            self.folder.write_channel_weights(means)

    def _where(self) -> str:
        return f"in epoch {self.reached.epoch + 1}, step {self.reached.step + 1}"

    def _kept(self) -> str:
        if not self.reached.epoch:
            return "nothing was saved"
        return f"the checkpoint of epoch {self.reached.epoch} in {self.folder.path} is intact"

    def _advice(self) -> str:
        keys = ("lr", *(("meta_lr",) if "meta" in self.method.optimizers() else ()), *self.method.loss_weights)
        lower = f"a lower {' or '.join(f'{key} (now {getattr(self.config, key)})' for key in keys)} may help"
        # Which the run that was begun cannot go on with.
        where = ", from the start in another folder (--out)" if self.reached.epoch else ""
        return f"training stops, {self._kept()}; {lower}{where}"

    def _log_stop(self, error: BaseException) -> None:
        """Say in log.txt why the run stopped, unless the log itself cannot be written."""
        if self.group.leads and not isinstance(error, PeerError):  # the reason comes from another rank
            self._log_reason(
                str(error) or "interrupted"
                if isinstance(error, KeyboardInterrupt)
                else f"{type(error).__name__}: {one_sentence(error)}"
            )

    def _log_reason(self, reason: str) -> None:
        with contextlib.suppress(L2TFastError):
            self.folder.log(f"stopped in epoch {self.reached.epoch + 1}: {reason}")


def cosine_lr(lr: float, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, counted from 0: half a cosine from `lr` to 0 over `epochs`."""
    return 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
