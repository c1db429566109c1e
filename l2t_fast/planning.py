"""``plan``: which algorithm the CPU kernels take for each target layer, and what it costs."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l2t_fast import _native
from l2t_fast.checks import UNORDERED, check_tensor, checked_pairs, features_side

Work = Literal["gradient", "hessian_vector"]

_ADDRESSABLE = 2**47  # bytes: no memory is larger, and the planner's sums of products stay within an int64


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
        ValueError: a shape that is not (B, C, H, W), has no channels or no pixels, or is too large for any memory,
            different batch sizes, no pair, an index out of range, an unknown ``work`` or ``dtype``.
        TypeError: no list, what is neither a tensor nor a shape, or a pair that is not two integers.
        RuntimeError: this installation has no native code.
    """
    if _native.extension is None:
        raise RuntimeError(f"there is nothing to plan: {_native.why_unavailable()}")
    if work not in ("gradient", "hessian_vector"):
        raise ValueError(f'work must be "gradient" or "hessian_vector", not {work!r}')
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, not {dtype}")
    sources = _shapes("source_features", source_features, dtype)
    targets = _shapes("target_features", target_features, dtype)
    batches = {shape[0] for shape in sources + targets}
    if len(batches) > 1:
        raise ValueError(f"all feature maps must have one batch size, not {sorted(batches)}")
    pairs = checked_pairs(pairs, features_side("source", len(sources)), features_side("target", len(targets)))
    for p, (m, n) in enumerate(pairs):
        _check_size(f"pairs[{p}] = ({m}, {n}): a projection's weight", (sources[m][1], targets[n][1]), dtype)
    layers = _native.extension.plan(sources, targets, pairs, dtype.itemsize, work == "hessian_vector")
    return Plan(tuple(LayerPlan(**{**layer, "pairs": tuple(layer["pairs"])}) for layer in layers))


def _shapes(name: str, features: Sequence[Tensor | Sequence[int]], dtype: torch.dtype) -> list[tuple[int, ...]]:
    if not isinstance(features, Iterable) or isinstance(features, UNORDERED):
        raise TypeError(f"{name} must be a list of tensors or shapes (B, C, H, W), not {type(features).__name__}")
    return [_shape(f"{name}[{i}]", feature, dtype) for i, feature in enumerate(features)]


def _shape(name: str, feature: Tensor | Sequence[int], dtype: torch.dtype) -> tuple[int, ...]:
    if isinstance(feature, Tensor):
        check_tensor(name, feature, "a tensor (B, C, H, W)")
        feature = feature.shape
    try:
        if isinstance(feature, (str, bytes, *UNORDERED)):  # bytes are integers, a set has an order of its own
            raise TypeError
        shape = tuple(operator.index(size) for size in feature)
    except TypeError:
        raise TypeError(f"{name} must be a tensor or four integers (B, C, H, W), not {feature!r}") from None
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"{name} must be of shape (B, C, H, W), not {shape}")
    if 0 in shape[1:]:
        raise ValueError(f"{name} has shape {shape}: it has no channels or no pixels")
    _check_size(name, shape, dtype)
    return shape


def _check_size(name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    # Sizes beside an empty batch are multiplied too.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > _ADDRESSABLE:
        raise ValueError(f"{name} of shape {shape} is larger than any memory, 2^47 bytes")
