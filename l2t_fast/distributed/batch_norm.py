"""Batch normalisation by the statistics of all ranks' images, twice differentiable.

PyTorch's SyncBatchNorm has no second derivative and no CPU kernels. Here the sums over the map are made on each rank,
those of all channels are added up over the ranks in one small reduction, and the rest is affine in the map: one
reduction in the forward pass, one in the backward pass, one in each pass that differentiates them again.

The formulas are those of csrc/batch_norm.h with the means over all ranks' pixels. What belongs to a parameter (the
gradient of weight and bias, and its transpose) stays this rank's share, as for every other layer: the trainer sums the
gradients of all parameters at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from l2t_fast.distributed.group import Group


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.BatchNorm1d`, ``2d`` or ``3d`` on the images of all ranks; equal to it in eval mode.

    Running statistics take the unbiased variance of the joined batch, so they are the same on all ranks. The
    ``state_dict`` is that of the module it replaces, and so are its hooks and whatever else hangs on it.
    """

    def __init__(self, replaced: nn.modules.batchnorm._BatchNorm, group: Group) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(replaced))
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...); B is this rank's number of images and may be 0."""
        tracked = self.running_mean is not None
        if not self.training and tracked:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps, training=False
            )
        momentum = 0.0 if self.momentum is None else self.momentum
        running: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.training and tracked:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative mean
                momentum = 1.0 / float(self.num_batches_tracked)
            running = self.running_mean, self.running_var
        return _BatchNorm.apply(x, self.weight, self.bias, *running, momentum, self.eps, self.group)


class JointStatistics(TorchFunctionMode):
    """While active, `torch.nn.functional.batch_norm` in training mode takes the statistics of all ranks' images."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm:
            found = self._batch_norm(*args, **(kwargs or {}))
            if found is not None:
                return found
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if not training:
            return None
        return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, self._group)


class _Synchronized(nn.Module):
    """Goes before a module's class, and lets its forward pass run with joint statistics."""

    joint_group: Group

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with JointStatistics(self.joint_group):
            return super().forward(*args, **kwargs)


def synchronize_batch_norm(module: nn.Module, group: Group) -> nn.Module:
    """Let every batch normalisation inside `module` take the statistics of all ranks' images; returns the module.

    ``BatchNorm`` and ``SyncBatchNorm`` become `JointBatchNorm`; classes derived from them, modules with a forward of
    their own, and functions that call `torch.nn.functional.batch_norm`, are caught while the module runs. Parameters
    and buffers stay the same objects. Nothing changes for a process alone.
    """
    if group.size == 1 or isinstance(module, _Synchronized):
        return module
    _replace(module, group)
    module.__class__ = type(type(module).__name__, (_Synchronized, type(module)), {})
    module.joint_group = group
    return module


def _replace(module: nn.Module, group: Group) -> None:
    for name, child in module.named_children():
        own_forward = "forward" in vars(child) or child._compiled_call_impl is not None
        if type(child) in _PLAIN and not own_forward:
            setattr(module, name, JointBatchNorm(child, group))
        else:
            _replace(child, group)


#: What JointBatchNorm does the same as. Derived classes may do more.
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def ranks_of_statistics(module: nn.Module) -> int:
    """How many ranks' images the statistics of a module are of, as `synchronize_batch_norm` has made it."""
    return module.joint_group.size if isinstance(module, _Synchronized) else 1


def unsynchronized(module: nn.Module) -> str | None:
    """The first batch normalisation that takes the statistics of this rank's images alone; None if there is none."""
    if isinstance(module, _Synchronized):
        return None
    for name, child in module.named_modules():
        own = isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, JointBatchNorm)
        if own and (child.training or child.running_mean is None):
            return name or type(child).__name__
    return None


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
        group: Group,
    ) -> Tensor:
        mean, variance, count = _joint_moments(x, group)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, variance = mean.to(statistics), variance.to(statistics)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, w, mean, scale, count)
        ctx.group = group
        ctx.tangent_of = (x, w, mean, scale, count)
        return _affine(x, mean, scale, w, b)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, scale, count = ctx.saved_tensors
        found = _BatchNormBackward.apply(g, x, w, mean, scale, count, ctx.group, ctx.needs_input_grad[:3])
        return *found, None, None, None, None, None

    @staticmethod
    def jvp(ctx: FunctionCtx, x_t: Tensor, w_t: Tensor | None, b_t: Tensor | None, *_: Any) -> Tensor:
        x, w, mean, scale, count = ctx.tangent_of
        u = scale if w is None else w * scale
        total, product = _channel_sums(x_t, x, mean, scale)
        mean_t, mean_tx = _joint([total, product], ctx.group, count)
        # y' = u (x' - mean(x') - xh mean(x' xh)) + w' xh + b'
        xh_factor = -u * mean_tx if w_t is None else w_t - u * mean_tx
        shift = -u * mean_t if b_t is None else b_t - u * mean_t
        return _affine(x, mean, scale, xh_factor, shift).addcmul_(x_t, _wide(u, x))


class _BatchNormBackward(torch.autograd.Function):
    """mean and scale (1 / standard deviation) are functions of all ranks' x, and are differentiated as such."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
        group: Group,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        own_g, own_gx = _channel_sums(g, x, mean, scale)
        mean_g, mean_gx = _joint([own_g, own_gx], group, count)
        ctx.save_for_backward(g, x, w, mean, scale, count, own_g, own_gx, mean_g, mean_gx)
        ctx.group = group
        ctx.set_materialize_grads(False)
        gx = None
        if needs[0]:
            u = scale if w is None else w * scale
            gx = _affine(x, mean, scale, -u * mean_gx, -u * mean_g).addcmul_(g, _wide(u, x))
        return gx, own_gx.clone() if needs[1] else None, own_g.clone() if needs[2] else None

    @staticmethod
    def backward(
        ctx: FunctionCtx, ax: Tensor | None, aw: Tensor | None, ab: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """ax, aw, ab: adjoints of the gradients of input, weight and bias."""
        if torch.is_grad_enabled():
            raise NotImplementedError("no third derivative goes through batch normalisation over several ranks")
        g, x, w, mean, scale, count, own_g, own_gx, mean_g, mean_gx = ctx.saved_tensors
        a = torch.zeros_like(x) if ax is None else ax
        p = torch.zeros_like(mean) if aw is None else aw
        q = torch.zeros_like(mean) if ab is None else ab
        u = scale if w is None else w * scale
        own_a, own_ax = _channel_sums(a, x, mean, scale)
        own_ag = (a * g).sum(_all_but_channels(x)).to(mean.dtype)
        mean_a, mean_ax, mean_ag, mean_pg, mean_pgx = _joint(
            [own_a, own_ax, own_ag, p * own_g, p * own_gx], ctx.group, count
        )
        r = mean_ag - mean_a * mean_g - mean_ax * mean_gx
        g_bar = x_bar = w_bar = None
        if ctx.needs_input_grad[0]:
            g_bar = _affine(x, mean, scale, p - u * mean_ax, q - u * mean_a).addcmul_(a, _wide(u, x))
        if ctx.needs_input_grad[1]:
            mean_k = mean_pg - u * (mean_a * mean_gx + mean_g * mean_ax)
            mean_kx = mean_pgx - 2 * u * mean_ax * mean_gx
            x_bar = _affine(x, mean, scale, -scale * (mean_kx + u * r), -scale * mean_k)
            x_bar.addcmul_(a, _wide(-scale * u * mean_gx, x)).addcmul_(g, _wide(scale * (p - u * mean_ax), x))
        if w is not None and ctx.needs_input_grad[2]:
            w_bar = scale * (own_ag - own_a * mean_g - own_ax * mean_gx)
        return g_bar, x_bar, w_bar, None, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(C,) against (B, C, ...)."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, mean: Tensor, scale: Tensor, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    """(x - mean) scale factor + shift, in one pass over x and in its dtype."""
    ones = torch.ones_like(scale)
    # Eval mode's 1 / sqrt(variance + eps) is exactly 1 for a variance of 1 and an eps of 0, which F.batch_norm refuses
    # in PyTorch 2.11.
    return torch.batch_norm(
        x,
        scale if factor is None else factor * scale,
        shift,
        mean,
        ones,
        training=False,
        momentum=0.0,
        eps=0.0,
        cudnn_enabled=False,
    )


def _joint_moments(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values a channel () over all ranks, in float64."""
    channels = x.shape[1]
    own = x.numel() // channels
    sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if own:
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = (t.double() for t in torch.var_mean(wide, _all_but_channels(x), correction=0))
        sums[:channels] = own * mean
        # In float64 the two terms of a variance can be subtracted again.
        sums[channels:-1] = own * (variance + mean.square())
    sums[-1] = own
    group.sum_([sums])
    count = sums[-1]
    if own < 2 and int(count) < 2:
        raise ValueError(
            f"batch normalisation needs more than one value a channel to train, the input of all ranks has {int(count)}"
        )
    mean = sums[:channels] / count
    return mean, (sums[channels:-1] / count - mean.square()).clamp_(min=0), count


def _channel_sums(values: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (C,) over this rank's pixels of values and of values * (x - mean) * scale, in the statistics' dtype."""
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    # The gradients of bias and weight, by PyTorch's kernel: one pass.
    _, product, total = torch.ops.aten.native_batch_norm_backward(
        values, x, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return total, product


def _joint(sums: list[Tensor], group: Group, count: Tensor) -> list[Tensor]:
    """Means over all ranks' pixels from this rank's sums: one reduction."""
    joined = torch.stack(sums)
    group.sum_([joined])
    return list(joined / count.to(joined.dtype))
