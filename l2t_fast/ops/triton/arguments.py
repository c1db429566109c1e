"""What the operators are called with, and the checks of it: whatever passes here, the kernels read safely.

*Slots* are the differentiable inputs in the order all targets, one weight a pair, one bias a pair (None where the pair
has none), alpha. ``needs`` and ``directions`` have one entry a slot; results are listed for the slots in need alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a map: kernels count them in 32 bits, up to the end of a tile.
MOST_PIXELS = 2**31 - 1024


@dataclass(frozen=True)
class Arguments:
    """The problem as every operator takes it; ``pairs`` is m0, n0, m1, n1, ..."""

    sources: Sequence[Tensor]
    targets: Sequence[Tensor]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    alpha: Tensor
    pairs: Sequence[int]
    needs: Sequence[bool]

    @property
    def slots(self) -> list[Tensor | None]:
        return [*self.targets, *self.weights, *self.biases, self.alpha]

    @property
    def slot_count(self) -> int:
        return len(self.targets) + 2 * len(self.weights) + 1


def in_memory(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A list of optional tensors with their numbers in memory; elsewhere PyTorch sees to that itself.

    Left to do are tensors whose sign PyTorch changes when it reads them, and those that are zero without memory.
    """
    return [None if t is None else torch.zeros_like(t) if t._is_zerotensor() else t.resolve_neg() for t in tensors]


def needed(slots: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that there are, in their order."""
    return [tensor for tensor in slots if tensor is not None]


def scale_in_place(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Times a scalar, as csrc/ops/arguments.cpp has it: one launch for all of its type, one each for the others."""
    alike = [tensor for tensor in tensors if tensor.dtype == factor.dtype]
    if alike:
        torch._foreach_mul_(alike, factor)
    for tensor in tensors:
        if tensor.dtype != factor.dtype:
            tensor.mul_(_beside(tensor, factor))


def scaled(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """The same in memory of its own."""
    alike = [tensor for tensor in tensors if tensor.dtype == factor.dtype]
    products = iter(torch._foreach_mul(alike, factor) if alike else ())
    return [
        next(products) if t.dtype == factor.dtype else torch.mul(t, _beside(t, factor), out=torch.empty_like(t))
        for t in tensors
    ]


def _beside(tensor: Tensor, factor: Tensor) -> Tensor:
    """A scalar as a factor of ``tensor``: 16 bits would round one without dimensions, on a GPU."""
    return factor.reshape([1] * tensor.dim())


def empty_results(arguments: Arguments) -> list[Tensor | None]:
    """Memory for the results, one a slot; None where there is no need.

    Dense, channels_last where a map is laid out so and contiguous otherwise; in the input's type, but float32 for
    float16. Serves tensors without data too, symbolic sizes included.
    """
    if len(arguments.needs) != arguments.slot_count:
        raise ValueError(f"got {len(arguments.needs)} needs; {arguments.slot_count} are needed")
    results: list[Tensor | None] = []
    for slot, (need, tensor) in enumerate(zip(arguments.needs, arguments.slots, strict=True)):
        if need and tensor is None:
            raise ValueError(f"need {slot} asks for the gradient of a bias that is None")
        results.append(_empty_like(tensor, slot < len(arguments.targets)) if need else None)
    return results


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a result for an input of ``dtype``: see gradient_type in csrc/matching.h."""
    return torch.float32 if dtype == torch.float16 else dtype


def _empty_like(tensor: Tensor, is_map: bool) -> Tensor:
    layout = torch.contiguous_format
    if is_map and not tensor.is_contiguous():  # to ask further is slow
        layout = torch._prims_common.suggest_memory_format(tensor)
    return torch.empty_like(tensor, dtype=gradient_dtype(tensor.dtype), memory_format=layout)


def check(arguments: Arguments, directions: Sequence[Tensor | None] | None = None) -> None:
    """One sentence about the first thing that does not fit.

    Raises:
        ValueError: shapes, devices, lengths or indices.
        TypeError: dtypes or layouts.
    """
    sources, targets, weights, biases = arguments.sources, arguments.targets, arguments.weights, arguments.biases
    alpha, pairs, count = arguments.alpha, arguments.pairs, len(arguments.weights)
    if len(pairs) != 2 * count or len(biases) != count:
        raise ValueError(
            f"got {count} weights, {len(biases)} biases and {len(pairs)} pair indices; one weight, one bias (or None) "
            "and two indices a pair are needed"
        )
    if alpha.dim() != 2:
        raise ValueError(f"alpha has shape {_shape(alpha)}; (batch, sum of the pairs' source channels) is needed")
    if alpha.dtype != torch.float32:
        raise TypeError(f"alpha has dtype {_dtype(alpha)}; the triton backend needs float32")
    for what, maps in (("source", sources), ("target", targets)):
        for i, feature in enumerate(maps):
            if feature.dim() != 4:
                raise ValueError(
                    f"{what} feature {i} has shape {_shape(feature)}; (batch, channels, height, width) is needed"
                )
            if feature.shape[0] != alpha.shape[0]:
                raise ValueError(
                    f"{what} feature {i} has shape {_shape(feature)} and alpha has shape {_shape(alpha)}; "
                    "one batch size is needed"
                )
            if feature.shape[2] * feature.shape[3] > MOST_PIXELS:
                raise ValueError(
                    f"{what} feature {i} has shape {_shape(feature)}; the triton backend takes maps of fewer than 2^31 "
                    "pixels"
                )
            _check_tensor(feature, alpha, f"{what} feature {i}")
    columns = 0
    for p in range(count):
        m, n = pairs[2 * p], pairs[2 * p + 1]
        if not (0 <= m < len(sources) and 0 <= n < len(targets)):
            raise ValueError(
                f"pair {p} is ({m}, {n}) but there are {len(sources)} source and {len(targets)} target features"
            )
        source, target, weight, bias = sources[m], targets[n], weights[p], biases[p]
        wanted = [source.shape[1], target.shape[1]]
        if list(weight.shape) not in (wanted, [*wanted, 1, 1]):  # the latter as a convolution has it
            raise ValueError(
                f"pair {p} ({m}, {n}): the weight has shape {_shape(weight)} where source {_shape(source)} and target "
                f"{_shape(target)} need {wanted}"
            )
        _check_tensor(weight, alpha, f"weight of pair {p}")
        if bias is not None:
            if list(bias.shape) != wanted[:1]:
                raise ValueError(
                    f"pair {p} ({m}, {n}): the bias has shape {_shape(bias)} where source {_shape(source)} needs "
                    f"{wanted[:1]}"
                )
            _check_tensor(bias, alpha, f"bias of pair {p}")
        if source.shape[2] * source.shape[3] == 0 and target.shape[2] * target.shape[3] > 0:
            raise ValueError(
                f"pair {p} ({m}, {n}): source {_shape(source)} has no pixels to resize to target {_shape(target)}"
            )
        columns += source.shape[1]
    if alpha.shape[1] != columns:
        raise ValueError(f"alpha has shape {_shape(alpha)} where the pairs' source channels sum to {columns}")

    if len(arguments.needs) != arguments.slot_count:
        raise ValueError(
            f"got {len(arguments.needs)} needs; one a target, a weight, a bias (also where it is None) and alpha, "
            f"{arguments.slot_count} in all, are needed"
        )
    for p, need in enumerate(arguments.needs[len(targets) + count : -1]):
        if need and biases[p] is None:
            raise ValueError(f"a gradient for the bias of pair {p} is asked for, but that pair has no bias")
    if directions is not None:
        _check_directions(arguments.slots, directions)


def _check_tensor(tensor: Tensor, alpha: Tensor, what: str) -> None:
    if tensor.dtype == torch.float64:
        raise TypeError(
            f"{what} has dtype Double and alpha has dtype {_dtype(alpha)}; either all tensors or none are float64, "
            "and float64 needs another backend than triton"
        )
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{what} has dtype {_dtype(tensor)}; float32, bfloat16 or float16 is needed")
    if tensor.layout != torch.strided:
        raise TypeError(f"{what} is {tensor.layout}; a strided tensor is needed")
    if tensor.device != alpha.device:
        raise ValueError(f"{what} is on {tensor.device} and alpha is on {alpha.device}; one device is needed")


def _check_directions(slots: Sequence[Tensor | None], directions: Sequence[Tensor | None]) -> None:
    if len(directions) != len(slots):
        raise ValueError(
            f"got {len(directions)} directions; one (or None) a target, a weight, a bias and alpha, {len(slots)} in "
            "all, are needed"
        )
    for slot, (tensor, direction) in enumerate(zip(slots, directions, strict=True)):
        if direction is None:
            continue
        if tensor is None:
            raise ValueError(f"direction {slot} belongs to a bias that is None; it has to be None too")
        if direction.shape != tensor.shape or direction.device != tensor.device:
            raise ValueError(
                f"direction {slot} has shape {_shape(direction)} on {direction.device} where its input has shape "
                f"{_shape(tensor)} on {tensor.device}"
            )
        if direction.dtype != tensor.dtype or direction.layout != torch.strided:
            raise TypeError(
                f"direction {slot} has dtype {_dtype(direction)} where its input has dtype {_dtype(tensor)}"
            )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


_NAMES = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16"}


def _dtype(tensor: Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").capitalize())
