"""Attention transfer (AT): the target looks where the source looks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from l2t_fast.transfer.methods.base import Batch, Method, Setup
from l2t_fast.transfer.methods.registry import register_method


@register_method
class AttentionTransfer(Method):
    """cross-entropy + at_weight * sum over pairs of the mean squared difference of attention maps.

    Zagoruyko and Komodakis (ICLR 2017), activation-based, p = 2: the attention map of a feature map is the sum of its
    squared channels, divided by its norm over the pixels. The paper's beta, 1000 over the number of pixels and images,
    is at_weight = 1000 times the mean. There is nothing to learn but the target: no projections. The source's map is
    resized to the target's as for feature matching (bilinear), before it is normalised.
    """

    name = "at"
    loss_weights = ("at_weight",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert setup.source is not None
        self.weight = setup.options.at_weight
        self.pairs = list(setup.pairs)
        self.source_layers = setup.source.feature_names
        self.target_layers = list(setup.target.feature_names)

    def loss_terms(self, batch: Batch, logits: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        assert batch.source is not None
        losses = [attention_loss(batch.source.features[m], features[n]) for m, n in self.pairs]
        return {"attention loss": self.weight * sum(losses)}

    @torch.no_grad()
    def non_finite_part(self, batch: Batch, features: Sequence[Tensor]) -> str | None:
        assert batch.source is not None
        for m, n in self.pairs:
            if not torch.isfinite(attention_loss(batch.source.features[m], features[n])):
                return f"the attention loss of pair {self.source_layers[m]}->{self.target_layers[n]}"
        return None


def attention_loss(source_feature: Tensor, target_feature: Tensor) -> Tensor:
    """Mean over images and pixels of the squared difference of normalised attention maps, at least in float32.

    Args:
        source_feature: (B, C_m, H_m, W_m).
        target_feature: (B, C_n, H_n, W_n), any other channels and size.
    """
    size = target_feature.shape[2:]
    wanted = _energy(source_feature)
    if wanted.shape[2:] != size:
        wanted = F.interpolate(wanted, size, mode="bilinear", align_corners=False)
    given = _energy(target_feature)
    return F.mse_loss(F.normalize(given.flatten(1)), F.normalize(wanted.flatten(1)))


def _energy(feature: Tensor) -> Tensor:
    """Mean of the squared channels, (B, 1, H, W). In float16, squares from 256 on would be infinite."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32)).square().mean(1, keepdim=True)
