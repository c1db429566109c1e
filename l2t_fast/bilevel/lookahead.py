"""SGD as a pure function and its transpose: what `torch.optim.SGD.step` does, without touching any state.

One step of one parameter, with the optimizer's settings of its group (torch.optim.SGD's own formulas)::

    d  = gradient + weight_decay * theta
    m' = momentum * m + (1 - dampening) * d          (m' = d on the very first step)
    u  = d + momentum * m'  if nesterov else  m'     (u = d without momentum)
    theta' = theta - lr * u

A parameter that the loss does not reach takes the step with gradient 0: weight decay and momentum still move it. That
is what the method's equations say and what the authors' code does on the PyTorch it was written for; a loop that sets
gradients to None would skip it.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Scale = float | Tensor
"""A number that the host knows, or one that only the device does: a tensor () that is never read here, so that a CUDA
graph takes its value at each replay."""


@dataclass(frozen=True)
class SGDSettings:
    """The numbers of `torch.optim.SGD` that one parameter is updated with."""

    lr: Scale
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool

    @classmethod
    def of_group(cls, group: dict) -> "SGDSettings":
        """From one of ``optimizer.param_groups``."""
        if group.get("maximize"):
            raise ValueError("the optimizer maximizes (maximize=True), but the look-ahead minimizes the matching loss")
        lr = group["lr"]
        beside_parameters = isinstance(lr, Tensor) and all(lr.device == p.device for p in group["params"])
        return cls(
            lr=lr.detach().reshape(()) if beside_parameters else float(lr),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
        )

    # Each is made once for all parameters of a group: on a device it is a kernel of its own.

    @functools.cached_property
    def _minus_lr(self) -> Scale:
        return -self.lr

    @functools.cached_property
    def _minus_first_lr(self) -> Scale:
        """Of a step without a momentum buffer."""
        return -(self.lr * (1 + self.momentum)) if self.nesterov else self._minus_lr

    @functools.cached_property
    def _minus_share(self) -> Scale:
        """What theta' moves by with m'."""
        return -(self.lr * self.momentum) if self.nesterov else self._minus_lr

    def step(self, theta: Tensor, gradient: Tensor, buffer: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One update; returns the new parameter and the new momentum buffer (None without momentum)."""
        decayed = gradient.add(theta, alpha=self.weight_decay) if self.weight_decay else gradient
        if not self.momentum:
            return _plus(theta, decayed, self._minus_lr), None
        fresh = buffer is None
        buffer = decayed if fresh else (buffer * self.momentum).add(decayed, alpha=1 - self.dampening)
        update = decayed.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        return _plus(theta, update, self._minus_lr), buffer

    @torch.no_grad()
    def step_(
        self, theta: Sequence[Tensor], gradients: Sequence[Tensor], buffers: Sequence[Tensor] | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        """`step` of several parameters, without a graph: as many kernels as for one.

        All of them have a momentum buffer, or none has (None). ``gradients`` is written over: the new
        buffers may lie in its memory.
        """
        if self.weight_decay:
            torch._foreach_add_(gradients, theta, alpha=self.weight_decay)
        if not self.momentum:
            return _all_plus(theta, gradients, self._minus_lr), None
        if buffers is None:
            return _all_plus(theta, gradients, self._minus_first_lr), gradients
        if self.nesterov:
            buffers = torch._foreach_mul(buffers, self.momentum)
            torch._foreach_add_(buffers, gradients, alpha=1 - self.dampening)
            torch._foreach_add_(gradients, buffers, alpha=self.momentum)
            return _all_plus(theta, gradients, self._minus_lr), buffers
        if self.dampening:
            torch._foreach_mul_(gradients, 1 - self.dampening)
        torch._foreach_add_(gradients, buffers, alpha=self.momentum)
        return _all_plus(theta, gradients, self._minus_lr), gradients

    @torch.no_grad()
    def transpose_(
        self, theta_bar: Sequence[Tensor], buffer_bar: Sequence[Tensor] | None, *, first: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None]:
        """The transposed `step_`: from the adjoints of (theta', m') to those of (gradient, theta, m).

        Args:
            theta_bar: adjoints of theta'. Their memory is reused.
            buffer_bar: adjoints of m', or None for zero. Their memory is reused.
            first: whether the step started without momentum buffers.

        Returns:
            The adjoints of the gradients; the part of theta's adjoints that does not go through the loss; and what
            `earlier_` makes the adjoints of m from, once the first are not needed any more (they may be the same).
        """
        if not self.momentum:
            gradient_bar, total = torch._foreach_mul(theta_bar, self._minus_lr), None
        else:
            share = self._minus_share
            if buffer_bar is None:
                total = torch._foreach_mul(theta_bar, share)
            else:
                total = _all_add_(buffer_bar, theta_bar, share)
            gradient_bar = total if first or not self.dampening else torch._foreach_mul(total, 1 - self.dampening)
            if self.nesterov:
                gradient_bar = _all_plus(gradient_bar, theta_bar, self._minus_lr)
        if self.weight_decay:
            torch._foreach_add_(theta_bar, gradient_bar, alpha=self.weight_decay)
        return gradient_bar, theta_bar, None if first else total

    @torch.no_grad()
    def earlier_(self, total: Sequence[Tensor]) -> None:
        """Make the adjoints of m from `transpose_`'s last result, in its memory."""
        torch._foreach_mul_(total, self.momentum)


def _plus(a: Tensor, b: Tensor, scale: Scale) -> Tensor:
    """a + scale * b, differentiable in a and b."""
    return torch.addcmul(a, b, scale) if isinstance(scale, Tensor) else torch.add(a, b, alpha=scale)


def _all_plus(a: Sequence[Tensor], b: Sequence[Tensor], scale: Scale) -> Sequence[Tensor]:
    """a + scale * b of every two, in new memory."""
    if not isinstance(scale, Tensor):
        return torch._foreach_add(a, b, alpha=scale)
    return _all_add_(torch._foreach_mul(b, scale), a, 1.0)


def _all_add_(a: Sequence[Tensor], b: Sequence[Tensor], scale: Scale) -> Sequence[Tensor]:
    """a + scale * b of every two, in a's memory."""
    if isinstance(scale, Tensor):
        torch._foreach_add_(a, torch._foreach_mul(b, scale))
    else:
        torch._foreach_add_(a, b, alpha=scale)
    return a


class RandomState:
    """The generators' state at one moment, so that a forward pass can be run again with the same dropout.

    Python's and NumPy's are among them: there are networks that drop whole layers by these. While a CUDA graph is
    captured, a moment is a place in what one replay draws: PyTorch counts from its beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Set the generators back to this moment."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
