"""The interface that every transfer method fills in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2t_fast.config import TransferOptions
from l2t_fast.distributed.group import ALONE, WHOLE, Group, Part, pieces
from l2t_fast.transfer.source import FrozenSources, SourceOutput
from l2t_fast.transfer.source_sharing import OwnPairs


@dataclass(frozen=True)
class Setup:
    """What a method may be built from.

    Attributes:
        options: the run's configuration
        source: the frozen networks, or None if the method has ``needs_source = False``; if it runs them and several
            ranks may share them out, they have no weights yet
        target: the network to train
        pairs: per pair (source index, target index); empty without a source
        num_classes: of the target's task
        group: the ranks that train together
    """

    options: TransferOptions
    source: FrozenSources | None
    target: nn.Module
    pairs: Sequence[tuple[int, int]]
    num_classes: int
    group: Group = ALONE


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        x: images (B, channels, H, W), float32, normalised
        y: labels (B,), int64
        source: the frozen networks' outputs for x, or None if the method does not have the sources run; where each rank
            has pairs of its own, those of this rank's networks for the images of all ranks
        part: which part of the joined batch they are, where several ranks train together
    """

    x: Tensor
    y: Tensor
    source: SourceOutput | None
    part: Part = WHOLE

    def pieces(self, number: int) -> list["Batch"]:
        """The batch in `number` pieces of about as many images, see `l2t_fast.distributed.group.pieces`."""
        if number == 1:
            return [self]
        logits, features = self.source or ((), ())
        found = []
        for part, (x, y), outputs in pieces(self.part, number, [self.x, self.y], [*logits, *features]):
            source = SourceOutput(outputs[: len(logits)], outputs[len(logits) :])
            found.append(Batch(x, y, source if self.source is not None else None, part))
        return found


class Method(nn.Module):
    """What a method adds to plain training of the target: loss terms, networks of its own, a step of its own.

    Everything it owns is registered as a submodule or parameter, so that a checkpoint holds it. Subclasses set the
    class attributes and override what they need; the defaults are those of training from scratch.

    Attributes:
        name: what the user calls it
        needs_source: whether there must be a pretrained source
        runs_source: whether it runs for each batch
        default_pairs: matching scheme when the user names none; None if the method matches no feature maps
        shares_pairs: whether each of several ranks can have pairs of its own, see `keep_pairs`
        loss_weights: the configuration's keys that its loss terms are weighted with
        own_options: other keys that only this method and its like read
        notes: sentences for the run's log.txt
    """

    name: ClassVar[str]
    needs_source: ClassVar[bool] = True
    runs_source: ClassVar[bool] = True
    default_pairs: ClassVar[str | None] = "one-to-one"
    shares_pairs: ClassVar[bool] = False
    loss_weights: ClassVar[Sequence[str]] = ()
    own_options: ClassVar[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def keep_pairs(self, own: OwnPairs) -> None:
        """From now on this rank has only some of the pairs, or none; called once, before anything is trained.

        Loss terms are then over the pairs and the images in ``batch.source``, with ``batch.part.gathered(features)``,
        and `trained_parameters` and `optimizers` have no others. Names in `state_dict` stay, and what belongs to other
        ranks' pairs goes to the "meta" device. Only for methods that have ``shares_pairs``.
        """
        raise NotImplementedError(f"the pairs of {self.name} cannot be shared out over ranks")

    def trained_parameters(self) -> list[nn.Parameter]:
        """Own parameters that the target's SGD trains together with the target."""
        return []

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Own optimizers by name, for checkpoints; each makes a step in every epoch."""
        return {}

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scalars that are added to the cross-entropy as they are, by name.

        `logits` (B, classes) and `features` (B, C_n, H_n, W_n each) are the target's, with gradients. Each term is a
        mean over the images, or does not depend on them: the trainer weights it by the rank's share of the batch.
        """
        return {}

    def after_step(self, target: nn.Module, optimizer: torch.optim.SGD, batch: Batch) -> None:
        """Called after each SGD step, with the same batch."""

    def start_epoch(self) -> None:
        """Called before each epoch."""

    def pair_weights(self) -> list[tuple[float, float]] | None:
        """Per pair mean and standard deviation of lambda over the images since `start_epoch`; None if not learned."""
        return None

    def channel_weights(self, source: SourceOutput) -> list[Tensor] | None:
        """Per pair the channel weights (B, C_m) for a batch; None if not learned."""
        return None

    def non_finite_part(self, batch: Batch, features: Sequence[Tensor]) -> str | None:
        """Where a loss term turned NaN or infinite though all features are finite, in words; None if unknown."""
        return None
