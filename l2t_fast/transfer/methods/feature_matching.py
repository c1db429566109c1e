"""Plain feature matching (FM): all channels and all pairs count alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2t_fast import FeatureMatching, feature_matching_loss
from l2t_fast.distributed.no_pairs import NoPairs
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.registry import register_method
from l2t_fast.transfer.source import SourceOutput
from l2t_fast.transfer.source_sharing import OwnPairs


@register_method
class FeatureMatchingMethod(Method):
    """cross-entropy + beta * sum over pairs of the mean squared difference of projected and source maps.

    FitNets (Romero et al., ICLR 2015) with 1x1 projections; the baseline that the paper calls FM.
    """

    name = "fm"
    shares_pairs = True
    loss_weights = ("beta",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert setup.source is not None
        self.beta = setup.options.beta
        self.source_layers = setup.source.feature_names
        self.target_layers = list(setup.target.feature_names)
        self.matching = FeatureMatching(
            setup.source.feature_channels,
            list(setup.target.feature_channels),
            setup.pairs,
            backend=setup.options.backend,
        )

        self.own_pairs: OwnPairs | None = None
        # Not registered: the layers are those of `matching`, or none.
        self._own: dict[str, nn.Module] = {}

    @property
    def own_matching(self) -> FeatureMatching | NoPairs:
        """The pairs that this process looks at: all, but where ranks have pairs of their own."""
        return self._own.get("matching", self.matching)

    def keep_pairs(self, own: OwnPairs) -> None:
        self.own_pairs = own
        self._own["matching"] = self.matching.some_pairs(own.chosen, own.source_maps) if own.chosen else NoPairs()
        forget_other_pairs(self.matching, own)

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.own_matching.parameters())

    def weights(self, source_features: Sequence[Tensor]) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """Channel weights and pair weights of the loss for a batch, without gradients; None where they are constant."""
        return None, None

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        assert batch.source is not None
        features = batch.part.gathered(features)
        return self.matching_term(batch.source, features, *self.weights(batch.source.features))

    def matching_term(
        self,
        source: SourceOutput,
        features: Sequence[Tensor],
        channel_weights: Sequence[Tensor] | None,
        pair_weights: Sequence[Tensor] | None,
    ) -> dict[str, Tensor]:
        """beta times the matching loss under the given weights, as a loss term."""
        loss = self.own_matching(source.features, features, channel_weights, self.beta, pair_weights)
        return {"matching loss": loss}

    @torch.no_grad()
    def non_finite_part(self, batch: Batch, features: Sequence[Tensor]) -> str | None:
        assert batch.source is not None
        # Where the source's maps are of all ranks' images, this rank's among them: the target's maps of others are not
        # at hand, and those ranks look at them.
        source_features = [f[batch.part.own_rows] for f in batch.source.features]
        channel_weights, pair_weights = self.weights(source_features)
        chosen = range(len(self.matching)) if self.own_pairs is None else self.own_pairs.chosen
        for p, (m, n), i in zip(range(len(chosen)), self.own_matching.pairs, chosen, strict=True):
            projection = self.matching[i]
            loss = feature_matching_loss(
                [source_features[m]],
                [features[n]],
                [(projection.weight, projection.bias)],
                [(0, 0)],
                None if channel_weights is None else [channel_weights[p]],
                None if pair_weights is None else [pair_weights[p]],
                backend="reference",
            )
            if not torch.isfinite(loss):
                m, n = self.matching.pairs[i]
                return f"the matching loss of pair {self.source_layers[m]}->{self.target_layers[n]}"
        return None


def forget_other_pairs(layers: nn.ModuleList, own: OwnPairs) -> None:
    """Let go of the memory of the layers, one a pair, of other ranks' pairs."""
    chosen = set(own.chosen)
    for p, layer in enumerate(layers):
        if p not in chosen:
            layer.to("meta")
