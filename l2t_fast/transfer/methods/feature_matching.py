"""Plain feature matching (FM): all channels and all pairs count alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2t_fast import FeatureMatching, feature_matching_loss
from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.source import SourceOutput


class FeatureMatchingMethod(Method):
    """cross-entropy + beta * sum over pairs of the mean squared difference of projected and source maps.

    FitNets (Romero et al., ICLR 2015) with 1x1 projections; the baseline that the paper calls FM.
    """

    name = "fm"

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

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.matching.parameters())

    def weights(self, source_features: Sequence[Tensor]) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """Channel weights and pair weights of the loss for a batch, without gradients; None where they are constant."""
        return None, None

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        assert batch.source is not None
        return self.matching_term(batch.source, features, *self.weights(batch.source.features))

    def matching_term(
        self,
        source: SourceOutput,
        features: Sequence[Tensor],
        channel_weights: Sequence[Tensor] | None,
        pair_weights: Sequence[Tensor] | None,
    ) -> dict[str, Tensor]:
        """beta times the matching loss under the given weights, as a loss term."""
        loss = self.matching(source.features, features, channel_weights, self.beta, pair_weights)
        return {"matching loss": loss}

    @torch.no_grad()
    def non_finite_part(self, batch: Batch, features: Sequence[Tensor]) -> str | None:
        assert batch.source is not None
        channel_weights, pair_weights = self.weights(batch.source.features)
        for p, (m, n) in enumerate(self.matching.pairs):
            projection = self.matching[p]
            loss = feature_matching_loss(
                [batch.source.features[m]],
                [features[n]],
                [(projection.weight, projection.bias)],
                [(0, 0)],
                None if channel_weights is None else [channel_weights[p]],
                None if pair_weights is None else [pair_weights[p]],
                backend="reference",
            )
            if not torch.isfinite(loss):
                return f"the matching loss of pair {self.source_layers[m]}->{self.target_layers[n]}"
        return None
