"""The frozen network that is learned from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2t_fast.config import SourceConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model, load_weights


class SourceOutput(NamedTuple):
    """One forward pass of the source.

    Attributes:
        logits: one a source network, (B, its classes)
        features: its feature maps, (B, C_m, H_m, W_m) each
    """

    logits: Sequence[Tensor]
    features: Sequence[Tensor]


class FrozenSource(nn.Module):
    """A pretrained network in eval mode, without gradients, that stays so when its parent trains.

    It sees the target's normalised images. Once a batch is enough, since it never changes.

    Args:
        network: gives (logits, maps), see `l2t_fast.models.NamedMapsNetwork`.
        num_classes: of its logits.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_classes = [num_classes]
        self.feature_names: list[str] = list(network.feature_names)
        self.feature_channels: list[int] = list(network.feature_channels)

    def train(self, mode: bool = True) -> "FrozenSource":
        """Stay in eval mode: the source's BatchNorm statistics are part of what was pretrained."""
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> SourceOutput:
        """Run images (B, channels, H, W), float32."""
        logits, features = self.network(x)
        return SourceOutput([logits], features)

    @property
    def networks(self) -> list[nn.Module]:
        """The network, in a list."""
        return [self.network]


def load_source(config: SourceConfig, in_channels: int) -> FrozenSource:
    """The source with its checkpoint's weights.

    Raises:
        L2TFastError: no checkpoint named, none there, or one of another network.
    """
    if config.checkpoint is None:
        raise L2TFastError(
            "source.checkpoint is not set: name the file with the weights of "
            f"{config.model}, or set pretrain.data and pretrain.epochs to make a source"
        )
    network = build_model(config.model, config.num_classes, in_channels=in_channels, layers=config.layers)
    load_weights(network, Path(config.checkpoint))
    return FrozenSource(network, config.num_classes)
