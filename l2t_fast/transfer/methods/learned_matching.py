"""What L2T-w and L2T-ww share: weight networks that are trained by the hypergradient."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2t_fast import MetaNetworks
from l2t_fast.bilevel import hypergradient
from l2t_fast.distributed.no_pairs import NoWeights
from l2t_fast.transfer.methods.base import Batch, Setup
from l2t_fast.transfer.methods.feature_matching import FeatureMatchingMethod, forget_other_pairs
from l2t_fast.transfer.source import SourceOutput
from l2t_fast.transfer.source_sharing import OwnPairs


class LearnedMatching(FeatureMatchingMethod):
    """Feature matching whose weights phi are learned so that matching lowers the target's cross-entropy.

    After each real step: T look-ahead steps on beta times the matching loss and one on the cross-entropy, not kept; the
    gradient of the cross-entropy at the end point with respect to phi; an Adam step on phi (paper, section 2 and
    algorithm 1). All with the batch of the real step.

    Args:
        setup: as for every method.
        pair_weights: learn *where* to transfer too, not only *what*.
    """

    default_pairs = "all-to-all"
    own_options = ("lookahead_steps", "hypergradient", "keep_graphs", "meta_lr", "meta_weight_decay")

    def __init__(self, setup: Setup, *, pair_weights: bool) -> None:
        super().__init__(setup)
        assert setup.source is not None
        options = setup.options
        self.steps = options.lookahead_steps
        self.hypergradient = options.hypergradient
        self.keep_graphs = options.keep_graphs
        self.accumulation = options.accumulation
        self.capturable = options.cuda_graph
        even = options.lambda_start == "even"
        self.meta = MetaNetworks(setup.source.feature_channels, setup.pairs, pair_weights=pair_weights, even=even)
        self._adam = {
            "lr": options.meta_lr,
            "weight_decay": options.meta_weight_decay,
            "capturable": self.capturable,
        }
        self.meta_optimizer = torch.optim.Adam(self.meta.parameters(), **self._adam)
        self.group = setup.group
        self._sums: Tensor | None = None

    @property
    def own_meta(self) -> MetaNetworks | NoWeights:
        """The weight networks of `own_matching`'s pairs."""
        return self._own.get("meta", self.meta)

    def keep_pairs(self, own: OwnPairs) -> None:
        super().keep_pairs(own)
        self._own["meta"] = self.meta.some_pairs(own.chosen, own.source_maps) if own.chosen else NoWeights()
        for network in self.meta.children():
            forget_other_pairs(network, own)
        self.meta_optimizer = torch.optim.Adam(self.own_meta.parameters(), **self._adam)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"meta": self.meta_optimizer}

    @torch.no_grad()
    def weights(self, source_features: Sequence[Tensor]) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        return self.own_meta(source_features)

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        assert batch.source is not None
        channel_weights, pair_weights = self.weights(batch.source.features)
        if self.meta.loss_weight_network is not None:
            self._count(pair_weights or [], batch.x.device)
        features = batch.part.gathered(features)
        return self.matching_term(batch.source, features, channel_weights, pair_weights)

    def after_step(self, target: nn.Module, optimizer: torch.optim.SGD, batch: Batch) -> None:
        assert batch.source is not None
        gradients = hypergradient(
            target,
            self.own_matching,
            self.own_meta,
            optimizer,
            batch.source.features,
            batch.x,
            batch.y,
            steps=self.steps,
            beta=self.beta,
            method=self.hypergradient,
            keep_graphs=self.keep_graphs,
            accumulation=self.accumulation,
            capturable=self.capturable,
            part=batch.part,
        )
        for parameter, gradient in zip(self.own_meta.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.meta_optimizer.step()

    def start_epoch(self) -> None:
        if self._sums is not None:
            self._sums.zero_()

    def _count(self, pair_weights: Sequence[Tensor], device: torch.device) -> None:
        """Add a batch to the epoch's sums (3, own pairs) of 1, lambda and its square, on the device and in float64.

        In the memory that they are in, and images are counted there too: a CUDA graph of the step does the same again.
        """
        values = torch.cat(list(pair_weights) or [torch.zeros(0, 0, device=device)], dim=1).double()  # (B, pairs)
        sums = torch.stack([torch.ones_like(values).sum(0), values.sum(0), values.square().sum(0)])
        if self._sums is None:
            self._sums = torch.zeros_like(sums)
        self._sums += sums

    def pair_weights(self) -> list[tuple[float, float]] | None:
        if self._sums is None:
            return None
        sums = self._sums.clone()
        if self.own_pairs is not None:
            sums = sums.new_zeros(len(sums), len(self.matching))
            sums[:, list(self.own_pairs.chosen)] = self._sums
        self.group.sum_([sums])
        count, mean, square = sums.cpu()
        mean, square = mean / count, square / count
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return list(zip(mean.tolist(), spread.tolist(), strict=True))

    def channel_weights(self, source: SourceOutput) -> list[Tensor] | None:
        weights = self.weights(source.features)[0]
        return weights if self.own_pairs is None or self.own_pairs.chosen else []
