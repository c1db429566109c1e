"""One step of training: the paper's procedure for a batch. What the trainer repeats, and a CUDA graph holds."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast.config import TrainConfig
from l2t_fast.convolution import fast_convolutions
from l2t_fast.distributed.group import Group, Part, PeerError, cut
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.finite import name_non_finite
from l2t_fast.transfer.methods import Batch, Method
from l2t_fast.transfer.source import FrozenSources, SourceOutput
from l2t_fast.transfer.source_sharing import SourceSharing
from l2t_fast.transfer.step_graph import CudaRecorder, StepGraph, sgd_options


class NotFiniteError(L2TFastError):
    """The loss of a step is NaN or infinite: says what it came from."""


class Step:
    """A real step of the target on a batch, then the method's own step.

    Args:
        config: how the step is computed.
        target, method: what is trained, on ``device``.
        source: runs on this rank's images; None if the method takes no source's maps.
        sharing: where several ranks share the sources out; None if each runs all of them.
        group: the ranks, each of which takes a part of the batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        target: nn.Module,
        method: Method,
        source: FrozenSources | None,
        sharing: SourceSharing | None,
        device: torch.device,
        group: Group,
    ) -> None:
        self.config, self.target, self.method = config, target, method
        self.sharing, self.device, self.group = sharing, device, group
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        for network in filter(None, (source, target)):
            network.to(memory_format=self._layout)
        self._source = source if sharing is None or not sharing.own_pairs else sharing.own
        # The same modules, compiled: parameters, their names and the look-ahead's calls stay those of the target.
        self._run_target: Callable[[Tensor], tuple[Tensor, list[Tensor]]] = target
        self._run_source: Callable[[Tensor], SourceOutput] | None = source if method.runs_source else None
        if config.compile:
            self._run_target = torch.compile(target)
            self._run_source = None if self._run_source is None else torch.compile(self._run_source)
        _check_trained(target, method)
        self.optimizer = torch.optim.SGD(
            [*target.parameters(), *method.trained_parameters()],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            **sgd_options(config, device),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self._graph = StepGraph(self, CudaRecorder(device)) if config.cuda_graph else None

    @property
    def runs_source(self) -> bool:
        """Whether the sources run on every batch."""
        return self._run_source is not None

    def __call__(self, x: Tensor, y: Tensor, joined: int | None = None) -> Tensor:
        """Train on a batch.

        Args:
            x: images (B, channels, H, W), float32.
            y: labels (B,), int64.
            joined: number of images that all ranks together have in this batch, in parts whose sizes differ by one at
                most; None lets them count.

        Returns:
            (cross-entropy, loss, number of correct predictions), float32 (3,) on the device, without gradients, of this
            rank's share of the joined batch.

        Raises:
            NotFiniteError: the loss is not finite; no parameter was changed.
        """
        return self.plain_step(x, y, joined) if self._graph is None else self._graph(x, y)

    def plain_step(self, x: Tensor, y: Tensor, joined: int | None = None) -> Tensor:
        """The same without a CUDA graph."""
        batch, numbers = self.gradients(x, y, joined)
        self.update(batch)
        return numbers

    def gradients(self, x: Tensor, y: Tensor, joined: int | None = None, *, check: bool = True) -> tuple[Batch, Tensor]:
        """The first half of a step: the source, and the loss with its gradients, which replace those that are there.

        Args:
            x, y, joined: as in a call.
            check: raise if the loss is not finite, which takes a read of it; otherwise the caller must look.

        Returns:
            What `update` takes, and what a call returns.
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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)  # the look-ahead needs their memory
        self.method.after_step(self.target, self.optimizer, batch)

    def placed(self, x: Tensor) -> Tensor:
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
            x, y = self.placed(x), y.to(self.device, non_blocking=True)
            with self._forward_passes():
                logits, _ = self._run_target(x)
                total[0] += F.cross_entropy(logits, y, reduction="sum")
            total[1] += (logits.argmax(1) == y).sum()
            total[2] += len(y)
        self.target.train()
        self.group.sum_([total])
        loss, accuracy, _ = (total / total[2]).tolist()
        return loss, accuracy

    def channel_weights(self, x: Tensor) -> list[Tensor] | None:
        """The method's channel weights for images on the device, (B, C_m) a pair of this rank; None if it has none."""
        part, sizes = self._part(len(x), len(x) if self.sharing is None else None)
        output = self._source_output(x, part, sizes, 1)
        return None if output is None else self.method.channel_weights(output)

    def autocast(self) -> torch.autocast:
        """The run's precision, for whatever is only differentiated once."""
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @contextlib.contextmanager
    def _forward_passes(self) -> Iterator[None]:
        """The run's precision, and the CPU's fast convolutions where networks are not compiled."""
        fast = contextlib.nullcontext() if self.config.compile else fast_convolutions(self.device)
        with self.autocast(), fast:
            yield

    def _part(self, images: int, joined: int | None) -> tuple[Part, list[int]]:
        """This rank's part of a batch; if sources are shared out, how many images each rank has."""
        if self.sharing is None:
            return self.group.part(images, joined), []
        sizes = self.group.each(images) if joined is None else cut(joined, self.group.size)
        return Part(self.group, images, sum(sizes), tuple(sizes) if self.sharing.own_pairs else None), sizes

    def _source_output(self, x: Tensor, part: Part, sizes: list[int], accumulation: int) -> SourceOutput | None:
        """What the sources make of a batch, None if the method does not have them run."""
        if self._run_source is None:
            return None
        return self._run_source(x) if self.sharing is None else self.sharing.run(x, part, sizes, accumulation)

    def _backward(self, batch: Batch, check: bool) -> tuple[Tensor, NotFiniteError | None]:
        """Add the gradients of a batch, or of a piece of one, to those that are there; ``check`` as in `gradients`.

        Returns:
            What a call returns, of this batch; and what to say of a loss that is not finite. A process alone raises
            that at once, before it reaches a gradient; of several, each runs the backward pass, for which the others
            wait.
        """
        with self._forward_passes():
            logits, features = self._run_target(batch.x)
            cross_entropy = batch.part.cross_entropy(logits, batch.y)
            terms = _checked_terms(self.method, self.method.loss_terms(batch, logits, features))
            terms = batch.part.shares(terms)
            loss = sum(terms.values(), start=cross_entropy)
        problem = None
        # One read of a number, which a GPU waits for: it keeps NaN out of the weights.
        if check and not math.isfinite(loss.item()):
            of = batch, self._source, self.target, logits, features, cross_entropy, terms, self.method
            part = name_non_finite(*of)
            problem = NotFiniteError(part) if part is not None else None
            if self.group.size == 1:
                raise problem
        self.scaler.scale(loss).backward()
        correct = (logits.detach().argmax(1) == batch.y).sum()
        return torch.stack([cross_entropy.detach(), loss.detach(), correct.to(loss.dtype)]), problem

    def _blame(self, own: NotFiniteError | None, x: Tensor) -> L2TFastError:
        """What this rank raises if the joined loss is not finite: the rank that is nearest to the cause says so."""
        distance = 2 if own is None else int(bool(torch.isfinite(x).all()))
        nearest = min(self.group.each(distance))
        if own is not None and distance == nearest:
            return own
        if nearest == 2 and self.group.leads:  # what no rank sees in its own images and parameters
            return NotFiniteError("the sum of the ranks' losses is not finite")
        return PeerError("the loss of another rank is not finite")

    def _join_gradients(self, loss: Tensor) -> Tensor:
        """Sum the gradients and the loss over the ranks, in one reduction; returns the joined loss."""
        joined_loss = loss.detach().clone()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.sharing is None or not self.sharing.own_pairs:
            self.group.sum_([*(p.grad for p in parameters if p.grad is not None), joined_loss])
            return joined_loss
        # Projections have one rank each. Where the gradient of one overflows in float16, all ranks must leave the step
        # out: 0 times it, which is NaN then, goes into a gradient that all share.
        shared = [p.grad for p in self.target.parameters() if p.grad is not None]
        if self.scaler.is_enabled():
            own = [p.grad for p in self.method.trained_parameters() if p.grad is not None]
            shared[0].add_(sum(((g * 0).sum() for g in own), start=torch.zeros_like(joined_loss)))
        self.group.sum_([*shared, joined_loss])
        return joined_loss


def _check_trained(target: nn.Module, method: Method) -> None:
    """Raise L2TFastError for an optimizer of the method that is called as the target's is, or parameters without one.

    What is on the "meta" device belongs to other ranks.
    """
    optimizers = method.optimizers()
    if "optimizer" in optimizers:
        raise L2TFastError(
            f"an optimizer of the method {method.name} is called 'optimizer', as the target's is in checkpoints: give "
            "it another name in optimizers()"
        )
    trained = {id(p) for p in [*target.parameters(), *method.trained_parameters()]}
    trained |= {id(p) for item in optimizers.values() for group in item.param_groups for p in group["params"]}
    left = [n for n, p in method.named_parameters() if p.requires_grad and not p.is_meta and id(p) not in trained]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise L2TFastError(
            f"nothing trains the parameter {left[0]}{more} of the method {method.name}: return it in "
            "trained_parameters(), give it to an optimizer in optimizers(), or set requires_grad_(False)"
        )


def _checked_terms(method: Method, terms: object) -> Mapping[str, Tensor]:
    """What `Method.loss_terms` has returned, if it is numbers by name."""
    wanted = f"loss_terms of the method {method.name} must return scalars by name, such as {{'a loss': tensor}}"
    if not isinstance(terms, Mapping):
        raise L2TFastError(f"{wanted}, not a {type(terms).__name__}")
    for name, term in terms.items():
        if not isinstance(term, Tensor | float | int) or (isinstance(term, Tensor) and term.dim()):
            of = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise L2TFastError(f"{wanted}, and its {name!r} is {of}")
    return terms
