"""Workloads of the matching loss: sizes of feature maps and pairs by name, and tensors of those sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2t_fast.errors import L2TFastError
from l2t_fast.yaml_files import read_yaml

#: Channels, height, width.
Map = tuple[int, int, int]
Pair = tuple[int, int]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Name in rows -> whether channels are the innermost dimension.
LAYOUTS: dict[str, bool] = {"NCHW": False, "channels_last": True}


@dataclass(frozen=True)
class Workload:
    """Feature maps and pairs of one training batch.

    Attributes:
        cpu_batch, gpu_batch: batch size on either kind of device, unless another is asked for
        pairs: (source index, target index) each
    """

    name: str
    cpu_batch: int
    gpu_batch: int
    sources: tuple[Map, ...]
    targets: tuple[Map, ...]
    pairs: tuple[Pair, ...]

    def case(
        self, device: torch.device, *, batch: int | None = None, dtype: str = "float32", layout: str = "NCHW"
    ) -> Case:
        """The workload at one batch size, dtype and layout."""
        own = self.gpu_batch if device.type == "cuda" else self.cpu_batch
        return Case(self, own if batch is None else batch, dtype, layout)


@dataclass(frozen=True)
class Case:
    """What one alternating run measures."""

    workload: Workload
    batch: int
    dtype: str
    layout: str

    def tensors(self, device: torch.device, seed: int = 0) -> Tensors:
        """Random features (after a ReLU, as the networks' are), projections and weights.

        All but the source features want a gradient. Only the features have ``dtype``; parameters and weights are
        float32, as in training.
        """
        generator = torch.Generator().manual_seed(seed)
        layout = torch.channels_last if LAYOUTS[self.layout] else torch.contiguous_format

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        def maps(sizes: Sequence[Map]) -> list[Tensor]:
            made = (normal(self.batch, *size).relu().to(DTYPES[self.dtype]) for size in sizes)
            return [t.to(device).contiguous(memory_format=layout) for t in made]

        sources, targets = maps(self.workload.sources), maps(self.workload.targets)
        projections, channel_weights, pair_weights = [], [], []
        for m, n in self.workload.pairs:
            rows, columns = self.workload.sources[m][0], self.workload.targets[n][0]
            weight, bias = normal(rows, columns) / columns**0.5, 0.1 * normal(rows)
            projections.append((weight.to(device), bias.to(device)))
            channel_weights.append(normal(self.batch, rows).softmax(dim=1).to(device))
            pair_weights.append((2 * torch.rand(self.batch, 1, generator=generator)).to(device))
        tensors = Tensors(sources, targets, projections, list(self.workload.pairs), channel_weights, pair_weights)
        for tensor in tensors.inputs():
            tensor.requires_grad_()
        return tensors


@dataclass(frozen=True)
class Tensors:
    """The arguments of :func:`l2t_fast.feature_matching_loss`."""

    source_features: list[Tensor]
    target_features: list[Tensor]
    projections: list[tuple[Tensor, Tensor]]
    pairs: list[Pair]
    channel_weights: list[Tensor]
    pair_weights: list[Tensor]

    def inputs(self) -> list[Tensor]:
        """What the loss is differentiated by: target features, projections, channel weights, pair weights."""
        parameters = [tensor for projection in self.projections for tensor in projection]
        return [*self.target_features, *parameters, *self.channel_weights, *self.pair_weights]


def _all_to_all(name: str, cpu_batch: int, gpu_batch: int, sources: Sequence[Map], targets: Sequence[Map]) -> Workload:
    pairs = tuple((m, n) for m in range(len(sources)) for n in range(len(targets)))
    return Workload(name, cpu_batch, gpu_batch, tuple(sources), tuple(targets), pairs)


_RESNET_224 = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
_RESNET_448 = ((64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14))
_VGG9_32 = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2))

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        # ResNet-32 on TinyImageNet to VGG9-BN at 32 px, the paper's small set-up: 15 pairs
        _all_to_all("cifar", 128, 128, ((16, 32, 32), (32, 16, 16), (64, 8, 8)), _VGG9_32),
        # ResNet-34 to ResNet-18 at 224 px, the paper's large set-up: 16 pairs
        _all_to_all("imagenet", 16, 64, _RESNET_224, _RESNET_224),
        # 8 sources, 4 maps each, to the 4 stages of a ResNet-18
        _all_to_all("multi_source_128", 4, 32, _RESNET_224 * 8, _RESNET_224),
        # 32 sources, 4 maps each, to the 8 blocks of a ResNet-18
        _all_to_all(
            "multi_source_1024", 1, 32, _RESNET_224 * 32, tuple(size for size in _RESNET_224 for _ in range(2))
        ),
        # a target that sees images of 448 px, sources at 224 px: target maps of 112x112 and below
        _all_to_all("high_resolution", 4, 16, _RESNET_224, _RESNET_448),
        # bound by launches and Python, not by arithmetic
        _all_to_all("tiny", 8, 8, ((16, 8, 8), (32, 4, 4)), ((32, 8, 8), (64, 4, 4))),
        # one pair of last maps, as in plain feature matching
        _all_to_all("single", 16, 64, _RESNET_224[-1:], _RESNET_224[-1:]),
    )
}


def resized(workload: Workload, axis: str, size: int) -> Workload:
    """The workload with as many pairs as ``size``, or with its largest target map ``size`` pixels high.

    More pairs come from more source networks, each with all maps of the workload's own sources. Other maps are scaled
    with the largest, and are 1 pixel high at least.

    Raises:
        L2TFastError: a number of pairs that is no multiple of the workload's own, a size below 1.
    """
    if size < 1:
        raise L2TFastError(f"a sweep over {axis} needs sizes of 1 or more, not {size}")
    if axis == "pairs":
        copies, remainder = divmod(size, len(workload.pairs))
        if remainder or not copies:
            raise L2TFastError(
                f"{workload.name} has {len(workload.pairs)} pairs a source network, so {size} pairs are not possible, "
                f"use multiples of {len(workload.pairs)}"
            )
        count = len(workload.sources)
        pairs = tuple((m + copy * count, n) for copy in range(copies) for m, n in workload.pairs)
        return dataclasses.replace(workload, sources=workload.sources * copies, pairs=pairs)
    if axis == "resolution":
        largest = max(height for _, height, _ in workload.targets)

        def scaled(maps: Sequence[Map]) -> tuple[Map, ...]:
            return tuple((c, max(1, round(h * size / largest)), max(1, round(w * size / largest))) for c, h, w in maps)

        return dataclasses.replace(workload, sources=scaled(workload.sources), targets=scaled(workload.targets))
    raise ValueError(f"axis={axis!r} does not resize a workload, only pairs and resolution do")


_KEYS = ("name", "batch", "sources", "targets", "pairs")


def read_shapes(path: Path) -> list[Workload]:
    """Workloads of a user's own, from a YAML or JSON file that holds one of them or a list.

    Each has ``sources`` and ``targets``, lists of [channels, height, width]; ``batch``, ``name`` and ``pairs``, a list
    of [source index, target index], may be left out (16, the file's name, all-to-all).

    Raises:
        L2TFastError: what is wrong, and where in the file.
    """
    try:
        content = read_yaml(path)
    except L2TFastError as error:
        raise L2TFastError(f"--shapes {error}") from error
    entries = content if isinstance(content, list) else [content]
    if not entries:
        raise L2TFastError(f"--shapes {path} is empty, it needs sources and targets")
    workloads = [_workload(path, i, entry, len(entries)) for i, entry in enumerate(entries)]
    names = [workload.name for workload in workloads]
    for name in names:
        if names.count(name) > 1 or name in WORKLOADS:
            raise L2TFastError(f"--shapes {path}: the name {name!r} is taken, choose another")
    return workloads


def _workload(path: Path, index: int, entry: Any, count: int) -> Workload:
    where = f"--shapes {path}" + f", workload {index}" * (count > 1)
    if not isinstance(entry, dict):
        raise L2TFastError(f"{where} must hold the keys sources and targets, not {entry!r}")
    for key in entry:
        if key not in _KEYS:
            raise L2TFastError(f"{where}: unknown key {key!r}, known are {', '.join(_KEYS)}")
    sources, targets = (_maps(f"{where}: {key}", entry.get(key)) for key in ("sources", "targets"))
    batch = entry.get("batch", 16)
    if not _is_count(batch):
        raise L2TFastError(f"{where}: batch is {batch!r}, it must be an integer of 1 or more")
    name = str(entry.get("name", path.stem + f"_{index}" * (count > 1)))
    workload = _all_to_all(name, batch, batch, sources, targets)
    if "pairs" not in entry:
        return workload
    return dataclasses.replace(workload, pairs=_pairs(where, entry["pairs"], len(sources), len(targets)))


def _maps(where: str, value: Any) -> tuple[Map, ...]:
    if not isinstance(value, list) or not value:
        raise L2TFastError(f"{where} must be a list of [channels, height, width], not {value!r}")
    for size in value:
        if not isinstance(size, list) or len(size) != 3 or not all(map(_is_count, size)):
            raise L2TFastError(f"{where}: {size!r} is no map, write [channels, height, width], each 1 or more")
    return tuple(tuple(size) for size in value)


def _pairs(where: str, value: Any, sources: int, targets: int) -> tuple[Pair, ...]:
    if not isinstance(value, list) or not value:
        raise L2TFastError(f"{where}: pairs must be a list of [source index, target index], not {value!r}")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(index) is int for index in pair):
            raise L2TFastError(f"{where}: pairs holds {pair!r}, write [source index, target index]")
        if not (0 <= pair[0] < sources and 0 <= pair[1] < targets):
            raise L2TFastError(
                f"{where}: the pair {pair} is out of range for {sources} source and {targets} target maps"
            )
    return tuple(tuple(pair) for pair in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1
