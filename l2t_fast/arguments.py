"""The arguments of ``feature_matching_loss``: looked at by native code at once, or one by one to name what is wrong."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from l2t_fast import _native
from l2t_fast.checks import (
    UNORDERED,
    check_tensor,
    checked_maps,
    checked_number,
    has_order,
    pair_name,
    shape_of,
    shown,
)

Projection = tuple[Tensor, Tensor | None]

SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_BY_NAME = "weights of channels and pairs are the arguments weight and loss_weight (channel_weights and pair_weights)"
_checked = getattr(_native.extension, "checked", None)  # None without native code


class Arguments(NamedTuple):
    """Arguments that fit: all maps, and of the others one entry a pair.

    ``uniform``: all tensors have one device and one kind of dtype, and maps that no pair uses fit beside the others.
    """

    sources: Sequence[Tensor]
    targets: Sequence[Tensor]
    pairs: Sequence[tuple[int, int]]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    channel_weights: Sequence[Tensor] | None
    pair_weights: Sequence[Tensor] | None
    betas: list[float]
    uniform: bool


def checked_at_once(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    projections: Sequence[Projection],
    pairs: Sequence[tuple[int, int]],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    beta: float | Sequence[float],
) -> Arguments | None:
    """The arguments, if one look of the native code at all of them finds nothing to ask further about.

    Else None: the checks one by one find out what is wrong, and take what is only unusual.
    """
    if _checked is None or torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack():
        return None
    found = _checked(sources, targets, projections, pairs, channel_weights, pair_weights)
    if found is None:
        return None
    weights, biases = found
    betas = _checked_betas(beta, len(pairs))
    pairs = list(map(tuple, pairs))
    return Arguments(sources, targets, pairs, weights, biases, channel_weights, pair_weights, betas, uniform=True)


def checked_one_by_one(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    projections: Sequence[Projection],
    pairs: Sequence[tuple[int, int]],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
    beta: float | Sequence[float],
) -> Arguments:
    """The arguments, or an error that names what does not fit."""
    sources, targets, pairs = checked_maps(sources, targets, pairs)
    weights, biases = _checked_projections(projections, pairs, sources, targets)
    batch = _checked_batch(pairs, sources, targets)
    betas = _checked_betas(beta, len(pairs))
    channel_weights = _checked_channel_weights(channel_weights, pairs, sources, batch)
    pair_weights = _checked_pair_weights(pair_weights, pairs, batch)
    _check_devices_and_dtypes(pairs, sources, targets, weights, biases, channel_weights, pair_weights)
    return Arguments(sources, targets, pairs, weights, biases, channel_weights, pair_weights, betas, uniform=False)


def _channel_weights(at: str = "") -> str:
    """What the argument, or an entry of it, is called here and by the module that calls this."""
    return f"channel_weights{at} (weight{at} of FeatureMatching)"


def _pair_weights(at: str = "") -> str:
    return f"pair_weights{at} (loss_weight{at} of FeatureMatching)"


def _check_length(name: str, values: Sequence[object], pairs: Sequence[tuple[int, int]]) -> None:
    if not has_order(values):
        raise TypeError(f"{name} must be a list with one entry a pair, not {type(values).__name__}")
    if len(values) != len(pairs):
        raise ValueError(f"{name} has {len(values)} entries for {len(pairs)} pairs, give one a pair")


def _checked_projections(
    projections: Sequence[Projection],
    pairs: list[tuple[int, int]],
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor | None]]:
    _check_length("projections", projections, pairs)
    weights, biases = [], []
    for p, ((m, n), projection) in enumerate(zip(pairs, projections, strict=True)):
        # A tensor with two rows would unpack, so the type is asked first.
        if not isinstance(projection, (tuple, list)) or len(projection) != 2:
            entries = f" of {len(projection)}" if isinstance(projection, (tuple, list)) else ""
            raise TypeError(
                f"projections[{p}] must be (weight, bias or None), not {type(projection).__name__}{entries}"
            )
        weight, bias = projection
        check_tensor(f"projections[{p}]: the weight", weight, "a tensor")
        if bias is not None:
            check_tensor(f"projections[{p}]: the bias", bias, "a tensor or None")
        wanted = (sources[m].shape[1], targets[n].shape[1])
        if tuple(weight.shape) not in (wanted, (*wanted, 1, 1)):
            raise ValueError(
                f"{pair_name(p, pairs)}: the projection's weight has shape {shape_of(weight)}, but source "
                f"{shape_of(sources[m])} and target {shape_of(targets[n])} need {wanted} or {(*wanted, 1, 1)}"
            )
        if bias is not None and tuple(bias.shape) != wanted[:1]:
            raise ValueError(
                f"{pair_name(p, pairs)}: the projection's bias has shape {shape_of(bias)}, "
                f"but source {shape_of(sources[m])} needs {wanted[:1]}"
            )
        weights.append(weight)
        biases.append(bias)
    return weights, biases


def _checked_batch(pairs: list[tuple[int, int]], sources: Sequence[Tensor], targets: Sequence[Tensor]) -> int:
    batch = targets[pairs[0][1]].shape[0]
    for p, (m, n) in enumerate(pairs):
        if sources[m].shape[0] != batch or targets[n].shape[0] != batch:
            raise ValueError(
                f"{pair_name(p, pairs)}: source {shape_of(sources[m])} and target {shape_of(targets[n])} "
                f"must both have the batch size {batch} of the first pair"
            )
    return batch


def _checked_betas(beta: float | Sequence[float], count: int) -> list[float]:
    given = beta if isinstance(beta, (list, tuple)) else [beta]
    for tensor in [b for b in given if type(b) is not float and isinstance(b, Tensor)]:
        if tensor.requires_grad:
            raise TypeError(
                f"beta must be a number, or one for each pair, not {shown(tensor)} that requires grad: {_BY_NAME}"
            )
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type == "meta":
            raise TypeError(f"beta must be a number or one number a pair, not {tensor!r}")
        if tensor.dim() > 1 and tensor.numel() != 1:
            raise TypeError(f"beta must be a number or one number a pair, not {shown(tensor)}: {_BY_NAME}")
    if not isinstance(beta, Real) and hasattr(beta, "tolist"):  # a tensor or an array, of one number too
        beta = beta.tolist()
    if isinstance(beta, Real):
        return [checked_number("beta", beta)] * count
    if not isinstance(beta, Iterable) or isinstance(beta, (str, bytes, *UNORDERED)):
        raise TypeError(f"beta must be a number or one number a pair, not {beta!r}")
    betas = [b if type(b) is float else checked_number(f"beta[{p}]", b) for p, b in enumerate(beta)]
    if len(betas) != count:
        raise ValueError(f"beta has {len(betas)} entries for {count} pairs, give one number, or one a pair")
    return betas


def _checked_channel_weights(
    weights: Sequence[Tensor] | None, pairs: list[tuple[int, int]], sources: Sequence[Tensor], batch: int
) -> Sequence[Tensor] | None:
    if weights is None:
        return None
    _check_length(_channel_weights(), weights, pairs)
    for p, weight in enumerate(weights):
        check_tensor(_channel_weights(f"[{p}]"), weight, "a tensor (B, C_m)")
        wanted = (batch, sources[pairs[p][0]].shape[1])
        if tuple(weight.shape) != wanted:
            raise ValueError(
                f"{pair_name(p, pairs)}: channel weights have shape {shape_of(weight)}, "
                f"but source {shape_of(sources[pairs[p][0]])} needs {wanted}"
            )
    return list(weights)


def _checked_pair_weights(
    weights: Sequence[Tensor] | None, pairs: list[tuple[int, int]], batch: int
) -> Sequence[Tensor] | None:
    if weights is None:
        return None
    _check_length(_pair_weights(), weights, pairs)
    for p, weight in enumerate(weights):
        check_tensor(_pair_weights(f"[{p}]"), weight, "a tensor (B,), (B, 1) or (1, 1)")
        if tuple(weight.shape) not in ((batch,), (batch, 1), (1, 1)):
            raise ValueError(
                f"{pair_name(p, pairs)}: the pair weight has shape {shape_of(weight)}, "
                f"but a batch of {batch} needs ({batch},), ({batch}, 1) or (1, 1)"
            )
    return list(weights)


def _check_devices_and_dtypes(
    pairs: list[tuple[int, int]],
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    channel_weights: Sequence[Tensor] | None,
    pair_weights: Sequence[Tensor] | None,
) -> None:
    first = sources[pairs[0][0]]
    tensors = [*(sources[m] for m, _ in pairs), *(targets[n] for _, n in pairs), *weights]
    tensors += [*(bias for bias in biases if bias is not None), *(channel_weights or ()), *(pair_weights or ())]
    dtypes = {tensor.dtype for tensor in tensors}
    if (dtypes == {torch.float64} or dtypes <= set(SINGLE)) and all(
        tensor.layout == torch.strided and tensor.device == first.device for tensor in tensors
    ):
        return
    for p, (m, n) in enumerate(pairs):
        named = {
            "source feature": sources[m],
            "target feature": targets[n],
            "projection weight": weights[p],
            "projection bias": biases[p],
            "channel weight": channel_weights[p] if channel_weights is not None else None,
            "pair weight": pair_weights[p] if pair_weights is not None else None,
        }
        for name, tensor in named.items():
            if tensor is None:
                continue
            if tensor.layout != torch.strided:
                raise TypeError(f"{pair_name(p, pairs)}: the {name} is {tensor.layout}, use a dense tensor")
            if tensor.dtype != torch.float64 and tensor.dtype not in SINGLE:
                raise TypeError(
                    f"{pair_name(p, pairs)}: the {name} is {tensor.dtype}, use float32, bfloat16, float16 or float64"
                )
            if (tensor.dtype == torch.float64) != (first.dtype == torch.float64):
                raise TypeError(
                    f"{pair_name(p, pairs)}: the {name} is {tensor.dtype}, but source feature {pairs[0][0]} is "
                    f"{first.dtype}; float64 does not mix with other dtypes"
                )
            if tensor.device != first.device:
                raise ValueError(
                    f"{pair_name(p, pairs)}: the {name} is on {tensor.device}, but source feature {pairs[0][0]} is on "
                    f"{first.device}; put all tensors on one device"
                )
