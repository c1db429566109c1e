"""The benchmark's workloads without values, for what depends on sizes alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from l2t_fast.bench.workloads import WORKLOADS


class EmptyTensors(NamedTuple):
    """An operator's arguments, but for pairs and needs."""

    sources: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    alpha: Tensor

    @property
    def slots(self) -> list[Tensor]:
        """What has a derivative, in the operators' order."""
        return [*self.targets, *self.weights, *self.biases, self.alpha]


def empty_tensors(name: str, device: str) -> EmptyTensors:
    """At the GPU's batch size."""
    workload = WORKLOADS[name]
    batch = workload.gpu_batch

    def empty(*size: int) -> Tensor:
        return torch.empty(*size, device=device)

    sources = [empty(batch, *size) for size in workload.sources]
    targets = [empty(batch, *size) for size in workload.targets]
    weights = [empty(workload.sources[m][0], workload.targets[n][0]) for m, n in workload.pairs]
    biases = [empty(len(weight)) for weight in weights]
    return EmptyTensors(sources, targets, weights, biases, empty(batch, sum(map(len, weights))))
