"""Convolution, batch normalisation, rectifier and max-pooling with cheap second derivatives, put in place of PyTorch's
while a graph is built that will be differentiated twice.

Convolution is that of :mod:`l2t_fast.convolution`; the values and first derivatives of the others are those of
PyTorch's own kernels. PyTorch's second derivative of batch normalisation is some thirty passes over the feature map,
here it is two (csrc/batch_norm.h has the formulas). Rectifiers and max-pooling have none but zeros, for which PyTorch
makes whole maps, and keeps them until the pass comes back to the layer. That of ``torch._weight_norm`` is wrong
(PyTorch 2.14) and that of hardsigmoid missing, so these are replaced for "double_backward" too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from l2t_fast import _native
from l2t_fast.convolution import MADE_OF, batch_norm_gradients, conv2d, refuse_third_derivative, two
from l2t_fast.ops import inside_transform, why_unavailable


class _Replacing(TorchFunctionMode):
    def __init__(self, functions: dict[Callable, Callable[..., Tensor | None]]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Dynamo would trace the Functions, and loses second derivatives of theirs without a word; torch.func transforms
        # refuse them.
        plain = torch.compiler.is_compiling() or inside_transform()
        replaced = None if plain else self._functions.get(function)
        result = replaced(*args, **(kwargs or {})) if replaced else None
        return function(*args, **(kwargs or {})) if result is None else result


class CheapSecondDerivatives(_Replacing):
    """While active, 2D convolution and max-pooling, training batch normalisation and ReLU are the Functions below."""

    def __init__(self) -> None:
        super().__init__(_REPLACED)


class RightSecondDerivatives(_Replacing):
    """While active, what PyTorch has no right second derivative of is its formula, and the others are PyTorch's."""

    def __init__(self) -> None:
        super().__init__(_FORMULAS)


class SmallPooling(_Replacing):
    """While active, 2D max-pooling is the Function below: a quarter of the memory for its indices, for any pass."""

    def __init__(self) -> None:
        super().__init__(_POOLING)


def small(indices: Tensor, pixels: int) -> Tensor:
    """Indices of so many pixels, int64, in as few bits as they take."""
    return indices.to(torch.int16 if pixels <= torch.iinfo(torch.int16).max else torch.int32)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`, or None for the calls left to PyTorch."""
    # Without batch statistics it is an affine map, whose second derivative is cheap; a single value a channel is an
    # error that PyTorch words.
    if not training or input.dim() < 2 or input.numel() <= input.shape[1]:
        return None
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.relu`, or None for the calls left to PyTorch."""
    if not input.requires_grad or (inplace and input._is_view()):
        return None
    return _Rectifier.apply(input, inplace)


def _relu_(input: Tensor) -> Tensor | None:
    return _relu(input, inplace=True)


def _max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.max_pool2d`, or None for the calls left to PyTorch."""
    if return_indices or input.dim() != 4 or not input.requires_grad:
        return None
    windows = [two(v) for v in (kernel_size, stride or kernel_size, padding, dilation)]
    return _MaxPooling.apply(input, (*windows, ceil_mode))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`, whose second derivative of PyTorch's is wrong: its formula as it stands."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.hardsigmoid`, whose backward has no derivative: its formula as it stands."""
    found = F.relu6(input + 3) / 6
    return input.copy_(found) if inplace else found


_FORMULAS: dict[Callable, Callable[..., Tensor | None]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
}
_POOLING: dict[Callable, Callable[..., Tensor | None]] = {F.max_pool2d: _max_pool2d, torch.max_pool2d: _max_pool2d}
#: What CheapSecondDerivatives replaces, by the function that modules call.
_REPLACED: dict[Callable, Callable[..., Tensor | None]] = {
    torch.conv2d: conv2d,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    **_POOLING,
    **_FORMULAS,
}


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, scale = torch.native_batch_norm(x, w, b, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, w, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, scale = ctx.saved_tensors
        found = _BatchNormBackward.apply(g, x, w, mean, scale, ctx.eps, ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() and found[0] is not None:
            # Saved for this layer's own second derivative, which comes after that of the convolution before it.
            tensors = [t if t is None else t.detach() for t in (g, x, w, mean, scale)]
            setattr(found[0], MADE_OF, (found[0]._version, (*tensors, ctx.eps)))
        return *found, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """mean and scale (1 / standard deviation) are functions of x, and are differentiated as such."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        eps: float,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, w, mean, scale)
        ctx.set_materialize_grads(False)
        return batch_norm_gradients(g, x, w, mean, scale, eps, needs)

    @staticmethod
    def backward(
        ctx: FunctionCtx, ax: Tensor | None, aw: Tensor | None, ab: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """ax, aw, ab: adjoints of the gradients of input, weight and bias."""
        refuse_third_derivative()
        g, x, w, mean, scale = ctx.saved_tensors
        adjoint = torch.zeros_like(x) if ax is None else ax
        g_bar, x_bar, w_bar = batch_norm_double_backward(adjoint, g, x, w, mean, scale, aw, ab)
        return g_bar, x_bar, None if w is None else w_bar, None, None, None, None


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x.relu_() if inplace else x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        return _RectifierBackward.apply(g, *ctx.saved_tensors), None


class _RectifierBackward(torch.autograd.Function):
    """Linear in the output's gradient g; constant in the output y but for the kink."""

    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return torch.ops.aten.threshold_backward(g, y, 0)

    @staticmethod
    def backward(ctx: FunctionCtx, a: Tensor) -> tuple[Tensor, None]:
        refuse_third_derivative()
        return torch.ops.aten.threshold_backward(a, *ctx.saved_tensors, 0), None


class _MaxPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, windows: tuple) -> Tensor:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *windows)
        ctx.save_for_backward(x, small(indices, x.shape[2:].numel()))
        ctx.windows = windows
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        return _MaxPoolingBackward.apply(g, *ctx.saved_tensors, ctx.windows), None


class _MaxPoolingBackward(torch.autograd.Function):
    """Linear in the output's gradient g; of the input x only the size counts."""

    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, x: Tensor, indices: Tensor, windows: tuple) -> Tensor:
        ctx.save_for_backward(indices)
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *windows, indices.long())

    @staticmethod
    def backward(ctx: FunctionCtx, a: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_third_derivative()
        (indices,) = ctx.saved_tensors
        at_maxima = a.flatten(2).gather(2, indices.flatten(2).long()).view(indices.shape)
        return at_maxima, None, None, None


@functools.cache
def _has_cuda_kernel(device: torch.device) -> bool:
    if why_unavailable("cuda", device) is not None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("l2t_fast::batch_norm_double_backward", "CUDA")


def _has_kernel(input: Tensor) -> bool:
    """Whether the native operator takes maps like this one."""
    if input.device.type == "cuda":
        return input.dtype == torch.float32 and _has_cuda_kernel(input.device)
    known = input.dtype in (torch.float32, torch.float64)
    return input.device.type == "cpu" and known and _native.extension is not None


def batch_norm_double_backward(
    adjoint: Tensor,
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    weight_adjoint: Tensor | None,
    bias_adjoint: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Transpose of the backward of batch normalisation in training mode.

    Args:
        adjoint: of the input's gradient, (B, C, ...).
        gradient: of the output, (B, C, ...).
        input: (B, C, ...).
        weight: (C,), or None for 1.
        mean: (C,).
        scale: 1 / standard deviation, (C,).
        weight_adjoint: of the weight's gradient, (C,), or None for 0.
        bias_adjoint: of the bias's gradient, (C,), or None for 0.

    Returns:
        The adjoints of gradient, input and weight.
    """
    maps = (adjoint, gradient, input)
    channel_values = (weight, mean, scale, weight_adjoint, bias_adjoint)
    one_dtype = all(t is None or t.dtype == mean.dtype for t in (*maps, *channel_values))
    if one_dtype and _has_kernel(input):
        return torch.ops.l2t_fast.batch_norm_double_backward(*maps, *channel_values)

    # Of the statistics, which are float32 for half-precision maps, unless weight and bias are in half precision too.
    dtype = torch.promote_types(mean.dtype, torch.float32)
    dims = [0, *range(2, input.dim())]
    count = input.numel() // input.shape[1]

    def wide(values: Tensor) -> Tensor:
        return values.reshape(1, -1, *[1] * (input.dim() - 2))

    def channel(values: Tensor | None, default: float) -> Tensor:
        return torch.full_like(mean, default, dtype=dtype) if values is None else values.to(dtype)

    a, g = adjoint.to(dtype), gradient.to(dtype)
    xh = (input.to(dtype) - wide(mean)) * wide(scale)
    w, p, q = channel(weight, 1), channel(weight_adjoint, 0), channel(bias_adjoint, 0)
    u = w * scale
    mean_a, mean_g = a.mean(dims), g.mean(dims)
    mean_ax, mean_gx = (a * xh).mean(dims), (g * xh).mean(dims)
    r = (a * g).mean(dims) - mean_a * mean_g - mean_ax * mean_gx
    g_bar = a * wide(u) + xh * wide(p - u * mean_ax) + wide(q - u * mean_a)
    mean_k = p * mean_g - u * (mean_a * mean_gx + mean_g * mean_ax)
    mean_kx = p * mean_gx - 2 * u * mean_ax * mean_gx
    x_bar = (
        a * wide(-scale * u * mean_gx)
        + g * wide(scale * (p - u * mean_ax))
        - xh * wide(scale * (mean_kx + u * r))
        - wide(scale * mean_k)
    )
    return g_bar.to(gradient.dtype), x_bar.to(input.dtype), (count * r * scale).to(mean.dtype)
