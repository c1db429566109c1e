"""2D convolution that is twice differentiable at the price of ordinary convolutions, and the CPU's fast 3x3 kernels.

PyTorch's second derivative of a convolution turns the batch into channels and whole images into kernels; here it is
four convolutions of the ordinary kind. And where a convolution is 3x3 with stride 1 and padding 1, in float32 on a CPU,
it and its gradients are the native operators ``convolution3x3`` and ``convolution3x3_weight_gradient``: Winograd's
form, 4 multiplications instead of 9, with the rounding of an ordinary convolution (csrc/convolution.h has the formulas,
docs/tuning_step.md what it brings). All others are PyTorch's.
"""

import contextlib
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from l2t_fast import _native
from l2t_fast.ops import ENVIRONMENT_VARIABLE, inside_dual_level, is_transformed


class Geometry(NamedTuple):
    """The numbers of a 2D convolution."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def fast_convolutions(device: torch.device) -> contextlib.AbstractContextManager:
    """While active, ``torch.conv2d`` on ``device`` takes the fast kernels where they serve, with all derivatives.

    On a GPU, and without the native extension, nothing changes.
    """
    return _FastConvolutions() if device.type == "cpu" and why_plain() is None else contextlib.nullcontext()


class _FastConvolutions(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # `types` has the classes of subclasses and tracers, which are to see the call themselves.
        result = _conv2d_if_fast(*args, **(kwargs or {})) if function is torch.conv2d and not types else None
        return function(*args, **(kwargs or {})) if result is None else result


class _Call(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry


def _call_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> _Call | None:
    """The arguments of a `torch.conv2d`; None where padding is a name."""
    if isinstance(padding, str):
        return None
    return _Call(input, weight, bias, Geometry(two(stride), two(padding), two(dilation), groups))


def conv2d(*args: Any, **kwargs: Any) -> Tensor | None:
    """`torch.conv2d` with a cheap second derivative, or None for the calls left to PyTorch."""
    call = _call_of(*args, **kwargs)
    if call is None or call.input.dim() != 4:
        return None
    input, weight, bias, geometry = call
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in call[:3]]
    return _Convolution.apply(input, weight, bias, geometry)


def _conv2d_if_fast(*args: Any, **kwargs: Any) -> Tensor | None:
    """`torch.conv2d` by the fast kernels, or None where they do not serve."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return None
    call = _call_of(*args, **kwargs)
    if call is None:
        return None
    input, weight, bias, geometry = call
    if not _served(input, weight, geometry):
        return None
    if bias is not None and (_kind(bias) != _kind(input) or bias.shape != weight.shape[:1]):
        return None
    # A tangent may come with a graph's gradient as well.
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if inside_dual_level() and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    if not any(is_transformed(t) for t in tensors):
        return _Convolution.apply(input, weight, bias, geometry)
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return None
    # Dual numbers without a graph: both terms of the tangent are convolutions.
    (x, x_tangent), (w, w_tangent) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(weight)
    b, b_tangent = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    with torch.no_grad():  # there is nothing to record
        parts = [] if x_tangent is None else [convolve(x_tangent, w, b_tangent, geometry)]
        if w_tangent is not None:
            parts.append(convolve(x, w_tangent, b_tangent if not parts else None, geometry))
        value = convolve(x, w, b, geometry)
    tangent = sum(parts[1:], start=parts[0]) if parts else b_tangent.reshape(1, -1, 1, 1).expand_as(value)
    return forward_ad.make_dual(value, tangent)


def two(value: int | Sequence[int]) -> list[int]:
    """Height's and width's of a number that may be one for both."""
    values = [operator.index(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return values * 2 if len(values) == 1 else values


def why_plain() -> str | None:
    """Why all convolutions on a CPU are PyTorch's, or None where the fast kernels serve."""
    if os.environ.get(ENVIRONMENT_VARIABLE) == "reference":  # who asks for the reference wants plain PyTorch
        return f"{ENVIRONMENT_VARIABLE} asks for the reference"
    return _native.why_unavailable()


#: Below, the transforms outweigh what they save (benchmarks.convolutions): channels on either side, and tiles of 2x2.
LEAST_CHANNELS, LEAST_TILES = 8, 16
#: The kernels cut maps between rows of tiles; wider ones would take too much memory at a time.
GREATEST_WIDTH = 1024


def _served(x: Tensor, w: Tensor, geometry: Geometry) -> bool:
    """Whether the fast kernels take a convolution."""
    return (
        _kind(x) == _kind(w) == (torch.device("cpu"), torch.float32, torch.strided)
        and x.dim() == 4
        and geometry == ([1, 1], [1, 1], [1, 1], 1)
        and w.shape[2:] == (3, 3)
        and x.shape[1] == w.shape[1]
        and min(w.shape[:2]) >= LEAST_CHANNELS
        and x.shape[0] * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2) >= LEAST_TILES
        and x.shape[3] <= GREATEST_WIDTH
        and why_plain() is None
    )


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype, torch.layout]:
    return tensor.device, tensor.dtype, tensor.layout


def convolve(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution; where a graph is recorded, by PyTorch, whose own is differentiable."""
    if not torch.is_grad_enabled() and _served(x, w, geometry):
        return torch.ops.l2t_fast.convolution3x3(x, w, b, False)
    return torch.convolution(x, w, b, geometry[0], geometry[1], geometry[2], False, [0, 0], geometry.groups)


def convolution_gradients(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias, None where ``needs`` is False, for the gradient g of the output."""
    if not torch.is_grad_enabled() and _served(x, w, geometry) and g.dtype == x.dtype:
        return (
            torch.ops.l2t_fast.convolution3x3(g, w, None, True) if needs[0] else None,
            torch.ops.l2t_fast.convolution3x3_weight_gradient(g, x) if needs[1] else None,
            g.sum((0, 2, 3)) if needs[2] else None,
        )
    bias_sizes = [w.shape[0]] if needs[2] else None
    return torch.ops.aten.convolution_backward(
        g, x, w, bias_sizes, geometry[0], geometry[1], geometry[2], False, [0, 0], geometry.groups, list(needs)
    )


def batch_norm_gradients(
    g: Tensor, x: Tensor, w: Tensor | None, mean: Tensor, scale: Tensor, eps: float, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of batch normalisation's input, weight and bias, None where ``needs`` is False."""
    return torch.ops.aten.native_batch_norm_backward(g, x, w, None, None, mean, scale, True, eps, list(needs))


#: Attribute of the gradient that batch normalisation has just made: its version, and what it was made of. A gradient
#: that is added to another, or that a hook replaces, is another tensor without it.
MADE_OF = "_l2t_fast_made_of"


def refuse_third_derivative() -> None:
    """Raise NotImplementedError in a backward pass whose result would be differentiated."""
    # Grad mode is on in a backward with create_graph. once_differentiable misses what depends on saved tensors only.
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "no third derivative goes through a network recorded under CheapSecondDerivatives, record it without"
        )


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b, in a's memory unless a graph is recorded."""
    return a + b if torch.is_grad_enabled() else a.add_(b)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        with torch.autocast(x.device.type, enabled=False):
            return convolve(x, w, b, geometry)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        version, made_of = getattr(g, MADE_OF, (None, None))
        if version != g._version:  # somebody has written to it
            made_of = None
        return *_ConvolutionBackward.apply(g, x, w, ctx.geometry, ctx.needs_input_grad[:3], made_of), None


class _ConvolutionBackward(torch.autograd.Function):
    """Linear in the output's gradient g, the input x and the weight w, each taken alone.

    g is not saved where it can be made again from what is saved anyway: a map a layer less, for a pass over it.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Tensor,
        x: Tensor,
        w: Tensor,
        geometry: Geometry,
        needs: Sequence[bool],
        made_of: tuple | None,
    ) -> tuple[Tensor | None, ...]:
        tensors, ctx.eps = ([g], None) if made_of is None else (made_of[:-1], made_of[-1])
        ctx.save_for_backward(x, w, *tensors)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return convolution_gradients(g, x, w, geometry, needs)

    @staticmethod
    def backward(
        ctx: FunctionCtx, ax: Tensor | None, aw: Tensor | None, ab: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """ax, aw, ab: adjoints of the gradients of input, weight and bias."""
        if ctx.eps is not None:  # what g was made of is known without its derivative
            refuse_third_derivative()
        x, w, *made_of = ctx.saved_tensors
        g = made_of[0] if ctx.eps is None else batch_norm_gradients(*made_of, ctx.eps, (True, False, False))[0]
        g_bar = x_bar = w_bar = None
        if ctx.needs_input_grad[0]:
            if ax is not None:
                g_bar = convolve(ax, w, None, ctx.geometry)
            if aw is not None:
                through_weight = convolve(x, aw, None, ctx.geometry)
                g_bar = through_weight if g_bar is None else _sum(g_bar, through_weight)
            if ab is not None:
                wide = ab.reshape(1, -1, 1, 1)
                g_bar = wide.expand_as(g) if g_bar is None else _sum(g_bar, wide)
        if aw is not None and ctx.needs_input_grad[1]:
            x_bar = convolution_gradients(g, x, aw, ctx.geometry, (True, False, False))[0]
        if ax is not None and ctx.needs_input_grad[2]:
            w_bar = convolution_gradients(g, ax, w, ctx.geometry, (False, True, False))[1]
        return g_bar, x_bar, w_bar, None, None, None
