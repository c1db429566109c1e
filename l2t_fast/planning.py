"""``plan``: which algorithm the CPU kernels take for each target layer, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l2t_fast import _native
from l2t_fast.functional import checked_pairs, features_side

Work = Literal["gradient", "hessian_vector"]


@dataclass(frozen=True)
class LayerPlan:
    """One target layer, with all pairs that share it.

    Attributes:
        target: index of the target feature map.
        pairs: indices of its pairs.
        algorithm: "direct" computes D = W T + b - S~ in blocks of pixels that stay in the cache; "gram" computes the
            sums over pixels from T T^T and S~ T^T in double precision, which takes fewer products where pixels are
            many and channels few.
        flops: multiplications and additions, counted as two.
        bytes: that must move between memory and caches: every map in once, gradients out.
        workspace: bytes held while the layer is computed, results not counted.
    """

    target: int
    pairs: tuple[int, ...]
    algorithm: Literal["direct", "gram"]
    flops: float
    bytes: float
    workspace: int


@dataclass(frozen=True)
class Plan:
    """The layers in the order they are computed; ``str()`` makes a table. Workspace is that of the largest layer."""

    layers: tuple[LayerPlan, ...]

    @property
    def flops(self) -> float:
        return sum(layer.flops for layer in self.layers)

    @property
    def bytes(self) -> float:
        return sum(layer.bytes for layer in self.layers)

    @property
    def workspace(self) -> int:
        return max((layer.workspace for layer in self.layers), default=0)

    def __str__(self) -> str:
        lines = ["target  pairs  algorithm    GFLOP      MB in and out  MiB workspace"]
        for layer in self.layers:
            lines.append(
                f"{layer.target:>6}  {len(layer.pairs):>5}  {layer.algorithm:<9}  {layer.flops / 1e9:>7.2f}  "
                f"{layer.bytes / 1e6:>17.1f}  {layer.workspace / 2**20:>13.1f}"
            )
        return "\n".join(lines)


def plan(
    source_features: Sequence[Tensor | Sequence[int]],
    target_features: Sequence[Tensor | Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    work: Work = "gradient",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """What the CPU kernels would do for these sizes, with every gradient wanted, under ``torch.get_num_threads()``.

    Args:
        source_features, target_features: feature maps (of any device, "meta" too), or their shapes (B, C, H, W).
        pairs: per pair (source index, target index).
        work: "gradient" for the loss and its gradient, "hessian_vector" for a Hessian-vector product.
        dtype: of the feature maps; the computation is in float64 for float64, else in float32 ("gram": in float64).

    Raises:
        ValueError: a shape that is not (B, C, H, W), no pair, an index out of range, an unknown ``work`` or ``dtype``.
        TypeError: a pair that is not two integers.
        RuntimeError: this installation has no native code.
    """
    if _native.extension is None:
        raise RuntimeError(f"there is nothing to plan: {_native.why_unavailable()}")
    if work not in ("gradient", "hessian_vector"):
        raise ValueError(f'work must be "gradient" or "hessian_vector", not {work!r}')
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, not {dtype}")
    sources = [_shape("source_features", i, feature) for i, feature in enumerate(source_features)]
    targets = [_shape("target_features", i, feature) for i, feature in enumerate(target_features)]
    batches = {shape[0] for shape in sources + targets}
    if len(batches) > 1:
        raise ValueError(f"all feature maps must have one batch size, not {sorted(batches)}")
    pairs = checked_pairs(pairs, features_side("source", len(sources)), features_side("target", len(targets)))
    layers = _native.extension.plan(sources, targets, pairs, dtype.itemsize, work == "hessian_vector")
    return Plan(tuple(LayerPlan(**{**layer, "pairs": tuple(layer["pairs"])}) for layer in layers))


def _shape(name: str, index: int, feature: Tensor | Sequence[int]) -> list[int]:
    shape = [int(size) for size in (feature.shape if isinstance(feature, Tensor) else feature)]
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"{name}[{index}] must be of shape (B, C, H, W), not {tuple(shape)}")
    return shape
