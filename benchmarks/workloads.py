"""The workloads that every benchmark runs: sizes of feature maps, and tensors of those sizes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Map = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Workload:
    """Feature maps and pairs of one training batch; the pairs are all-to-all."""

    name: str
    batch: int
    sources: tuple[Map, ...]
    targets: tuple[Map, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(m, n) for m in range(len(self.sources)) for n in range(len(self.targets))]

    def tensors(self, seed: int = 0) -> "Tensors":
        """Random features (after a ReLU, as the networks' are), projections and weights.

        All but the source features want a gradient.
        """
        generator = torch.Generator().manual_seed(seed)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def maps(sizes: tuple[Map, ...]) -> list[Tensor]:
            return [
                torch.randn(self.batch, *size, generator=generator)
                .relu()
                .to(self.dtype)
                .contiguous(memory_format=layout)
                for size in sizes
            ]

        sources, targets = maps(self.sources), maps(self.targets)
        projections, channel_weights, pair_weights = [], [], []
        for m, n in self.pairs:
            rows, columns = self.sources[m][0], self.targets[n][0]
            weight = torch.randn(rows, columns, generator=generator) / columns**0.5
            projections.append((weight, 0.1 * torch.randn(rows, generator=generator)))
            channel_weights.append(torch.randn(self.batch, rows, generator=generator).softmax(dim=1))
            pair_weights.append(torch.rand(self.batch, 1, generator=generator) * 2)
        tensors = Tensors(sources, targets, projections, self.pairs, channel_weights, pair_weights)
        for tensor in tensors.inputs():
            tensor.requires_grad_()
        return tensors


@dataclass(frozen=True)
class Tensors:
    """The arguments of ``l2t_fast.feature_matching_loss``."""

    source_features: list[Tensor]
    target_features: list[Tensor]
    projections: list[tuple[Tensor, Tensor]]
    pairs: list[tuple[int, int]]
    channel_weights: list[Tensor]
    pair_weights: list[Tensor]

    def inputs(self) -> list[Tensor]:
        """What the loss is differentiated by: target features, projections, channel weights, pair weights."""
        parameters = [tensor for projection in self.projections for tensor in projection]
        return [*self.target_features, *parameters, *self.channel_weights, *self.pair_weights]


_IMAGENET_MAPS = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))

_CIFAR = Workload(
    # ResNet-32 on TinyImageNet at 32 px to VGG9-BN, the paper's small set-up: 15 pairs
    name="cifar",
    batch=128,
    sources=((16, 32, 32), (32, 16, 16), (64, 8, 8)),
    targets=((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)),
)
# ResNet-34 to ResNet-18 at 224 px, the paper's large set-up: 16 pairs. Batch 64 on a GPU, 16 on a CPU.
_IMAGENET = Workload(name="imagenet", batch=16, sources=_IMAGENET_MAPS, targets=_IMAGENET_MAPS)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _CIFAR,
        _IMAGENET,
        replace(_CIFAR, name="cifar_channels_last", channels_last=True),
        replace(_IMAGENET, name="imagenet_channels_last", channels_last=True),
        replace(_CIFAR, name="cifar_bfloat16", dtype=torch.bfloat16),
        replace(_IMAGENET, name="imagenet_bfloat16", dtype=torch.bfloat16),
        # one pair, as in plain feature matching of the last maps
        replace(_CIFAR, name="cifar_single", sources=((64, 8, 8),), targets=((512, 2, 2),)),
        replace(_IMAGENET, name="imagenet_single", sources=((512, 7, 7),), targets=((512, 7, 7),)),
    )
}
