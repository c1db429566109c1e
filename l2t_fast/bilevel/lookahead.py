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
from dataclasses import dataclass

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
        beside_parameters = isinstance(lr, Tensor) and lr.device == group["params"][0].device
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
    def step_(self, theta: Tensor, gradient: Tensor, buffer: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`step` without a graph and with one new tensor only, theta': ``gradient``'s memory becomes the buffer's."""
        decayed = gradient.add_(theta, alpha=self.weight_decay) if self.weight_decay else gradient
        if not self.momentum:
            return _plus(theta, decayed, self._minus_lr), None
        if buffer is None:
            return _plus(theta, decayed, self._minus_first_lr), decayed
        if self.nesterov:
            buffer = (buffer * self.momentum).add_(decayed, alpha=1 - self.dampening)
            return _plus(theta, decayed.add_(buffer, alpha=self.momentum), self._minus_lr), buffer
        buffer = decayed.mul_(1 - self.dampening).add_(buffer, alpha=self.momentum)
        return _plus(theta, buffer, self._minus_lr), buffer

    @torch.no_grad()
    def transpose_(
        self, theta_bar: Tensor, buffer_bar: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The transposed step: from the adjoints of (theta', m') to those of (gradient, theta, m).

        Args:
            theta_bar: adjoint of theta'. Its memory is reused.
            buffer_bar: adjoint of m', or None for zero. Its memory is reused.
            first: whether the step started without a momentum buffer.

        Returns:
            The adjoint of the gradient; the part of theta's adjoint that does not go through the loss; and what
            `earlier_` makes the adjoint of m from, once the first is not needed any more (they may be one tensor).
        """
        if not self.momentum:
            gradient_bar, total = theta_bar * self._minus_lr, None
        else:
            share = self._minus_share
            total = theta_bar * share if buffer_bar is None else _plus(buffer_bar, theta_bar, share, out=buffer_bar)
            gradient_bar = total if first or not self.dampening else total * (1 - self.dampening)
            if self.nesterov:
                gradient_bar = _plus(gradient_bar, theta_bar, self._minus_lr)
        direct = theta_bar.add_(gradient_bar, alpha=self.weight_decay) if self.weight_decay else theta_bar
        return gradient_bar, direct, None if first else total

    @torch.no_grad()
    def earlier_(self, total: Tensor | None) -> Tensor | None:
        """The adjoint of m, in the memory of `transpose_`'s last result (None for zero)."""
        return None if total is None else total.mul_(self.momentum)


def _plus(a: Tensor, b: Tensor, scale: Scale, *, out: Tensor | None = None) -> Tensor:
    """a + scale * b, differentiable in a and b; with ``out`` in that tensor's memory."""
    if isinstance(scale, Tensor):
        return torch.addcmul(a, b, scale, out=out)
    return torch.add(a, b, alpha=scale, out=out)


class RandomState:
    """The generators' state at one moment, so that a forward pass can be run again with the same dropout.

    While a CUDA graph is captured, a moment is a place in what one replay draws: PyTorch counts from its beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Set the generators back to this moment."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
