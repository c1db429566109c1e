"""What a pass at theta + epsilon v holds as it was at theta, for differences of gradients.

Between theta and theta + epsilon v some units of a network switch on or off. The gradient jumps there, and the jumps
add up to as much as the difference that is looked for, however small epsilon is: the derivative of the gradient, which
"exact" computes, knows nothing of them. So the pass at theta notes which units are on and which pixels are the largest,
and the pass at theta + epsilon v goes by those notes: a smooth function with the same derivatives at theta.

And what has no derivative (what ``detach`` returns, a comparison, all that a block of ``torch.no_grad()`` makes of what
has one) is a constant to autograd, in the second derivative too. Its value is noted, and is the same at both points.
"""

import collections
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import TorchFunctionMode

from l2t_fast.bilevel.kinks import EXACTLY_PIECES, LARGER, RECTIFIERS, STEPS, WRITTEN_OUT
from l2t_fast.bilevel.second_order import small
from l2t_fast.ops import is_transformed

#: What writes running statistics, its second and third argument, out of autograd's sight.
_NORMALISATIONS = (F.batch_norm, F.instance_norm)
_SET_DATA = Tensor.data.__set__
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
"""By the function and its number among the calls of it, so that a call more or less of another function shifts none."""


class _Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: collections.Counter[Callable] = collections.Counter()

    def _place(self, function: Callable) -> tuple[Callable, int]:
        self._calls[function] += 1
        return function, self._calls[function]

    def _written_out(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor | None:
        """The result of a function as that of those it is made of, each a call of its own; None if there are none."""
        if (parts := WRITTEN_OUT.get(function)) is None:
            return None
        given = {name: value for name, value in kwargs.items() if value is not None}
        try:
            inspect.signature(parts).bind(*args, **given)
        except TypeError:  # older arguments, which hardly anybody gives
            return None
        with self:
            return parts(*args, **given)


class NoteHeld(_Counting):
    """While active, ``notes`` collects what the calls of a pass with a graph are held to.

    ``refusal`` says what the pass did that cannot be held, None if nothing, and ``remedy`` what to do.

    Args:
        dtype: the parameters', to whose rounding the distance of the two passes is fitted.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.notes: Notes = {}
        self.refusal: str | None = None
        self.remedy = "use method='exact'"
        self._stopped = False  # by torch.no_grad() or its like
        self._hidden = False  # in a torch.autograd.Function that switches grad mode itself
        self._switches: list[tuple[bool, bool, bool]] = []  # grad mode and the two before each
        self._aliases: list[Tensor] = []  # without a derivative, in the memory of what has one
        self._statistics: dict[int, Tensor] = {}  # that this pass may have written, by their identity

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Arguments = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # which shows some of its calls only, and not one by one
            self.refusal, self.remedy = "calls a function that torch.compile has made", "call what it was made of"
            return function(*args, **kwargs)
        written_out = self._written_out(function, args, kwargs)
        if written_out is not None:
            return written_out
        if function in HOOKS:
            self.refusal = "hangs hooks into its backward pass, or reads grad_fn to do so"
        if function is SET_GRAD_ENABLED:
            self._switch(args[0])
        place = self._place(function)
        note: Note | None = None
        given = list(_tensors([*args, *kwargs.values()]))
        read = {i: t.detach().clone() for i, t in enumerate(given) if id(t) in self._statistics}
        with_derivative = any(t.requires_grad for t in given)  # before the call, which may be detach_
        versions = [_version(t) for t in (*given, *self._aliases)]
        if function in _POOLING and _input(args, kwargs).dim() == 4:  # one that returns indices is another function
            result, indices = _POOLING[function](*args, **kwargs)
            note = _Largest(indices, _input(args, kwargs).shape[2:].numel())
        else:
            if function in RECTIFIERS and "out" not in kwargs and _moves(_input(args, kwargs)):
                pieces = RECTIFIERS[function](*args, **kwargs)
                note = None if pieces is None else _Sides(_input(args, kwargs).detach(), pieces[0])
            elif function in LARGER and with_derivative and _second(args, kwargs) is not None:
                note = _Larger(_input(args, kwargs), _second(args, kwargs), LARGER[function])
            by_pieces = isinstance(note, _Sides) and RECTIFIERS[function] not in EXACTLY_PIECES
            result = note.replay(function, args, kwargs) if by_pieces else function(*args, **kwargs)
        written = [t for t, v in zip((*given, *self._aliases), versions, strict=True) if _version(t) != v]
        replaced = function == _SET_DATA and given[0].requires_grad
        if replaced or (self._visible() and self._unseen(written, given, with_derivative)):
            self.refusal = "writes in place, without a derivative, into what has one"
        coarser = [t.dtype for t in _tensors([result]) if t.requires_grad and _eps(t.dtype) > _eps(self._dtype)]
        if coarser:
            self.refusal = f"computes in {coarser[0]} with parameters in {self._dtype}"
        if self._lacks_derivative(function, result, with_derivative):
            note = _Level(result) if function in STEPS else _Constant(result)
            self._aliases += [t for t in _tensors([result]) if any(_aliases(t, g) for g in given)]
        if function in _NORMALISATIONS:
            running = [*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")]
            self._statistics |= {id(t): t for t in running if t is not None}
        if read:
            note = _Statistics(read, note)
        if note is not None:
            self.notes[place] = note
        return result

    def _switch(self, on: bool) -> None:
        """Grad mode is switched where one can see it: `torch.autograd.Function` does it out of sight."""
        if self._switches and self._switches[-1][0] == on:  # back
            _, self._stopped, self._hidden = self._switches.pop()
            return
        enabled = torch.is_grad_enabled()
        self._switches.append((enabled, self._stopped, self._hidden))
        self._hidden |= not (enabled or self._stopped)
        if enabled and not self._hidden:
            self._stopped = not on

    def _visible(self) -> bool:
        """Whether grad mode is what the target says, not off inside of a `torch.autograd.Function`."""
        switched_off = self._stopped or torch.is_inference_mode_enabled()
        return not self._hidden and (switched_off or torch.is_grad_enabled())

    def _unseen(self, written: Sequence[Tensor], given: Sequence[Tensor], with_derivative: bool) -> bool:
        """Whether a call that has written to some tensors did so without a derivative, into what has one."""
        # A version is that of all who share the memory: with a derivative, a call may write beneath an alias.
        seen = with_derivative and not self._stopped
        return any(
            (self._stopped and t.requires_grad)
            or (any(t is alias for alias in self._aliases) and (not seen or t is given[0]))
            for t in written
        )

    def _lacks_derivative(self, function: Callable, result: Any, with_derivative: bool) -> bool:
        found = list(_tensors([result]))
        if any((t.requires_grad and function not in STEPS) or is_transformed(t) for t in found):
            return False
        if not (found or isinstance(result, float) or function is Tensor.tolist):
            return False
        return with_derivative and self._visible()


class ReplayHeld(_Counting):
    """While active, the calls of a pass that `NoteHeld` watched are held to its notes."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Arguments = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written_out = self._written_out(function, args, kwargs)
        if written_out is not None:
            return written_out
        note = self._notes.get(self._place(function))
        return function(*args, **kwargs) if note is None else note.replay(function, args, kwargs)


class _Sides:
    """Which units of a rectifier are beyond each of its kinks: bool, its input's shape."""

    def __init__(self, x: Tensor, kinks: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self._beyond = [beyond(x) for beyond in kinks]

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor:
        x, pieces = _input(args, kwargs), RECTIFIERS[function]
        asked = inspect.signature(pieces).bind(*args, **kwargs).arguments.get("inplace", False)
        in_place = asked or function.__name__.endswith("_")
        before = x.clone() if in_place else x
        first, *others = pieces(*args, **kwargs)[1]
        result = None if first is None else first(before)
        for beyond, other in zip(self._beyond, others, strict=True):
            result = other(before) * beyond if result is None else torch.where(beyond, other(before), result)
        return x.copy_(result) if in_place else result


class _Larger:
    """Which of two tensors is the larger (or smaller) one, their common shape. Where they are equal, half of each."""

    def __init__(self, first: Tensor, second: Tensor, larger: bool) -> None:
        self._first = first.detach() > second.detach() if larger else first.detach() < second.detach()
        self._equal = first.detach() == second.detach()

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor:
        first, second = _input(args, kwargs), _second(args, kwargs)
        return torch.where(self._equal, first / 2 + second / 2, torch.where(self._first, first, second))


class _Largest:
    """Max-pooling's indices, its output's shape."""

    def __init__(self, indices: Tensor, pixels: int) -> None:
        self._indices = small(indices, pixels)

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Tensor:
        x = _input(args, kwargs)
        taken = _taken if is_transformed(x) else _Taken.apply  # a transform refuses our Functions
        return taken(x, self._indices)


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """Pixels of maps (B, C, H, W) by their numbers."""
    # No view, which a rectifier behind the pooling could not write to in place if a Function returned it.
    return torch.ops.aten._unsafe_view(x.flatten(2).gather(2, indices.flatten(2).long()), indices.shape)


class _Taken(torch.autograd.Function):
    """`_taken`; for its derivative it saves the numbers, as small as they are."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.size = x.shape
        return _taken(x, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return _added(ctx.size, indices.flatten(2).long(), g.flatten(2), in_any_order=g.is_cpu), None


def _added(size: torch.Size, indices: Tensor, g: Tensor, in_any_order: bool) -> Tensor:
    """Maps (B, C, H, W) of sums of ``g`` (B, C, n) at its pixels' numbers.

    Windows of a pooling may overlap, and a GPU adds what meets in a pixel in the order in which it comes, which changes
    from run to run; unless ``in_any_order`` is False, which sorts.
    """
    maps = g.new_zeros(size).flatten(2)
    if in_any_order:
        return maps.scatter_add_(2, indices, g).view(size)
    rows = maps.flatten(0, 1)
    row = torch.arange(len(rows), device=g.device)[:, None]
    rows.index_put_((row, indices.flatten(0, 1)), g.flatten(0, 1), accumulate=True)
    return rows.view(size)


class _Constant:
    """A result without a derivative: a tensor, several, or a number."""

    def __init__(self, value: Any) -> None:
        self._number = value
        # Copies, since what is noted, and what is handed out, may be written to afterwards.
        self._values = [t.detach().clone() for t in _tensors([value])]

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Any:
        made = function(*args, **kwargs)  # it may draw random numbers, and write to buffers
        if not self._values:
            return self._number
        given = list(_tensors([*args, *kwargs.values()]))
        held = []
        for here, noted in zip(_tensors([made]), self._values, strict=True):
            own = any(here is t for t in given)
            held.append(here.copy_(noted) if own else noted.clone())
        if isinstance(made, Tensor):
            return held[0]
        return type(made)(held) if len(held) == len(made) else made


class _Level(_Constant):
    """A result whose derivative is zero: the value that was noted, in the graph that autograd gives it."""

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Any:
        made = function(*args, **kwargs)
        (noted,) = self._values
        if made is _input(args, kwargs):
            return made.copy_(noted)
        return torch.where(torch.isnan(noted), made, noted)  # of both, so that it hangs where `made` does


class _Statistics:
    """The running statistics among a call's tensors, by their place, and what else the call is held to."""

    def __init__(self, values: Mapping[int, Tensor], note: Note | None) -> None:
        self._values, self._note = values, note

    def replay(self, function: Callable, args: Arguments, kwargs: Named) -> Any:
        for i, given in enumerate(_tensors([*args, *kwargs.values()])):
            if i in self._values:
                given.data.copy_(self._values[i])  # as they were written: no graph that has saved them is told
        return function(*args, **kwargs) if self._note is None else self._note.replay(function, args, kwargs)


def _moves(x: Tensor) -> bool:
    """Whether a rectifier's input may be another at other parameters, and has sides."""
    return (x.requires_grad or is_transformed(x)) and x.is_floating_point() and x.layout == torch.strided


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _version(tensor: Tensor) -> int:
    """How often its memory was written to, as far as PyTorch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def _aliases(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor is another one in the memory of ``other``."""
    if tensor is other or not tensor.layout == other.layout == torch.strided:
        return False
    return tensor.untyped_storage()._cdata == other.untyped_storage()._cdata


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, Tensor))


def _input(args: Arguments, kwargs: Named) -> Tensor:
    return kwargs["input"] if "input" in kwargs else args[0]


def _second(args: Arguments, kwargs: Named) -> Tensor | None:
    second = kwargs["other"] if "other" in kwargs else args[1] if len(args) == 2 else None
    return second if isinstance(second, Tensor) else None
