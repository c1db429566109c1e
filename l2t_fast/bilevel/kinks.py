"""Functions whose gradient jumps: where, and what they are on either side.

A pass that compares gradients at two points (:mod:`l2t_fast.bilevel.holding`) keeps them on the side they were on.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pieces = tuple[Sequence[Callable[[Tensor], Tensor]], Sequence[Callable[[Tensor], Tensor] | None]]
"""What is beyond each kink of a function, in rising order, and what the function is before, between and after them.

None in the first place is 0. On a kink itself it is as autograd has it.
"""


def _same(x: Tensor) -> Tensor:
    return x


def _at(value: float | Tensor) -> Callable[[Tensor], Tensor]:
    """A piece that has one value."""
    return lambda x: torch.zeros_like(x) + value


def _positive(x: Tensor) -> Tensor:
    return x > 0


def _relu(input: Tensor, inplace: bool = False) -> Pieces:
    return [_positive], [None, _same]


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Pieces:
    return [_positive], [lambda x: x * negative_slope, _same]


def _prelu(input: Tensor, weight: Tensor) -> Pieces:
    slope = weight.reshape(-1, *[1] * (input.dim() - 2)) if input.dim() > 1 else weight
    return [_positive], [lambda x: x * slope, _same]


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Pieces:
    beyond = [lambda x: x > min_val, lambda x: x >= max_val]
    return beyond, [_at(min_val), _same, _at(max_val)]


def _relu6(input: Tensor, inplace: bool = False) -> Pieces:
    return _hardtanh(input, 0.0, 6.0)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Pieces:
    return [lambda x: x > -3, lambda x: x >= 3], [None, lambda x: x / 6 + 0.5, _at(1)]


def _hardswish(input: Tensor, inplace: bool = False) -> Pieces:
    return [lambda x: x > -3, lambda x: x >= 3], [None, lambda x: x * (x / 6 + 0.5), _same]


def _abs(input: Tensor) -> Pieces:
    return [lambda x: x >= 0, _positive], [torch.neg, _at(0), _same]


def _clamp(input: Tensor, min: float | Tensor | None = None, max: float | Tensor | None = None) -> Pieces | None:
    if isinstance(min, Tensor) or isinstance(max, Tensor):  # see _bounded
        return None
    if min is not None and max is not None and min > max:  # the upper one counts
        min = max
    below = [] if min is None else [_at(min)]
    above = [] if max is None else [_at(max)]
    beyond = [lambda x: x > min, lambda x: x >= max]
    return beyond[1 - len(below) : 1 + len(above)], [*below, _same, *above]


def _clamp_min(input: Tensor, min: float | Tensor) -> Pieces | None:
    return _clamp(input, min=min)


def _clamp_max(input: Tensor, max: float | Tensor) -> Pieces | None:
    return _clamp(input, max=max)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Pieces:
    return [lambda x: x > threshold], [_at(value), _same]


def _hardshrink(input: Tensor, lambd: float = 0.5) -> Pieces:
    return [lambda x: x >= -lambd, lambda x: x > lambd], [_same, _at(0), _same]


def _softshrink(input: Tensor, lambd: float = 0.5) -> Pieces:
    return [lambda x: x >= -lambd, lambda x: x > lambd], [lambda x: x + lambd, _at(0), lambda x: x - lambd]


def _elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Pieces:
    # Up to 1, of which none is in sight: what overflows there would make NaN of its gradient of 0.
    return [_positive], [lambda x: alpha * torch.expm1(x.clamp(max=1)), _same]


def _selu(input: Tensor, inplace: bool = False) -> Pieces:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # as PyTorch has them
    return [_positive], [lambda x: scale * alpha * torch.expm1(x.clamp(max=1)), lambda x: scale * x]


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Pieces | None:
    return None if training else _leaky_relu(input, (lower + upper) / 2)


def _all_named(*names: str) -> list[Callable]:
    """Functions and methods of these names, with and without a _ behind them."""
    every = [name + end for name in names for end in ("", "_")]
    return [getattr(kind, name) for name in every for kind in (torch, Tensor, F) if hasattr(kind, name)]


#: By the function that a target calls, its pieces for the arguments of a call, or None.
RECTIFIERS: dict[Callable, Callable[..., Pieces | None]] = {
    **dict.fromkeys(_all_named("relu"), _relu),
    **dict.fromkeys(_all_named("leaky_relu"), _leaky_relu),
    **dict.fromkeys(_all_named("prelu"), _prelu),
    **dict.fromkeys(_all_named("rrelu"), _rrelu),
    **dict.fromkeys(_all_named("hardtanh"), _hardtanh),
    **dict.fromkeys(_all_named("selu"), _selu),
    **dict.fromkeys(_all_named("abs", "absolute"), _abs),
    **dict.fromkeys(_all_named("clamp", "clip"), _clamp),
    **dict.fromkeys(_all_named("clamp_min"), _clamp_min),
    **dict.fromkeys(_all_named("clamp_max"), _clamp_max),
    **dict.fromkeys(_all_named("threshold"), _threshold),
    **dict.fromkeys(_all_named("hardshrink"), _hardshrink),
    F.elu: _elu,
    F.relu6: _relu6,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    F.softshrink: _softshrink,
}
#: Whose kernels have their pieces' bits; those of others may round otherwise.
EXACTLY_PIECES = (_relu, _abs, _clamp, _clamp_min, _clamp_max, _threshold, _hardshrink)
#: Of two tensors, whether it is the larger one; with another second argument they are another function.
LARGER = {
    **dict.fromkeys((torch.maximum, Tensor.maximum, torch.max, Tensor.max), True),
    **dict.fromkeys((torch.minimum, Tensor.minimum, torch.min, Tensor.min), False),
}
#: Constant but for jumps; autograd gives what they return a graph all the same.
STEPS = set(_all_named("sign", "round", "floor", "ceil", "trunc", "fix"))


def _l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return _reduced((input - target).abs(), reduction)


def _margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, *, reduction: str = "mean"
) -> Tensor:
    return _reduced((margin - target * (input1 - input2)).clamp_min(0), reduction)


def _hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, *, reduction: str = "mean") -> Tensor:
    other = torch.where(target != 1, (margin - input).clamp_min(0), 0)
    return _reduced(torch.where(target != -1, input, 0) + other, reduction)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def _bounded(input: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor | None:
    if not (isinstance(min, Tensor) or isinstance(max, Tensor)):
        return None
    if min is not None:
        input = torch.maximum(input, min) if isinstance(min, Tensor) else input.clamp(min=min)
    if max is not None:
        input = torch.minimum(input, max) if isinstance(max, Tensor) else input.clamp(max=max)
    return input


def _bounded_below(input: Tensor, min: Tensor | float) -> Tensor | None:
    return _bounded(input, min=min)


def _bounded_above(input: Tensor, max: Tensor | float) -> Tensor | None:
    return _bounded(input, max=max)


#: Functions that are made of those above, and what they are for the arguments of a call, or None.
WRITTEN_OUT = {
    F.l1_loss: _l1_loss,
    F.margin_ranking_loss: _margin_ranking_loss,
    F.hinge_embedding_loss: _hinge_embedding_loss,
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clip, Tensor.clip), _bounded),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), _bounded_below),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), _bounded_above),
}
