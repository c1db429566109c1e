"""Trains a target network with one method, and leaves a run folder behind."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.config import TrainConfig
from l2t_fast.convolution import fast_convolutions
from l2t_fast.data import DataBundle, DataConfig, load_data
from l2t_fast.distributed.batch_norm import synchronize_batch_norm
from l2t_fast.distributed.group import ALONE, Group, Part, PeerError, cut
from l2t_fast.distributed.source_plan import Load, Plan, bytes_of, output_bytes
from l2t_fast.errors import L2TFastError
from l2t_fast.interrupts import kept_interrupts
from l2t_fast.models import build_model
from l2t_fast.transfer.checkpoint import load_checkpoint, load_optimizer, misfit, save_checkpoint
from l2t_fast.transfer.device import check_backend, choose_device
from l2t_fast.transfer.event_file import EventFile
from l2t_fast.transfer.finite import first_non_finite_parameter, name_non_finite
from l2t_fast.transfer.memory import largest_batch_that_fits
from l2t_fast.transfer.methods import Batch, Setup, find_method
from l2t_fast.transfer.pairs import pair_names, resolve_pairs
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.randomness import random_state, rank_seed, restore_random_state, seed_everything
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.source import FrozenSources, SourceOutput, config_key, load_sources
from l2t_fast.transfer.source_placing import UnplacedSources, plan_sources
from l2t_fast.transfer.source_sharing import SourceSharing
from l2t_fast.transfer.step_graph import CudaRecorder, StepGraph, check_cuda_graph, set_lr, sgd_options
from l2t_fast.transfer.whole_state import WholeState

#: What a state may hold in another form than the trainer's own: momenta come with the first step, a Gaussian may be
#: waiting or not, and GPUs have a generator each.
_FREE_FORM = ("optimizer", "method_optimizers", "random.python.gauss", "random.cuda")


class Trainer:
    """One run: the paper's procedure for every batch, the best model on validation data, everything written down.

    Args:
        config: what to run.
        progress: where to show how it goes.
        resume: continue the run that `config.folder()` holds; without a checkpoint there it starts from the beginning.
        group: the ranks that train together, each with a part of every batch, so that a step is that of one process on
            the joined batch. Rank 0 writes the folder; all read it. Every rank calls the same methods.
        load: makes the images of their configuration; several runs may share them, one after the other.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: TrainingProgress,
        *,
        resume: bool = False,
        group: Group = ALONE,
        load: Callable[[DataConfig], DataBundle] = load_data,
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
        check_backend(config.backend)
        self.progress = progress
        # A seed means other images too; data.seed chooses among several such series.
        self.data = load(dataclasses.replace(config.data, seed=config.data.seed + config.seed))
        if config.data.on_device:
            self.data.to(self.device)
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
                unplaced = UnplacedSources(config, self.data, self._check_source_image_size)
                self.source = unplaced.sources
            else:
                self.source = load_sources(config.named_sources(), self.data).to(self.device)
                for name, part in zip(config.named_sources(), self.source.parts, strict=True):
                    self._check_source_image_size(name, part)
            if method_class.default_pairs is not None:
                names = self.source.feature_names, list(self.target.feature_names)
                wanted = method_class.default_pairs if config.pairs is None else config.pairs
                self.pairs = resolve_pairs(wanted, *names, self.source.maps_per_source)
                self.pair_layers = [(names[0][m], names[1][n]) for m, n in self.pairs]
        self._check_image_size(self.config.target.model, self.target, self.data.image_size, "data.image_size")
        self.method = method_class(Setup(config, self.source, self.target, self.pairs, self.data.num_classes, group))
        self.method.to(self.device)
        self._sharing: SourceSharing | None = None
        self._whole_state: WholeState | None = None
        self.plan: Plan | None = None  # where the sources run, if there was a choice
        self._plan_reason = "images: there is one source"
        if unplaced is not None:
            self._place_sources(unplaced)
        for trained in (self.target, self.method):
            synchronize_batch_norm(trained, group)
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        for network in filter(None, (self.source, self.target)):
            network.to(memory_format=self._layout)
        # The same modules, compiled: parameters, their names and the look-ahead's calls stay those of the target.
        self._run_target: Callable[[Tensor], tuple[Tensor, list[Tensor]]] = self.target
        self._run_source: Callable[[Tensor], SourceOutput] | None = self.source if self.method.runs_source else None
        if config.compile:
            self._run_target = torch.compile(self.target)
            self._run_source = None if self._run_source is None else torch.compile(self._run_source)
        self.optimizer = torch.optim.SGD(
            [*self.target.parameters(), *self.method.trained_parameters()],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            **sgd_options(config, self.device),
        )
        self._graph = StepGraph(self, CudaRecorder(self.device)) if config.cuda_graph else None
        if self._whole_state is not None:
            self._whole_state.note(self._optimizers())
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] = {"epoch": 0, "validation_accuracy": -1.0, "validation_loss": math.inf}
        self.folder = RunFolder(config.folder())
        self._resume = resume

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch, test the best model, and return what result.json holds."""
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
            self._restore(load_checkpoint(self.folder.last))
        self._check_agreement()
        self._log(f"{self.describe()}; starts after epoch {self.epoch}")
        if self.source is not None and self.source.scales:
            scales = ", ".join(f"{name} by {scale:.4g}" for name, scale in self.source.scales.items())
            self._log(f"unit_rms divides the source's maps: {scales}")
        if self.group.leads and self.group.size > 1 and self._run_source is not None:
            self._log(f"where the sources run: {self._plan_reason}")
        events = EventFile(self.folder.tensorboard, self.epoch + 1) if self.group.leads else None
        self.progress.start(f"{self.config.method} seed {self.config.seed}", self.config.epochs, self.epoch)
        try:
            self.group.steady = True
            self.group.ending = self._log_reason
            with kept_interrupts() as check_interrupt:
                while self.epoch < self.config.epochs:
                    self._run_epoch(events, check_interrupt)
                result = self._conclude()
        except (Exception, KeyboardInterrupt) as error:
            self._log_stop(error)
            raise
        finally:
            self.group.steady = False
            self.progress.finish()
        return result

    def describe(self) -> str:
        """The run in one line."""
        models = ", ".join(source.model for source in self.config.named_sources().values())
        source = f", source {models}" if self.source else ""
        pairs = f", pairs {', '.join(pair_names(self.pair_layers))}" if self.pairs else ""
        ranks = f", {self.group.size} ranks" if self.group.size > 1 else ""
        return f"{self.config.method}, seed {self.config.seed}, target {self.config.target.model}{source}{pairs}{ranks}"

    def train_batch(self, x: Tensor, y: Tensor, joined: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The paper's procedure for one batch: a real step of the target, then the method's own step.

        Args:
            x: images (B, channels, H, W), float32.
            y: labels (B,), int64.
            joined: number of images that all ranks together have in this batch, in parts whose sizes differ by one at
                most; None lets them count.

        Returns:
            cross-entropy, sum of the method's terms, and number of correct predictions: scalars on the device, without
            gradients, of this rank's share of the joined batch.

        Raises:
            L2TFastError: the loss is not finite; no parameter was changed.
        """
        cross_entropy, loss, correct = self.plain_step(x, y, joined) if self._graph is None else self._graph(x, y)
        self.step += 1
        return cross_entropy, loss - cross_entropy, correct

    def plain_step(self, x: Tensor, y: Tensor, joined: int | None = None) -> Tensor:
        """`train_batch` without a CUDA graph; returns the numbers that `gradients` does."""
        batch, numbers = self.gradients(x, y, joined)
        self.update(batch)
        return numbers

    def gradients(self, x: Tensor, y: Tensor, joined: int | None = None, *, check: bool = True) -> tuple[Batch, Tensor]:
        """The first half of a step: the source, and the loss with its gradients, which replace those that are there.

        Args:
            x, y, joined: as for `train_batch`.
            check: raise if the loss is not finite, which takes a read of it; otherwise the caller must look.

        Returns:
            What `update` takes, and (cross-entropy, loss, number of correct predictions), float32 (3,) on the device.
        """
        part, sizes = self._part(len(y), joined)
        with self._forward_passes():
            batch = Batch(x, y, self._source_output(x, part, sizes, self.config.accumulation), part)
        self.optimizer.zero_grad(set_to_none=True)
        found = [self._backward(piece, check) for piece in batch.pieces(self.config.accumulation)]
        numbers = torch.stack([numbers for numbers, _ in found]).sum(0)
        if self.group.size > 1 and not math.isfinite(self._join_gradients(numbers[1]).item()):
            raise self._blame(next((problem for _, problem in found if problem is not None), None), x)
        return batch, numbers

    def update(self, batch: Batch) -> None:
        """The second half: the SGD step on the gradients that are there, then the method's own step."""
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)  # the look-ahead needs their memory
        self.method.after_step(self.target, self.optimizer, batch)

    def _train_batch_or_advise(self, x: Tensor, y: Tensor, joined: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `train_batch`; a GPU whose memory is too small is told with the batch size that would fit."""
        try:
            return self.train_batch(x, y, joined)
        except torch.OutOfMemoryError as error:
            problem = error.with_traceback(None)  # whose frames hold the step's tensors
        self.optimizer.zero_grad(set_to_none=True)
        if self.group.size > 1:  # the other ranks are in the middle of the step
            raise problem
        size = largest_batch_that_fits(self.train_batch, x, y)
        fits = f"a step on {size} was tried and fits" if size else "not even a step on two fits"
        raise L2TFastError(
            f"the GPU has too little memory for a step on {len(y)} images ({fits}), {self._kept()}: lower "
            "data.batch_size, or set accumulation to send the batch through in pieces"
        ) from problem

    def _backward(self, batch: Batch, check: bool) -> tuple[Tensor, L2TFastError | None]:
        """Add the gradients of a batch, or of a piece of one, to those that are there; ``check`` as in `gradients`.

        Returns:
            (cross-entropy, loss, number of correct predictions), float32 (3,) on the device, this rank's shares; and
            what to say of a loss that is not finite. A process alone raises that at once, before it reaches a gradient;
            of several, each runs the backward pass that the others wait for.
        """
        with self._forward_passes():
            logits, features = self._run_target(batch.x)
            cross_entropy = batch.part.cross_entropy(logits, batch.y)
            terms = batch.part.shares(self.method.loss_terms(batch, logits, features))
            loss = sum(terms.values(), start=cross_entropy)
        problem = None
        # One read of a number, which a GPU waits for: it keeps NaN out of the weights.
        if check and not math.isfinite(loss.item()):
            source = self.source if self._sharing is None or not self._sharing.own_pairs else self._sharing.own
            of = batch, source, self.target, logits, features, cross_entropy, terms, self.method
            where = f"in epoch {self.epoch + 1}, step {self.step + 1}"
            part = name_non_finite(*of)
            problem = L2TFastError(f"{where}, {part}: {self._advice()}") if part is not None else None
            if self.group.size == 1:
                raise problem
        self._scaler.scale(loss).backward()
        correct = (logits.detach().argmax(1) == batch.y).sum()
        return torch.stack([cross_entropy.detach(), loss.detach(), correct.to(loss.dtype)]), problem

    def _autocast(self) -> torch.autocast:
        """The run's precision, for whatever is only differentiated once."""
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @contextlib.contextmanager
    def _forward_passes(self) -> Iterator[None]:
        """The run's precision, and the CPU's fast convolutions where networks are not compiled."""
        fast = contextlib.nullcontext() if self.config.compile else fast_convolutions(self.device)
        with self._autocast(), fast:
            yield

    def _part(self, images: int, joined: int | None) -> tuple[Part, list[int]]:
        """This rank's part of a batch, see `train_batch`; if sources are shared out, how many images each rank has."""
        if self._sharing is None:
            return self.group.part(images, joined), []
        sizes = self.group.each(images) if joined is None else cut(joined, self.group.size)
        return Part(self.group, images, sum(sizes), tuple(sizes) if self._sharing.own_pairs else None), sizes

    def _source_output(self, x: Tensor, part: Part, sizes: list[int], accumulation: int) -> SourceOutput | None:
        """What the sources make of a batch, None if the method does not have them run."""
        if self._run_source is None:
            return None
        return self._run_source(x) if self._sharing is None else self._sharing.run(x, part, sizes, accumulation)

    def _blame(self, own: L2TFastError | None, x: Tensor) -> L2TFastError:
        """What this rank raises if the joined loss is not finite: the rank that is nearest to the cause says so."""
        distance = 2 if own is None else int(bool(torch.isfinite(x).all()))
        nearest = min(self.group.each(distance))
        if own is not None and distance == nearest:
            return own
        if nearest == 2 and self.group.leads:  # what no rank sees in its own images and parameters
            where = f"in epoch {self.epoch + 1}, step {self.step + 1}"
            return L2TFastError(f"{where}, the sum of the ranks' losses is not finite: {self._advice()}")
        return PeerError("the loss of another rank is not finite")

    def _join_gradients(self, loss: Tensor) -> Tensor:
        """Sum the gradients and the loss over the ranks, in one reduction; returns the joined loss."""
        joined_loss = loss.detach().clone()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._whole_state is None:
            self.group.sum_([*(p.grad for p in parameters if p.grad is not None), joined_loss])
            return joined_loss
        # Projections have one rank each. Where the gradient of one overflows in float16, all ranks must leave the step
        # out: 0 times it, which is NaN then, goes into a gradient that all share.
        shared = [p.grad for p in self.target.parameters() if p.grad is not None]
        if self._scaler.is_enabled():
            own = [p.grad for p in self.method.trained_parameters() if p.grad is not None]
            shared[0].add_(sum(((g * 0).sum() for g in own), start=torch.zeros_like(joined_loss)))
        self.group.sum_([*shared, joined_loss])
        return joined_loss

    def _check_agreement(self) -> None:
        """Raise L2TFastError if the ranks do not hold the same, bit for bit, of the networks that all of them hold."""
        modules = {"target": self.target, "method": self.method}
        if self._whole_state is not None:
            del modules["method"]
        if self.source is not None and self._sharing is None:
            modules["source"] = self.source
        state = {f"{owner} {name}": t for owner, module in modules.items() for name, t in module.state_dict().items()}
        name = self.group.disagreement(state)
        if name is not None:
            raise L2TFastError(
                f"after epoch {self.epoch}, the ranks do not hold the same {name}: all of them must see the same run "
                "folder and the same files, and run the same versions"
            )

    def _place_sources(self, unplaced: UnplacedSources) -> None:
        """Plan where the sources run, load those of this rank, and divide the pairs if that is the plan."""
        config, source = self.config, unplaced.sources
        image = torch.zeros(1, self.data.in_channels, self.data.image_size, self.data.image_size, device=self.device)
        meta = getattr(self.method, "meta", None)
        owner_of_map = [i for i, maps in enumerate(source.maps_per_source) for _ in range(maps)]
        with_pairs = [owner_of_map[m] for m, _ in self.pairs]
        load = Load(
            source_weights=unplaced.weights,
            source_maps=unplaced.maps,
            target_maps=output_bytes(self.target, image, logits=False),
            image=bytes_of([image]),
            projections=bytes_of(self.method.trained_parameters()),
            phi=bytes_of(meta.parameters()) if meta is not None else 0,
            batch=config.data.batch_size,
            steps=config.lookahead_steps if meta is not None else 0,
            keep_graphs=config.keep_graphs,
            source_pairs=[with_pairs.count(i) for i in range(len(unplaced.weights))],
        )
        self.plan, self._plan_reason = plan_sources(load, config, type(self.method), self.group, self.device)
        if self.plan.name == "images":
            unplaced.load(None, self.group)
            source.to(self.device)
            return
        owners = load.owners(self.group.size, self.plan.name)
        unplaced.load(owners, self.group)
        self._sharing = SourceSharing(source, owners, self.group, own_pairs=self.plan.name == "pairs")
        self._sharing.own.to(self.device)
        if self._sharing.own_pairs:
            whole = {"optimizer": [*self.target.parameters(), *self.method.trained_parameters()]}
            for name, optimizer in self.method.optimizers().items():
                whole[name] = [p for group in optimizer.param_groups for p in group["params"]]
            self._whole_state = WholeState(self.group, whole, list(self.target.parameters()))
            self.method.keep_pairs(self._sharing.pairs(self.pairs))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The target's, called "optimizer", and the method's own."""
        return {"optimizer": self.optimizer, **self.method.optimizers()}

    def _log(self, text: str) -> None:
        if self.group.leads:
            self.folder.log(text)

    def _placed(self, x: Tensor) -> Tensor:
        """Images on the device, in the layout the run computes in."""
        return x.to(self.device, non_blocking=True, memory_format=self._layout)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy (a fraction) of the target over batches of (x, y), in eval mode.

        With several ranks, over the batches of all of them.
        """
        self.target.eval()
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        for x, y in batches:
            x, y = self._placed(x), y.to(self.device, non_blocking=True)
            with self._forward_passes():
                logits, _ = self._run_target(x)
                total[0] += F.cross_entropy(logits, y, reduction="sum")
            total[1] += (logits.argmax(1) == y).sum()
            total[2] += len(y)
        self.target.train()
        self.group.sum_([total])
        loss, accuracy, _ = (total / total[2]).tolist()
        return loss, accuracy

    def _check_source_image_size(self, name: str, source: nn.Module) -> None:
        """As `_check_image_size`, for the source called `name`."""
        config = self.config.named_sources()[name]
        side = config.image_size or self.data.image_size
        self._check_image_size(config.model, source, side, f"{config_key(name)}.image_size")

    @torch.no_grad()
    def _check_image_size(self, name: str, network: nn.Module, side: int, key: str) -> None:
        """Raise L2TFastError if the images are too small for a network: its pooling leaves no pixel."""
        device = next(network.parameters()).device
        x = torch.zeros(1, self.data.in_channels, self.data.image_size, self.data.image_size, device=device)
        # In eval mode, a pass changes neither BatchNorm's statistics nor the random generators.
        was_training = network.training
        try:
            network.eval()(x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise L2TFastError(
                f"{name} cannot take images of {side}x{side} pixels ({reason}), choose another {key} or another network"
            ) from error
        network.train(was_training)

    def _run_epoch(self, events: EventFile | None, check_interrupt: Callable[[], None]) -> None:
        began = time.perf_counter()
        lr = cosine_lr(self.config.lr, self.epoch, self.config.epochs)
        set_lr(self.optimizer, lr)
        self.data.set_epoch(self.epoch)
        if self.group.size > 1:
            # Dropout on other images must not draw the same; by the epoch, so that a resumed run draws as one in a go.
            seed_everything(rank_seed(self.config.seed, self.epoch, self.group.rank))
        self.target.train()
        self.method.start_epoch()
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        count = 0
        untrained = None  # lambda of the first batch, which was there before its step
        for i, (x, y) in enumerate(self.data.train):
            x, y = self._placed(x), y.to(self.device, non_blocking=True)
            joined = self.data.train.sampler.joined_images(i)
            cross_entropy, matching, correct = self._train_batch_or_advise(x, y, joined)
            if self.step == 1:
                untrained = self.method.pair_weights()
            total += torch.stack([cross_entropy * joined, matching * joined, correct])
            count += joined
            self.progress.batch(i + 1, len(self.data.train))
            check_interrupt()
        self.group.sum_([total])
        cross_entropy, matching, accuracy = (total / count).tolist()
        validation_loss, validation_accuracy = self.evaluate(self.data.validation)
        # The last step of an epoch may have spoiled the weights: look before a checkpoint keeps them.
        spoiled = first_non_finite_parameter({"target": self.target, "method": self.method})
        if spoiled is not None or not math.isfinite(validation_loss):
            part = f"{spoiled} turned NaN or infinite" if spoiled else "the validation loss is not finite"
            raise L2TFastError(f"after epoch {self.epoch + 1}, {part}: {self._advice()}")
        self.epoch += 1
        self._check_agreement()
        self.seconds += time.perf_counter() - began
        row = {
            "epoch": self.epoch,
            "step": self.step,
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
        improves = self._improves(row)
        if improves:
            self.best = {name: row[name] for name in self.best}
        if events is not None:
            if untrained is not None:
                self._record_pair_weights(0, untrained, events)
            self._record(row, pair_weights, events)
        self._save(improves)
        self.progress.epoch(row, self.config.epochs, self.best)

    def _save(self, improves: bool) -> None:
        """Write the checkpoints, on the rank that leads; every rank comes."""
        state = self._state()
        if not self.group.leads:
            return
        # The state comes first: a run that is killed before best.pt follows finds the best networks in last.pt.
        save_checkpoint(state, self.folder.last)
        if improves:
            self._save_best(state)

    def _save_best(self, state: dict[str, Any]) -> None:
        networks = {name: state[name] for name in ("model", "method")}
        save_checkpoint({**networks, **self.best, **self._task()}, self.folder.best)

    def _improves(self, row: dict[str, Any]) -> bool:
        """Higher validation accuracy; at the same accuracy, which is common on few images, lower validation loss."""
        return (row["validation_accuracy"], -row["validation_loss"]) > (
            self.best["validation_accuracy"],
            -self.best["validation_loss"],
        )

    def _record(self, row: dict[str, Any], pair_weights: list[tuple[float, float]] | None, events: EventFile) -> None:
        self.folder.add_metrics(row)
        scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        events.add(scalars, self.epoch)
        if pair_weights is not None:
            self._record_pair_weights(self.epoch, pair_weights, events)

    def _record_pair_weights(self, epoch: int, pair_weights: list[tuple[float, float]], events: EventFile) -> None:
        rows = [
            {"epoch": epoch, "source_layer": source, "target_layer": target, "mean": mean, "std": std}
            for (source, target), (mean, std) in zip(self.pair_layers, pair_weights, strict=True)
        ]
        self.folder.add_pair_weights(rows)
        events.add({f"pair_weight/{e['source_layer']}->{e['target_layer']}": e["mean"] for e in rows}, epoch)

    def _conclude(self) -> dict[str, Any]:
        """Test the best model, write what the method learned, and the result."""
        self.group.wait()  # until the last checkpoint is written
        best = load_checkpoint(self.folder.best)
        self.target.load_state_dict(best["model"])
        self._load_method(best["method"])
        _, test_accuracy = self.evaluate(self.data.test)
        self._write_channel_weights()
        result = {
            "method": self.config.label or self.config.method,
            "seed": self.config.seed,
            "pairs": pair_names(self.pair_layers),
            "best_epoch": self.best["epoch"],
            "validation_accuracy": self.best["validation_accuracy"],
            "test_accuracy": test_accuracy,
            "epochs": self.config.epochs,
            "seconds": self.seconds,
        }
        if self.group.leads:
            self.folder.write_result(result)
        self._log(f"finished: test accuracy {test_accuracy:.2%} of the model of epoch {self.best['epoch']}")
        return result

    @torch.no_grad()
    def _write_channel_weights(self) -> None:
        """Mean channel weights over the validation images, one array a pair."""
        if self.source is None or not self.method.runs_source:
            return
        sums: list[Tensor] | None = None
        count = 0
        for x, _ in self.data.validation:
            x = self._placed(x)
            part, sizes = self._part(len(x), len(x) if self._sharing is None else None)
            output = self._source_output(x, part, sizes, 1)
            weights = None if output is None else self.method.channel_weights(output)
            if weights is None:
                return
            batch = [w.double().sum(0) for w in weights]
            sums = batch if sums is None else [a + b for a, b in zip(sums, batch, strict=True)]
            count += len(x)
        if sums is None:
            return
        if self._sharing is not None and self._sharing.own_pairs:
            own = dict(zip(self._sharing.pairs(self.pairs).chosen, sums, strict=True))
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

    def _task(self) -> dict[str, Any]:
        """What a reader of the weights must know to use the network, as a source for example."""
        return {"num_classes": self.data.num_classes, "normalization": [list(self.data.mean), list(self.data.std)]}

    def _state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as a process alone would have it.

        Where ranks have pairs of their own it is a collective operation, and whole on the rank that leads.
        """
        state = self._own_state()
        if self._whole_state is not None:
            self._whole_state.complete(state["method"], {"optimizer": state["optimizer"], **state["method_optimizers"]})
        return state

    def _own_state(self) -> dict[str, Any]:
        """What this rank has of `_state`; its form is that of the whole."""
        whole = self._whole_state
        optimizers = {
            name: item.state_dict() if whole is None else whole.optimizer(name, item)
            for name, item in self._optimizers().items()
        }
        return {
            "model": self.target.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": optimizers.pop("optimizer"),
            "method_optimizers": optimizers,
            "scaler": self._scaler.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
        }

    def _load_method(self, saved: dict[str, Tensor]) -> None:
        """Take the method's state from a checkpoint; of other ranks' pairs there is no memory to take it."""
        own = self.method.state_dict()
        self.method.load_state_dict({k: own[k] if k in own and own[k].is_meta else v for k, v in saved.items()})

    def _load_optimizer(self, name: str, saved: Any) -> None:
        own = saved if self._whole_state is None else self._whole_state.own(name, saved)
        load_optimizer(self._optimizers()[name], own, name)

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from `_state`; `folder.open` has made sure that the configuration is the same."""
        try:
            problem = misfit(state, self._own_state(), skip=_FREE_FORM)
            if problem is None and not 0 < state["epoch"] <= self.config.epochs:
                problem = f"it is of epoch {state['epoch']}, and the run has {self.config.epochs}"
            if problem is not None:
                raise ValueError(problem)
            self.target.load_state_dict(state["model"])
            self._load_method(state["method"])
            self._load_optimizer("optimizer", state["optimizer"])
            for name in self.method.optimizers():
                self._load_optimizer(name, state["method_optimizers"][name])
            self._scaler.load_state_dict(state["scaler"])
            restore_random_state(state["random"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.best, self.seconds = state["best"], state["seconds"]
        except (KeyError, IndexError, AttributeError, TypeError, RuntimeError, ValueError, OverflowError) as error:
            raise L2TFastError(
                f"{self.folder.last} does not fit this run, though its config.yaml does: {error}"
            ) from error
        spoiled = first_non_finite_parameter({"target": self.target, "method": self.method})
        if spoiled is not None:
            raise L2TFastError(f"{self.folder.last} holds NaN or infinite values in {spoiled}")
        if self.group.leads:
            self._restore_best(state)
            self.folder.forget_after(self.epoch)

    def _restore_best(self, state: dict[str, Any]) -> None:
        """Write best.pt again if the run was killed between last.pt and it."""
        if self.folder.best.exists() and load_checkpoint(self.folder.best).get("epoch") == self.best["epoch"]:
            return
        if self.best["epoch"] != self.epoch:
            raise L2TFastError(
                f"{self.folder.best} is missing or not of epoch {self.best['epoch']}, which was the best: put it "
                "back, or start the run anew with another --out"
            )
        self._save_best(state)

    def _kept(self) -> str:
        if not self.epoch:
            return "nothing was saved"
        return f"the checkpoint of epoch {self.epoch} in {self.folder.path} is intact"

    def _advice(self) -> str:
        kept, lr, beta = self._kept(), self.config.lr, self.config.beta
        return f"training stops, {kept}; a lower lr (now {lr}) or beta (now {beta}) may help"

    def _log_stop(self, error: BaseException) -> None:
        """Say in log.txt why the run stopped, unless the log itself cannot be written."""
        if not isinstance(error, PeerError):  # the reason comes from another rank
            self._log_reason(
                "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            )

    def _log_reason(self, reason: str) -> None:
        with contextlib.suppress(L2TFastError):
            self._log(f"stopped in epoch {self.epoch + 1}: {reason}")


def cosine_lr(lr: float, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, counted from 0: half a cosine from `lr` to 0 over `epochs`."""
    return 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
