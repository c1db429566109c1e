"""What a pass at theta + epsilon v holds as it was at theta, for differences of gradients.

Between theta and theta + epsilon v some units of a network switch on or off. The gradient jumps there, and the jumps
add up to as much as the difference that is looked for, however small epsilon is: the derivative of the gradient, which
"exact" computes, knows nothing of them. So the pass at theta notes which units are on and which pixels are the largest,
and the pass at theta + epsilon v goes by those notes: a smooth function with the same derivatives at theta.

And what has no derivative (what ``detach`` returns, a comparison, all that a block of ``torch.no_grad()`` makes of what
has one) is a constant to autograd, in the second derivative too. Its value is noted, and is the same at both points.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import TorchFunctionMode

from l2t_fast.bilevel.second_order import small

Pieces = tuple[Sequence[float], Sequence[Callable[[Tensor], Tensor] | None]]
"""Where a function has its kinks, in rising order, and what it is before, between and after them; None first is 0."""


def _same(x: Tensor) -> Tensor:
    return x


def _relu(input: Tensor, inplace: bool = False) -> Pieces:
    return [0], [None, _same]


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Pieces:
    return [0], [lambda x: x * negative_slope, _same]


def _prelu(input: Tensor, weight: Tensor) -> Pieces:
    slope = weight.reshape(-1, *[1] * (input.dim() - 2)) if input.dim() > 1 else weight
    return [0], [lambda x: x * slope, _same]


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Pieces:
    return [min_val, max_val], [lambda x: x * 0 + min_val, _same, lambda x: x * 0 + max_val]


def _relu6(input: Tensor, inplace: bool = False) -> Pieces:
    return _hardtanh(input, 0.0, 6.0)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Pieces:
    return [-3, 3], [None, lambda x: x / 6 + 0.5, lambda x: x * 0 + 1]


def _hardswish(input: Tensor, inplace: bool = False) -> Pieces:
    return [-3, 3], [None, lambda x: x * (x / 6 + 0.5), _same]


#: By the function that modules call, its pieces for the arguments of a call.
_RECTIFIERS: dict[Callable, Callable[..., Pieces]] = {
    torch.relu: _relu,
    torch.relu_: _relu,
    Tensor.relu: _relu,
    Tensor.relu_: _relu,
    F.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.prelu: _prelu,
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
}
_IN_PLACE = (torch.relu_, Tensor.relu_)
_POOLING = {
    F.max_pool2d: F.max_pool2d_with_indices,
    torch.max_pool2d: F.max_pool2d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
}

#: What a target calls where its backward pass may be another than that of its operations: by hooks on tensors, or on
#: modules, which hang them at ``grad_fn``.
HOOKS = (Tensor.register_hook, Tensor.grad_fn.__get__)
#: What ``torch.no_grad()`` and its like call.
SET_GRAD_ENABLED = torch._C._set_grad_enabled

Arguments = Sequence[Any]
Named = Mapping[str, Any]


class Note(Protocol):
    """What one call is held to."""

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Any:
        """The call's result."""


Notes = dict[tuple[Callable, int], Note]
"""By the function and how often it was called before: calls of others may be fewer where no graph is recorded."""


class _Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: collections.Counter[Callable] = collections.Counter()

    def _place(self, function: Callable) -> tuple[Callable, int]:
        self._calls[function] += 1
        return function, self._calls[function]


class NoteHeld(_Counting):
    """While active, ``notes`` collects what the calls of a pass with a graph are held to.

    ``hooked`` tells whether the pass hung a hook into its graph, so that its gradient is not the derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: Notes = {}
        self.hooked = False
        self._stopped = False

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Arguments = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.hooked |= function in HOOKS
        if function is SET_GRAD_ENABLED and (args[0] or torch.is_grad_enabled()):
            self._stopped = not args[0]
        place = self._place(function)
        note: Note | None = None
        if function in _POOLING and _plain(args, kwargs):
            result, indices = _POOLING[function](*args, **kwargs)
            note = _Largest(indices, _input(args, kwargs).shape[2:].numel())
        else:
            if function in _RECTIFIERS:
                note = _Sides(_input(args, kwargs).detach(), _RECTIFIERS[function](*args, **kwargs)[0])
            result = function(*args, **kwargs)
        if self._lacks_derivative(result, args, kwargs):
            note = _Constant(result)
        if note is not None:
            self.notes[place] = note
        return result

    def _lacks_derivative(self, result: Any, args: Arguments, kwargs: Named) -> bool:
        found = list(_tensors([result]))
        if any(t.requires_grad for t in found) or not (found or isinstance(result, float)):
            return False
        # Grad mode is off inside of a torch.autograd.Function too, but its output has the derivative that it defines.
        visible = self._stopped or torch.is_grad_enabled()
        return visible and any(t.requires_grad for t in _tensors([*args, *kwargs.values()]))


class ReplayHeld(_Counting):
    """While active, the calls of a pass that `NoteHeld` watched are held to its notes."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Arguments = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        note = self._notes.get(self._place(function))
        return function(*args, **(kwargs or {})) if note is None else note.replay(function, args, kwargs or {})


class _Sides:
    """Which units of a rectifier are beyond each of its kinks: bool, its input's shape."""

    def __init__(self, x: Tensor, kinks: Sequence[float]) -> None:
        self._beyond = [x > kink for kink in kinks]

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor:
        x = _input(args, kwargs)
        in_place = function in _IN_PLACE or any(a is True for a in (*args, *kwargs.values()))
        before = x.clone() if in_place else x
        first, *others = _RECTIFIERS[function](*args, **kwargs)[1]
        result = None if first is None else first(before)
        for beyond, other in zip(self._beyond, others, strict=True):
            result = other(before) * beyond if result is None else torch.where(beyond, other(before), result)
        return x.copy_(result) if in_place else result


class _Largest:
    """Max-pooling's indices, its output's shape."""

    def __init__(self, indices: Tensor, pixels: int) -> None:
        self._indices = small(indices, pixels)

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor:
        return _Taken.apply(_input(args, kwargs), self._indices)


class _Taken(torch.autograd.Function):
    """Pixels of maps (B, C, H, W) by their numbers; for its derivative it saves those, as small as they are."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.size = x.shape
        return x.flatten(2).gather(2, indices.flatten(2).long()).view(indices.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        maps = g.new_zeros(ctx.size).flatten(2)
        return maps.scatter_add_(2, indices.flatten(2).long(), g.flatten(2)).view(ctx.size), None


class _Constant:
    """A result without a derivative: a tensor, several, or a number."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Any:
        made = function(*args, **kwargs)  # it may draw random numbers, and write to buffers
        for here, noted in zip(_tensors([made]), _tensors([self._value]), strict=True):
            if any(here is t for t in _tensors([*args, *kwargs.values()])):
                here.copy_(noted)
        return self._value


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, Tensor))


def _input(args: Arguments, kwargs: Named) -> Tensor:
    return kwargs["input"] if "input" in kwargs else args[0]


def _plain(args: Arguments, kwargs: Named) -> bool:
    """A call on a batch that returns the maxima alone: return_indices is the seventh argument of max_pool2d."""
    return _input(args, kwargs).dim() == 4 and not kwargs.get("return_indices", False) and len(args) < 7
